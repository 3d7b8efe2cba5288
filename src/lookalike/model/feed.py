"""Batches as TensorFlow takes them: read and changed ahead of their use."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from lookalike.config import Augment
from lookalike.errors import LookalikeError
from lookalike.model.augmentation import augmented
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.snapshot import Snapshot

_TOGETHER = 2**20
"""Bytes of pixels that TensorFlow gets at once where batches are smaller: to wake another thread
takes longer than they do."""
Batches = Generator[tuple[tf.Tensor, tf.Tensor, tf.Tensor], None, None]


def stream(snapshot: Snapshot, shard: Shard, augment: Augment, epoch: int, start: int) -> Batches:
    """The batches of an epoch and all after it; whoever asks knows when to end.

    One stream of them: an epoch's first are read while the one before is validated.

    Args:
        snapshot: what to read.
        shard: see `Shard`.
        augment: how images are changed.
        epoch: the first one, from 0.
        start: batches of it to leave out.

    Returns:
        Pixels, uint8 (P * K, size, size, channels); classes, int32 (P * K,); and, int32, how many
        of the images the rank had already used. Close it, so that nothing more is read.

    Raises:
        LookalikeError, OSError: on the way, what cannot be read.
    """
    unread: list[Exception] = []
    together = max(1, _TOGETHER // (shard.batch.size * snapshot.preprocessing.item_bytes))

    def plain() -> Iterator[tuple[Any, ...]]:
        try:
            for current in itertools.count(epoch):
                batches = _numbered(snapshot, shard, current, start if current == epoch else 0)
                if together == 1:
                    yield from batches
                    continue
                while few := list(itertools.islice(batches, together)):
                    yield tuple(map(np.stack, zip(*few, strict=True)))
        except (LookalikeError, OSError) as error:
            unread.append(error)  # TensorFlow gives one of its own for it
            raise

    some = () if together == 1 else (None,)
    batch = (*some, shard.batch.size)
    data = tf.data.Dataset.from_generator(
        plain,
        output_signature=(
            tf.TensorSpec((*batch, *snapshot.preprocessing.shape), tf.uint8),
            tf.TensorSpec(batch, tf.int32),
            tf.TensorSpec(some, tf.int32),
            tf.TensorSpec(some, tf.int64),
        ),
    )
    if some:
        data = data.unbatch()

    @tf.autograph.experimental.do_not_convert  # which would put its own error around ours
    def changed(
        pixels: tf.Tensor, classes: tf.Tensor, repeated: tf.Tensor, number: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if augment != Augment():
            pixels = augmented(pixels, augment, number)
        return pixels, classes, repeated

    return _read(iter(data.map(changed).prefetch(4)), unread)


def _numbered(
    snapshot: Snapshot, shard: Shard, epoch: int, start: int
) -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
    """Batches of an epoch, each with a number of its own."""
    rng = np.random.default_rng([shard.seed, epoch, shard.rank])
    batches = epoch_batches(snapshot, shard, epoch, start)
    for number, batch in enumerate(batches, int(rng.integers(2**31)) + start):
        yield batch.pixels, batch.classes, batch.repeated, number


def _read(
    batches: Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]], unread: list[Exception]
) -> Batches:
    try:
        yield from batches
    except tf.errors.OpError as error:
        raise (unread or [error])[0] from None
