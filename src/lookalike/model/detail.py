"""Detail: what the loss has no use for, put beside the embedding it made.

A loss teaches a network to leave out whatever does not tell the trained classes apart, and that may
be what tells later ones. Layers before the last still have it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from lookalike.errors import ConfigError
from lookalike.model.networks import DETAIL, both_sides, unit

IMAGES = 5_000
"""Enough to find a few hundred components of a few thousand numbers."""
_NUMBERS = 4096
_NOTHING = 1e-6
"""A component whose variance is this little of the largest one's is rounding."""

layers = tf.keras.layers


def parts(network: tf.keras.Model, size: int, mirrored: bool) -> tf.keras.Model:
    """What a vector with detail is made of: another network's vector, float32 (n, dim), L2 norm 1,
    and what its layer 'detail' gives, float32 (n, numbers).

    Maps and sequences of more than 4,096 numbers are halved by averaging until they have no more.

    Args:
        network: see `networks.make`. The weights are shared, and no others come with them.
        size: components that are to be taken of the numbers.
        mirrored: both are means over an image and its mirror image.

    Raises:
        ConfigError: there is no such layer, or it gives too few numbers, or too many.
    """
    both = tf.keras.Model(network.input, [network.output, _numbers(network, size)])
    if not mirrored:
        return both
    images, (one, own), (other, turned) = both_sides(both)
    vectors = layers.Lambda(unit, name="vector", dtype="float32")(one + other)
    return tf.keras.Model(images, [vectors, (own + turned) / 2])


def components(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and whitened principal components of numbers (Jegou and Chum 2012, "Negative evidences
    and co-occurrences in image retrieval: the benefit of PCA and whitening").

    Args:
        values: float32 (n, numbers), n from 2.
        size: components.

    Returns:
        float32 (numbers,) and (numbers, size), so that the columns of (values - mean) @ components
        are uncorrelated and have variance 1; where there are fewer, the last are 0.
    """
    from sklearn.decomposition import PCA  # 1 s to import, needed once a training

    count = min(size, *values.shape)
    mean = values.mean(axis=0)
    # Less their mean beforehand: some of its solvers lose digits to a large one.
    found = PCA(count, random_state=0).fit(values - mean)
    variance = found.explained_variance_
    told = variance > _NOTHING * variance[0]
    kernel = np.zeros((values.shape[1], size), np.float32)
    kernel[:, :count][:, told] = (found.components_[told] / np.sqrt(variance[told, None])).T
    return mean, kernel


def with_detail(
    both: tf.keras.Model, share: float, mean: np.ndarray, kernel: np.ndarray
) -> tf.keras.Model:
    """A network of vectors with detail, float32 (n, dim + size), L2 norm 1.

    The cosine of two of them is (1 - share) times that of what was trained plus share times that of
    their details.

    Args:
        both: see `parts`. The weights are shared, and no others come with them.
        share: from 0 to below 1.
        mean, kernel: see `components`.
    """
    sides = float(np.sqrt(1 - share)), float(np.sqrt(share))

    def joined(found: list[tf.Tensor]) -> tf.Tensor:
        trained, detail = found[0], unit((found[1] - mean) @ kernel)
        return unit(tf.concat([sides[0] * trained, sides[1] * detail], axis=1))

    return tf.keras.Model(both.input, layers.Lambda(joined, dtype="float32")(both.output))


def _numbers(network: tf.keras.Model, size: int) -> tf.Tensor:
    found = _layer(network).output
    while _count(found) > _NUMBERS and max(sides := found.shape[1:-1], default=1) > 1:
        halves = [min(2, side) for side in sides]
        pooled = layers.AveragePooling2D if len(halves) == 2 else layers.AveragePooling1D
        smaller = pooled(halves if len(halves) == 2 else halves[0])(found)
        if _count(smaller) < size:
            break
        found = smaller
    if not size <= _count(found) <= _NUMBERS:
        raise ConfigError(
            f"the layer {DETAIL!r} of the network {network.name!r} gives {_count(found):,} "
            "numbers, and the detail of a vector is found among them",
            allowed=f"from {size:,}, half of train.embedding_size, to {_NUMBERS:,}",
            remedy=f"Name another layer {DETAIL!r}, change train.embedding_size, or set "
            "train.detail to 0",
        )
    return layers.Flatten(dtype="float32")(found)


def _layer(network: tf.keras.Model) -> tf.keras.layers.Layer:
    named = [layer for layer in network.layers if layer.name == DETAIL]
    if not named or named[0].output.shape.rank not in (2, 3, 4):
        raise ConfigError(
            f"train.detail is taken of a layer with the name {DETAIL!r} among the network's own "
            f"(not of one within another), and {network.name!r} has none",
            allowed="a layer that gives maps, a sequence, or numbers",
            remedy=f"Name one in its middle, as in tf.keras.layers.ReLU(name={DETAIL!r}), or set "
            "train.detail to 0",
        )
    return named[0]


def _count(found: tf.Tensor) -> int:
    return int(np.prod(found.shape[1:]))
