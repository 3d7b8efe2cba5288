"""Release encoder and index as one MLflow model, if the gate lets them pass."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lookalike import artifacts
from lookalike.config import Gate
from lookalike.errors import GateError
from lookalike.steps import train
from lookalike.steps.context import Context, Result
from lookalike.tracking import Run

STEP = "release"
GATED = (("A", "p_at_1"), ("B", "map_at_r"))
"""Protocol and metric of the figures that the gate looks at, where they could be measured."""


class Released(Result):
    """Registered version `number` of model `name`: the champion."""

    name: str
    number: int
    encoder: str
    index: str
    figures: dict[str, float]

    @property
    def words(self) -> str:
        shown = ", ".join(f"{what} {value:.3f}" for what, value in self.figures.items())
        return f"{self.name} version {self.number} is the champion ({shown or 'without figures'})"


def run(context: Context) -> Released:
    """Compare the newest evaluated index and encoder with the champion; release them if they pass.

    Raises:
        GateError: they do not; nothing has changed.
    """
    from lookalike.serving import release
    from lookalike.serving.contract import Limits

    config, ledger = context.config, context.ledger
    evaluated = ledger.need("evaluate").outputs
    trained = train.of(context, evaluated["encoder"], "evaluation")
    inputs = {
        "encoder": evaluated["encoder"],
        "index": evaluated["index"],
        "model": config.model_name,
        "serving": config.serving.model_dump(),
        # Which server, without what its address may hold of secrets.
        "registry": artifacts.fingerprint(context.tracking.uri),
    }
    last = ledger.last(STEP)
    if last is not None and last.inputs == inputs:
        # Killed between the ledger's commit and the alias, the alias is behind: mend it.
        release.promote(context.tracking, config.model_name, last.outputs["number"])
        return Released(**last.outputs | {"unchanged": True})
    figures = gated_figures(evaluated)
    check_gate(config.gate, evaluated, figures, last.outputs["figures"] if last else None)
    made_from = {
        "figures": evaluated["figures"],
        "index_recall": evaluated["index_recall"],
        "config": config.recorded(),
    }
    tags = {
        "encoder": inputs["encoder"],
        "index": inputs["index"],
        "report": evaluated["report"],
    }
    run = Run(context.tracking, evaluated["run_id"])
    with artifacts.workbench() as workbench, _pictures(context, evaluated) as pictures:
        folder = workbench / release.KIND
        release.assemble(
            folder,
            trained["uri"],
            context.indexes,
            inputs["index"],
            made_from,
            Limits(**config.serving.limits),
            pictures,
        )
        number = release.log(run, folder, config.model_name, tags)
    result = Released(
        name=config.model_name,
        number=number,
        encoder=inputs["encoder"],
        index=inputs["index"],
        figures=figures,
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    release.promote(context.tracking, config.model_name, number)
    return result


@contextmanager
def _pictures(context: Context, evaluated: dict[str, Any]) -> Iterator[Any]:
    """The items' thumbnails as record batches; None where none are carried."""
    size = context.config.serving.thumbnails
    if not size or evaluated["picture"] is None:  # of vectors there are none
        yield None
        return
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    rows = catalogue.thumbnails(context.tables, evaluated["items_version"], size)
    with record_batches(rows, context.files) as batches:
        yield batches


def gated_figures(evaluated: dict[str, Any]) -> dict[str, float]:
    """The figures that the gate looks at, by name: of the encoder, and one of the index."""
    figures = evaluated["figures"]
    found = {f"{p} {m}": float(figures[p]["encoder"][m]) for p, m in GATED if p in figures}
    if "A" in figures:
        found["A p_at_1 of the index"] = float(figures["A"]["index"]["p_at_1"])
    return found


def check_gate(
    gate: Gate,
    evaluated: dict[str, Any],
    candidate: dict[str, float],
    champion: dict[str, float] | None,
) -> None:
    """Let a candidate pass or not.

    What raw pixels show is a floor where items are images; of vectors there are none. A figure of
    the champion's that could not be measured of the candidate is refused.

    Args:
        gate: the rules.
        evaluated: outputs of `evaluate`.
        candidate: its `gated_figures`.
        champion: those of the champion; None where there is none yet.

    Raises:
        GateError: with a row for each figure: name, candidate, what it must reach, verdict.
    """
    rows = []
    for name, value in candidate.items():
        protocol, metric = name.split()[:2]
        floors = {}
        raw = evaluated["figures"][protocol].get("raw_pixels")
        if gate.above_raw_pixels and raw is not None:
            floors[f"above raw pixels' {raw[metric]:.4f}"] = value > raw[metric]
        if champion is not None and name in champion:
            floor = champion[name] - gate.max_drop
            floors[f"at least the champion's {champion[name]:.4f} - {gate.max_drop}"] = (
                value >= floor
            )
        for rule, passed in floors.items():
            rows.append((name, f"{value:.4f}", rule, "passed" if passed else "refused"))
    for name, value in (champion or {}).items():
        if name not in candidate:
            rule = f"at least the champion's {value:.4f} - {gate.max_drop}"
            rows.append((name, "not measured", rule, "refused"))
    refused = [row for row in rows if row[3] == "refused"]
    if refused:
        raise GateError(
            "the gate refused this candidate: "
            + "; ".join(f"{name} is {value}, not {rule}" for name, value, rule, _ in refused),
            rows=rows,
            remedy="The champion stays. Train or tune again, or change the rules under `gate`",
        )
