"""Blocks of packs, read by Petastorm in the order asked for."""

from __future__ import annotations

import sqlite3
import warnings
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from lookalike import artifacts
from lookalike.errors import ConfigError, LookalikeError

_SHARDS = 6
"""Databases that Petastorm's cache is split into, each of which must hold 5 blocks."""


@dataclass(frozen=True)
class Cache:
    """Petastorm's cache on a local disk.

    Attributes:
        folder: where it lies; it stays when a reader is closed, for the next epoch.
        size: bytes that it is kept to, but for some 30 MiB of its own notes.
        block: bytes of the largest block.
    """

    folder: Path
    size: int
    block: int

    def open(self) -> Any:
        """Petastorm's own.

        Raises:
            ConfigError: too small to hold any blocks.
        """
        from petastorm.local_disk_cache import LocalDiskCache

        if self.size < (least := 5 * _SHARDS * self.block):
            raise ConfigError(
                f"train.cache_mb is {self.size / 2**20:.0f}, and the blocks of the snapshot have "
                f"up to {self.block / 2**20:.1f} MiB",
                allowed=f"{-(-least // 2**20)} or more",
                remedy="Raise train.cache_mb",
            )
        # Left alone it throws out ten blocks at a time: of a small cache all that it holds.
        settings = {"cleanup": False, "cull_limit": 2}
        return LocalDiskCache(str(self.folder), self.size, self.block, _SHARDS, **settings)


def read(uris: Sequence[str], columns: Sequence[str], cache: Cache | None = None) -> Iterator[Any]:
    """Rows of one Parquet file after another, each of one row group, as arrays by column.

    Raises:
        OSError, pyarrow.ArrowException: a file that is missing or no Parquet file.
        ConfigError: see `Cache`.
        LookalikeError: the cache cannot be used.
    """
    if cache is None:
        yield from _rows(uris, columns)
        return
    try:
        opened = cache.open()
        for uri in uris:  # a reader of Petastorm's asks for the file even where it has the block
            yield opened.get(" ".join([uri, *columns]), partial(_block, uri, columns))
    except sqlite3.Error as error:  # its notes are kept so; what it caches is in files
        raise LookalikeError(
            f"the cache of blocks in {cache.folder} cannot be used ({error})",
            remedy="Make room there, or name another folder in TMPDIR",
        ) from error


def _block(uri: str, columns: Sequence[str]) -> SimpleNamespace:
    with closing(_rows([uri], columns)) as rows:
        return SimpleNamespace(**next(rows)._asdict())


def _rows(uris: Sequence[str], columns: Sequence[str]) -> Generator[Any, None, None]:
    with _hushed():
        from petastorm.arrow_reader_worker import ArrowReaderWorker
        from petastorm.reader import Reader
        from petastorm.workers_pool.dummy_pool import DummyPool

        paths = [artifacts.filesystem(uri)[1] for uri in uris]
        # No pool of threads, which ends too early on a busy machine: 13 of 60 passes fell short
        # of items, here none. And all files are asked for at once, or it sleeps for 0.1 s
        # whenever it overtakes who asks; they are read one at a time all the same.
        pool = DummyPool()
        pool.workers_count = len(paths)
        # No shuffling of its own: the order is the plan's, epoch after epoch. A reader an epoch,
        # for one that spans several lets them run into each other.
        reader = Reader(
            _files(uris[0]),
            paths,
            schema_fields=list(columns),
            worker_class=ArrowReaderWorker,
            reader_pool=pool,
            shuffle_row_groups=False,
            num_epochs=1,
            is_batched_reader=True,
        )
    try:
        while True:
            with _hushed():
                rows = next(reader, None)
            if rows is None:
                return
            yield rows
    finally:
        reader.stop()
        reader.join()


def _files(uri: str) -> Any:
    """The file system of a URI, of the kind that pyarrow had before `pyarrow.fs`.

    Petastorm 0.13 takes no other, and where it makes one itself, of s3:// for example, it takes
    one that pyarrow 14 refuses.
    """
    from fsspec.implementations.arrow import ArrowFSWrapper
    from pyarrow.filesystem import DaskFileSystem, LocalFileSystem

    if artifacts.local_path(uri) is not None:
        return LocalFileSystem()

    class Files(DaskFileSystem):  # type: ignore[misc]
        def isfile(self, path: str) -> bool:
            return bool(self.fs.isfile(path))

        def isdir(self, path: str) -> bool:
            return bool(self.fs.isdir(path))

    return Files(ArrowFSWrapper(artifacts.filesystem(uri)[0]))


@contextmanager
def _hushed() -> Iterator[None]:
    with warnings.catch_warnings():
        # Petastorm 0.13 calls what pyarrow 14 has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        yield
