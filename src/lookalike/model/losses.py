"""Losses on the global batch: anchors are a rank's own images, keys those of all ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import tensorflow as tf

from lookalike.config import Loss
from lookalike.model.ranks import Ranks

# 12 of the 13 seconds that tensorflow-similarity takes to import go into its plots (umap, bokeh,
# numba), which training never draws.
if "tensorflow_similarity" not in sys.modules:
    sys.modules.setdefault(
        "tensorflow_similarity.visualization",
        ModuleType("tensorflow_similarity.visualization"),
    )

from tensorflow_similarity.losses import MultiSimilarityLoss

BatchLoss = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def multi_similarity(loss: Loss, ranks: Ranks) -> BatchLoss:
    """Multi-Similarity (Wang et al. 2019), by tensorflow-similarity.

    Returns:
        A function of classes, int32 (n,), and vectors, float32 (n, dim), of this rank: the mean
        over its n anchors. Averaged over ranks this is the loss of one process on all images.
    """
    pairs = MultiSimilarityLoss(
        distance="cosine",
        alpha=loss.alpha,
        beta=loss.beta,
        epsilon=loss.epsilon,
        lmda=loss.lmda,
    )

    def mean(classes: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        keys, key_classes = ranks.gather(vectors), ranks.gather(classes)
        # The function behind `call`, which takes keys that are not the queries.
        anchors = pairs.fn(classes, vectors, key_classes, keys, **pairs._fn_kwargs)
        return tf.reduce_mean(anchors)

    return mean
