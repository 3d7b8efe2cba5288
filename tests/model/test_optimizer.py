"""The learning rate over a training."""

import math
from typing import Literal

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
