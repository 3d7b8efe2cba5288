"""Detail: components by their definition, and what is no detail is told."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.errors import ConfigError
from lookalike.images import Preprocessing


def test_components_are_whitened_and_the_largest() -> None:
    from lookalike.model import detail

    random = np.random.default_rng(0)
    values = (random.normal(size=(500, 12)) @ random.normal(size=(12, 12)) + 5).astype(np.float32)
    mean, kernel = detail.components(values, 4)
    assert np.allclose(mean, values.mean(0), atol=1e-4)
    found = (values - mean) @ kernel
    assert np.allclose(np.cov(found.T), np.eye(4), atol=1e-3)
    # By the definition: a component's axis is one of the covariance's, and it stretches it least.
    largest = np.sort(np.linalg.eigvalsh(np.cov(values.T)))[::-1][:4]
    assert np.allclose(1 / np.linalg.norm(kernel, axis=0) ** 2, largest, rtol=1e-3)


@pytest.mark.parametrize(("count", "there"), [(1, 0), (3, 2), (40, 3)])
def test_components_that_are_not_there_are_nothing(count: int, there: int) -> None:
    from lookalike.model import detail

    random = np.random.default_rng(0)
    flat = random.normal(size=(count, 3)) @ random.normal(size=(3, 12))  # of 12 numbers, 3 free
    _, kernel = detail.components(flat.astype(np.float32), 5)
    assert kernel.shape == (12, 5)
    assert np.isfinite(kernel).all()
    assert (np.abs(kernel).sum(axis=0) > 0).sum() == there


@pytest.mark.parametrize("size", [28, 96])
@pytest.mark.parametrize("name", ["compact_resnet", "simple_cnn"])
def test_a_cosine_is_that_of_both_by_their_shares(name: str, size: int) -> None:
    from lookalike.model import detail, networks

    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(40, size, size, 3), dtype=np.uint8)
    network = networks.make(name, Preprocessing(size, 3), 6)
    plain = detail.numbers(network, 5)
    assert plain.output_shape[1] <= 4096
    found = plain.predict(pixels, verbose=0)
    mean, kernel = detail.components(found, 5)
    own = (found - mean) @ kernel
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    trained = network.predict(pixels, verbose=0)
    both = detail.with_detail(network, 0.3, mean, kernel).predict(pixels, verbose=0)
    assert both.shape == (40, 11)
    expected = 0.7 * trained @ trained.T + 0.3 * own @ own.T
    assert np.allclose(both @ both.T, expected, atol=1e-4)


def test_a_network_without_detail_is_told() -> None:
    from lookalike.model import detail, networks

    keras = networks.keras
    images = keras.Input((8, 8, 1))
    few = keras.layers.Dense(3, name="detail")(keras.layers.Flatten()(images))
    with pytest.raises(ConfigError, match=r"gives 3 numbers, .* has 4.*Lower train.embedding_size"):
        detail.numbers(keras.Model(images, few), 4)
    with pytest.raises(ConfigError, match=r"'plain' has none.*ReLU\(name='detail'\)"):
        detail.numbers(keras.Model(images, keras.layers.Flatten()(images), name="plain"), 4)
