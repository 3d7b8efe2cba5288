"""A release: encoder and index version in one folder, one manifest, one MLflow model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import mlflow
import pyarrow as pa
from mlflow.exceptions import MlflowException

from lookalike import artifacts, encoder
from lookalike.encoder import Encoder
from lookalike.errors import ArtifactError, DataError
from lookalike.index import Index
from lookalike.index.build import PART, VERSION
from lookalike.serving import thumbnails
from lookalike.serving.contract import Limits, signature
from lookalike.serving.thumbnails import Thumbnails
from lookalike.tracking import CHAMPION, PREVIOUS, Run, Tracking

KIND = "release"
REQUIREMENTS: Final = (
    "mlflow",
    "onnxruntime",
    "faiss-cpu",
    "pyarrow",
    "pillow",
    "simplejpeg",
    "numpy",
)
"""What a release runs on, each pinned to the version that it was made with."""

_NOT_THERE: Final = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")

_CODE: Final = (
    "__init__.py",
    "artifacts.py",
    "columns.py",
    "encoder.py",
    "errors.py",
    "images.py",
    "index",
    "metrics.py",
    "serving",
    "tracking.py",
)


@dataclass(frozen=True)
class Release:
    """An opened release: parts that belong together.

    Attributes:
        encoder, index: its parts.
        thumbnails: of its items; None where it carries none.
        limits: of a request.
        meta: what its manifest says.
    """

    encoder: Encoder
    index: Index
    thumbnails: Thumbnails | None
    limits: Limits
    meta: dict[str, Any]

    @classmethod
    def open(cls, folder: Path, threads: int | None = None) -> Release:
        """Open a release.

        Args:
            folder: of the release.
            threads: that a search takes; None for as many as faiss takes.

        Raises:
            ArtifactError: missing, damaged, or of parts that do not belong together.
        """
        meta = artifacts.open_artifact(str(folder), KIND).meta
        pictures = folder / thumbnails.FILE
        opened = cls(
            Encoder.open(str(folder / "encoder")),
            Index.open(str(folder / "index"), meta["index"], threads),
            Thumbnails(pictures) if pictures.exists() else None,
            Limits(**meta.get("limits", {})),  # the first releases had those of their code
            meta,
        )
        if not opened.encoder.fingerprint == opened.index.encoder == meta["encoder"]:
            raise ArtifactError(
                f"the release {folder} holds encoder {opened.encoder.fingerprint[:12]} and an "
                f"index of encoder {opened.index.encoder[:12]}; its manifest says "
                f"{meta['encoder'][:12]}",
                remedy="These parts do not belong together: run `lookalike release` again",
            )
        return opened

    @property
    def about(self) -> dict[str, Any]:
        """What it is made of: fingerprint, versions, count of items; JSON values."""
        return {
            "encoder": self.encoder.fingerprint,
            "index": self.meta["index"],
            "items_version": self.index.meta.get("items_version"),
            "items": len(self.index),
            "lookalike": self.meta.get("lookalike"),
        }


def assemble(
    folder: Path,
    encoder_uri: str,
    indexes: str,
    version_name: str,
    made_from: Any,
    limits: Limits = Limits(),  # noqa: B008  frozen
    pictures: Iterable[pa.RecordBatch] | None = None,
) -> Path:
    """Lay a release's parts into a local folder, the manifest last.

    Args:
        folder: empty.
        encoder_uri: a committed encoder.
        indexes: folder or URI of all index parts and versions.
        version_name: of the index version.
        made_from: versions, config and figures; JSON values.
        limits: of a request.
        pictures: see `thumbnails.write`; None for a release without any.

    Raises:
        ArtifactError: a part is missing or damaged, or they do not belong together.
    """
    parts = [(encoder_uri, encoder.KIND, "encoder")]
    index_uri = artifacts.join(indexes, "versions", version_name)
    index = artifacts.open_artifact(index_uri, VERSION)
    parts.append((index_uri, VERSION, f"index/versions/{version_name}"))
    parts += [
        (artifacts.join(indexes, "parts", name), PART, f"index/parts/{name}")
        for name in index.meta["parts"]
    ]
    for uri, kind, target in parts:
        artifact = artifacts.open_artifact(uri, kind)
        artifacts.verify(artifact)
        with artifacts.workbench() as fetched:
            source = artifacts.fetch(artifact, fetched)
            # What another training would start from serves nobody.
            files = [e for e in artifact.manifest.files if e.path != encoder.WEIGHTS]
            for entry in files:
                (folder / target / entry.path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / entry.path, folder / target / entry.path)
            served = replace(artifact.manifest, files=tuple(files))
            (folder / target).mkdir(parents=True, exist_ok=True)
            (folder / target / artifacts.MANIFEST).write_text(served.to_json(), encoding="utf-8")
    meta = {
        "encoder": index.meta["encoder"],
        "index": version_name,
        "count": index.meta["count"],
        "made_from": made_from,
        "limits": asdict(limits),
        "lookalike": version("lookalike"),
        "packages": {package: version(package) for package in REQUIREMENTS},
    }
    if pictures is not None:
        thumbnails.write(folder, pictures)
    artifacts.seal(str(folder), KIND, meta, tuple(artifacts.describe(folder)))
    Release.open(folder)
    return folder


def log(run: Run, folder: Path, name: str, tags: dict[str, str]) -> int:
    """Log a release as a model of the run, and register it.

    Args:
        run: that the model belongs to.
        folder: an assembled release.
        name: of the registered model.
        tags: of the version.

    Returns:
        The registered version's number.
    """
    # MLflow would take the lock file of whatever folder this runs in for the model's.
    os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")
    with run.tracking.connected():
        with artifacts.workbench() as workbench, mlflow.start_run(run_id=run.run_id):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).with_name("model.py")),
                artifacts={KIND: str(folder)},
                code_paths=[str(_code(workbench))],
                signature=signature(),
                pip_requirements=_requirements(folder),
            )
        registered = mlflow.register_model(logged.model_uri, name, tags=tags)
    return int(registered.version)


def point(tracking: Tracking, name: str, numbers: Sequence[int]) -> None:
    """Point the aliases: `champion` to the first version, `previous` to the next other one.

    Args:
        tracking: whose registry.
        name: of the registered model.
        numbers: of versions that were the champion, the newest first; at least one.
    """
    # The champion last: killed in between, `previous` is what is the champion still.
    for number in numbers:
        if number != numbers[0] and _pointed(tracking, name, PREVIOUS, number):
            break
    if not _pointed(tracking, name, CHAMPION, numbers[0]):
        raise ArtifactError(
            f"the registry has no version {numbers[0]} of {name}, which is the champion by the "
            "ledger",
            remedy="Promote one that `lookalike releases` shows as registered",
        )


def _pointed(tracking: Tracking, name: str, alias: str, number: int) -> bool:
    """Point an alias to a version that is there; whether it is."""
    client = tracking.client
    try:
        found = client.get_model_version(name, str(number))
        # Not set anew where it is: registries tell of each change.
        if alias not in found.aliases:
            client.set_registered_model_alias(name, alias, str(number))
    except MlflowException as error:
        if error.error_code in _NOT_THERE:
            return False
        raise
    return True


def champion(tracking: Tracking, name: str) -> Any | None:
    """The registered version that alias `champion` points to, or None."""
    try:
        return tracking.client.get_model_version_by_alias(name, CHAMPION)
    except MlflowException as error:
        if error.error_code in _NOT_THERE:  # a server that does not answer is another thing
            return None
        raise


def stored(tracking: Tracking, name: str, number: int, folder: Path) -> artifacts.Artifact:
    """The release inside a registered version.

    Args:
        tracking: whose registry.
        name, number: of the model and its version.
        folder: where its files go if they are not on this machine.

    Raises:
        ArtifactError: its files are not there, or are no release.
    """
    uri = f"models:/{name}/{number}"
    try:
        with tracking.connected():
            local = mlflow.artifacts.download_artifacts(uri, dst_path=str(folder))
    except (MlflowException, OSError) as error:
        raise ArtifactError(
            f"{uri} cannot be read ({str(error).splitlines()[0][:200]})",
            remedy="Promote another one, and run `lookalike release` again",
        ) from error
    return artifacts.open_artifact(str(Path(local) / "artifacts" / KIND), KIND)


def need_champion(tracking: Tracking, name: str) -> Any:
    """As `champion`.

    Raises:
        DataError: there is none.
    """
    if (found := champion(tracking, name)) is None:
        raise DataError(
            f"the model {name!r} has no champion yet",
            remedy="Run `lookalike run` first, with the same recipe",
        )
    return found


def load_champion(tracking: Tracking, name: str) -> Any:
    """The champion as an MLflow pyfunc, in this process.

    Raises:
        DataError: there is none.
    """
    number = need_champion(tracking, name).version
    with tracking.connected():
        return mlflow.pyfunc.load_model(f"models:/{name}/{number}")


def _requirements(folder: Path) -> list[str]:
    name = artifacts.open_artifact(str(folder), KIND).meta["index"]
    index = artifacts.open_artifact(str(folder / "index" / "versions" / name), VERSION)
    tree = index.meta["plan"]["kind"] == "kd_tree"
    packages = [*REQUIREMENTS, *(["scikit-learn"] if tree else [])]
    return [f"{package}=={version(package)}" for package in packages]


def _code(folder: Path) -> Path:
    # What serves, and nothing that trains: so a release cannot come to need it.
    package = Path(encoder.__file__).parent
    target = folder / package.name
    target.mkdir()
    for name in _CODE:
        source = package / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(source, target / name, ignore=ignored)
        else:
            shutil.copyfile(source, target / name)
    return target
