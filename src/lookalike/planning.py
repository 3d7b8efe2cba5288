"""Pure arithmetic of distributed training: blocks, shards, steps.

A *block* is the unit that is read and dealt to ranks: one Parquet row group that holds images of
many classes, in *packs* of one class each. A class lies in as many blocks as it can fill with K
images each, in one block if it can fill none or one. So whichever blocks a rank gets, it finds K
images of a class or the whole of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lookalike.errors import ConfigError

BLOCK_BYTES = 16 * 2**20
BLOCKS = 48
"""Blocks aimed at where the data is small: dealt evenly to 1, 2, 3, 4, 6, 8, 12, 16, 24, 48."""


@dataclass(frozen=True)
class BatchShape:
    """P x K: `classes` distinct classes with `images` images of each, on every rank."""

    classes: int
    images: int

    @property
    def size(self) -> int:
        return self.classes * self.images


@dataclass(frozen=True)
class Layout:
    """Which blocks hold a class.

    The item at position p of class c lies in block (start[c] + p mod width[c]) mod blocks.

    Attributes:
        blocks: number of blocks.
        start: int64 (classes,), the first block of each class.
        width: int64 (classes,), the number of blocks that each class lies in.
    """

    blocks: int
    start: np.ndarray
    width: np.ndarray


def block_count(items: int, item_bytes: int, batch: BatchShape) -> int:
    """Number of blocks for `items` images of `item_bytes` bytes each.

    At most about `BLOCK_BYTES` a block; up to `BLOCKS` where that leaves each block a batch.
    """
    by_bytes = -(-items * item_bytes // BLOCK_BYTES)
    by_batches = min(BLOCKS, items // batch.size)
    blocks = max(1, by_bytes, by_batches)
    return blocks - blocks % 12 if blocks > 12 else blocks


def lay_out(counts: np.ndarray, blocks: int, images: int) -> Layout:
    """Deal classes to blocks, evenly.

    Args:
        counts: int64 (classes,), images of each class, each at least 1.
        blocks: number of blocks.
        images: K, the images of a class in a batch.
    """
    width = np.clip(counts // images, 1, blocks)
    # Each class begins where the one before it ended, as cards are dealt.
    dealt = np.where(width == blocks, counts, width)
    start = (np.cumsum(dealt) - dealt) % blocks
    return Layout(blocks, start.astype(np.int64), width.astype(np.int64))


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
