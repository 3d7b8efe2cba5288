"""Networks: uint8 images in, vectors of L2 norm 1 out."""

from __future__ import annotations

import importlib
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf

from lookalike import artifacts
from lookalike.encoder import KIND, WEIGHTS
from lookalike.errors import ConfigError
from lookalike.images import Preprocessing
from lookalike.model.ranks import Ranks

keras = tf.keras
layers = tf.keras.layers

DETAIL = "detail"
"""The layer that `train.detail` is taken of, by its name."""

Body = Callable[[tf.Tensor, int], tf.Tensor]
"""From images, float32 (n, size, size, channels) in [0, 1], and dim to features, (n, dim).

A layer in its middle may have the name 'detail', see `train.detail`.

It makes its layers anew each time that it is called: once to train, and once more where it was
trained in halves, for the network of float32 that is exported. In halves, layers return float16 or
bfloat16 and the images stay float32: cast before combining the two. What layers draw, such as
Dropout's masks, no checkpoint holds: a training that goes on draws others than one in a piece.
"""


def make(
    name: str,
    preprocessing: Preprocessing,
    dim: int,
    ranks: Ranks = Ranks(),  # noqa: B008  frozen
    sync_batch_norm: bool = False,
) -> tf.keras.Model:
    """A network by its name in the config.

    Under the policies mixed_float16 and mixed_bfloat16 its layers compute in halves; its weights,
    its last normalisation and its output are float32 even so.

    Args:
        name: 'compact_resnet', 'compact_resnet_48', 'simple_cnn', or 'package.module:function': a
            function of yours, see `Body`, that is called with Keras's symbolic images.
        preprocessing: shape of its input, uint8 (n, size, size, channels).
        dim: length of its output, float32 (n, dim), L2 norm 1.
        ranks: those that train together.
        sync_batch_norm: batch normalisation takes mean and variance over the batches of all ranks,
            in every layer that does it, also inside a function of yours.

    Raises:
        ConfigError: there is no such function, it gives something else than features, or it does
            not work in halves.
    """
    images = keras.Input(preprocessing.shape, dtype=tf.uint8, name="pixels")
    # Halves have too few digits to tell all pixels' values apart after rescaling.
    scaled = layers.Rescaling(1 / 255.0, dtype="float32")(tf.cast(images, tf.float32))
    body = _BODIES.get(name) or _imported(name)
    features = _features(body, scaled, dim, name)
    _check(features, name, dim)
    vectors = layers.Lambda(unit, name="vector", dtype="float32")(features)
    # A model's name may hold no colon.
    network = keras.Model(images, vectors, name=name.rpartition(":")[2])
    if sync_batch_norm:
        _synchronise(network, ranks)
    return network


def with_mirror(network: tf.keras.Model) -> tf.keras.Model:
    """A network that gives the mean of what another gives for an image and for its mirror image.

    Args:
        network: see `make`. The weights are shared, and come in the same order.
    """
    images, one, other = both_sides(network)
    vectors = layers.Lambda(unit, name="vector", dtype="float32")(one + other)
    return keras.Model(images, vectors, name=network.name)


def both_sides(network: tf.keras.Model) -> tuple[tf.Tensor, Any, Any]:
    """Symbolic images, uint8 (n, size, size, channels), and what a network gives for them and for
    their mirror images."""
    images = keras.Input(network.input_shape[1:], dtype=tf.uint8, name="pixels")
    return images, network(images), network(tf.reverse(images, [2]))


def start_from(network: tf.keras.Model, uri: str) -> tuple[int, int]:
    """Take an encoder's weights, position by position, where they have the same shape.

    Those of another shape stay as they are, e.g. the last layer's for another embedding size.

    Args:
        network: changed in place.
        uri: a committed encoder.

    Returns:
        How many weights were taken, and of how many.

    Raises:
        ArtifactError: no encoder, or a damaged one.
        ConfigError: it keeps no weights, another number of them, or none that fits.
    """
    there = _kept(uri)
    here = network.get_weights()
    shapes = (
        f"the network {network.name!r} has {len(here)} weights, the encoder {uri} has {len(there)}"
    )
    remedy = "Name an encoder that this train.network made, or leave train.init_from out"
    if len(there) != len(here):
        raise ConfigError(f"train.init_from: {shapes}", remedy=remedy)
    fits = [old.shape == new.shape for old, new in zip(there, here, strict=True)]
    if not any(fits):
        raise ConfigError(f"train.init_from: {shapes}, and none has the same shape", remedy=remedy)
    network.set_weights(
        [old if fit else new for old, new, fit in zip(there, here, fits, strict=True)]
    )
    return sum(fits), len(fits)


def _kept(uri: str) -> list[np.ndarray]:
    artifact = artifacts.open_artifact(uri, KIND)
    if WEIGHTS not in [entry.path for entry in artifact.manifest.files]:
        raise ConfigError(
            f"train.init_from: the encoder {uri} keeps no weights to start from",
            remedy="Train it again, so that it does, or leave train.init_from out",
        )
    artifacts.verify(artifact)
    with artifacts.workbench() as folder:
        data = (artifacts.fetch(artifact, folder) / WEIGHTS).read_bytes()
    with np.load(io.BytesIO(data), allow_pickle=False) as kept:
        # Names begin with the position.
        return [kept[name] for name in sorted(kept.files)]


def _imported(name: str) -> Body:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function, None)
    except ImportError as error:
        raise ConfigError(
            f"train.network = {name!r} cannot be imported ({error})",
            allowed=_ALLOWED,
            remedy="Install its package where training runs, on Spark's workers too",
        ) from error
    if not callable(found):
        raise ConfigError(
            f"train.network = {name!r}: {function!r} in {module!r} is "
            f"{'not there' if found is None else f'a {type(found).__name__}'}",
            allowed=_ALLOWED,
            remedy="Name a function",
        )
    body: Body = found
    return body


def _features(body: Body, images: tf.Tensor, dim: int, name: str) -> Any:
    policy = keras.mixed_precision.global_policy()
    try:
        return body(images, dim)
    except (TypeError, ValueError, tf.errors.InvalidArgumentError) as error:
        if policy.compute_dtype == "float32":
            raise
        keras.mixed_precision.set_global_policy("float32")
        try:
            body(images, dim)  # what is wrong in any precision is the function's own to say
        finally:
            keras.mixed_precision.set_global_policy(policy)
        raise ConfigError(
            f"train.network = {name!r} does not work in {policy.name} "
            f"({' '.join(str(error).split())[:200]})",
            remedy="Set train.precision to float32, or cast to one dtype what it combines",
        ) from error


def _check(features: Any, name: str, dim: int) -> None:
    if not isinstance(features, type(keras.Input((1,)))):  # a symbolic tensor
        raise ConfigError(
            f"train.network = {name!r} gave a {type(features).__name__}",
            allowed="what layers of tf.keras (Keras 2) give when called with the images",
            remedy="Return the last layer's output, not a model",
        )
    if tuple(features.shape) != (None, dim):
        raise ConfigError(
            f"train.network = {name!r} gave features of shape {tuple(features.shape)}",
            allowed=f"(None, {dim}): for each image train.embedding_size numbers, or half as many "
            "with train.detail",
            remedy=f"End it with a Dense layer of dim = {dim} units",
        )


def _synchronise(network: tf.keras.Model, ranks: Ranks) -> None:
    """Let every batch normalisation in a network take its moments over all ranks.

    The layers stay those that they are, with their names and weights: a copy of a network would
    lose functions that it was made of. All of them are found, also inside layers and models of
    the user's own.
    """
    for layer in network.submodules:
        if isinstance(layer, layers.BatchNormalization):
            layer.fused = False  # the fused operation takes no moments from outside
            layer._moments = partial(_moments_of_all, layer._moments, ranks)


def _moments_of_all(
    own: Callable[..., tuple[tf.Tensor, tf.Tensor]], ranks: Ranks, *args: object, **kwargs: object
) -> tuple[tf.Tensor, tf.Tensor]:
    return ranks.moments(*own(*args, **kwargs))


def unit(x: tf.Tensor) -> tf.Tensor:
    """Vectors (n, dim) with L2 norm 1."""
    return tf.math.l2_normalize(x, axis=1)


def _compact_resnet(x: tf.Tensor, dim: int, filters: int) -> tf.Tensor:
    """Eight convolutions, six of them in residual pairs. At 28 x 28 and dim 128 that are 205k
    weights of 32 filters, 424k of 48 with about twice the work.

    The first convolution sees every pixel, for a fabric is told by its finest lines. Flattened,
    not pooled: where something is in the picture tells garments apart. Inputs above about 32
    pixels are halved until the flattened part is of that size too.
    """
    x = layers.MaxPooling2D(2)(_convolved(x, filters, 3))
    while x.shape[1] > 16:
        x = _convolved(x, filters, 3, strides=2)
    x = layers.MaxPooling2D(2, name=DETAIL)(_residual(_residual(x)))
    x = layers.MaxPooling2D(2)(_residual(_convolved(x, 2 * filters, 3)))
    x = layers.Dense(dim, use_bias=False)(layers.Flatten()(x))
    return layers.BatchNormalization(momentum=0.9, dtype="float32")(x)


def _residual(x: tf.Tensor) -> tf.Tensor:
    filters = x.shape[3]
    y = _convolved(_convolved(x, filters, 3), filters, 3, activate=False)
    return layers.ReLU()(layers.Add()([x, y]))


def _simple_cnn(x: tf.Tensor, dim: int) -> tf.Tensor:
    """The two-convolution network of the Keras tutorials."""
    x = layers.Conv2D(32, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2, name=DETAIL)(x)
    x = layers.Conv2D(64, 3, activation="relu")(x)
    x = layers.MaxPooling2D(2)(x)
    return layers.Dense(dim)(layers.Flatten()(x))


def _convolved(
    x: tf.Tensor, filters: int, size: int, strides: int = 1, activate: bool = True
) -> tf.Tensor:
    x = layers.Conv2D(filters, size, strides=strides, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)
    return layers.ReLU()(x) if activate else x


_BODIES: dict[str, Body] = {
    "compact_resnet": partial(_compact_resnet, filters=32),
    "compact_resnet_48": partial(_compact_resnet, filters=48),
    "simple_cnn": _simple_cnn,
}
_ALLOWED = f"{', '.join(_BODIES)}, or 'package.module:function', called with images and dim"
