"""Losses on the global batch: anchors are a rank's own images, keys those of all ranks."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import ModuleType

import tensorflow as tf

from lookalike.config import (
    Loss,
    MultiSimilarity,
    NormalisedSoftmax,
    SupervisedContrastive,
    Train,
    Triplet,
)
from lookalike.model.ranks import Ranks

# 12 of the 13 seconds that tensorflow-similarity takes to import go into its plots (umap, bokeh,
# numba), which training never draws.
if "tensorflow_similarity" not in sys.modules:
    sys.modules.setdefault(
        "tensorflow_similarity.visualization",
        ModuleType("tensorflow_similarity.visualization"),
    )

from tensorflow_similarity.losses import MultiSimilarityLoss

Term = Callable[[tf.Tensor, tf.Tensor], tf.Tensor]
"""From class ids, int32 (n,), and vectors, float32 (n, dim), to each anchor's loss, (n,)."""


class Objective(tf.Module):
    """What training makes small: a loss, and a normalised softmax beside it where it is asked for.

    `trainable_variables` are the classes' proxies, (classes, dim) float32, where a term has any:
    they are trained with the network's weights.
    """

    def __init__(self, main: Term, auxiliary: Term | None = None, weight: float = 0.0):
        super().__init__(name="objective")
        self._main = main
        self._auxiliary = auxiliary
        self._weight = weight

    def __call__(self, class_ids: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        """The mean over this rank's anchors, a float32 scalar.

        Averaged over ranks this is the loss of one process on all their images, and so are its
        gradients. Computed in float32, whatever the vectors are.

        Args:
            class_ids: int32 (n,), n the same on all ranks.
            vectors: floating (n, dim), L2 norm 1.
        """
        vectors = tf.cast(vectors, tf.float32)
        losses = self._main(class_ids, vectors)
        if self._auxiliary is not None:
            losses += self._weight * self._auxiliary(class_ids, vectors)
        return tf.reduce_mean(losses)


def make(train: Train, classes: int, ranks: Ranks) -> Objective:
    """What `train` asks for: its loss, plus auxiliary.weight x normalised softmax.

    Args:
        train: see `Train`; its loss, auxiliary, and the length of the vectors.
        classes: how many there are, in all batches.
        ranks: those that train together.
    """
    dim = train.trained_size
    main = _term(train.loss, classes, dim, ranks)
    if not train.auxiliary.weight:
        return Objective(main)
    auxiliary = NormalisedSoftmax(
        name="normalised_softmax",
        scale=train.auxiliary.scale,
        smoothing=train.auxiliary.smoothing,
    )
    proxies = _Proxies(auxiliary, classes, dim)
    return Objective(main, proxies, train.auxiliary.weight)


def _term(loss: Loss, classes: int, dim: int, ranks: Ranks) -> Term:
    match loss:
        case MultiSimilarity():
            return _multi_similarity(loss, ranks)
        case Triplet(mining="hard"):
            return _pairwise(batch_hard, loss.margin, ranks)
        case Triplet():
            return _pairwise(semi_hard, loss.margin, ranks)
        case SupervisedContrastive():
            return _pairwise(supervised_contrastive, loss.temperature, ranks)
        case NormalisedSoftmax():
            return _Proxies(loss, classes, dim)
    raise AssertionError(loss)


def _multi_similarity(loss: MultiSimilarity, ranks: Ranks) -> Term:
    """Multi-Similarity (Wang et al. 2019, equations 11 to 15), by tensorflow-similarity."""
    pairs = MultiSimilarityLoss(
        distance="cosine",
        alpha=loss.alpha,
        beta=loss.beta,
        epsilon=loss.epsilon,
        lmda=loss.lmda,
    )

    def losses(class_ids: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        keys, key_classes = ranks.gather(vectors), ranks.gather(class_ids)
        # The function behind `call`, which takes keys that are not the queries.
        anchors = pairs.fn(class_ids, vectors, key_classes, keys, **pairs._fn_kwargs)
        return anchors[:, 0]

    return losses


def _pairwise(loss: Callable[..., tf.Tensor], parameter: float, ranks: Ranks) -> Term:
    """A loss of cosine distances, own anchors' to all ranks' keys: (n, size * n)."""

    def losses(class_ids: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        distances = 1.0 - tf.matmul(vectors, ranks.gather(vectors), transpose_b=True)
        alike = class_ids[:, tf.newaxis] == ranks.gather(class_ids)
        # Own rows come first: an anchor meets itself on the main diagonal.
        positives = tf.linalg.set_diag(alike, tf.zeros_like(class_ids, tf.bool))
        return loss(distances, positives, ~alike, parameter)

    return losses


def batch_hard(
    distances: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor, margin: float
) -> tf.Tensor:
    """Triplets of the farthest positive and the nearest negative (Hermans et al. 2017, eq. 5).

    An anchor's loss is max(0, margin + max over positives d - min over negatives d); 0 where it
    has no positive or no negative.

    Args:
        distances: float32 (n, m), anchors to keys.
        positives: bool (n, m), of the anchor's class, not itself.
        negatives: bool (n, m), of another class.
        margin: by how much a negative is to be farther than a positive.

    Returns:
        float32 (n,).
    """
    farthest = tf.reduce_max(tf.where(positives, distances, -_FAR), axis=1)
    nearest = tf.reduce_min(tf.where(negatives, distances, _FAR), axis=1)
    return tf.nn.relu(margin + farthest - nearest)


def semi_hard(
    distances: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor, margin: float
) -> tf.Tensor:
    """Triplets of every positive and its semi-hard negative (Schroff et al. 2015, section 3.2).

    The negative of a positive at d(a, p) is the nearest of those farther than d(a, p). Where none
    is farther, it is the farthest there is, the least wrong one: as in TensorFlow Addons. An
    anchor's loss is the mean over its positives of max(0, margin + d(a, p) - d(a, n)); 0 where it
    has no positive or no negative.

    Args, Returns: as `batch_hard`.
    """
    ordered = tf.sort(tf.where(negatives, distances, _FAR), axis=1)
    last = tf.math.count_nonzero(negatives, axis=1, keepdims=True, dtype=tf.int32) - 1
    # In the sorted negatives a search finds in n log n what all triplets at once would in n^3.
    place = tf.searchsorted(ordered, tf.stop_gradient(distances), side="right")
    place = tf.maximum(tf.minimum(place, last), 0)
    negative = tf.gather(ordered, place, batch_dims=1)
    losses = tf.nn.relu(margin + distances - negative)
    return _mean_where(positives, losses)


def supervised_contrastive(
    distances: tf.Tensor, positives: tf.Tensor, negatives: tf.Tensor, temperature: float
) -> tf.Tensor:
    """Each positive against all others of the batch (Khosla et al. 2020, L_out of eq. 2).

    With similarities s = 1 - distance an anchor's loss is the mean over its positives p of
    -log(exp(s_p / t) / sum over all keys but itself of exp(s / t)); 0 where it has no positive.

    Args:
        distances, positives, negatives: as in `batch_hard`.
        temperature: t.

    Returns:
        float32 (n,).
    """
    logits = tf.where(positives | negatives, (1.0 - distances) / temperature, -_FAR)
    return _mean_where(positives, -tf.nn.log_softmax(logits, axis=1))


_FAR = 1e9
"""Beyond every distance and every logit; unlike infinity it makes no NaN of a difference."""


def _mean_where(chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Mean along axis 1 of what is chosen, 0 where nothing is: (n, m) to (n,)."""
    total = tf.reduce_sum(tf.where(chosen, values, 0.0), axis=1)
    return tf.math.divide_no_nan(total, tf.math.count_nonzero(chosen, axis=1, dtype=tf.float32))


class _Proxies(tf.Module):
    """Normalised softmax (Zhai and Wu 2019): the cross entropy of scale x cos(vector, proxy).

    Targets are smoothed: 1 - smoothing + smoothing / classes for an image's own class,
    smoothing / classes for each other one.
    """

    def __init__(self, loss: NormalisedSoftmax, classes: int, dim: int):
        super().__init__(name="normalised_softmax")
        self._loss = loss
        # Of norm about 1, so that a step turns them as far in any dimension.
        start = tf.random.normal((classes, dim), stddev=dim**-0.5)
        self.proxies = tf.Variable(start, name="proxies")

    def __call__(self, class_ids: tf.Tensor, vectors: tf.Tensor) -> tf.Tensor:
        proxies = tf.math.l2_normalize(self.proxies, axis=1)
        return tf.keras.losses.categorical_crossentropy(
            tf.one_hot(class_ids, self.proxies.shape[0]),
            self._loss.scale * tf.matmul(vectors, proxies, transpose_b=True),
            from_logits=True,
            label_smoothing=self._loss.smoothing,
        )
