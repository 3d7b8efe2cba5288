"""What a search's score depends on."""

from __future__ import annotations

import numpy as np
import pytest

from lookalike.steps.importance import importances
from lookalike.steps.trials import Tried

LOSSES = ("multi_similarity", "triplet", "arcface")


def uniform(trials: int, parameters: int) -> tuple[np.ndarray, list[dict[str, float]]]:
    drawn = np.random.default_rng(1).random((trials, parameters))
    return drawn, [{f"p{i}": float(x) for i, x in enumerate(row)} for row in drawn]


def test_importances_are_shares_of_the_variance() -> None:
    drawn, values = uniform(120, 3)
    scores = 0.3 * drawn[:, 0] + 0.9 * drawn[:, 2]
    trials = [Tried(i, values[i], float(score)) for i, score in enumerate(scores)]
    found = importances([*trials, Tried(120, {"p9": 1}, None)])
    assert list(found) == ["p2", "p0", "p1"]
    assert found["p2"][0] == pytest.approx(0.9, abs=0.15)
    assert found["p0"][0] == pytest.approx(0.1, abs=0.05)
    assert found["p1"][0] == pytest.approx(0, abs=0.02)
    assert all(0 <= spread < 0.15 for _, spread in found.values())
    assert importances([*trials, Tried(120, {"p9": 1}, None)]) == found


def test_scores_of_chance_have_no_importances() -> None:
    drawn, values = uniform(20, 4)
    trials = [Tried(i, values[i] | {"p3": 1.0}, float(drawn[i, 3])) for i in range(20)]
    found = importances(trials)
    assert set(found) == {"p0", "p1", "p2"}
    assert max(mean for mean, _ in found.values()) < 0.15


def test_a_category_is_one_parameter_of_any_type() -> None:
    options = ["a", None, True, 4]
    trials = [
        Tried(i, {"kind": options[i % 4], "other": i * 0.618 % 1}, float(i % 4 == 1))
        for i in range(40)
    ]
    found = importances(trials)
    assert list(found) == ["kind", "other"]
    assert found["kind"][0] > 0.7
    assert abs(found["other"][0]) < 0.05


def test_what_a_choice_makes_is_not_said_of_what_exists_under_it() -> None:
    drawn, values = uniform(60, 2)
    trials = []
    for i, (alpha, beta) in enumerate(drawn.tolist()):
        name = LOSSES[i % 3]
        under = {"loss.alpha": alpha, "loss.beta": beta} if name == LOSSES[0] else {}
        score = 1 + 0.05 * alpha if under else 0.0
        trials.append(Tried(i, {"loss.name": name, **under}, score))
    found = importances(trials)
    assert next(iter(found)) == "loss.name"
    assert found["loss.name"][0] > 0.8
    assert abs(found["loss.alpha"][0]) < 0.05
    assert abs(found["loss.beta"][0]) < 0.05
    # Where no parameter tells what is missing, it counts.
    alone = [
        Tried(
            t.number, {k: v for k, v in t.values.items() if k == "loss.alpha"} | values[i], t.score
        )
        for i, t in enumerate(trials)
    ]
    assert importances(alone)["loss.alpha"][0] > 0.8


@pytest.mark.parametrize("scores", [[0.1 * i for i in range(7)], [0.5] * 30], ids=["few", "equal"])
def test_nothing_is_said_of_too_little(scores: list[float]) -> None:
    trials = [Tried(i, {"a": i}, score) for i, score in enumerate(scores)]
    assert importances(trials) == {}
