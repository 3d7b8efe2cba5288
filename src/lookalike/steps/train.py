"""Train the encoder on several ranks, with the values that the search found.

A catalogue that brings its own vectors needs no network: its encoder takes each vector as it is,
and what is fitted is the probability that two items share a label at a distance.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from mlflow.exceptions import MlflowException

from lookalike import artifacts, encoder
from lookalike.columns import VALIDATION
from lookalike.config import VectorsData, with_values
from lookalike.encoder import Specification
from lookalike.errors import DataError
from lookalike.metrics import Reliability, calibrate, has_pairs, held_out_reliability
from lookalike.steps import tune
from lookalike.steps.context import Context, Result
from lookalike.steps.snapshot import newest_matching, pinned
from lookalike.tracking import Run

if TYPE_CHECKING:
    from lookalike.model.launch import Job, Trained
    from lookalike.model.snapshot import Snapshot

STEP = "train"
_AWAY = 600.0
"""Seconds that MLflow is let alone where it did not answer."""
_TRAINING = "training"
"""The tag of a run that tells what is trained: a training that was killed has one more."""


class TrainedEncoder(Result):
    """The committed encoder, its figures on validation, and the MLflow run of its training."""

    uri: str
    fingerprint: str
    validation: dict[str, float]
    calibration_error: float | None = None
    repeated: float
    steps: int
    ranks: int
    run_id: str

    @property
    def words(self) -> str:
        return (
            f"encoder {self.fingerprint[:12]}: {self.steps:,} steps on each of {self.ranks} ranks "
            f"(padding: {self.repeated:.1%} of the images came twice in an epoch); validation "
            f"P@1 {self.validation['p_at_1']:.3f}, MAP@R {self.validation['map_at_r']:.3f}"
            f"{self._trust}"
        )

    @property
    def _trust(self) -> str:
        error = self.calibration_error
        return "" if error is None else f", calibration off by {error:.1%}"


class AdoptedVectors(TrainedEncoder):
    """The committed encoder of a catalogue that brings its own vectors.

    `calibrated_on` is how many labelled validation items its `similarity` was fitted to; of 0 there
    is none.
    """

    calibrated_on: int

    @property
    def words(self) -> str:
        similarity = (
            f"similarity fitted to {self.calibrated_on:,} labelled validation items"
            if self.calibrated_on
            else "no similarity: no two validation items share a label, or none differ"
        ) + self._trust
        return f"no training: encoder {self.fingerprint[:12]} takes vectors as is; {similarity}"


def run(context: Context) -> TrainedEncoder:
    """Train on the newest snapshot, or find the encoder that was trained so.

    A training that was killed goes on from its last checkpoint.
    """
    if isinstance(context.config.data, VectorsData):
        return _adopt(context, context.config.data.dim)
    from lookalike.model import launch
    from lookalike.model.checkpoints import Checkpoints
    from lookalike.model.snapshot import Snapshot

    config, ledger = context.config, context.ledger
    snapshot = newest_matching(context)
    searched = _searched(context, snapshot["uri"])
    train = with_values(context.train, {} if searched is None else searched["values"])
    inputs = {
        "snapshot": snapshot["uri"],
        "train": train.mathematics(),
        "seed": config.seed,
    }
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["uri"], encoder.KIND)):
        return TrainedEncoder(**last.outputs | {"unchanged": True})
    launch.prepare()
    context.spark  # noqa: B018  whose tasks the ranks are
    name = artifacts.fingerprint(inputs)[:32]
    checkpoints = artifacts.join(context.checkpoints, name)
    context.tracking.abandon(_TRAINING, name)
    with context.tracking.run("model") as run:
        run.tags({_TRAINING: name})
        run.params({"train": train.recorded(), "seed": config.seed})
        search = None if searched is None else _origin(config.tune.name, searched)
        made_from = {
            "snapshot": snapshot["uri"],
            "config": config.recorded(),
            "search": search,
        }
        opened = Snapshot.open(snapshot["uri"])
        run.tags({"snapshot": snapshot["uri"], **_tags(opened.artifact.meta["versions"])})
        run.tags({f"search.{key}": str(value) for key, value in (search or {}).items()})
        run.json(made_from, "made_from.json")
        job = launch.Job(
            snapshot=snapshot["uri"],
            encoders=context.encoders,
            checkpoints=checkpoints,
            train=train,
            seed=config.seed,
            made_from=made_from,
        )
        trained = _trained(context, run, job)
        run.tags({"encoder": trained.fingerprint, "precision": trained.precision})
        error = _show(run, opened, trained, config.seed)
    result = TrainedEncoder(
        uri=trained.uri,
        fingerprint=trained.fingerprint,
        validation=trained.scores,
        calibration_error=error,
        repeated=trained.repeated,
        steps=trained.steps,
        ranks=train.ranks,
        run_id=run.run_id,
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    with suppress(OSError):  # what is committed stays so; `clean` removes what is left
        Checkpoints(checkpoints).remove()
    return result


def _trained(context: Context, run: Run, job: Job) -> Trained:
    """Train, and tell MLflow of it on the way."""
    from lookalike.model import launch

    logged: set[float] = set()
    again = 0.0

    def on_epoch(values: dict[str, float]) -> None:
        nonlocal again
        if time.monotonic() < again:
            return
        try:
            _log_epoch(run, values)
            logged.add(values["epoch"])
        except (MlflowException, OSError):  # no training ends for want of a word
            # To try takes minutes, in which nobody looks after the ranks.
            again = time.monotonic() + _AWAY

    audience = launch.Audience(progress=context.progress, epoch=on_epoch, say=context.say)
    log = context.log / f"train-{run.run_id}.log"
    try:
        trained = launch.train(job, audience, log)
    finally:
        try:  # a cluster's disk goes with it
            run.file(log)
        except Exception as error:  # each storage has errors of its own
            context.say(f"MLflow did not take {log}: {error}")
    for epoch in trained.curve:
        if epoch["epoch"] not in logged:  # of a driver that was killed, or not told
            _log_epoch(run, epoch)
    return trained


def _log_epoch(run: Run, values: dict[str, float]) -> None:
    metrics = {
        name if name in ("loss", "images_per_second", "waiting") else f"validation_{name}": value
        for name, value in values.items()
        if name != "epoch"
    }
    run.metrics(metrics, step=int(values["epoch"]))


def _tags(versions: dict[str, int]) -> dict[str, str]:
    return {f"{table}_version": str(version) for table, version in versions.items()}


def _show(run: Run, snapshot: Snapshot, trained: Trained, seed: int) -> float | None:
    """Log a training's pictures and last figures; the calibration's expected error."""
    from lookalike.steps import training_pictures

    pixels, classes = snapshot.validation()
    found = held_out_reliability(trained.after, classes, seed)
    with artifacts.workbench() as folder:
        for picture in training_pictures.draw(
            folder,
            before=trained.before,
            after=trained.after,
            pixels=pixels,
            classes=classes,
            names=snapshot.classes,
            reliability=found,
            curve=trained.curve,
        ):
            run.file(picture)
    # The epochs' are of what was trained: in halves, perhaps, and without detail.
    scores = {f"encoder_{name}": score for name, score in trained.scores.items()}
    figures = {"repeated_share": trained.repeated, **scores}
    if found is not None:
        figures["calibration_error"] = found.error
    run.metrics(figures)
    return None if found is None else found.error


def of(context: Context, fingerprint: str, what: str) -> dict[str, Any]:
    """Outputs of the newest training, which must be that of an encoder.

    Args:
        context: whose ledger.
        fingerprint: of the encoder that something was made with.
        what: was made with it.

    Raises:
        DataError: another encoder has been trained since; both are named.
    """
    trained = context.ledger.need(STEP).outputs
    if trained["fingerprint"] != fingerprint:
        raise DataError(
            f"the newest {what} is of encoder {fingerprint[:12]}, the newest encoder is "
            f"{trained['fingerprint'][:12]}",
            remedy="Run `lookalike embed`, `index` and `evaluate` for the newest encoder",
        )
    return trained


def made(context: Context, fingerprint: str) -> dict[str, Any]:
    """Outputs of the newest training that gave an encoder.

    Raises:
        DataError: there is none in this warehouse.
    """
    for commit in context.ledger.all(STEP):
        if commit.outputs["fingerprint"] == fingerprint:
            return commit.outputs
    raise DataError(
        f"no training of this warehouse gave encoder {fingerprint[:12]}",
        remedy="Name the warehouse that it was trained in",
    )


def _adopt(context: Context, dim: int) -> AdoptedVectors:
    config, ledger = context.config, context.ledger
    versions = pinned(ledger.need("duplicates").outputs)
    inputs = {
        "versions": versions,
        "dim": dim,
        "validation_items": config.train.validation_items,
        "seed": config.seed,
    }
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["uri"], encoder.KIND)):
        return AdoptedVectors(**last.outputs | {"unchanged": True})
    with context.tracking.run("model") as run:
        run.params({"seed": config.seed, "dim": dim})
        run.tags(_tags(versions))
        made_from = {"versions": versions, "config": config.recorded()}
        run.json(made_from, "made_from.json")
        contents, labels = _validation(context, versions)
        calibration = error = None
        if has_pairs(labels):
            vectors = encoder.scaled(contents, dim)
            calibration = calibrate(vectors, labels, config.seed)
            error = _show_reliability(run, held_out_reliability(vectors, labels, config.seed))
        specification = Specification(None, "cosine", dim, calibration)
        committed = encoder.commit(context.encoders, None, specification, made_from)
        run.tags({"encoder": committed.meta["fingerprint"]})
    result = AdoptedVectors(
        uri=committed.uri,
        fingerprint=committed.meta["fingerprint"],
        validation={},
        calibration_error=error,
        repeated=0,
        steps=0,
        ranks=0,
        run_id=run.run_id,
        calibrated_on=0 if calibration is None else len(labels),
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def _show_reliability(run: Run, found: Reliability | None) -> float | None:
    """Log how far a calibration can be trusted; its expected error, where that is known."""
    from lookalike.steps import training_pictures

    if found is None:
        return None
    with artifacts.workbench() as folder:
        picture = folder / training_pictures.RELIABILITY
        training_pictures.draw_reliability(found, picture)
        run.file(picture)
    run.metrics({"calibration_error": found.error})
    return found.error


def _validation(context: Context, versions: dict[str, int]) -> tuple[list[bytes], np.ndarray]:
    """Contents and labels of the labelled validation items."""
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    limit = context.config.train.validation_items
    rows = catalogue.labelled_contents(context.tables, versions, VALIDATION, limit)
    with record_batches(rows, context.files) as batches:
        items = [item for batch in batches for item in batch.to_pylist()]
    return [item["bytes"] for item in items], np.array([item["label"] for item in items])


def _searched(context: Context, snapshot: str) -> dict[str, Any] | None:
    """What the search of the recipe's name found on the snapshot; None where it asks for none."""
    if context.config.tune.trials == 0:
        return None
    inputs = tune.inputs_of(context, snapshot)
    if found := context.ledger.find(tune.STEP, inputs):
        return found.outputs
    others = tune.differences(context, inputs)
    raise DataError(
        f"tune.trials = {context.config.tune.trials}, but no search {context.config.tune.name!r} "
        f"of this recipe was made on the snapshot {snapshot}"
        + (f"; the newest is of others: {others}" if others else ""),
        remedy="Run `lookalike tune` first, or --set tune.trials=0 to train with the values given",
    )


def _origin(name: str, searched: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "trial": searched["best"], "run_id": searched["run_id"]}
