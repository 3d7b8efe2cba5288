"""Pictures of a training: what they show, and that odd input draws too."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lookalike.metrics import Reliability
from lookalike.steps import training_pictures as pictures

GREEN, RED, BLUE, GREY = "#2a9d5c", "#d64550", "#2f6db5", "#cfd3d9"


def pixels(path: Path) -> np.ndarray:
    """uint8 (h, w, 3)."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def where(page: np.ndarray, colour: str | np.ndarray) -> np.ndarray:
    """bool (h, w): where the page has just this colour."""
    if isinstance(colour, str):
        colour = np.round(np.array(to_rgb(colour)) * 255)
    return (page == colour).all(axis=2)


def blobs(classes: int, items: int, dim: int = 16) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    numbers = np.repeat(np.arange(classes), items)
    return random.normal(size=(classes, dim))[numbers] + 0.1 * random.normal(
        size=(len(numbers), dim)
    ), numbers


def curve(epochs: int) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "loss": 1 / epoch,
            "p_at_1": 1 - 1 / (epoch + 1),
            "map_at_r": 1 - 1.5 / (epoch + 1),
            "images_per_second": 1000.0 + epoch,
        }
        for epoch in range(1, epochs + 1)
    ]


def one_bin(observed: float) -> Reliability:
    nothing = (float("nan"),) * 9
    return Reliability((*nothing, 0.9), (*nothing, observed), (0,) * 9 + (10,))


@pytest.mark.parametrize("channels", [1, 3])
def test_all_that_is_known_is_drawn(tmp_path: Path, channels: int) -> None:
    vectors, classes = blobs(3, 10)
    random = np.random.default_rng(1)
    drawn = pictures.draw(
        tmp_path,
        before=random.normal(size=(30, 5)),
        after=vectors,
        pixels=random.integers(256, size=(30, 8, 8, channels), dtype=np.uint8),
        classes=classes,
        names=["boots", "$\\frac$", "_bags\n$"],
        reliability=one_bin(0.5),
        curve=curve(3),
    )
    assert sorted(drawn) == sorted(tmp_path.iterdir())
    assert [path.name for path in drawn] == [
        "learning_curves.png",
        "embedding.png",
        "neighbours_before_and_after.png",
        "reliability.png",
    ]
    assert all((pixels(path) < 255).any() for path in drawn)


def test_what_is_not_known_is_left_out(tmp_path: Path) -> None:
    vectors = np.eye(2)
    drawn = pictures.draw(
        tmp_path,
        before=vectors,
        after=vectors,
        pixels=None,
        classes=np.array([0, 1]),
        names=["a", "b"],
        reliability=None,
        curve=[],
    )
    assert drawn == list(tmp_path.iterdir()) == []


def test_neighbours_before_and_after(tmp_path: Path) -> None:
    items = np.arange(90)
    classes, groups = items // 9, items % 9
    # Before, an item is beside one of every other class; after, beside those of its own.
    colours = np.stack([items + 1, items + 100, 255 - items], axis=1).astype(np.uint8)
    images = np.broadcast_to(colours[:, None, None], (90, 6, 6, 3))
    names = np.array([f"class {c}" for c in classes])
    pictures.draw_before_and_after(
        np.eye(9)[groups], np.eye(10)[classes], images, names, tmp_path / "page.png"
    )
    page = pixels(tmp_path / "page.png")
    middle = page.shape[1] * 13 // 24
    queries, before, after = np.split(page, [page.shape[1] // 14, middle], axis=1)
    assert where(before, RED).any()
    assert not where(before, GREEN).any()
    assert where(after, GREEN).any()
    assert not where(after, RED).any()
    asked = [item for item in items if where(queries, colours[item]).any()]
    assert [classes[item] for item in asked] == list(range(8))
    for item in asked:
        # The query itself is left out, all the others of its class are there.
        others = [o for o in items if classes[o] == classes[item] and o != item]
        assert not where(after, colours[item]).any()
        assert all(where(after, colours[other]).any() for other in others)


def test_two_images_are_each_others_neighbours(tmp_path: Path) -> None:
    images = np.zeros((2, 4, 4, 1), np.uint8)
    path = tmp_path / "page.png"
    pictures.draw_before_and_after(np.eye(2), np.eye(2), images, np.array(["a", "a"]), path)
    assert where(pixels(path), GREEN).any()


@pytest.mark.parametrize(("classes", "coloured", "grey"), [(3, 3, False), (24, 20, True)])
def test_the_largest_classes_have_colours(
    tmp_path: Path, classes: int, coloured: int, grey: bool
) -> None:
    vectors, numbers = blobs(classes, 6)
    names = [f"class {c}" for c in range(classes)]
    pictures.draw_embedding(vectors, numbers, names, tmp_path / "map.png")
    page = pixels(tmp_path / "map.png")[60:]  # below the title
    seen = [c for c in pictures._COLOURS if c != "#000000" and where(page, c).any()]
    assert len(seen) == coloured - (coloured > 7)
    assert where(page, GREY).any() == grey


def test_classes_lie_together_on_the_map() -> None:
    vectors, numbers = blobs(4, 15)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    plane = pictures._plane(units.astype(np.float32))
    for i in range(60):
        distances = [(float(np.sum((plane[i] - plane[j]) ** 2)), j) for j in range(60) if j != i]
        assert numbers[min(distances)[1]] == numbers[i]
    assert pictures._plane(units.astype(np.float32)).tolist() == plane.tolist()


@pytest.mark.parametrize(
    "vectors",
    [
        np.eye(3),
        np.array([[1.0], [-1.0], [1.0], [2.0]]),
        np.ones((40, 5)),
        np.zeros((40, 5)),
        np.eye(5)[[0] * 39 + [1]],
    ],
    ids=["three", "one dimension", "one point", "zeros", "all but one"],
)
def test_odd_embeddings_have_a_map(tmp_path: Path, vectors: np.ndarray) -> None:
    plane = pictures._plane(vectors.astype(np.float32))
    assert plane.shape == (len(vectors), 2)
    assert np.isfinite(plane).all()
    path = tmp_path / "map.png"
    pictures.draw_embedding(vectors, np.zeros(len(vectors), int), ["only"], path)
    assert where(pixels(path)[60:], pictures._COLOURS[0]).any()


def test_samples_are_bounded_and_of_all_items() -> None:
    assert pictures._sampled(5, 5).tolist() == [0, 1, 2, 3, 4]
    rows = pictures._sampled(10_000, 100)
    assert len(set(rows.tolist())) == 100
    assert rows.max() > 8_000
    assert rows.min() < 2_000


def test_reliability_is_drawn_where_it_is(tmp_path: Path) -> None:
    heights = []
    for observed in (0.1, 0.5, 0.9):
        path = tmp_path / f"{observed}.png"
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            pictures.draw_reliability(one_bin(observed), path)
        page = where(pixels(path), BLUE)
        heights.append(np.flatnonzero(page[:, page.shape[1] * 3 // 4 :].any(axis=1)).mean())
    assert heights[0] > heights[1] > heights[2]
    assert heights[0] - heights[1] == pytest.approx(heights[1] - heights[2], abs=2)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves(tmp_path: Path, epochs: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pictures.draw_curves(curve(epochs), tmp_path / "curves.png")
    page = where(pixels(tmp_path / "curves.png"), BLUE)
    for part in np.array_split(page, 3, axis=1):
        assert part.any()
