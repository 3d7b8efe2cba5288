"""Release encoder and index as one MLflow model, if the gate lets them pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike import artifacts
from lookalike.encoder import Encoder
from lookalike.errors import ArtifactError, DataError, GateError, scrubbed
from lookalike.index import Index
from lookalike.steps import evaluate, gate, train
from lookalike.steps.context import Context, Result, Skipped
from lookalike.steps.gate import Candidate, Row
from lookalike.steps.protocols import Evaluation

if TYPE_CHECKING:
    from lookalike.lake.ledger import Commit, Since

STEP = "release"
GATE = "gate.json"
"""In MLflow, beside what was measured: what the gate looked at last, and its verdicts."""
_ASKED, _WARM = 200, 5
"""Questions that the latency is measured by, and how many of the first are not counted."""


class Released(Result):
    """Registered version `number` of model `name`: the champion.

    `checks` is what the gate looked at. Of a promotion, `instead_of` is the number that was the
    champion before. `withdrawn` are the inputs of releases that gave way to an older one: they do
    not come back by themselves.
    """

    name: str
    number: int
    encoder: str
    index: str
    figures: dict[str, float]
    checks: tuple[Row, ...] = ()
    instead_of: int | None = None
    withdrawn: tuple[dict[str, Any], ...] = ()

    @property
    def words(self) -> str:
        shown = ", ".join(f"{what} {value:.3f}" for what, value in self.figures.items())
        return f"{self.name} version {self.number} is the champion ({shown or 'without figures'})"


def run(context: Context, check: bool = False) -> Released | Skipped:
    """Compare the newest evaluated index and encoder with the champion; release them if they pass.

    Of two releases at once the one that commits first is released; the other is to be run again,
    to be compared with the new champion.

    Args:
        context: with the recipe.
        check: whether the model is asked a question, in an environment made of its requirements,
            before it becomes the champion.

    Raises:
        GateError: they do not; nothing has changed.
        LookalikeError: another release of the model was committed meanwhile.
    """
    from lookalike.serving import release
    from lookalike.serving.contract import Limits

    config, ledger = context.config, context.ledger
    evaluated = ledger.need("evaluate")
    found = evaluated.outputs
    trained = train.of(context, found["encoder"], "evaluation")
    inputs = {
        "encoder": found["encoder"],
        "index": found["index"],
        "model": config.model_name,
        "serving": config.serving.model_dump(),
        "registry": registry_of(context),
    }
    before = commits(context)
    # Killed between the ledger's commit and the alias, the alias is behind: mended whatever comes.
    there = bool(before) and _followed(context, before)
    withdrawn = before[0].outputs.get("withdrawn", ()) if before else ()
    if there and before[0].inputs == inputs:
        if check:
            _check(context, before[0].outputs["number"], found)
        return Released(**before[0].outputs | {"unchanged": True})
    if inputs in withdrawn:
        number = next(c.outputs["number"] for c in before if c.inputs == inputs)
        return Skipped(
            why=f"version {number} is made of this encoder and index, and gave way to version "
            f"{before[0].outputs['number']}; `lookalike promote {number}` brings it back"
        )
    for gone in withdrawn:
        if gone["encoder"] == inputs["encoder"] and gone["index"] == inputs["index"]:
            context.say("the encoder and the index are those of a release that was rolled back")
    candidate = Candidate(Evaluation.of(found), _latency(context, trained["uri"], evaluated))
    champion = _champion(context, before[0], evaluated) if before else None
    run = context.tracking.going_on(found["run_id"])
    try:
        checks = gate.check(config.gate, candidate, champion)
    except GateError as error:
        run.json(gate.told(error.rows), GATE)
        raise
    if before and champion is None:
        checks.append(("the champion", "not measured", "where it can be", "passed"))
    run.json(gate.told(checks), GATE)
    made_from = {
        "versions": evaluated.inputs["versions"],
        "figures": found["figures"],
        "index_recall": found["index_recall"],
        "config": config.recorded(),
    }
    tags = {name: found[name] for name in ("encoder", "index", "report")}
    with artifacts.workbench() as workbench, _pictures(context, found) as pictures:
        folder = workbench / release.KIND
        release.assemble(
            folder,
            trained["uri"],
            context.indexes,
            found["index"],
            made_from,
            Limits(**config.serving.limits),
            pictures,
        )
        number = release.log(run, folder, config.model_name, tags)
    if check:
        _check(context, number, found)
    result = Released(
        name=config.model_name,
        number=number,
        encoder=found["encoder"],
        index=found["index"],
        figures=candidate.figures,
        checks=tuple(checks),
        withdrawn=tuple(withdrawn),
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded(), since(context, before))
    follow(context, commits(context))
    return result


def registry_of(context: Context) -> str:
    """Which registry: without what its address may hold of secrets."""
    return artifacts.fingerprint(scrubbed(context.tracking.models))


def commits(context: Context) -> list[Commit]:
    """What made the recipe's model a champion, the newest first."""
    found = _model(context).items()
    return [c for c in context.ledger.all(STEP) if found <= c.inputs.items()]


def since(context: Context, before: list[Commit]) -> Since:
    """What a decision was made upon, if those were the model's commits."""
    from lookalike.lake.ledger import Since

    return Since(_model(context), before[0].version if before else 0)


def _model(context: Context) -> dict[str, Any]:
    return {"model": context.config.model_name, "registry": registry_of(context)}


def follow(context: Context, made: list[Commit]) -> None:
    """Point the registry's aliases to what the model's `commits` say.

    Raises:
        ArtifactError: the registry does not have the champion any more.
    """
    from lookalike.serving import release

    numbers = [commit.outputs["number"] for commit in made]
    release.point(context.tracking, context.config.model_name, numbers)


def _followed(context: Context, made: list[Commit]) -> bool:
    """Follow; whether the registry has the champion."""
    try:
        follow(context, made)
    except ArtifactError as error:
        context.say(str(error))
        return False
    return True


def _champion(context: Context, commit: Commit, evaluated: Commit) -> Evaluation | None:
    """The champion, measured on the candidate's queries; None where it cannot be, for the catalogue
    is another: it has vectors of another length, say."""
    from lookalike.lake import catalogue, embed

    fingerprint, version, number = (commit.outputs[n] for n in ("encoder", "index", "number"))
    versions, limits = evaluated.inputs["versions"], evaluated.inputs["evaluate"]
    uri = train.made(context, fingerprint)["uri"]
    # What has come since its own embedding it has not seen.
    sizes = (limits["queries"], limits["gallery"])
    queries = catalogue.sampled(context.tables, versions, sizes, labelled=True)
    if queries.isEmpty():
        queries = catalogue.sampled(context.tables, versions, sizes, labelled=False)
    try:
        encoder, index = Encoder.open(uri), Index.open(context.indexes, version)
    except ArtifactError as error:  # to pass without a comparison is not for a lost file to decide
        raise ArtifactError(
            f"the champion, version {number}, cannot be compared with: {error.fact}",
            remedy=f"Restore its files, of which models:/{commit.outputs['name']}/{number} has "
            "copies; or make another release the champion with `lookalike promote`, if there is "
            "one",
        ) from error
    embed.embed(context.tables, uri, fingerprint, versions["items"], queries)
    try:
        sample = evaluate.sample(context, encoder, versions, pixels=False)
    except DataError as error:
        context.say(
            f"the champion, version {number}, cannot be measured on this catalogue: {error}"
        )
        return None
    return Evaluation.measured(sample, index)


def _check(context: Context, number: int, found: dict[str, Any]) -> None:
    from lookalike.lake import catalogue
    from lookalike.serving import environment

    context.say("making the model's environment from its requirements")
    (item_id,) = catalogue.some_ids(context.tables, found["encoder"], found["items_version"], 1)
    uri = f"models:/{context.config.model_name}/{number}"
    environment.check(context.tracking, uri, {"item_id": item_id})


def _latency(context: Context, uri: str, evaluated: Commit) -> float | None:
    """Milliseconds in which 19 of 20 items' contents are encoded and looked up, one by one."""
    if context.config.gate.max_latency_ms is None:
        return None
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    found = evaluated.outputs
    encoder = Encoder.open(uri)
    index = Index.open(context.indexes, found["index"], threads=1)
    rows = catalogue.some_contents(context.tables, found["encoder"], found["items_version"], _ASKED)
    took = []
    with record_batches(rows, context.files, batch_rows=4) as batches:
        for content in (c for batch in batches for c in batch.column("bytes").to_pylist()):
            begin = time.perf_counter()
            index.search(encoder.encode([content]), 10)
            took.append(time.perf_counter() - begin)
    took = took[_WARM:] or took
    return float(np.quantile(took, 0.95) * 1000)


@contextmanager
def _pictures(context: Context, found: dict[str, Any]) -> Iterator[Any]:
    """The items' thumbnails as record batches; None where none are carried."""
    size = context.config.serving.thumbnails
    if not size or found["picture"] is None:  # of vectors there are none
        yield None
        return
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    rows = catalogue.thumbnails(context.tables, found["items_version"], size)
    with record_batches(rows, context.files) as batches:
        yield batches
