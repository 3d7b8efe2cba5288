"""P x K batches from a rank's shard of a snapshot, read by Petastorm, in bounded memory."""

from __future__ import annotations

import itertools
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lookalike import planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, LENGTHS, PIXELS, TRAIN
from lookalike.errors import ConfigError, DataError
from lookalike.model import reader
from lookalike.model.pool import Draw, Fill, Pool
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape


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
class Shard:
    """Which part of the training images a rank draws from, and how.

    Attributes:
        rank, ranks: this one, and how many there are.
        batch: P x K.
        seed: of the order of blocks and the draws.
        buffer_items: images held to draw from; at least those of a block and of two batches.
        with_ids: whether batches name their items.
        threads: that decode files, where the batch that is asked for is not ready the caller too.
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
        # Files are decoded while others are read, by threads and by who waits for a batch; to
        # copy pixels is quicker.
        self._threads = ThreadPoolExecutor(max(1, shard.threads - 1))
        self._undecoded: deque[tuple[list[bytes], Future[np.ndarray]]] = deque()
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
        pixels: Future[np.ndarray] = Future()
        self._undecoded.append((files, pixels))
        self._threads.submit(self._decode)
        return lambda: Batch(self._awaited(pixels), classes, ids, move.repeated)

    def _decode(self) -> bool:
        """Decode the next batch that nobody has begun; whether there was one."""
        try:
            files, pixels = self._undecoded.popleft()
        except IndexError:
            return False
        try:
            pixels.set_result(self._snapshot.decoded(files))
        except Exception as error:  # for who asks for the batch
            pixels.set_exception(error)
        return True

    def _awaited(self, pixels: Future[np.ndarray]) -> np.ndarray:
        while not pixels.done() and self._decode():
            pass
        return pixels.result()

    def _put(self, block: Any, images: np.ndarray, slots: np.ndarray) -> None:
        if isinstance(self._images, np.ndarray):
            self._images[slots] = self._snapshot.images(b"".join(block.pixels))[images]
        else:
            packs = map(self._snapshot.images, block.pixels, block.lengths)
            files = list(itertools.chain.from_iterable(packs))
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
            # A cache takes one block after another; without one all are asked for at once.
            with snapshot.readable(uris if cache is None else [uri]):
                block = next(blocks)
            planned = snapshot.layout.block(int(number))
            found = np.bincount(block.class_id, block.count, len(planned)).astype(planned.dtype)
            if not np.array_equal(found, planned) or (np.diff(block.class_id) <= 0).any():
                raise DataError(
                    f"rank {shard.rank} read {found.sum():,} of the {planned.sum():,} images of "
                    f"{uri}, or others than planned",
                    remedy="Run `lookalike snapshot` again",
                )
            yield block
