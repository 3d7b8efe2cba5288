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


@pytest.mark.parametrize(
    ("count", "numbers", "there"), [(3, 12, 2), (40, 12, 3), (5200, 400, 3)], ids=str
)
def test_components_that_are_not_there_are_nothing(count: int, numbers: int, there: int) -> None:
    from lookalike.model import detail

    random = np.random.default_rng(0)
    flat = random.normal(size=(count, 3)) @ random.normal(size=(3, numbers)) + 5  # 3 are free
    _, kernel = detail.components(flat.astype(np.float32), 5)
    assert kernel.shape == (numbers, 5)
    assert np.isfinite(kernel).all()
    assert (np.abs(kernel).sum(axis=0) > 0).sum() == there


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("size", [28, 96])
@pytest.mark.parametrize("name", ["compact_resnet", "simple_cnn"])
def test_a_cosine_is_that_of_both_by_their_shares(name: str, size: int, mirrored: bool) -> None:
    from lookalike.model import detail, networks

    random = np.random.default_rng(0)
    pixels = random.integers(256, size=(40, size, size, 3), dtype=np.uint8)
    network = networks.make(name, Preprocessing(size, 3), 6)
    both = detail.parts(network, 5, mirrored)
    trained, found = both.predict(pixels, verbose=0)
    plain = networks.with_mirror(network) if mirrored else network
    assert np.allclose(trained, plain.predict(pixels, verbose=0), atol=1e-5)
    assert found.shape[1] <= 4096
    mean, kernel = detail.components(found, 5)
    own = (found - mean) @ kernel
    own /= np.linalg.norm(own, axis=1, keepdims=True)
    made = detail.with_detail(both, 0.3, mean, kernel)
    vectors = made.predict(pixels, verbose=0)
    assert vectors.shape == (40, 11)
    expected = 0.7 * trained @ trained.T + 0.3 * own @ own.T
    assert np.allclose(vectors @ vectors.T, expected, atol=1e-4)
    turned = made.predict(pixels[:, :, ::-1], verbose=0)
    assert np.allclose(turned, vectors, atol=1e-4) == mirrored
    # The same weights and no others.
    for one, other in zip(made.get_weights(), network.get_weights(), strict=True):
        assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("shape", "numbers"), [((70, 70), 2450), ((8, 2, 900), 3600), ((300, 64), 2368), ((9,), 9)]
)
def test_large_details_are_averaged(shape: tuple[int, ...], numbers: int) -> None:
    from lookalike.model import detail, networks

    keras = networks.keras
    images = keras.Input((4, 4, 1))
    wide = keras.layers.Dense(int(np.prod(shape)))(keras.layers.Flatten()(images))
    middle = keras.layers.Reshape(shape, name="detail")(wide)
    network = keras.Model(images, keras.layers.Flatten()(middle))
    assert detail.parts(network, 4, False).output_shape[1] == (None, numbers)


def test_a_network_without_detail_is_told() -> None:
    from lookalike.model import detail, networks

    keras = networks.keras
    images = keras.Input((8, 8, 1))
    flat = keras.layers.Flatten()(images)
    for numbers in (3, 5000):
        dense = keras.layers.Dense(numbers, name="detail")(flat)
        with pytest.raises(ConfigError, match=rf"gives {numbers:,} numbers.*from 4, .* to 4,096"):
            detail.parts(keras.Model(images, dense), 4, False)
    with pytest.raises(ConfigError, match=r"'plain' has none.*ReLU\(name='detail'\)"):
        detail.parts(keras.Model(images, flat, name="plain"), 4, False)
