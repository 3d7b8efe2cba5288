"""The learning rate over a training."""

import math
from typing import Literal

import numpy as np
import pytest

from lookalike.config import Train


@pytest.mark.parametrize(("scaling", "factor"), [("none", 1), ("sqrt", 2), ("linear", 4)])
def test_the_learning_rate_warms_up_and_falls_by_a_cosine(
    scaling: Literal["none", "sqrt", "linear"], factor: int
) -> None:
    from lookalike.model import optimizer

    import tensorflow as tf  # isort: skip  # after what says which Keras

    train = Train(learning_rate=0.01, warmup=0.25, rank_scaling=scaling)
    rate = optimizer.make(train, tf.Variable(100.0), 4)._learning_rate
    top = 0.01 * factor
    expected = {0: 0.0, 10: 0.4 * top, 25: top, 100: 0.0}
    expected[62] = top * (1 + math.cos(math.pi * 37 / 75)) / 2
    for step, value in expected.items():
        assert float(rate(step)) == pytest.approx(value, abs=1e-7)


def test_descent_has_nesterovs_momentum_and_decays_weights_apart() -> None:
    from lookalike.model import optimizer

    import tensorflow as tf  # isort: skip  # after what says which Keras

    train = Train(optimizer="sgd", learning_rate=0.1, warmup=0.0, weight_decay=0.01)
    weight = tf.Variable(2.0)
    descent = optimizer.make(train, tf.Variable(4.0), 1)
    descent.build([weight])
    expected, speed = 2.0, 0.0
    for step, gradient in enumerate([1.0, -3.0, 0.5]):
        descent.apply_gradients([(tf.constant(gradient), weight)])
        rate = 0.1 * (1 + math.cos(math.pi * step / 4)) / 2
        speed = 0.9 * speed - rate * gradient
        expected = expected * (1 - 0.01 * rate) + 0.9 * speed - rate * gradient
        assert float(weight) == pytest.approx(expected, rel=1e-5)


def test_all_gradients_together_are_no_longer_than_clip_norm() -> None:
    from lookalike.model import optimizer

    import tensorflow as tf  # isort: skip  # after what says which Keras

    train = Train(optimizer="sgd", learning_rate=0.1, warmup=0.0, weight_decay=0.0, clip_norm=0.5)
    weights = [tf.Variable([1.0, 1.0]), tf.Variable(1.0)]
    descent = optimizer.make(train, tf.Variable(1000.0), 1)
    descent.build(weights)
    gradients = [np.array([3.0, 0.0]), np.array(4.0)]  # of length 5 together
    descent.apply_gradients(
        [(tf.constant(g, tf.float32), w) for g, w in zip(gradients, weights, strict=True)]
    )
    for gradient, weight in zip(gradients, weights, strict=True):
        # Nesterov's first step is 1.9 gradients.
        assert weight.numpy() == pytest.approx(1 - 0.1 * 1.9 * gradient * 0.5 / 5, rel=1e-4)


def test_moving_averages_are_put_in_and_taken_out() -> None:
    from lookalike.model import optimizer

    import tensorflow as tf  # isort: skip  # after what says which Keras

    train = Train(optimizer="sgd", learning_rate=0.1, warmup=0.0, weight_decay=0.0, ema=0.9)
    weight = tf.Variable(1.0)
    descent = optimizer.make(train, tf.Variable(1000.0), 1)
    descent.build([weight])
    average = 1.0  # it begins where the weights do
    for gradient in (1.0, -3.0, 0.5):
        descent.apply_gradients([(tf.constant(gradient), weight)])
        average = 0.9 * average + 0.1 * float(weight)
    live = float(weight)
    with optimizer.averaged(descent, [weight]):
        assert float(weight) == pytest.approx(average, rel=1e-5)
    assert float(weight) == live != pytest.approx(average)
    optimizer.average(descent, [weight])
    assert float(weight) == pytest.approx(average, rel=1e-5)
