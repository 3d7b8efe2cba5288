"""P x K batches from a rank's shard of a snapshot, read by Petastorm, in bounded memory."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, LENGTHS, PIXELS, TRAIN, VALIDATION
from lookalike.errors import ArtifactError, ConfigError, DataError
from lookalike.images import Preprocessing, decode
from lookalike.model import reader
from lookalike.model.pool import Draw, Fill, Pool
from lookalike.planning import BatchShape, Layout

SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Batch:
    """Images of P classes, K of each, class by class.

    Attributes:
        pixels: uint8 (P * K, size, size, channels).
        classes: int32 (P * K,) class numbers.
        item_ids: P * K ids where they were asked for, else empty.
        repeated: images that the rank had already used in this epoch, earlier in this batch too.
    """

    pixels: np.ndarray
    classes: np.ndarray
    item_ids: tuple[str, ...]
    repeated: int


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot, as training reads it."""

    artifact: artifacts.Artifact

    @classmethod
    def open(cls, uri: str) -> Snapshot:
        """Open a snapshot.

        Raises:
            ArtifactError: missing or damaged, or of a format that this version does not read.
        """
        snapshot = cls(artifacts.open_artifact(uri, SNAPSHOT))
        if snapshot.format not in ("raw", "encoded"):
            raise ArtifactError(
                f"the snapshot {uri} keeps its images as {snapshot.format!r}",
                allowed="'raw' or 'encoded'",
                remedy="Open it with the version of lookalike that wrote it",
            )
        return snapshot

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.artifact.meta["recipe"]["preprocessing"])

    @property
    def format(self) -> str:
        """'raw': images are decoded; 'encoded': they are the files that came."""
        return str(self.artifact.meta["recipe"].get("format", "raw"))

    @property
    def batch(self) -> BatchShape:
        """P x K that the blocks are laid out for."""
        return BatchShape(**self.artifact.meta["recipe"]["batch"])

    @property
    def classes(self) -> list[str]:
        """Class names by number."""
        return list(self.artifact.meta["classes"])

    @property
    def counts(self) -> np.ndarray:
        """Training images of each class, int64 (classes,)."""
        return np.array(self.artifact.meta["counts"], dtype=np.int64)

    @property
    def groups(self) -> np.ndarray | None:
        """The group of each class, int64 (classes,), or None where the snapshot has no groups."""
        if (values := self.artifact.meta.get("groups")) is None:
            return None
        # Classes without a value are a group of their own.
        _, numbers = np.unique([json.dumps(value) for value in values], return_inverse=True)
        return numbers.astype(np.int64)

    @property
    def train_items(self) -> int:
        return int(self.artifact.meta["items"][TRAIN])

    @property
    def item_bytes(self) -> int:
        """Bytes that an image takes in memory until it is drawn; of files, on average."""
        if self.format == "raw":
            return self.preprocessing.item_bytes
        sizes = {entry.path: entry.size for entry in self.artifact.manifest.files}
        held = sum(sizes[block["path"]] for block in self.artifact.meta["blocks"][TRAIN])
        return max(1, held // self.train_items)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block of training images."""
        sizes = {entry.path: entry.size for entry in self.artifact.manifest.files}
        return max(sizes[block["path"]] for block in self.artifact.meta["blocks"][TRAIN])

    @property
    def remote(self) -> bool:
        """Whether it lies elsewhere than on a file system of this machine."""
        return artifacts.local_path(self.artifact.uri) is None

    @cached_property
    def layout(self) -> Layout:
        """Which block holds which images.

        Raises:
            ArtifactError: the blocks are not what this version of lookalike lays out.
        """
        blocks = self.artifact.meta["blocks"][TRAIN]
        layout = planning.lay_out(self.counts, len(blocks), self.batch.images)
        for number, block in enumerate(blocks):
            planned = int(layout.block(number).sum())
            if planned != block["items"]:
                raise ArtifactError(
                    f"{block['path']} of the snapshot {self.artifact.uri} holds "
                    f"{block['items']:,} images, not the {planned:,} of the plan: another version "
                    "of lookalike wrote it",
                    remedy="Run `lookalike snapshot` again",
                )
        return layout

    def check(self, batch: BatchShape, ranks: int, seed: int, epochs: int) -> None:
        """Refuse a training that the blocks cannot serve, before it starts; alike on every rank.

        Args:
            batch: P x K.
            ranks: how many train together.
            seed: of the order of blocks.
            epochs: how many there will be.

        Raises:
            ConfigError: another P x K than the snapshot is laid out for, more ranks than blocks,
                images that do not fill a batch on each rank, or a rank that would not have images
                of P classes in one of the epochs.
        """
        if batch != self.batch:
            raise ConfigError(
                f"train.classes_per_batch x train.images_per_class = {batch}, but the snapshot "
                f"{self.artifact.uri} is laid out for {self.batch}",
                remedy="Run `lookalike snapshot` again",
            )
        planning.check_classes(self.counts, batch)
        planning.steps_per_epoch(self.train_items, ranks, batch)
        for epoch in range(epochs):
            order = planning.epoch_order(self.layout.blocks, seed, epoch)
            planning.check_shards(self.layout, order, ranks, batch)

    def files(self, split: str, blocks: np.ndarray | None = None) -> list[str]:
        """URIs of a split's blocks, all or some, in the order given."""
        paths = [block["path"] for block in self.artifact.meta["blocks"][split]]
        chosen = range(len(paths)) if blocks is None else blocks
        return [artifacts.join(self.artifact.uri, paths[i]) for i in chosen]

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """All validation images and their class numbers: as many as the recipe asked for.

        Returns:
            uint8 (n, size, size, channels) and int32 (n,).

        Raises:
            ArtifactError: a block that cannot be read.
        """
        pixels, classes = [], []
        for uri in self.files(VALIDATION):
            inner, path = artifacts.filesystem(uri)
            with self.readable():
                packs = pq.read_table(path, filesystem=inner).to_pylist()
            for pack in packs:
                images = self.images(pack[PIXELS], pack.get(LENGTHS, b""))
                pixels.append(images if self.format == "raw" else self.decoded(images))
                classes.append(np.full(pack[COUNT], pack[CLASS_ID], np.int32))
        if not pixels:
            return np.empty((0, *self.preprocessing.shape), np.uint8), np.empty(0, np.int32)
        return np.concatenate(pixels), np.concatenate(classes)

    def images(self, pixels: bytes, lengths: bytes = b"") -> Any:
        """Images that lie side by side: uint8 (n, size, size, channels), or n files.

        Args:
            pixels: what `columns.PIXELS` holds, of one pack or several.
            lengths: of files, as `columns.LENGTHS` holds them.
        """
        if self.format == "raw":
            return np.frombuffer(pixels, np.uint8).reshape(-1, *self.preprocessing.shape)
        ends = np.cumsum(np.frombuffer(lengths, "<u4"), dtype=np.int64).tolist()
        return [pixels[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def decoded(self, files: list[bytes]) -> np.ndarray:
        """Image files, decoded: uint8 (n, size, size, channels).

        Raises:
            ImageError: a file that cannot be decoded.
        """
        preprocessing = self.preprocessing
        pixels = np.empty((len(files), *preprocessing.shape), np.uint8)
        for i, file in enumerate(files):
            pixels[i] = decode(file, preprocessing)
        return pixels

    @contextmanager
    def readable(self) -> Iterator[None]:
        """Say of a file that cannot be read whose it is.

        Raises:
            ArtifactError: naming the file where it is missing or of another size.
        """
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            artifacts.open_artifact(self.artifact.uri, SNAPSHOT)
            raise ArtifactError(
                f"a block of the snapshot {self.artifact.uri} cannot be read ({error})",
                remedy="Run `lookalike snapshot` again",
            ) from error


@dataclass(frozen=True)
class Shard:
    """Which part of the training images a rank draws from, and how.

    Attributes:
        rank, ranks: this one, and how many there are.
        batch: P x K.
        seed: of the order of blocks and the draws.
        buffer_items: images held to draw from; at least those of a block and of two batches.
        with_ids: whether batches name their items.
        threads: that decode files.
        grouped: whether a batch's classes come from one group where they can.
        cache: local folder that blocks are kept in from one epoch to the next, for remote ones.
        cache_bytes: about what it may grow to.
    """

    rank: int
    ranks: int
    batch: BatchShape
    seed: int
    buffer_items: int
    with_ids: bool = False
    threads: int = 1
    grouped: bool = False
    cache: Path | None = None
    cache_bytes: int = 0


def epoch_batches(snapshot: Snapshot, shard: Shard, epoch: int, start: int = 0) -> Iterator[Batch]:
    """A rank's batches of one epoch, just as many on every rank.

    Each batch has exactly P distinct classes and K images of each. Images are drawn without
    replacement from the rank's blocks, which no other rank reads in this epoch; an image comes
    again only where a class has fewer than K in all, or where the images run out before the steps
    do, which `Batch.repeated` counts. Of a class that has more than its share of the buffer some
    images are left out, others each epoch. The same seed and epoch give the same batches.

    Args:
        snapshot: what to read.
        shard: see `Shard`.
        epoch: its number, from 0.
        start: batches to leave out at the beginning; of images only those are read that later
            ones need.

    Raises:
        ConfigError: more ranks than blocks, a batch that the data cannot fill, groups that the
            snapshot does not have, or too small a cache.
        ArtifactError: a block is missing or cannot be read, or was laid out otherwise.
        DataError: a block gave other images than it holds.
    """
    pool = _pool(snapshot, shard, epoch)
    steps = planning.steps_per_epoch(snapshot.train_items, shard.ranks, shard.batch)
    if start >= steps:
        return
    moves = pool.moves(steps)
    for _ in range(start):
        while isinstance(next(moves), Fill):
            pass
    with _Buffer(snapshot, shard, pool) as buffer:
        if start:
            buffer.restore()
        coming: deque[Callable[[], Batch]] = deque()
        for move in moves:
            if isinstance(move, Fill):
                buffer.fill(move)
                continue
            coming.append(buffer.take(move))
            if len(coming) > buffer.ahead:
                yield coming.popleft()()
        while coming:
            yield coming.popleft()()


def repeats(snapshot: Snapshot, shard: Shard, epoch: int) -> int:
    """Images that come again in an epoch of a shard, without reading any.

    Raises:
        ConfigError: as `epoch_batches`.
    """
    steps = planning.steps_per_epoch(snapshot.train_items, shard.ranks, shard.batch)
    moves = _pool(snapshot, shard, epoch).moves(steps)
    return sum(move.repeated for move in moves if isinstance(move, Draw))


def _pool(snapshot: Snapshot, shard: Shard, epoch: int) -> Pool:
    snapshot.check(shard.batch, shard.ranks, shard.seed, 0)
    if shard.grouped and snapshot.groups is None:
        raise ConfigError(
            f"the snapshot {snapshot.artifact.uri} has no groups of classes",
            remedy="Set train.group_by to an attribute, and run `lookalike snapshot` again",
        )
    layout = snapshot.layout
    order = planning.epoch_order(layout.blocks, shard.seed, epoch)
    planning.check_shards(layout, order, shard.ranks, shard.batch)
    return Pool(
        layout,
        planning.shard(order, shard.rank, shard.ranks),
        shard.batch,
        shard.buffer_items,
        np.random.default_rng([shard.seed, epoch, shard.rank]),
        snapshot.groups if shard.grouped else None,
    )


class _Buffer:
    """The images in a pool's slots. As a context manager it stops what it started."""

    def __init__(self, snapshot: Snapshot, shard: Shard, pool: Pool):
        self._snapshot, self._shard, self._pool = snapshot, shard, pool
        raw = snapshot.format == "raw"
        # Allocated once: memory does not grow with what is read.
        shape = (pool.capacity, *snapshot.preprocessing.shape)
        self._images: Any = np.empty(shape, np.uint8) if raw else [b""] * pool.capacity
        self._ids = [""] * pool.capacity if shard.with_ids else []
        self._columns = [CLASS_ID, COUNT, PIXELS, *([] if raw else [LENGTHS])]
        self._columns += [ITEM_IDS] if shard.with_ids else []
        self._blocks: Iterator[Any] = iter(())
        self._threads = ThreadPoolExecutor(shard.threads)
        # Threads decode files while other batches are at work; to copy pixels is quicker.
        self.ahead = 0 if raw else 1 + shard.threads

    def __enter__(self) -> _Buffer:
        return self

    def __exit__(self, *_: object) -> None:
        self._threads.shutdown(cancel_futures=True)
        if isinstance(self._blocks, Generator):
            self._blocks.close()

    def restore(self) -> None:
        """Read what the slots hold, as if all had been read that came before."""
        places, images, slots = self._pool.holdings()
        needed = np.unique(places)
        for place, block in zip(needed, self._read(needed), strict=True):
            mine = places == place
            self._put(block, images[mine], slots[mine])

    def fill(self, move: Fill) -> None:
        """Read the next block: the one after that of the last call, or the first again."""
        block = next(self._blocks, None)
        if block is None:
            self._blocks = self._read(np.arange(move.place, len(self._pool.blocks)))
            block = next(self._blocks)
        self._put(block, move.images, move.slots)

    def take(self, move: Draw) -> Callable[[], Batch]:
        """Take the images of a batch now, for other images come into their slots; the batch can
        be had when they are decoded."""
        classes = np.repeat(move.classes, self._shard.batch.images)
        ids = tuple(self._ids[slot] for slot in move.slots) if self._ids else ()
        if isinstance(self._images, np.ndarray):
            batch = Batch(self._images[move.slots], classes, ids, move.repeated)
            return lambda: batch
        files = [self._images[slot] for slot in move.slots]
        pixels = self._threads.submit(self._snapshot.decoded, files)
        return lambda: Batch(pixels.result(), classes, ids, move.repeated)

    def _put(self, block: Any, images: np.ndarray, slots: np.ndarray) -> None:
        if isinstance(self._images, np.ndarray):
            self._images[slots] = self._snapshot.images(b"".join(block.pixels))[images]
        else:
            lengths = b"".join(block.lengths)
            files = self._snapshot.images(b"".join(block.pixels), lengths)
            for image, slot in zip(images.tolist(), slots.tolist(), strict=True):
                self._images[slot] = files[image]
        if self._ids:
            ids = [item_id for pack in block.item_ids for item_id in json.loads(pack)]
            for image, slot in zip(images.tolist(), slots.tolist(), strict=True):
                self._ids[slot] = ids[image]

    def _read(self, places: np.ndarray) -> Iterator[Any]:
        snapshot, shard = self._snapshot, self._shard
        numbers = self._pool.blocks[places]
        cache = None
        if shard.cache is not None:
            cache = reader.Cache(shard.cache, shard.cache_bytes, snapshot.block_bytes)
        uris = snapshot.files(TRAIN, numbers)
        blocks = reader.read(uris, self._columns, cache)
        for number, uri in zip(numbers, uris, strict=True):
            with snapshot.readable():
                block = next(blocks)
            planned = snapshot.layout.block(int(number))
            found = np.zeros_like(planned)
            np.add.at(found, block.class_id, block.count)
            if (found != planned).any() or (np.diff(block.class_id) <= 0).any():
                raise DataError(
                    f"rank {shard.rank} read {found.sum():,} of the {planned.sum():,} images of "
                    f"{uri}, or others than planned",
                    remedy="Run `lookalike snapshot` again",
                )
            yield block
