"""Read every file of a warehouse's artefacts, and compare it with what was committed."""

from __future__ import annotations

from lookalike import artifacts
from lookalike.errors import ArtifactError
from lookalike.index.build import VERSION
from lookalike.index.reading import parts_of
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
        for kind, root in context.kept
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
                parts_of(context.indexes, artifact)
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


def _sealed(uri: str) -> bool:
    inner, path = artifacts.filesystem(uri)
    found = inner.get_file_info(f"{path}/{artifacts.MANIFEST}")
    return bool(found.type.name == "File")
