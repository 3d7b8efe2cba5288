"""Pure arithmetic of distributed training: blocks, shards, steps.

A *block* is the unit that is read and dealt to ranks: a Parquet file of one row group that holds
images of many classes, in *packs* of one class each. A class lies in as many blocks as it can fill
with K images each, in one block if it can fill none or one. So whichever blocks a rank gets, it
finds K images of a class or the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lookalike.errors import ConfigError

BLOCK_BYTES = 16 * 2**20
BLOCKS = 192
"""Blocks aimed at where the data is small: dealt evenly to 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48,
64, 96 and 192 ranks."""


@dataclass(frozen=True)
class BatchShape:
    """P x K: `classes` distinct classes with `images` images of each, on every rank."""

    classes: int
    images: int

    @property
    def size(self) -> int:
        return self.classes * self.images

    def __str__(self) -> str:
        return f"{self.classes} x {self.images}"


@dataclass(frozen=True)
class Layout:
    """Which blocks hold which images.

    A class that can fill every block is *wide*: its images are dealt to all blocks in turn. Others
    lie in `width` blocks, one after the other from `start` on, K images in each and what is left
    over in the last.

    Attributes:
        blocks: number of blocks.
        images: K.
        counts: int64 (classes,), images of each class.
        start: int64 (classes,), the first block of each class.
        width: int64 (classes,), the number of blocks that each class lies in.
    """

    blocks: int
    images: int
    counts: np.ndarray
    start: np.ndarray
    width: np.ndarray

    def block(self, number: int) -> np.ndarray:
        """Images of each class in a block: int64 (classes,)."""
        turn = (number - self.start) % self.blocks
        dealt = -(-(self.counts - turn) // self.blocks)
        last = turn == self.width - 1
        packed = np.where(last, self.counts - turn * self.images, self.images)
        held = np.where(self.width == self.blocks, dealt, packed)
        return np.where(turn < self.width, held, 0)

    def places(self, class_id: int) -> np.ndarray:
        """The block of each image of a class, by its position in it: int64 (images,)."""
        position, width = np.arange(self.counts[class_id]), self.width[class_id]
        wide = width == self.blocks
        turn = position % width if wide else np.minimum(position // self.images, width - 1)
        return (self.start[class_id] + turn) % self.blocks


def block_count(items: int, item_bytes: int, batch: BatchShape) -> int:
    """Number of blocks for `items` images of `item_bytes` bytes each.

    At most `BLOCK_BYTES` a block; up to `BLOCKS` where that leaves each block a batch. Above 12,
    the number divides `BLOCKS` or is a multiple of it, so that most numbers of ranks get equally
    many.
    """
    by_bytes = max(1, -(-items * item_bytes // BLOCK_BYTES))
    by_batches = min(BLOCKS, items // batch.size)
    if max(by_bytes, by_batches) <= 12:
        return max(by_bytes, by_batches)
    even = [n for n in range(1, BLOCKS + 1) if BLOCKS % n == 0]
    least = next((n for n in even if n >= by_bytes), -(-by_bytes // BLOCKS) * BLOCKS)
    return max([least, *(n for n in even if n <= by_batches)])


def lay_out(counts: np.ndarray, blocks: int, images: int) -> Layout:
    """Deal classes to blocks, evenly.

    Args:
        counts: int64 (classes,), images of each class, each at least 1.
        blocks: number of blocks.
        images: K, the images of a class in a batch.
    """
    counts = np.asarray(counts, dtype=np.int64)
    width = np.clip(counts // images, 1, blocks)
    # Each class begins where the one before it ended, as cards are dealt.
    dealt = np.where(width == blocks, counts, width)
    start = (np.cumsum(dealt) - dealt) % blocks
    return Layout(blocks, images, counts, start, width)


def packs(counts: np.ndarray, blocks: int, images: int) -> np.ndarray:
    """Images of each class in each block: int64 (blocks, classes).

    Columns add up to `counts`; a pack is empty, or holds at least `images` images, or the whole
    class. Arguments as in `lay_out`.
    """
    layout = lay_out(counts, blocks, images)
    return np.stack([layout.block(number) for number in range(blocks)])


def steps_per_epoch(items: int, ranks: int, batch: BatchShape) -> int:
    """Steps that every rank takes in an epoch: the batches that `items` images fill.

    Raises:
        ConfigError: the images do not fill one batch on each rank.
    """
    steps = items // (ranks * batch.size)
    if steps < 1:
        raise ConfigError(
            f"train.classes_per_batch x train.images_per_class x train.ranks = {batch.classes} x "
            f"{batch.images} x {ranks} = {ranks * batch.size:,} is more than the {items:,} images "
            "to train on",
            allowed=f"a product of at most {items:,}",
            remedy="Lower one of them or add images",
        )
    return steps


def check_classes(counts: np.ndarray, batch: BatchShape) -> None:
    """Refuse a P that the data cannot fill.

    Raises:
        ConfigError: fewer than P classes, or fewer than two images in any class.
    """
    if len(counts) < batch.classes:
        raise ConfigError(
            f"train.classes_per_batch = {batch.classes} is more than the {len(counts)} classes "
            "that have images to train on",
            allowed=f"2 to {len(counts)}",
        )
    if counts.max(initial=0) < 2:
        raise ConfigError(
            "no class has two images to train on, so nothing is similar to anything",
            remedy="Give labels that several images share",
        )


def epoch_order(blocks: int, seed: int, epoch: int) -> np.ndarray:
    """Order of all blocks in an epoch: int64 (blocks,), the same for the same seed and epoch."""
    return np.random.default_rng([seed, epoch]).permutation(blocks)


def shard(order: np.ndarray, rank: int, ranks: int) -> np.ndarray:
    """The blocks of one rank, in order. Ranks share none and leave none.

    Raises:
        ConfigError: more ranks than blocks.
    """
    if ranks > len(order):
        raise ConfigError(
            f"train.ranks = {ranks} is more than the {len(order)} blocks of the snapshot",
            allowed=f"1 to {len(order)}",
            remedy="Lower train.ranks, or the batch so that the snapshot has more blocks",
        )
    return order[rank::ranks]


def check_shards(layout: Layout, order: np.ndarray, ranks: int, batch: BatchShape) -> None:
    """Refuse an epoch in which a rank has fewer than P classes: the same on every rank.

    Args:
        layout: of all blocks.
        order: of the blocks in the epoch.
        ranks: how many there are.
        batch: P x K.

    Raises:
        ConfigError: more ranks than blocks, or a rank whose blocks hold fewer than P classes.
    """
    for rank in range(ranks):
        found = np.zeros(len(layout.counts), dtype=bool)
        for block in shard(order, rank, ranks):
            found |= layout.block(block) > 0
            if found.sum() >= batch.classes:
                break
        else:
            raise ConfigError(
                f"rank {rank} of {ranks} would have images of {found.sum()} classes only; "
                f"train.classes_per_batch is {batch.classes}",
                remedy="Lower train.classes_per_batch or train.ranks: classes too small to split "
                "lie on one rank",
            )


def unused_groups(held: np.ndarray, layout: Layout) -> np.ndarray:
    """Groups of K that images make, the last images of a class left over: int64 (classes,).

    A class of fewer than K images in all makes one, by repeating some.

    Args:
        held: int64 (classes,), images of each class.
        layout: which knows K and how many images a class has in all.
    """
    return np.where(layout.counts < layout.images, held > 0, held // layout.images)


def missing_groups(layout: Layout, blocks: np.ndarray, steps: int, batch: BatchShape) -> int:
    """Groups of K that a shard lacks for `steps` batches of P distinct classes each.

    A class serves in at most `steps` batches, so of what it has beyond them nothing is used. So
    many groups, and no more, come again within an epoch where all of the shard fits into memory.
    """
    held = np.sum([layout.block(number) for number in blocks], axis=0)
    served = np.minimum(unused_groups(held, layout), steps)
    return max(0, steps * batch.classes - int(served.sum()))
