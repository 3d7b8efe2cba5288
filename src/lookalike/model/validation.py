"""Vectors of the validation images, and their scores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial

import numpy as np
import tensorflow as tf

from lookalike.metrics import Scores, exact_scores
from lookalike.model.ranks import Ranks


def forward(network: tf.keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """What makes vectors of images by a network, as it is whenever it is called."""
    encode: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        partial(network, training=False), reduce_retracing=True
    )
    return encode


def vectors(
    encode: Callable[[tf.Tensor], tf.Tensor],
    pixels: np.ndarray,
    dim: int,
    ranks: Ranks,
    batch: int,
) -> np.ndarray:
    """Vectors of images, a share of them by each rank.

    Args:
        encode: see `forward`.
        pixels: uint8 (n, size, size, channels), the same on all ranks.
        dim: of a vector.
        ranks: that share the work.
        batch: images encoded at once.

    Returns:
        float32 (n, dim), the same on all ranks.
    """
    size = ranks.size
    own = pixels[ranks.rank :: size]
    parts = [encode(own[i : i + batch]).numpy() for i in range(0, len(own), batch)]
    found = np.concatenate([np.empty((0, dim), np.float32), *parts])
    if size == 1:
        return found
    order = np.concatenate([np.arange(len(pixels))[rank::size] for rank in range(size)])
    result = np.empty((len(pixels), dim), np.float32)
    result[order] = ranks.gather_uneven(found)
    return result


def scores(vectors: np.ndarray, classes: np.ndarray, ranks: Ranks) -> Scores:
    """How near images of one class lie, each image itself left out.

    By rank 0, which tells the others: they must agree on when to stop.

    Args:
        vectors: float32 (n, dim).
        classes: int32 (n,).
        ranks: that are told.
    """
    if ranks.rank != 0:
        return Scores(**ranks.told(None))
    everyone = np.arange(len(vectors))
    found = exact_scores(vectors, classes, vectors, classes, self_rows=everyone)
    ranks.told(asdict(found := replace(found, by_class={})))
    return found
