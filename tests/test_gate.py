"""The gate's rules."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from pydantic import ValidationError

from lookalike.config import Gate
from lookalike.errors import GateError
from lookalike.steps.gate import Candidate, check
from lookalike.steps.protocols import Evaluation

CLASSES = ("boots", "bags", "caps")


def evaluation(
    p_at_1: float,
    map_at_r: float,
    index: float,
    raw: float = 0.5,
    recall: float = 0.99,
    classes: tuple[float, ...] = (0.8, 0.8, 0.8),
    queries: int = 100,
) -> Evaluation:
    figures = {
        "A": {
            "raw_pixels": {"p_at_1": raw},
            "encoder": {"p_at_1": p_at_1},
            "index": {"p_at_1": index},
        },
        "B": {"raw_pixels": {"map_at_r": raw}, "encoder": {"map_at_r": map_at_r}},
    }
    by_class = {
        name: {"p_at_1": value, "queries": float(queries)}
        for name, value in zip(CLASSES, classes, strict=True)
    }
    return Evaluation(figures, {"encoder": by_class}, recall)


def without(whole: Evaluation, *, protocol: str = "", space: str = "") -> Evaluation:
    """An evaluation that lacks a protocol, or has no such space in any."""
    figures = {
        name: {what: found for what, found in measured.items() if what != space}
        for name, measured in whole.figures.items()
        if name != protocol
    }
    by_class = {} if protocol == "A" else whole.by_class
    return Evaluation(figures, by_class, whole.index_recall)


CHAMPION = evaluation(0.8, 0.7, 0.8)


def refused(gate: Gate, candidate: Candidate, champion: Evaluation | None) -> list[str]:
    """Names of the figures that are refused."""
    with suppress(GateError):
        rows = check(gate, candidate, champion)
        assert {row[3] for row in rows} <= {"passed"}
        return []
    with pytest.raises(GateError) as raised:
        check(gate, candidate, champion)
    assert raised.value.exit_code == 4
    found = [row for row in raised.value.rows if row[3] == "refused"]
    assert found
    for name, value, rule, _ in found:
        assert f"{name} is {value}, not {rule}" in str(raised.value)
    return [row[0] for row in found]


@pytest.mark.parametrize(
    ("candidate", "champion", "expected"),
    [
        (evaluation(0.6, 0.6, 0.6), None, []),
        (evaluation(0.5, 0.6, 0.6), None, ["A p_at_1"]),  # no better than raw pixels
        (CHAMPION, CHAMPION, []),
        (evaluation(0.796, 0.7, 0.8), CHAMPION, []),  # within max_drop
        (evaluation(0.79, 0.7, 0.8), CHAMPION, ["A p_at_1"]),
        (evaluation(0.9, 0.69, 0.9), CHAMPION, ["B map_at_r"]),
        (evaluation(0.9, 0.9, 0.4), CHAMPION, ["A p_at_1 of the index"] * 2),
        (evaluation(0.8, 0.7, 0.8, recall=0.975), CHAMPION, []),
        (evaluation(0.9, 0.9, 0.9, recall=0.96), CHAMPION, ["index recall@10"]),
        (evaluation(0.9, 0.9, 0.9, classes=(0.9, 0.76, 0.9)), CHAMPION, []),
        (
            evaluation(0.9, 0.9, 0.9, classes=(0.74, 0.7, 0.9)),
            CHAMPION,
            ["A p_at_1 of 'bags', which fell most"],
        ),
        # Of few queries one more or less right is no fall.
        (evaluation(0.9, 0.9, 0.9, classes=(0.1, 0.1, 0.1), queries=49), CHAMPION, []),
    ],
)
def test_rules(candidate: Evaluation, champion: Evaluation | None, expected: list[str]) -> None:
    assert refused(Gate(), Candidate(candidate), champion) == expected


def test_vectors_need_not_beat_raw_pixels() -> None:
    low = without(evaluation(0.1, 0.1, 0.1), space="raw_pixels")
    assert refused(Gate(), Candidate(low), None) == []
    assert "A p_at_1" in refused(Gate(), Candidate(low), CHAMPION)


def test_what_could_not_be_measured_is_not_gated_but_for_a_champion_that_has_it() -> None:
    part, whole = without(evaluation(0.9, 0.9, 0.9), protocol="A"), evaluation(0.9, 0.9, 0.9)
    assert refused(Gate(), Candidate(part), None) == []
    assert refused(Gate(), Candidate(whole), part) == []
    assert refused(Gate(), Candidate(part), CHAMPION) == ["A p_at_1", "A p_at_1 of the index"]
    # Without labels the index's recall is what there is.
    nothing = Evaluation({}, {}, 0.9)
    assert refused(Gate(), Candidate(nothing), None) == []
    assert refused(Gate(), Candidate(nothing), Evaluation({}, {}, 0.95)) == ["index recall@10"]


def test_floors() -> None:
    gate = Gate(min={"A p_at_1": 0.85, "index recall@10": 0.95})
    assert refused(gate, Candidate(evaluation(0.85, 0.6, 0.6, recall=0.95)), None) == []
    low = Candidate(evaluation(0.84, 0.6, 0.6, recall=0.94))
    assert refused(gate, low, None) == ["A p_at_1", "index recall@10"]
    part = Candidate(without(evaluation(0.9, 0.9, 0.9), protocol="A"))
    assert refused(gate, part, None) == ["A p_at_1"]
    with pytest.raises(ValidationError):
        Gate(min={"A p_at_2": 0.5})


def test_latency() -> None:
    gate = Gate(max_latency_ms=5)
    assert refused(gate, Candidate(CHAMPION, latency=5.0), None) == []
    assert refused(gate, Candidate(CHAMPION, latency=5.1), None) == ["latency, ms"]


@pytest.mark.parametrize("rule", ["max_drop", "max_drop_recall", "max_drop_class"])
def test_rules_can_be_loosened(rule: str) -> None:
    low: dict[str, Any] = {"recall": 0.1, "classes": (0.1, 0.1, 0.1)}
    candidate = Candidate(evaluation(0.1, 0.1, 0.1, **low))
    loose = {"max_drop": 0.9, "max_drop_recall": 0.9, "max_drop_class": 0.9}
    assert refused(Gate(above_raw_pixels=False), candidate, None) == []
    assert refused(Gate(above_raw_pixels=False, **loose), candidate, CHAMPION) == []
    strict = {name: value for name, value in loose.items() if name != rule}
    assert refused(Gate(above_raw_pixels=False, **strict), candidate, CHAMPION)
