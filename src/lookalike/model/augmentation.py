"""Random changes of training images: every image its own, and the same again for the same number.

Stateless throughout, so that a training that starts again from a checkpoint sees what it would
have seen.
"""

from __future__ import annotations

import math

import tensorflow as tf

from lookalike.config import Augment
from lookalike.errors import ConfigError

AREA = (0.02, 0.33)
"""Least and largest share of an image that erasing paints over."""
ASPECT = (0.3, 1 / 0.3)
"""Least and largest height by width of what it paints over."""
GREY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in grey: ITU-R BT.601, as Pillow's."""


def augmented(images: tf.Tensor, augment: Augment, number: tf.Tensor) -> tf.Tensor:
    """Change a batch: mirrored, shifted, coloured, erased, each where it is asked for.

    Args:
        images: uint8 (n, height, width, channels), height, width and channels known.
        augment: what is asked for; see `Augment`.
        number: int64 scalar, of the batch: what is drawn depends on it, and on nothing else.

    Returns:
        uint8, the same shape.

    Raises:
        ConfigError: a shift by more pixels than an image has.
    """
    if augment.flip:
        images = _flipped(images, number)
    if augment.shift:
        images = _shifted(images, augment.shift, number)
    if augment.colour:
        images = _coloured(images, augment.colour, number)
    if augment.erase:
        images = _erased(images, augment.erase, number)
    return images


def _draws(images: tf.Tensor, number: tf.Tensor, stream: int, columns: int) -> tf.Tensor:
    """Uniform in [0, 1), float32 (n, columns). Each stream is drawn from once a batch."""
    seed = tf.stack([tf.cast(number, tf.int64), tf.constant(stream, tf.int64)])
    return tf.random.stateless_uniform((tf.shape(images)[0], columns), seed)


def _flipped(images: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """Mirrored left to right, every other image."""
    chance = _draws(images, number, 0, 1)[:, :, tf.newaxis, tf.newaxis]
    return tf.where(chance < 0.5, tf.reverse(images, [2]), images)


def _shifted(images: tf.Tensor, room: int, number: tf.Tensor) -> tf.Tensor:
    """Moved by up to `room` pixels, down or up and right or left."""
    _, height, width, _ = images.shape
    if room > min(height, width):
        raise ConfigError(
            f"train.augment.shift = {room} for images of {height} x {width} pixels",
            allowed=f"0 to {min(height, width)}",
        )
    # Edge rows and columns are repeated, not blackened: catalogues have white grounds too.
    padded = tf.pad(images, [[0, 0], [room, room], [room, room], [0, 0]], "SYMMETRIC")
    offsets = _whole(_draws(images, number, 1, 2) * (2 * room + 1))
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    moved = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(moved, columns, axis=2, batch_dims=1)


def _coloured(images: tf.Tensor, most: float, number: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation by factors in [1 - most, 1 + most], in this order.

    Brightness multiplies all values. Contrast multiplies their distance from the image's mean
    grey, saturation that from the pixel's own grey. Rounded, and cut to [0, 255], once at the end.
    """
    factors = 1.0 + most * (2.0 * _draws(images, number, 2, 3) - 1.0)
    brightness, contrast, saturation = tf.unstack(
        factors[:, :, tf.newaxis, tf.newaxis, tf.newaxis], axis=1
    )
    values = tf.cast(images, tf.float32) * brightness
    mean = tf.reduce_mean(_grey(values), axis=[1, 2, 3], keepdims=True)
    values = mean + (values - mean) * contrast
    if images.shape[3] == 3:
        grey = _grey(values)
        values = grey + (values - grey) * saturation
    return tf.cast(tf.clip_by_value(tf.round(values), 0.0, 255.0), tf.uint8)


def _grey(values: tf.Tensor) -> tf.Tensor:
    if values.shape[3] == 1:
        return values
    return tf.reduce_sum(values * tf.constant(GREY), axis=3, keepdims=True)


def _erased(images: tf.Tensor, likely: float, number: tf.Tensor) -> tf.Tensor:
    """Random Erasing (Zhong et al. 2020): a rectangle painted over with noise, in some images.

    Its share of the image is uniform in `AREA` and its aspect log-uniform in `ASPECT`, as likely
    high as wide; where that is more than the image's height or width it ends there, in place of
    drawing again. Its place is uniform among those inside the image.
    """
    _, height, width, channels = images.shape
    chance, area, aspect, top, left = tf.unstack(_draws(images, number, 3, 5), axis=1)
    area = AREA[0] + area * (AREA[1] - AREA[0])
    aspect = tf.exp(math.log(ASPECT[0]) + aspect * math.log(ASPECT[1] / ASPECT[0]))
    inside = (chance < likely)[:, tf.newaxis, tf.newaxis]
    for axis, extent, ratio, place in ((2, height, aspect, top), (1, width, 1 / aspect, left)):
        length = tf.sqrt(area * ratio * height * width)
        length = tf.clip_by_value(_whole(tf.round(length)), 1, extent)
        start = _whole(place * tf.cast(extent - length + 1, tf.float32))
        pixels = tf.range(extent)
        along = (pixels >= start[:, tf.newaxis]) & (pixels < (start + length)[:, tf.newaxis])
        inside &= tf.expand_dims(along, axis)
    noise = 256.0 * _draws(images, number, 4, height * width * channels)
    noise = tf.cast(_whole(noise), tf.uint8)
    return tf.where(inside[..., tf.newaxis], tf.reshape(noise, tf.shape(images)), images)


def _whole(values: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.floor(values), tf.int32)
