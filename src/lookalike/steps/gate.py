"""The gate: what a candidate must show, beside the champion, to take its place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from lookalike.config import Gate
from lookalike.errors import GateError
from lookalike.steps.protocols import Evaluation

GATED: Final = (("A", "p_at_1"), ("B", "map_at_r"))
"""Protocol and metric of the encoder's figures that are compared, where they could be measured."""
OF_INDEX: Final = "A p_at_1 of the index"
RECALL: Final = "index recall@10"
LATENCY: Final = "latency, ms"

Row = tuple[str, str, str, str]
"""What was looked at, its value, the rule, and 'passed' or 'refused'."""


@dataclass(frozen=True)
class Candidate:
    """What the gate looks at.

    Attributes:
        evaluation: of encoder and index.
        latency: milliseconds in which 19 of 20 questions are answered; None where no rule asks.
    """

    evaluation: Evaluation
    latency: float | None = None

    @property
    def figures(self) -> dict[str, float]:
        """By name, what is compared with the champion's."""
        measured = self.evaluation.figures
        found = {f"{p} {m}": measured[p]["encoder"][m] for p, m in GATED if p in measured}
        if "A" in measured:
            found[OF_INDEX] = measured["A"]["index"]["p_at_1"]
        return found | {RECALL: self.evaluation.index_recall}


def check(gate: Gate, candidate: Candidate, champion: Evaluation | None) -> list[Row]:
    """Let a candidate pass or not.

    What raw pixels show is a floor where items are images; of vectors there are none. A figure of
    the champion's that could not be measured of the candidate is refused.

    Args:
        gate: the rules.
        candidate: that would be released.
        champion: measured on the same queries; None where there is none yet.

    Returns:
        A row for each rule.

    Raises:
        GateError: with those rows; one of them at least is refused.
    """
    rows = [
        (name, shown, rule, "passed" if passed else "refused")
        for name, shown, rule, passed in _judged(gate, candidate, champion)
    ]
    refused = [row for row in rows if row[3] == "refused"]
    if refused:
        raise GateError(
            "the gate refused this candidate: "
            + "; ".join(f"{name} is {value}, not {rule}" for name, value, rule, _ in refused),
            rows=rows,
            remedy="The champion stays. Train or tune again, or change the rules under `gate`",
        )
    return rows


def told(rows: list[Row]) -> dict[str, list[dict[str, str]]]:
    """The rows as JSON values."""
    return {"gate": [dict(zip(GateError.heads, row, strict=True)) for row in rows]}


def _judged(
    gate: Gate, candidate: Candidate, champion: Evaluation | None
) -> Iterator[tuple[str, str, str, bool]]:
    own = candidate.figures
    measured = candidate.evaluation.figures
    for name, value in own.items():
        protocol, metric = name.split()[:2]
        raw = measured.get(protocol, {}).get("raw_pixels")
        if gate.above_raw_pixels and raw is not None:
            rule = f"above raw pixels' {raw[metric]:.4f}"
            yield name, f"{value:.4f}", rule, value > raw[metric]
    for name, floor in gate.min.items():
        yield _floor(own, name, floor, f"at least {floor}")
    if champion is not None:
        yield from _beside(gate, candidate, champion)
    if gate.max_latency_ms is not None and candidate.latency is not None:
        within = candidate.latency <= gate.max_latency_ms
        yield LATENCY, f"{candidate.latency:.2f}", f"at most {gate.max_latency_ms}", within


def _beside(
    gate: Gate, candidate: Candidate, champion: Evaluation
) -> Iterator[tuple[str, str, str, bool]]:
    own = candidate.figures
    for name, value in Candidate(champion).figures.items():
        drop = gate.max_drop_recall if name == RECALL else gate.max_drop
        yield _floor(own, name, value - drop, f"at least the champion's {value:.4f} - {drop}")
    fell = _fell_most(gate, candidate.evaluation, champion)
    if fell is not None:
        name, value, before = fell
        rule = f"at least the champion's {before:.4f} - {gate.max_drop_class}"
        passed = value >= before - gate.max_drop_class
        yield f"A p_at_1 of {name!r}, which fell most", f"{value:.4f}", rule, passed


def _floor(own: dict[str, float], name: str, floor: float, rule: str) -> tuple[str, str, str, bool]:
    if name not in own:
        return name, "not measured", rule, False
    return name, f"{own[name]:.4f}", rule, own[name] >= floor


def _fell_most(
    gate: Gate, candidate: Evaluation, champion: Evaluation
) -> tuple[str, float, float] | None:
    """The class whose figure is farthest below the champion's, with both; of those with queries
    enough."""
    own, others = (each.by_class.get("encoder", {}) for each in (candidate, champion))
    both = [
        (name, own[name]["p_at_1"], others[name]["p_at_1"])
        for name in own.keys() & others.keys()
        # The first evaluations did not count them.
        if own[name].get("queries", 0) >= gate.class_queries
    ]
    return min(both, key=lambda found: (found[1] - found[2], found[0]), default=None)
