"""Artefacts: versioned folders that either are whole or are not there.

An artefact is built aside on the local disk, copied to a NEW folder and becomes one by its
`manifest.json`, which is written last and holds a sha256 of each file, and of itself. Nothing is
renamed and nothing overwritten, so this holds on object stores too. A folder without a manifest is
what a killed step left behind; nobody reads it.
"""

from __future__ import annotations

import fcntl
import glob
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from uuid import uuid4

import pyarrow as pa
from pyarrow import fs as arrow_fs

from lookalike.errors import ArtifactError, ConfigError, DamagedError, LookalikeError

FORMAT = 2
READABLE = (1, 2)
"""Manifests of format 1 do not hold their own hash; an index of it has no tombstones."""
MANIFEST = "manifest.json"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")


@dataclass(frozen=True)
class FileEntry:
    """A file of an artefact: path inside it, size in bytes, hexadecimal sha256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What an artefact is and was made from.

    Attributes:
        kind: 'snapshot', 'search', 'trial', 'checkpoint', 'encoder', 'index-part', 'index',
            'report', 'inspection' or 'release'.
        meta: what it is and was made from; JSON values.
        files: its files, the manifest aside.
    """

    kind: str
    meta: dict[str, Any]
    files: tuple[FileEntry, ...]
    created_at: str
    format: int = FORMAT

    def to_json(self) -> str:
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.format > 1:
            content["sha256"] = fingerprint(content)
        return json.dumps(content, indent=1, sort_keys=True)


@dataclass(frozen=True)
class Artifact:
    """A committed artefact: its folder or URI, and its manifest."""

    uri: str
    manifest: Manifest

    @property
    def meta(self) -> dict[str, Any]:
        return self.manifest.meta

    @property
    def name(self) -> str:
        return self.uri.rstrip("/").rsplit("/", 1)[-1]


def join(root: str, *parts: str) -> str:
    """Path below a folder or URI."""
    return "/".join([root.rstrip("/"), *parts])


def filesystem(uri: str) -> tuple[arrow_fs.FileSystem, str]:
    """The file system and the path in it that a folder or URI means.

    Raises:
        ConfigError: a scheme that this machine has no file system for.
    """
    if (local := local_path(uri)) is not None:
        return arrow_fs.LocalFileSystem(), str(local)
    with suppress(pa.ArrowInvalid, OSError):
        return arrow_fs.FileSystem.from_uri(uri)
    try:  # abfss://, dbfs:/ and others come by fsspec where its package is installed
        import fsspec

        inner, path = fsspec.core.url_to_fs(uri)
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(inner)), path
    except (ImportError, ValueError, OSError) as error:
        raise ConfigError(
            f"no file system for {uri!r} ({error})",
            allowed="a folder, a mounted volume, s3://, gs://, hdfs://, or what fsspec knows",
            remedy="Install the fsspec package of that scheme",
        ) from error


def local_path(uri: str) -> Path | None:
    """The local folder that a path or a file: URI means, or None where it is remote."""
    if uri.startswith("file:"):
        return Path(unquote(urlsplit(uri).path))
    return None if _SCHEME.match(uri) else Path(uri).absolute()


def plain_uri(uri: str) -> str:
    """As a URI for Hadoop, which takes what a file: URI says letter by letter."""
    local = local_path(uri)
    if local is None:
        return uri
    if local.parts[1:2] == ("Volumes",) and "DATABRICKS_RUNTIME_VERSION" in os.environ:
        return f"dbfs:{local}"  # Spark has a file system of its own for volumes
    return f"file://{local}"


def new_name() -> str:
    """A folder name nobody has used: UTC time, then 8 random digits. Sorts by time."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid4().hex[:8]}"


def made_at(name: str) -> datetime | None:
    """When a name that `new_name` gave was given, or None where it is another's."""
    try:
        return datetime.strptime(name[:15], "%Y%m%dT%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None


@contextmanager
def workbench() -> Iterator[Path]:
    """An empty local folder to build in; gone afterwards, and those that killed processes left."""
    root = Path(tempfile.gettempdir())
    # Where machines share it: a lock is known on its own machine alone.
    prefix = f"lookalike-{socket.gethostname()}-"
    _sweep(root, prefix)
    folder = Path(tempfile.mkdtemp(prefix=f".{prefix}"))  # others see it once it is locked
    with _locked(folder):
        folder = folder.rename(root / folder.name[1:])
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@lru_cache
def _sweep(root: Path, prefix: str) -> None:
    """Remove folders that nobody holds any more; once a process."""
    for left in root.glob(f"{glob.escape(prefix)}*"):
        with suppress(OSError), _locked(left):
            shutil.rmtree(left)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold a folder's lock, which a process loses in whatever way it ends.

    Raises:
        OSError: another process holds it.
    """
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def commit(root: str, kind: str, built: Path, meta: Mapping[str, Any]) -> Artifact:
    """Copy a built folder to a new artefact below `root`; the manifest goes last.

    Args:
        root: folder or URI of all artefacts of this kind.
        kind: see `Manifest`.
        built: local folder that holds the artefact's files.
        meta: see `Manifest`.
    """
    uri = join(root, new_name())
    files = tuple(describe(built))
    for entry in files:
        copy_in(built / entry.path, join(uri, entry.path))
    return seal(uri, kind, meta, files)


def seal(uri: str, kind: str, meta: Mapping[str, Any], files: tuple[FileEntry, ...]) -> Artifact:
    """Make an artefact of files that lie in a new folder already, by writing its manifest."""
    manifest = Manifest(kind, dict(meta), files, datetime.now(UTC).isoformat(timespec="seconds"))
    inner, path = filesystem(uri)
    inner.create_dir(path, recursive=True)
    with inner.open_output_stream(f"{path}/{MANIFEST}") as stream:
        stream.write(manifest.to_json().encode())
    return Artifact(uri, manifest)


def copy_in(source: Path, uri: str) -> None:
    """Copy a local file to a new path."""
    inner, path = filesystem(uri)
    inner.create_dir(path.rsplit("/", 1)[0], recursive=True)
    arrow_fs.copy_files(
        str(source.absolute()),
        path,
        source_filesystem=arrow_fs.LocalFileSystem(),
        destination_filesystem=inner,
        use_threads=False,
    )


def describe(folder: Path) -> Iterator[FileEntry]:
    """Entries of all files below a local folder, by path."""
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        yield entry_of(path, path.relative_to(folder).as_posix())


def entry_of(path: Path, name: str) -> FileEntry:
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    return FileEntry(name, path.stat().st_size, digest)


def open_artifact(uri: str, kind: str) -> Artifact:
    """Open an artefact: what is cheap is checked, the manifest and the size of each file.

    Raises:
        ArtifactError: not there, of another kind or an unknown format, or a file that is missing
            or of another size.
        LookalikeError: it cannot be read, which says nothing of what it is.
    """
    manifest = _read_manifest(uri, kind)
    inner, path = filesystem(uri)
    for entry, info in zip(
        manifest.files,
        inner.get_file_info([f"{path}/{entry.path}" for entry in manifest.files]),
        strict=True,
    ):
        if info.type != arrow_fs.FileType.File:
            raise _damaged(uri, f"{entry.path} is missing")
        if info.size != entry.size:
            raise _damaged(uri, f"{entry.path} has {info.size:,} bytes, not {entry.size:,}")
    return Artifact(uri, manifest)


def verify(artifact: Artifact, uris: Collection[str] | None = None) -> None:
    """Read every file, or those at some URIs, and compare its sha256.

    Raises:
        ArtifactError: naming the first file that is missing or not what was committed.
        OSError: a file that cannot be read, which says nothing of what it is.
    """
    inner, path = filesystem(artifact.uri)
    for entry in artifact.manifest.files:
        if uris is not None and join(artifact.uri, entry.path) not in uris:
            continue
        digest = hashlib.sha256()
        try:
            with inner.open_input_stream(f"{path}/{entry.path}") as stream:
                while block := stream.read(2**20):
                    digest.update(block)
        except FileNotFoundError:
            raise _damaged(artifact.uri, f"{entry.path} is missing") from None
        if digest.hexdigest() != entry.sha256:
            raise _damaged(artifact.uri, f"{entry.path} is not the file that was committed")


def exists(uri: str, kind: str) -> bool:
    """Whether a whole artefact of this kind is there.

    Raises:
        LookalikeError: it cannot be read. To make it again would be hours of work for a bad moment.
    """
    try:
        open_artifact(uri, kind)
    except ArtifactError:
        return False
    return True


def survey(root: str, kind: str) -> Iterator[tuple[str, Manifest | None]]:
    """Folders right below a root, each with its manifest.

    None stands for what a killed step left behind: no manifest, or one that breaks off.

    Raises:
        ArtifactError: an artefact of an unknown format, or of another kind.
    """
    for uri in folders(root):
        yield uri, manifest_at(uri, kind)


def manifest_at(uri: str, kind: str) -> Manifest | None:
    """The manifest of a folder; None where a killed step left none, or one that breaks off.

    Raises:
        DamagedError: it is not the one that was committed.
        ArtifactError: of an unknown format, or of another kind.
        OSError: it cannot be read.
    """
    try:
        raw = _raw(uri)
    except (FileNotFoundError, ValueError):
        return None
    return _interpreted(uri, kind, raw)


def folders(root: str) -> Iterator[str]:
    """URIs of the folders right below a root, by name."""
    for info in children(root):
        if info.type == arrow_fs.FileType.Directory:
            yield join(root, info.base_name)


def children(root: str) -> list[arrow_fs.FileInfo]:
    """What lies right below a folder, by name; nothing where there is no such folder."""
    inner, path = filesystem(root)
    found = inner.get_file_info(arrow_fs.FileSelector(path, allow_not_found=True))
    return sorted(found, key=lambda info: str(info.base_name))


def footprint(uri: str) -> tuple[int, datetime | None]:
    """Bytes of all files of a folder, or of a file, and when the newest was written (UTC)."""
    inner, path = filesystem(uri)
    infos = [inner.get_file_info(path)]
    if infos[0].type == arrow_fs.FileType.Directory:
        selector = arrow_fs.FileSelector(path, allow_not_found=True, recursive=True)
        infos += inner.get_file_info(selector)
    files = [info for info in infos if info.type == arrow_fs.FileType.File]
    times = [info.mtime for info in (files or infos) if info.mtime is not None]
    return sum(info.size for info in files), max(times, default=None)


def remove(uri: str) -> None:
    """Remove an artefact, or what is left of one.

    Its manifest goes first: killed in between, this leaves a folder that nobody reads.
    """
    inner, path = filesystem(uri)
    for part in (f"{path}/{MANIFEST}", path):
        match inner.get_file_info(part).type:
            case arrow_fs.FileType.File:
                inner.delete_file(part)
            case arrow_fs.FileType.Directory:
                inner.delete_dir(part)


def fetch(artifact: Artifact, folder: Path) -> Path:
    """Local folder with the artefact's files: its own, else a copy of a remote one."""
    if (own := local_path(artifact.uri)) is not None:
        return own
    target = folder / artifact.name
    inner, path = filesystem(artifact.uri)
    for name in [*(entry.path for entry in artifact.manifest.files), MANIFEST]:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        arrow_fs.copy_files(
            f"{path}/{name}",
            str(target / name),
            source_filesystem=inner,
            destination_filesystem=arrow_fs.LocalFileSystem(),
        )
    return target


def fingerprint(value: Any) -> str:
    """sha256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _raw(uri: str) -> Any:
    inner, path = filesystem(uri)
    with inner.open_input_stream(f"{path}/{MANIFEST}") as stream:
        return json.loads(stream.read())


def _read_manifest(uri: str, kind: str) -> Manifest:
    try:
        raw = _raw(uri)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtifactError(
            f"there is no {kind} at {uri}: it has no {MANIFEST}",
            remedy="Run the step that makes it again",
        ) from None
    except OSError as error:  # says nothing of what it is
        raise LookalikeError(
            f"{MANIFEST} of the {kind} at {uri} cannot be read ({error})",
            remedy="Run this again once it can",
        ) from error
    except ValueError as error:
        raise _damaged(uri, f"{MANIFEST} cannot be read ({error})") from error
    return _interpreted(uri, kind, raw)


def _interpreted(uri: str, kind: str, raw: Any) -> Manifest:
    if not isinstance(raw, dict) or raw.get("format") not in READABLE:
        found = raw.get("format") if isinstance(raw, dict) else None
        raise ArtifactError(
            f"{uri} has format {found!r}",
            allowed=f"format {' or '.join(map(str, READABLE))}",
            remedy="Open it with the version of lookalike that wrote it",
        )
    if raw["format"] > 1 or "sha256" in raw:
        content = {name: value for name, value in raw.items() if name != "sha256"}
        if raw.get("sha256") != fingerprint(content):
            raise _damaged(uri, f"{MANIFEST} is not the one that was committed")
    if raw.get("kind") != kind:
        raise ArtifactError(f"{uri} is a {raw.get('kind')!r}", allowed=f"a {kind!r}")
    try:
        files = tuple(FileEntry(**entry) for entry in raw["files"])
        return Manifest(kind, raw["meta"], files, raw["created_at"], raw["format"])
    except (KeyError, TypeError) as error:
        raise _damaged(uri, f"{MANIFEST} lacks {error}") from error


def _damaged(uri: str, what: str) -> DamagedError:
    return DamagedError(
        f"the artefact {uri} is damaged: {what}",
        remedy="Remove it, and run the step that makes it again",
    )
