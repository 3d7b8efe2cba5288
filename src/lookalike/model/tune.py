"""Hyperparameter search: Hyperopt over the cluster's workers."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC
from threading import Event, Thread
from typing import Any

import numpy as np
from hyperopt import STATUS_OK, SparkTrials, fmin, hp, space_eval, tpe
from mlflow.exceptions import MlflowException
from pyspark.sql import SparkSession

from lookalike.config import (
    Choice,
    Integers,
    LogUniform,
    Range,
    Train,
    Tune,
    Uniform,
    with_values,
)
from lookalike.errors import LookalikeError

PRELOADED = ("lookalike.model.fit",)
"""What a trial's Python worker has imported before it is forked."""


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: from 0.
        values: by dotted keys of `Train`.
        map_at_r: on the validation split, itself left out; None where it failed.
        curve: MAP@R after each epoch.
        error: what a failed one raised.
        begin, end: seconds since 1970.
        worker: host and process that ran it.
    """

    number: int
    values: dict[str, Any]
    map_at_r: float | None
    curve: tuple[float, ...]
    error: str | None
    begin: float
    end: float
    worker: str


@dataclass(frozen=True)
class Search:
    """A finished search. `values` are those of the best trial, as `Train` takes them."""

    values: dict[str, Any]
    map_at_r: float
    trials: tuple[Trial, ...]


def search(
    spark: SparkSession,
    snapshot: str,
    train: Train,
    tune: Tune,
    seed: int,
    on_trial: Callable[[Trial], None],
) -> Search:
    """Search for the values with the best MAP@R on the validation split, never on test.

    Each trial trains in one process on one worker, `tune.epochs` epochs.

    Args:
        spark: a session with at least `tune.parallelism` slots.
        snapshot: URI of the snapshot.
        train: the values to begin with.
        tune: see `Tune`.
        seed: of the search and of every trial.
        on_trial: told each trial as it ends.

    Raises:
        LookalikeError: all trials failed.
    """
    space = {key: _expression(key, spec) for key, spec in tune.space.items()}
    fixed = train.model_copy(update={"epochs": tune.epochs, "ranks": 1})
    trials = SparkTrials(parallelism=tune.parallelism, spark_session=spark)

    def objective(values: dict[str, Any]) -> dict[str, Any]:
        return _run_trial(snapshot, fixed, values, seed, tune.parallelism)

    with _watched(trials, space, on_trial):
        try:
            fmin(
                objective,
                space,
                algo=tpe.suggest,
                max_evals=tune.trials,
                trials=trials,
                rstate=np.random.default_rng(seed),
                show_progressbar=False,
                verbose=False,
                return_argmin=False,
            )
        except Exception as error:  # hyperopt's own, where no trial has a loss
            ended = _ended(trials, space)
            if any(trial.error is None for trial in ended):
                raise
            raise _all_failed(ended) from error
    ended = _ended(trials, space)
    done = [trial for trial in ended if trial.map_at_r is not None]
    if not done:
        raise _all_failed(ended)
    best = max(done, key=lambda trial: trial.map_at_r or 0.0)
    return Search(best.values, float(best.map_at_r or 0.0), tuple(ended))


def _expression(key: str, spec: Range) -> Any:
    match spec:
        case LogUniform(log_uniform=(low, high)):
            return hp.loguniform(key, np.log(low), np.log(high))
        case Uniform(uniform=(low, high)):
            return hp.uniform(key, low, high)
        case Integers(int=(low, high)):
            return hp.uniformint(key, low, high)
        case Choice(choice=options):
            return hp.choice(key, list(options))
    raise AssertionError(spec)


def _run_trial(
    snapshot: str, train: Train, values: dict[str, Any], seed: int, sharing: int
) -> dict[str, Any]:
    from lookalike.model import fit as training
    from lookalike.model import process
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    begin = time.time()
    train = with_values(train, _plain(values))
    process.set_up(train, sharing=sharing)
    fitted = training.fit(Snapshot.open(snapshot), train, seed, Ranks())
    return {
        "loss": -fitted.scores.map_at_r,
        "status": STATUS_OK,
        "curve": [epoch.validation.map_at_r for epoch in fitted.epochs],
        "begin": begin,
        "end": time.time(),
        "worker": f"{socket.gethostname()}:{os.getpid()}",
    }


def _ended(trials: SparkTrials, space: dict[str, Any]) -> list[Trial]:
    return [
        _trial(doc, space)
        for doc in trials.trials
        if doc["result"].get("status") == STATUS_OK or doc["misc"].get("error")
    ]


def _trial(doc: dict[str, Any], space: dict[str, Any]) -> Trial:
    result = doc["result"]
    # hp.choice records the option's number; space_eval gives the option.
    drawn = {key: value[0] for key, value in doc["misc"]["vals"].items() if value}
    error = doc["misc"].get("error")
    booked = (
        doc["book_time"].replace(tzinfo=UTC).timestamp() if doc.get("book_time") else time.time()
    )
    return Trial(
        number=doc["tid"],
        values=_plain(space_eval(space, drawn)),
        map_at_r=None if error else -float(result["loss"]),
        curve=tuple(result.get("curve", ())),
        error=str(error[1] or error[0]).strip().splitlines()[-1] if error else None,
        begin=result.get("begin", booked),
        end=result.get("end", booked),
        worker=result.get("worker", ""),
    )


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    # numpy's numbers are not JSON's.
    return {k: v.item() if isinstance(v, np.generic) else v for k, v in values.items()}


def _all_failed(trials: list[Trial]) -> LookalikeError:
    commonest = max(
        (t.error or "" for t in trials), key=[t.error for t in trials].count, default=""
    )
    return LookalikeError(
        f"all {len(trials)} trials failed, most of them with: {commonest}",
        remedy="Mend what they ran into, or narrow tune.space",
    )


@contextmanager
def _watched(
    trials: SparkTrials, space: dict[str, Any], on_trial: Callable[[Trial], None]
) -> Iterator[None]:
    # SparkTrials tells nobody when a trial ends; its documents do.
    told: set[int] = set()
    over = Event()

    def tell() -> None:
        for trial in _ended(trials, space):
            if trial.number not in told:
                on_trial(trial)
                told.add(trial.number)

    def watch() -> None:
        while not over.wait(1.0):
            # A server that is away for a moment is told later, at the latest at the end.
            with suppress(MlflowException, OSError):
                tell()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        tell()
