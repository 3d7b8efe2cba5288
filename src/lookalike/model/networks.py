"""Networks: uint8 images in, vectors of L2 norm 1 out."""

from __future__ import annotations

from collections.abc import Callable

import tensorflow as tf

from lookalike.images import Preprocessing

keras = tf.keras
layers = tf.keras.layers


def make(name: str, preprocessing: Preprocessing, dim: int) -> tf.keras.Model:
    """A network by its name in the config.

    Args:
        name: 'compact_resnet' or 'simple_cnn'.
        preprocessing: shape of its input, uint8 (n, size, size, channels).
        dim: length of its output, float32 (n, dim), L2 norm 1.
    """
    images = keras.Input(preprocessing.shape, dtype=tf.uint8, name="pixels")
    scaled = layers.Rescaling(1 / 255.0)(tf.cast(images, tf.float32))
    features = _BODIES[name](scaled, dim)
    vectors = layers.Lambda(_unit, name="vector")(features)
    return keras.Model(images, vectors, name=name)


def _unit(x: tf.Tensor) -> tf.Tensor:
    return tf.math.l2_normalize(x, axis=1)


def _compact_resnet(x: tf.Tensor, dim: int) -> tf.Tensor:
    """Five convolutions, two of them in a residual pair; 416k weights at 28 x 28 and dim 128.

    Flattened, not pooled: where something is in the picture tells garments apart. Inputs above
    about 32 pixels are halved until the flattened part is of that size too.
    """
    x = _convolved(x, 24, 5, strides=2)
    while x.shape[1] > 16:
        x = _convolved(x, 24, 3, strides=2)
    x = _convolved(x, 48, 3)
    x = _convolved(x, 96, 3, strides=2)
    y = _convolved(_convolved(x, 96, 3), 96, 3, activate=False)
    x = layers.ReLU()(layers.Add()([x, y]))
    x = layers.MaxPooling2D(2)(x)
    x = layers.Dense(dim, use_bias=False)(layers.Flatten()(x))
    return layers.BatchNormalization(momentum=0.9)(x)


def _simple_cnn(x: tf.Tensor, dim: int) -> tf.Tensor:
    """The two-convolution network of the Keras tutorials."""
    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    return layers.Dense(dim)(layers.Flatten()(x))


def _convolved(
    x: tf.Tensor, filters: int, size: int, strides: int = 1, activate: bool = True
) -> tf.Tensor:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if activate else x


_BODIES: dict[str, Callable[[tf.Tensor, int], tf.Tensor]] = {
    "compact_resnet": _compact_resnet,
    "simple_cnn": _simple_cnn,
}
