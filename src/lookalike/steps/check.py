"""Read every file of a warehouse's artefacts and releases, and compare it with what was
committed."""

from __future__ import annotations

from collections.abc import Iterator

from mlflow.exceptions import MlflowException

from lookalike import artifacts
from lookalike.errors import ConfigError, LookalikeError
from lookalike.index.build import VERSION
from lookalike.index.reading import parts_of
from lookalike.retention import names_in
from lookalike.steps import tune
from lookalike.steps.context import Context, Result

STEP = "check"


class Checked(Result):
    """What was found.

    Attributes:
        artefacts: that were read whole.
        files: of them.
        size: of these, in bytes.
        damaged: which file is not as it was committed, and how.
        unfinished: folders without a manifest that no newest commit names: what a killed step left.
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
    """Check all artefacts below the warehouse's files, and the releases that MLflow keeps."""
    from lookalike.serving import registry, release

    damaged: list[str] = []
    places = list(_places(context))
    unfinished = [uri for _, uri in places if not _sealed(uri)]
    places = [(kind, uri) for kind, uri in places if uri not in unfinished]
    files = size = 0

    def look(artifact: artifacts.Artifact) -> None:
        nonlocal files, size
        files += len(artifact.manifest.files)
        size += sum(entry.size for entry in artifact.manifest.files)
        artifacts.verify(artifact)
        if artifact.manifest.kind == VERSION:
            parts_of(context.indexes, artifact)

    for done, (kind, uri) in enumerate(places, start=1):
        try:
            look(artifacts.open_artifact(uri, kind))
        except LookalikeError as error:
            damaged.append(str(error))
        except OSError as error:  # more may be
            damaged.append(f"{uri} could not be read: {error}")
        context.progress(done, len(places))
    name = context.config.model_name
    try:
        releases = registry.versions(context.tracking, name)
    except (MlflowException, ConfigError) as error:
        releases = []
        context.say(f"MLflow's releases could not be read: {error}")
    for done, version in enumerate(releases, start=1):
        try:
            with artifacts.workbench() as folder:
                look(release.stored(context.tracking, name, version.number, folder))
        except (LookalikeError, OSError) as error:
            damaged.append(f"{version}: {error}")
        context.progress(len(places) + done, len(places) + len(releases))
    for uri in _lost(context, unfinished):
        unfinished.remove(uri)
        damaged.append(
            f"the artefact {uri} is damaged: {artifacts.MANIFEST} is missing. Run the step that "
            "makes it again."
        )
    return Checked(
        artefacts=len(places) + len(releases),
        files=files,
        size=size,
        damaged=tuple(damaged),
        unfinished=tuple(unfinished),
    )


def _places(context: Context) -> Iterator[tuple[str, str]]:
    """Kind and URI of what should be an artefact."""
    from lookalike.model import checkpoints

    def below(*parts: str) -> Iterator[str]:
        root = artifacts.join(*parts)
        return (artifacts.join(root, str(info.base_name)) for info in artifacts.children(root))

    for kind, root in context.kept:
        yield from ((kind, uri) for uri in below(root))
    for name in below(context.searches):
        for search in below(name):
            yield tune.SEARCH, search
            yield from ((tune.TRIAL, uri) for uri in below(search, "trials"))
    for training in below(context.checkpoints):
        yield from ((checkpoints.KIND, uri) for uri in below(training))


def _lost(context: Context, unfinished: list[str]) -> list[str]:
    """Those folders without a manifest that the newest commits name."""
    if not unfinished:
        return []
    from lookalike.lake.retention import newest_commits

    try:
        made = [[commit.inputs, commit.outputs] for commit in newest_commits(context.tables)]
    except Exception as error:  # whatever keeps Spark from it: files were read
        context.say(f"The ledger could not be read: {error}")
        return []
    names = {name for name in names_in(made) if artifacts.made_at(name) is not None}
    return [uri for uri in unfinished if uri.rsplit("/", 1)[-1] in names]


def _sealed(uri: str) -> bool:
    inner, path = artifacts.filesystem(uri)
    found = inner.get_file_info(f"{path}/{artifacts.MANIFEST}")
    return bool(found.type.name == "File")
