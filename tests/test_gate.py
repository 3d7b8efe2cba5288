"""The gate's rules."""

import pytest

from lookalike.config import Gate
from lookalike.errors import GateError
from lookalike.steps.release import check_gate, gated_figures


def evaluated(p_at_1: float, map_at_r: float, index: float, raw: float = 0.5) -> dict:
    return {
        "figures": {
            "A": {
                "raw_pixels": {"p_at_1": raw},
                "encoder": {"p_at_1": p_at_1},
                "index": {"p_at_1": index},
            },
            "B": {"raw_pixels": {"map_at_r": raw}, "encoder": {"map_at_r": map_at_r}},
        }
    }


CHAMPION = gated_figures(evaluated(0.8, 0.7, 0.8))


@pytest.mark.parametrize(
    ("candidate", "champion", "refused"),
    [
        (evaluated(0.6, 0.6, 0.6), None, []),
        (evaluated(0.5, 0.6, 0.6), None, ["A p_at_1"]),  # no better than raw pixels
        (evaluated(0.8, 0.7, 0.8), CHAMPION, []),
        (evaluated(0.796, 0.7, 0.8), CHAMPION, []),  # within max_drop
        (evaluated(0.79, 0.7, 0.8), CHAMPION, ["A p_at_1"]),
        (evaluated(0.9, 0.69, 0.9), CHAMPION, ["B map_at_r"]),
        (evaluated(0.9, 0.9, 0.4), CHAMPION, ["A p_at_1 of the index"] * 2),
    ],
)
def test_rules(candidate: dict, champion: dict | None, refused: list[str]) -> None:
    figures = gated_figures(candidate)
    if not refused:
        check_gate(Gate(), candidate, figures, champion)
        return
    with pytest.raises(GateError) as raised:
        check_gate(Gate(), candidate, figures, champion)
    assert raised.value.exit_code == 4
    assert [row[0] for row in raised.value.rows if row[3] == "refused"] == refused
    for name in refused:
        assert f"{name} is {figures[name]:.4f}" in str(raised.value)


def without(candidate: dict, *, protocol: str = "", space: str = "") -> dict:
    """An evaluation that lacks a protocol, or has no such space in any."""
    return {
        "figures": {
            name: {what: found for what, found in measured.items() if what != space}
            for name, measured in candidate["figures"].items()
            if name != protocol
        }
    }


def test_vectors_need_not_beat_raw_pixels() -> None:
    candidate = without(evaluated(0.1, 0.1, 0.1), space="raw_pixels")
    check_gate(Gate(), candidate, gated_figures(candidate), None)
    with pytest.raises(GateError, match="not at least the champion's"):
        check_gate(Gate(), candidate, gated_figures(candidate), CHAMPION)


def test_what_could_not_be_measured_is_not_gated_but_for_a_champion_that_has_it() -> None:
    candidate = without(evaluated(0.9, 0.9, 0.9), protocol="A")
    figures = gated_figures(candidate)
    assert list(figures) == ["B map_at_r"]
    check_gate(Gate(), candidate, figures, None)
    whole = evaluated(0.9, 0.9, 0.9)
    check_gate(Gate(), whole, gated_figures(whole), figures)
    with pytest.raises(GateError, match="A p_at_1 is not measured") as raised:
        check_gate(Gate(), candidate, figures, CHAMPION)
    refused = [row[0] for row in raised.value.rows if row[3] == "refused"]
    assert refused == ["A p_at_1", "A p_at_1 of the index"]
    nothing = {"figures": {}}
    check_gate(Gate(), nothing, gated_figures(nothing), None)


def test_rules_can_be_turned_off() -> None:
    candidate = evaluated(0.1, 0.1, 0.1)
    check_gate(Gate(above_raw_pixels=False), candidate, gated_figures(candidate), None)
    lenient = Gate(above_raw_pixels=False, max_drop=0.9)
    check_gate(lenient, candidate, gated_figures(candidate), CHAMPION)
