"""Detail: what the loss has no use for, put beside the embedding it made.

A loss teaches a network to leave out whatever does not tell the trained classes apart, and that may
be what tells later ones. Layers before the last still have it.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from sklearn.decomposition import PCA

from lookalike.errors import ConfigError
from lookalike.model.networks import DETAIL, unit

IMAGES = 10_000
"""Enough to find a few hundred components of a few thousand numbers."""
_NUMBERS = 4096
_NOTHING = 1e-6
"""A component whose variance is this little of the largest one's is rounding."""

layers = tf.keras.layers


def numbers(network: tf.keras.Model, size: int) -> tf.keras.Model:
    """A network that gives what the layer 'detail' of another gives, float32 (n, numbers).

    Maps with more than 4,096 numbers are halved by averaging until they have no more.

    Args:
        network: see `networks.make`.
        size: components that are to be taken of it.

    Raises:
        ConfigError: there is no such layer, or it gives too few numbers.
    """
    remedy = "Set train.detail to 0, or name so a layer in the middle: tf.keras.layers"
    if DETAIL not in [layer.name for layer in network.layers]:
        raise ConfigError(
            f"train.detail is taken of a layer with the name {DETAIL!r}, and train.network = "
            f"{network.name!r} has none",
            remedy=f"{remedy}.ReLU(name={DETAIL!r})",
        )
    found = network.get_layer(DETAIL).output
    while found.shape.rank == 4 and np.prod(found.shape[1:]) > _NUMBERS and found.shape[1] > 1:
        found = layers.AveragePooling2D(2)(found)
    flat = layers.Flatten(dtype="float32")(found)
    if flat.shape[1] < size:
        raise ConfigError(
            f"the layer {DETAIL!r} of train.network = {network.name!r} gives {flat.shape[1]} "
            f"numbers, and the detail of a vector has {size}, half of train.embedding_size",
            remedy=f"Lower train.embedding_size, or name a larger layer {DETAIL!r}",
        )
    return tf.keras.Model(network.input, flat)


def components(values: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean and whitened principal components of numbers (Jegou and Chum 2012, "Negative evidences
    and co-occurrences in image retrieval: the benefit of PCA and whitening").

    Args:
        values: float32 (n, numbers), n from 1.
        size: components.

    Returns:
        float32 (numbers,) and (numbers, size), so that the columns of (values - mean) @ components
        are uncorrelated and have variance 1; where there are fewer, the last are 0.
    """
    count = min(size, len(values))
    found = PCA(count, random_state=0).fit(values)
    variance = found.explained_variance_
    told = variance > _NOTHING * variance[0]
    kernel = np.zeros((values.shape[1], size), np.float32)
    kernel[:, :count][:, told] = (found.components_[told] / np.sqrt(variance[told, None])).T
    return found.mean_.astype(np.float32), kernel


def with_detail(
    network: tf.keras.Model, share: float, mean: np.ndarray, kernel: np.ndarray
) -> tf.keras.Model:
    """A network whose vectors are another's with its detail beside them.

    The cosine of two vectors is (1 - share) times that of the other network's plus share times that
    of their details.

    Args:
        network: see `networks.make`. The weights are shared, and no others come with them.
        share: from 0 to below 1.
        mean, kernel: see `components`, of `numbers`.
    """
    plain = numbers(network, kernel.shape[1])
    sides = float(np.sqrt(1 - share)), float(np.sqrt(share))

    def joined(both: list[tf.Tensor]) -> tf.Tensor:
        parts = both[0], unit((both[1] - mean) @ kernel)
        return unit(tf.concat([side * part for side, part in zip(sides, parts, strict=True)], 1))

    vectors = layers.Lambda(joined)([network.output, plain.output])
    return tf.keras.Model(network.input, vectors, name=network.name)
