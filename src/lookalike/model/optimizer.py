"""The optimizer: its learning rate, the step that it takes, the averages that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import tensorflow as tf

from lookalike.config import Train
from lookalike.model.losses import Objective
from lookalike.model.ranks import Ranks

_MOMENTUM = 0.9
_GROWTH = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


class _Schedule(tf.keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Up to the rate over the first steps, then down to 0 by a cosine (Loshchilov & Hutter 2017).

    Args:
        rate: the highest.
        warmup: share of the steps that it rises over.
        planned: float32 scalar, steps in all; what it is while a step is taken counts.
    """

    def __init__(self, rate: float, warmup: float, planned: tf.Variable):
        super().__init__()
        self._rate, self._warmup, self._planned = rate, warmup, planned

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.minimum(tf.cast(step, tf.float32) / self._planned, 1.0)
        risen = done / self._warmup if self._warmup else 1.0
        fallen = (done - self._warmup) / (1.0 - self._warmup)
        return self._rate * tf.where(
            done < self._warmup, risen, 0.5 * (1.0 + tf.cos(np.pi * fallen))
        )


def make(train: Train, planned: tf.Variable, ranks: int) -> tf.keras.optimizers.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), or stochastic gradient descent with Nesterov's momentum.

    Both take the decay of the weights apart from the gradient.

    Args:
        train: see `Train`.
        planned: float32 scalar, steps in all; what it is while a step is taken counts.
        ranks: how many there are.
    """
    rate = train.learning_rate * ranks ** _GROWTH[train.rank_scaling]
    schedule = _Schedule(rate, train.warmup, planned)
    kinds = {
        "adamw": tf.keras.optimizers.AdamW,
        "sgd": partial(tf.keras.optimizers.SGD, momentum=_MOMENTUM, nesterov=True),
    }
    optimizer = kinds[train.optimizer](
        schedule,
        weight_decay=train.weight_decay,
        global_clipnorm=train.clip_norm,
        use_ema=train.ema > 0,
        ema_momentum=train.ema or 0.99,
    )
    if tf.keras.mixed_precision.global_policy().name == "mixed_float16":
        return tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def make_step(
    network: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    objective: Objective,
    ranks: Ranks,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    """What takes a step on a batch's images and classes, with the gradients of all ranks.

    It returns this rank's loss before it; nan where a vector is no number.
    """
    scaled = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        trained = [*network.trainable_variables, *objective.trainable_variables]
        with tf.GradientTape() as tape:
            vectors = network(images, training=True)
            value = objective(classes, vectors)
            differentiated = optimizer.get_scaled_loss(value) if scaled else value
        # Of a weight that nothing depends on, too: ranks exchange what is there.
        unconnected = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(differentiated, trained, unconnected_gradients=unconnected)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(ranks.averaged(gradients), trained, strict=True))
        # Of vectors that are no numbers a loss that picks pairs picks none, and is zero.
        finite = tf.reduce_all(tf.math.is_finite(vectors))
        return tf.where(finite, value, tf.constant(np.nan, value.dtype))

    return step


@contextmanager
def averaged(
    optimizer: tf.keras.optimizers.Optimizer, trained: Sequence[tf.Variable]
) -> Iterator[None]:
    """Variables with their moving averages while this is open, where there are any."""
    if not _inner(optimizer).use_ema:
        yield
        return
    live = [variable.numpy() for variable in trained]
    average(optimizer, trained)
    try:
        yield
    finally:
        for variable, value in zip(trained, live, strict=True):
            variable.assign(value)


def average(optimizer: tf.keras.optimizers.Optimizer, trained: Sequence[tf.Variable]) -> None:
    """Put their moving averages into variables, where there are any."""
    _inner(optimizer).finalize_variable_values(trained)


def _inner(optimizer: tf.keras.optimizers.Optimizer) -> tf.keras.optimizers.Optimizer:
    # Around it a scaled loss has one of its own.
    return getattr(optimizer, "inner_optimizer", optimizer)
