"""The network of a first notebook, with its mistake."""

from __future__ import annotations

import tensorflow as tf

layers = tf.keras.layers


def network(images: tf.Tensor, dim: int) -> tf.Tensor:
    """Two convolutions, on images of [0, 1] that are divided by 255 again."""
    x = layers.Rescaling(1 / 255.0)(images)
    for filters in (32, 64):
        x = layers.MaxPooling2D(2)(layers.Conv2D(filters, 3, activation="relu")(x))
    return layers.Dense(dim)(layers.Flatten()(x))
