"""What random changes leave as it was, how far they go, and that they come again."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.config import Augment
from lookalike.errors import ConfigError

ALL = Augment(flip=True, shift=2, erase=0.5, colour=0.3)


def changed(images: np.ndarray, augment: Augment, number: int = 3) -> np.ndarray:
    import tensorflow as tf

    from lookalike.model.augmentation import augmented

    found = augmented(tf.constant(images), augment, tf.constant(number, tf.int64)).numpy()
    assert found.dtype == np.uint8
    assert found.shape == images.shape
    return found


def noise(count: int, height: int, width: int, channels: int, low: int = 0, high: int = 256):
    shape = (count, height, width, channels)
    return np.random.default_rng(0).integers(low, high, size=shape, dtype=np.uint8)


def test_images_move_and_are_mirrored_within_bounds() -> None:
    images = noise(64, 8, 9, 1)
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="symmetric")
    found = []
    for image, now in zip(padded, changed(images, Augment(flip=True, shift=2)), strict=True):
        places = [
            (flip, y, x)
            for flip, source in enumerate((image, image[:, ::-1]))
            for y in range(5)
            for x in range(5)
            if (source[y : y + 8, x : x + 9] == now).all()
        ]
        assert len(places) == 1
        found += places
    assert len(set(found)) > 20  # not all images alike
    assert {y for _, y, _ in found} == {x for _, _, x in found} == set(range(5))
    assert 16 < sum(flip for flip, _, _ in found) < 48


def test_a_shift_beyond_the_image_is_refused() -> None:
    assert changed(noise(2, 8, 9, 1), Augment(shift=8)).shape == (2, 8, 9, 1)
    with pytest.raises(ConfigError, match="shift = 9 for images of 8 x 9 pixels"):
        changed(noise(2, 8, 9, 1), Augment(shift=9))


def rectangle(was: np.ndarray, now: np.ndarray) -> tuple[int, int, int, int] | None:
    """First row, first column, height and width of what differs."""
    differs = (was != now).any(axis=2)
    if not differs.any():
        return None
    rows, columns = np.flatnonzero(differs.any(axis=1)), np.flatnonzero(differs.any(axis=0))
    return rows[0], columns[0], rows[-1] - rows[0] + 1, columns[-1] - columns[0] + 1


@pytest.mark.parametrize("channels", [1, 3])
def test_erasing_paints_rectangles_of_noise(channels: int) -> None:
    # Grounds that noise hits rarely, so that what differs is the rectangle.
    images = np.full((400, 40, 50, channels), 7, np.uint8)
    after = changed(images, Augment(erase=1.0))
    found = [rectangle(was, now) for was, now in zip(images, after, strict=True)]
    places, painted = [], []
    for now, place in zip(after, found, strict=True):
        assert place is not None
        top, left, height, width = place
        places.append(place)
        # To a pixel: the sides are whole numbers.
        assert (height + 1) * (width + 1) >= 0.02 * 40 * 50
        assert (height - 1) * (width - 1) <= 0.33 * 40 * 50
        assert (height + 1) / (width - 1) >= 0.3
        assert (height - 1) / (width + 1) <= 1 / 0.3
        inside = now[top : top + height, left : left + width]
        outside = now.astype(int).copy()
        outside[top : top + height, left : left + width] = 7
        assert (outside == 7).all()
        painted.append(inside.ravel())
    shares = np.array([height * width / 2000 for _, _, height, width in places])
    assert shares.min() < 0.05
    assert shares.max() > 0.3
    assert np.mean([height > width for _, _, height, width in places]) == pytest.approx(
        0.5, abs=0.1
    )
    assert len(set(places)) > 300
    assert {top for top, *_ in places} >= {0, 10, 20}
    assert {left + width for _, left, _, width in places} >= {20, 30, 50}
    # Noise: every value about as often, and no two images the same.
    values = np.bincount(np.concatenate(painted), minlength=256) / sum(map(len, painted))
    assert np.abs(values * 256 - 1).max() < 0.15
    assert len({part[:8].tobytes() for part in painted}) == 400


@pytest.mark.parametrize("likely", [0.0, 0.2, 0.7])
def test_erasing_is_as_likely_as_asked(likely: float) -> None:
    images = noise(600, 16, 16, 1)
    after = changed(images, Augment(erase=likely))
    share = np.mean(
        [rectangle(was, now) is not None for was, now in zip(images, after, strict=True)]
    )
    assert share == pytest.approx(likely, abs=0.06 if likely else 0)


@pytest.mark.parametrize("channels", [1, 3])
def test_colours_change_by_three_factors(channels: int) -> None:
    """The factors are found again by least squares, and lie within bounds."""
    images = noise(60, 12, 12, channels, low=90, high=150)  # far from where values are cut
    grey_of = np.array([0.299, 0.587, 0.114]) if channels == 3 else np.ones(1)
    factors = []
    for was, now in zip(images, changed(images, Augment(colour=0.2)), strict=True):
        pixels = was.reshape(-1, channels).astype(float)
        grey = pixels @ grey_of
        # now = a * pixel + b * its grey + c, where brightness, contrast and saturation are
        # a = s k f, b = (1 - s) k f, c = (1 - k) f * mean grey.
        columns = [pixels.ravel(), np.repeat(grey, channels), np.ones(pixels.size)]
        if channels == 1:
            columns.pop(1)
        solved, *_ = np.linalg.lstsq(np.stack(columns, axis=1), now.ravel().astype(float), None)
        a, b, c = solved if channels == 3 else (solved[0], 0.0, solved[1])
        brightness = a + b + c / grey.mean()
        contrast, saturation = (a + b) / brightness, a / (a + b)
        factors.append((brightness, contrast, saturation))
        left = now.ravel() - np.stack(columns, axis=1) @ solved
        assert np.abs(left).max() < 0.75  # rounding
    found = np.array(factors)[:, : 3 if channels == 3 else 2]
    assert found.min() > 0.8 - 0.01
    assert found.max() < 1.2 + 0.01
    assert (found.min(axis=0) < 0.85).all()
    assert (found.max(axis=0) > 1.15).all()
    # Each factor its own draw.
    between = np.corrcoef(found.T) - np.eye(found.shape[1])
    assert np.abs(between).max() < 0.5


def test_colours_are_cut_where_they_end() -> None:
    images = np.zeros((50, 8, 8, 3), np.uint8)
    images[:, :4] = 255
    after = changed(images, Augment(colour=0.5))
    # Nothing wraps round: the light half stays the lighter one.
    assert (after[:, :4].min(axis=(1, 2, 3)) >= after[:, 4:].max(axis=(1, 2, 3))).all()
    assert (after[:, :4] == 255).all(axis=(1, 2, 3)).any()


@pytest.mark.parametrize(
    "augment",
    [Augment(flip=True), Augment(shift=2), Augment(erase=0.5), Augment(colour=0.3), ALL],
    ids=["flip", "shift", "erase", "colour", "all"],
)
def test_a_number_decides_everything(augment: Augment) -> None:
    import tensorflow as tf

    from lookalike.model.augmentation import augmented

    images = noise(16, 16, 16, 3)
    first = changed(images, augment, 11)
    tf.random.set_seed(99)
    assert np.array_equal(first, changed(images, augment, 11))
    assert not np.array_equal(first, changed(images, augment, 12))
    assert not np.array_equal(first, images)
    # In tf.data too, where it is used.
    data = tf.data.Dataset.from_tensors(images).repeat(2).enumerate(11)
    one, two = data.map(lambda number, batch: augmented(batch, augment, number))
    assert np.array_equal(one, first)
    assert np.array_equal(two, changed(images, augment, 12))


def test_nothing_asked_for_changes_nothing() -> None:
    images = noise(4, 16, 16, 3)
    assert np.array_equal(changed(images, Augment()), images)
