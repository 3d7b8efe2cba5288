"""Read every file of a warehouse's artefacts, and compare it with what was committed."""

from __future__ import annotations

from collections.abc import Iterator

from lookalike import artifacts, encoder
from lookalike.artifacts import Artifact
from lookalike.errors import ArtifactError
from lookalike.index.build import PART, VERSION, digest
from lookalike.steps.context import Context, Result

STEP = "check"


class Checked(Result):
    """What was found.

    Attributes:
        artefacts: that were read whole.
        files: of them.
        size: of these, in bytes.
        damaged: which file is not as it was committed, and how.
        unfinished: folders without a manifest: what a killed step left, or one that has lost it.
    """

    artefacts: int
    files: int
    size: int
    damaged: tuple[str, ...]
    unfinished: tuple[str, ...]

    @property
    def words(self) -> str:
        found = f"{len(self.damaged):,} damaged" if self.damaged else "all as committed"
        return (
            f"{self.artefacts:,} artefacts, {self.files:,} files, {self.size:,} bytes: {found}; "
            f"{len(self.unfinished):,} folders without a manifest"
        )


def run(context: Context) -> Checked:
    """Check all artefacts below the warehouse's files."""
    damaged: list[str] = []
    places = [
        (kind, artifacts.join(root, str(info.base_name)))
        for kind, root in _roots(context)
        for info in artifacts.children(root)
    ]
    unfinished = tuple(uri for _, uri in places if not _sealed(uri))
    places = [(kind, uri) for kind, uri in places if uri not in unfinished]
    files = size = 0
    for done, (kind, uri) in enumerate(places, start=1):
        try:
            artifact = artifacts.open_artifact(uri, kind)
            files += len(artifact.manifest.files)
            size += sum(entry.size for entry in artifact.manifest.files)
            artifacts.verify(artifact)
            if kind == VERSION:
                _verify_parts(context, artifact)
        except ArtifactError as error:
            damaged.append(str(error))
        context.progress(done, len(places))
    return Checked(
        artefacts=len(places),
        files=files,
        size=size,
        damaged=tuple(damaged),
        unfinished=unfinished,
    )


def _roots(context: Context) -> Iterator[tuple[str, str]]:
    yield "snapshot", artifacts.join(context.files, "snapshots")
    yield encoder.KIND, context.encoders
    yield PART, artifacts.join(context.indexes, "parts")
    yield VERSION, artifacts.join(context.indexes, "versions")
    yield "report", context.reports
    yield "inspection", context.inspections


def _sealed(uri: str) -> bool:
    inner, path = artifacts.filesystem(uri)
    found = inner.get_file_info(f"{path}/{artifacts.MANIFEST}")
    return bool(found.type.name == "File")


def _verify_parts(context: Context, version: Artifact) -> None:
    """Whether the parts of an index version are those that it was made of."""
    digests = version.meta.get("digests")  # format 1 has none
    for name, known in zip(version.meta["parts"], digests or [], strict=False):
        uri = artifacts.join(context.indexes, "parts", name)
        if digest(artifacts.open_artifact(uri, PART)) != known:
            raise ArtifactError(
                f"{uri}/{artifacts.MANIFEST} is not that of the part that index version "
                f"{version.name} was made of",
                remedy="Run `lookalike index` again",
            )
