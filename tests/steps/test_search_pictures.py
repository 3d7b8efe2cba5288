"""Pictures of a search: what they show, and that odd searches draw too."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from PIL import Image

from lookalike.steps import search_pictures as pictures
from lookalike.steps.trials import MISSING, Column, Tried

ORANGE, RED, BLUE, BEST = "#d9772b", "#d64550", "#2f6db5", "#440154"
LOSSES = ("multi_similarity", "triplet", "arcface")


def where(path: Path, colour: str) -> np.ndarray:
    """bool (h, w): where the picture has just this colour."""
    with Image.open(path) as image:
        assert image.format == "PNG"
        page = np.array(image.convert("RGB"))
    return (page == np.round(np.array(to_rgb(colour)) * 255)).all(axis=2)


def blocks(seen: np.ndarray, gap: int = 3) -> int:
    """How many stretches there are, of columns where something is seen."""
    return int((np.diff(np.flatnonzero(seen.any(axis=0)), prepend=-gap - 1) > gap).sum())


def search(trials: int) -> list[Tried]:
    """Some parameters, one of which exists under one loss, and three failed trials."""
    random = np.random.default_rng(0)
    tried = []
    for number in range(trials):
        rate, loss = random.uniform(-5, -2), LOSSES[random.integers(3)]
        values: dict[str, Any] = {"learning_rate": 10**rate, "loss.name": loss}
        if loss == LOSSES[0]:
            values["loss.alpha"] = random.uniform(1, 4)
        values |= {
            "loss.beta": random.uniform(5, 30),
            "embedding_size": int(random.choice([64, 128])),
            "augment.flip": bool(random.integers(2)),
        }
        score = 0.8 - 0.05 * (rate + 3.3) ** 2 - 0.03 * LOSSES.index(loss)
        tried.append(Tried(number, values, None if number in (4, 11, 12) else score))
    return tried


def test_a_search_is_drawn_whatever_the_order_of_its_trials(tmp_path: Path) -> None:
    trials = search(30)
    drawn = pictures.draw(tmp_path, trials=trials, objective="MAP@R")
    assert sorted(drawn) == sorted(tmp_path.iterdir())
    assert [p.name for p in drawn] == [
        "best_so_far.png",
        "parallel_coordinates.png",
        "importance.png",
    ]
    again = tmp_path / "again"
    again.mkdir()
    same = pictures.draw(again, trials=trials[::-1], objective="MAP@R")
    assert [p.read_bytes() for p in same] == [p.read_bytes() for p in drawn]


@pytest.mark.parametrize(
    ("trials", "names"),
    [
        ([], []),
        ([Tried(0, {"a": 1}, 0.5)], ["best_so_far.png"]),
        ([Tried(i, {"a": i}, None) for i in range(9)], ["best_so_far.png"]),
        (
            [Tried(i, {"a": i}, 0.1 * i) for i in range(7)],
            ["best_so_far.png", "parallel_coordinates.png"],
        ),
        ([Tried(i, {}, 0.1 * i) for i in range(9)], ["best_so_far.png"]),
    ],
    ids=["none", "one", "all failed", "few", "no parameters"],
)
def test_what_says_nothing_is_not_drawn(
    tmp_path: Path, trials: list[Tried], names: list[str]
) -> None:
    drawn = pictures.draw(tmp_path, trials=trials, objective="score")
    assert [path.name for path in drawn] == names
    assert sorted(drawn) == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("trials", "parameters"), [(30, 40), (500, 3)], ids=["40 parameters", "500 trials"]
)
def test_large_searches(tmp_path: Path, trials: int, parameters: int) -> None:
    drawn = np.random.default_rng(1).random((trials, parameters)).tolist()
    tried = [
        Tried(i, {f"p{j}": x for j, x in enumerate(row)}, row[2]) for i, row in enumerate(drawn)
    ]
    assert len(pictures.draw(tmp_path, trials=tried, objective="score")) == 3
    # Of many parameters the first ones are drawn: pages are bounded.
    assert where(tmp_path / pictures.PARALLEL, BEST).shape[1] < 2_000
    assert where(tmp_path / pictures.IMPORTANCE, BLUE).shape[0] < 1_000


ODD: dict[str, list[Any]] = {
    "none and bool": [None, True, False],
    "all sorts": [None, 1, "1", 0.5, True, [1, 2], {"a": 1}],
    "no numbers": [float("nan"), float("inf"), 1.0],
    "mathematics": ["$\\frac$", "_$a_b$", "$", "a\nb"],
    "one value": [3.0],
    "one unround value": [1 / 3e5],
    "negative": [-1000, 0, 1000],
    "sizes": [10**-30, 1, 10**30],
    "many names": [f"a_name_that_is_too_long_{i}" for i in range(40)],
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
@pytest.mark.parametrize("equal", [True, False])
def test_odd_searches(tmp_path: Path, options: list[Any], equal: bool) -> None:
    name = "$\\frac$_.a_$b_{.\n" + "long" * 20
    scores = [0.5 if equal else i % 5 / 5 for i in range(45)]
    trials = [Tried(i, {name: options[i % len(options)]}, s) for i, s in enumerate(scores)]
    trials += [Tried(45, {name: 2.0}, float("nan")), Tried(46, {}, 0.5)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        drawn = pictures.draw(tmp_path, trials=trials, objective="$\\frac$_")
    assert len(drawn) == (2 if equal or len(options) == 1 else 3)


def test_progress_rises_and_failed_trials_are_crosses_below(tmp_path: Path) -> None:
    scores = [None, 0.2, 0.1, None, 0.6, 0.4, None]
    trials = [Tried(i, {}, score) for i, score in enumerate(scores)]
    (path,) = pictures.draw(tmp_path, trials=trials, objective="score")
    plot = slice(30, -70)  # below the title, above the legend
    crosses, dots, line = (where(path, colour)[plot] for colour in (RED, BLUE, ORANGE))
    assert blocks(crosses) == 3
    assert blocks(dots) == 4
    assert np.flatnonzero(crosses.any(axis=1)).min() > np.flatnonzero(dots.any(axis=1)).max()
    heights = [rows.argmax() for rows in line.T if rows.any()]
    assert heights[0] > heights[-1]
    # It ends with the last trial, that failed, and never falls.
    assert line.any(axis=0).nonzero()[0].max() >= crosses.any(axis=0).nonzero()[0].max() - 6
    assert (np.diff(heights) <= 9).all()  # but for the ring around the best


def test_all_failed_trials_are_seen(tmp_path: Path) -> None:
    trials = [Tried(i, {"a": i}, None) for i in range(5)]
    (path,) = pictures.draw(tmp_path, trials=trials, objective="score")
    assert blocks(where(path, RED)[:-70]) == 5


def test_the_best_line_lies_on_top(tmp_path: Path) -> None:
    values = [{"a": i % 2, "b": 0.5 + i} for i in range(60)]
    values[7] = {"a": 1, "b": 0.4}  # b explains more, and comes first
    trials = [Tried(i, v, 1.0 if i == 7 else 0.5) for i, v in enumerate(values)]
    pictures.draw(tmp_path, trials=trials, objective="score")
    best = where(tmp_path / pictures.PARALLEL, BEST)
    columns = np.flatnonzero(best.any(axis=0))
    heights = [np.flatnonzero(best[:, x]).mean() for x in columns]
    # From the bottom of the first axis to the top of the second and of the score's.
    third = len(columns) // 2
    assert len(columns) > 0.5 * best.shape[1]
    assert heights[2] - min(heights) > 0.5 * best.shape[0]
    assert np.ptp(heights[third + 20 : -20]) < 4


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([0.0021234, 0.0079, 0.004], ["0.003", "0.004", "0.005", "0.006", "0.007"]),
        ([1e-5, 3.01234e-3, 1e-2], ["1e-05", "0.0001", "0.001", "0.01"]),
        ([0.0013123, 0.047], ["0.002", "0.005", "0.01", "0.02"]),
        ([64, 128, 256, 128], ["64", "128", "256"]),
        ([1, 8, 64], ["1", "8", "64"]),
        ([-1, 0, 40], ["0", "10", "20", "30", "40"]),
        ([0.1, 0.25, 0.5], ["0.1", "0.25", "0.5"]),
        ([7.0], ["7"]),
        (["b", "a", "b"], ["a", "b"]),
        ([True, False], ["False", "True"]),
        (["x", None, 10, 9], ["9", "10", "None", "x"]),
    ],
)
def test_ticks(values: list[Any], names: list[str]) -> None:
    ticks = pictures._ticks(Column.of(values, log=True))
    assert [name for _, name in ticks] == names
    heights = [height for height, _ in ticks]
    assert heights == sorted(heights)
    assert 0 <= heights[0] <= heights[-1] <= 1


def test_what_is_not_set_has_a_place_below() -> None:
    column = Column.of([1.0, MISSING, 2.0])
    assert pictures._ticks(column)[-1] == (pictures._BELOW, "not set")


def test_drawing_needs_neither_tensorflow_nor_spark() -> None:
    code = (
        "import sys, lookalike.steps.search_pictures; "
        "print([m for m in ('tensorflow', 'pyspark', 'lookalike.model') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
