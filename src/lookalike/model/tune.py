"""Hyperparameter search: Hyperopt, over the cluster's workers where there is Spark."""

from __future__ import annotations

import math
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

import numpy as np
from hyperopt import STATUS_FAIL, STATUS_OK, SparkTrials, Trials, anneal, fmin, hp, rand, tpe
from hyperopt.base import JOB_STATE_DONE, JOB_STATE_ERROR
from hyperopt.exceptions import AllTrialsFailed
from hyperopt.fmin import space_eval

from lookalike.config import Train, Tune, with_values
from lookalike.errors import ConfigError, LookalikeError
from lookalike.metrics import FULL_MAP, full_average_precision
from lookalike.space import Choice, Integers, LogUniform, Normal, Part, Uniform

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

_HALF = 0.4999999
PRELOADED = ("lookalike.model.fit",)
"""What a trial's Python worker has imported before it is forked."""

_MANY = 20
"""Trials with a score before TPE learns, as Hyperopt has it; a third where there are few."""
_COMMONEST = 3
_LOST = "its worker was lost"


@dataclass(frozen=True)
class Trial:
    """One trial that ended.

    Attributes:
        number: from 0, in the order in which they ended.
        values: by keys of `Train`; of a choice, the option that was drawn.
        score: on the validation split, itself left out; None where it failed.
        curve: what was scored after each epoch, `score` last; of `full_map` that alone.
        error: what a failed one raised.
        begin, end: seconds since 1970; of a lost one when it was handed out and missed.
        worker: host and process that ran it; empty where it was lost.
        drawn: what Hyperopt drew, by its own labels; of a choice, the option's number.
        fitting: seconds of it that were training; 0 where it failed.
    """

    number: int
    values: dict[str, Any]
    score: float | None
    curve: tuple[float, ...]
    error: str | None
    begin: float
    end: float
    worker: str
    drawn: dict[str, float] = field(default_factory=dict)
    fitting: float = 0.0

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Trial:
        """From `asdict`, after JSON."""
        return cls(**{**kept, "curve": tuple(kept["curve"])})


@dataclass(frozen=True)
class Work:
    """What is searched for, and on what.

    Attributes:
        snapshot: URI of the snapshot.
        train: the values to begin with; its `ranks` must be 1.
        tune: see `Tune`.
        seed: of the search and of every trial.
    """

    snapshot: str
    train: Train
    tune: Tune
    seed: int


def search(
    spark: SparkSession | None,
    work: Work,
    on_trial: Callable[[Trial], None],
    kept: Sequence[Trial] = (),
    trials: int | None = None,
) -> list[Trial]:
    """Search for the values with the best score on the validation split, never on test.

    Each trial trains in one process, one on each of Spark's tasks; without Spark one after the
    other in this one. A trial that fails is one that ended: the search goes on. The search engine
    is known here and nowhere else.

    Args:
        spark: a session; None to do without.
        work: what to search for.
        on_trial: told each trial as it ends, from another thread; where it raises it is told
            again, for the last time at the end.
        kept: trials that ended before; the search learns from them.
        trials: how many there shall be in all, those that are kept too; `work.tune.trials` where
            not given.

    Returns:
        All trials, in the order in which they ended.

    Raises:
        ConfigError: a training on several ranks, or trials that would share a GPU.
    """
    if work.train.ranks != 1:
        raise ConfigError(
            f"train.ranks = {work.train.ranks}, but a trial is one process: ranks of a trial would "
            "wait for tasks that other trials hold",
            allowed="1",
            remedy="Search on one, and train on several",
        )
    tune = work.tune
    wanted = tune.trials if trials is None else trials
    parts = tune.parts
    space = {key: _expression(key, part) for key, part in parts.items()}
    at_once = _at_once(spark, tune, wanted)
    sharing = math.ceil(at_once / _machines(spark))
    done = Trials() if spark is None else SparkTrials(parallelism=at_once, spark_session=spark)
    _put_back(done, kept, [label for key, part in parts.items() for label in _labels(key, part)])

    def objective(values: dict[str, Any]) -> dict[str, Any]:
        return _trial(work, values, sharing)

    told = [*kept]
    with _watched(done, space, told, on_trial), suppress(AllTrialsFailed):
        fmin(
            objective,
            space,
            algo=_algorithm(tune.algorithm, wanted),
            max_evals=wanted,
            trials=done,
            # Going on must not draw again what was drawn.
            rstate=np.random.default_rng([work.seed, len(kept)]),
            show_progressbar=False,
            verbose=False,
            return_argmin=False,
        )
    return told


def best(trials: Sequence[Trial]) -> Trial:
    """The trial with the best score; of equal ones the first.

    Raises:
        LookalikeError: all failed; the commonest reasons are named.
    """
    done = [trial for trial in trials if trial.score is not None]
    if done:
        return max(done, key=lambda trial: trial.score or 0.0)
    reasons = Counter(trial.error or "" for trial in trials).most_common(_COMMONEST)
    raise LookalikeError(
        f"all {len(trials)} trials failed: "
        + "; ".join(f"{count} with {reason!r}" for reason, count in reasons),
        remedy="Mend what they ran into, or narrow tune.space",
    )


def _algorithm(name: str, trials: int) -> Any:
    if name == "tpe":
        return partial(_tpe, max(1, min(_MANY, trials // 3)))
    return {"random": rand.suggest, "anneal": anneal.suggest}[name]


def _tpe(least: int, ids: list[int], domain: Any, trials: Trials, seed: int) -> Any:
    # Hyperopt counts trials that run or have failed as well, and takes the first of them for the
    # good ones while none has a loss.
    if sum(loss is not None for loss in trials.losses()) < least:
        return rand.suggest(ids, domain, trials, seed)
    return tpe.suggest(ids, domain, trials, seed, n_startup_jobs=1)


def _at_once(spark: SparkSession | None, tune: Tune, trials: int) -> int:
    if spark is None:
        return 1
    slots, most = _slots(spark), tune.model_copy(update={"trials": trials}).at_most
    # What one of the workers sees is asked last: it takes a task.
    if slots > _machines(spark) and _task_gpus(spark) < 1 and _seen_gpus(spark):
        # Spark may put any two of them on one machine, where both would take its first GPU.
        if (at_once := tune.parallelism or 1) > 1:
            raise ConfigError(
                f"tune.parallelism = {at_once}: trials would share a GPU, for Spark gives none of "
                "them one of its own",
                allowed="1",
                remedy="Set spark.task.resource.gpu.amount to 1, and a worker's resources with it",
            )
        return 1
    return tune.parallelism or max(1, min(slots, most))


def _slots(spark: SparkSession) -> int:
    """Tasks that run at once: as many as there are cores for, and GPUs where they ask for any."""
    context = spark.sparkContext
    settings = context.getConf()
    slots = context.defaultParallelism // int(settings.get("spark.task.cpus") or 1)
    if asked := _task_gpus(spark):
        each = float(settings.get("spark.executor.resource.gpu.amount") or 1)
        slots = min(slots, int(max(1, len(_hosts(spark)) - 1) * each / asked))
    return max(1, slots)


def _task_gpus(spark: SparkSession) -> float:
    """GPUs that Spark assigns to each task; of less than 1 several tasks share one."""
    return float(spark.sparkContext.getConf().get("spark.task.resource.gpu.amount") or 0)


def _seen_gpus(spark: SparkSession) -> int:
    """How many one of the workers sees, assigned or not."""

    def seen(_: int) -> int:
        from lookalike.model import process

        return len(process.gpus())

    return int(spark.sparkContext.parallelize([0], 1).map(seen).first())


def _hosts(spark: SparkSession) -> list[str]:
    """Where Spark's processes are, the driver's among them."""
    java: Any = spark.sparkContext._jsc
    return [executor.host() for executor in java.sc().statusTracker().getExecutorInfos()]


def _machines(spark: SparkSession | None) -> int:
    """Machines that trials run on: those on one share its cores."""
    if spark is None:
        return 1
    hosts = Counter(found := _hosts(spark))
    if len(found) > 1:  # the driver counts as one, and runs tasks only where it is alone
        hosts[spark.sparkContext.getConf().get("spark.driver.host") or ""] -= 1
    return max(1, sum(count > 0 for count in hosts.values()))


# The space, in Hyperopt's words.


def _expression(label: str, part: Part) -> Any:
    found: Any = part
    match part:
        case LogUniform(low, high):
            found = hp.loguniform(label, np.log(low), np.log(high))
        case Uniform(low, high):
            found = hp.uniform(label, low, high)
        case Integers(low, high):
            # It rounds: without these halves the ends would come half as often as the others.
            found = hp.uniformint(label, low - _HALF, high + _HALF)
        case Normal(mean, deviation):
            found = hp.normal(label, mean, deviation)
        case Choice(options):
            named = [_expression(_option(label, i), option) for i, option in enumerate(options)]
            found = hp.choice(label, named)
        case dict():
            found = {key: _expression(f"{label}.{key}", inner) for key, inner in part.items()}
    return found


def _labels(label: str, part: Part) -> Iterator[str]:
    """Of everything that may be drawn."""
    match part:
        case LogUniform() | Uniform() | Integers() | Normal():
            yield label
        case Choice(options):
            yield label
            for i, option in enumerate(options):
                yield from _labels(_option(label, i), option)
        case dict():
            for key, inner in part.items():
                yield from _labels(f"{label}.{key}", inner)


def _option(label: str, number: int) -> str:
    return f"{label}[{number}]"


# A trial, where it runs.


def _trial(work: Work, values: dict[str, Any], sharing: int) -> dict[str, Any]:
    """Train once. What goes wrong is the trial's result: an exception would end the search."""
    task = _task()
    if task is not None and task.attemptNumber() > 0:
        # Spark tries a lost task again; what killed one worker would kill the next.
        return {"status": STATUS_FAIL, "error": f"{_LOST}: killed, or out of memory"}
    begin = time.time()
    found: dict[str, Any] = {"begin": begin, "worker": f"{socket.gethostname()}:{os.getpid()}"}
    try:
        found |= {"status": STATUS_OK} | _scored(work, _plain(values), task, sharing)
    except Exception as error:
        words = str(error).strip().splitlines()
        named = words[0][:500] if words else "no words"
        ours = isinstance(error, LookalikeError)
        found |= {
            "status": STATUS_FAIL,
            "error": named if ours else f"{type(error).__name__}: {named}",
        }
    return found | {"end": time.time()}


def _scored(work: Work, values: dict[str, Any], task: Any, sharing: int) -> dict[str, Any]:
    from lookalike.model import fit as training
    from lookalike.model import process
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    # Equal budgets: none ends before its own is used up.
    train = with_values(work.train, values).model_copy(update={"patience": None})
    ranks = Ranks()
    if task is None:  # a process of somebody's, who may have set it up already
        process.set_determinism(train)
    else:
        gpus = task.resources().get("gpu")
        ranks = Ranks(devices=tuple(gpus.addresses) if gpus is not None else ())
        process.set_up(train, ranks, sharing)
    snapshot = Snapshot.open(work.snapshot)
    begin = time.time()
    fitted = training.fit(snapshot, train, work.seed, ranks, budget=work.tune.budget)
    fitting = time.time() - begin
    if work.tune.objective == FULL_MAP:
        vectors, classes, own = fitted.after, fitted.classes, np.arange(len(fitted.after))
        score = full_average_precision(vectors, classes, vectors, classes, own)
        curve = [score]
    else:
        score = getattr(fitted.scores, work.tune.objective)
        before = [getattr(epoch.validation, work.tune.objective) for epoch in fitted.epochs[:-1]]
        curve = [*before, score]  # the last epoch's is of the network as it leaves
    return {"loss": -score, "curve": curve, "fitting": fitting}


def _task() -> Any:
    try:
        from pyspark import TaskContext
    except ImportError:
        return None
    return TaskContext.get()


def _plain(value: Any) -> Any:
    # numpy's numbers are not JSON's, and Hyperopt gives tuples for lists.
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


# Hyperopt's documents of trials, and ours.


def _put_back(trials: Trials, kept: Sequence[Trial], labels: Sequence[str]) -> None:
    for number, trial in enumerate(kept):
        # Numbers must have no gaps: Hyperopt counts on from how many there are.
        misc = {
            "tid": number,
            "cmd": ("domain_attachment", "FMinIter_Domain"),
            "workdir": None,
            "idxs": {label: [number] if label in trial.drawn else [] for label in labels},
            "vals": {
                label: [trial.drawn[label]] if label in trial.drawn else [] for label in labels
            },
        }
        result: dict[str, Any] = {"status": STATUS_FAIL, "error": trial.error}
        if trial.score is not None:
            result = {"status": STATUS_OK, "loss": -trial.score}
        (document,) = trials.new_trial_docs([number], [None], [result], [misc])
        document["state"] = JOB_STATE_DONE
        trials.insert_trial_docs([document])
    trials.refresh()


def _read(document: dict[str, Any], space: dict[str, Any], number: int) -> Trial:
    result = document["result"]
    drawn = {key: _plain(value[0]) for key, value in document["misc"]["vals"].items() if value}
    error = result.get("error")
    if document["state"] == JOB_STATE_ERROR:  # not by the trial's doing: its worker is gone
        kind, said = document["misc"]["error"]  # Hyperopt keeps no words of what Spark raised
        words = (said or "").strip().splitlines()
        error = f"{_LOST}: {words[-1][:500] if words else f'killed, or {kind}'}"
    return Trial(
        number=number,
        # hp.choice records the option's number; space_eval gives the option.
        values=_plain(space_eval(space, drawn)),
        score=None if error is not None else -float(result["loss"]),
        curve=tuple(result.get("curve", ())),
        error=error,
        begin=result.get("begin") or _seconds(document["book_time"]),
        end=result.get("end") or _seconds(document["refresh_time"]),
        worker=result.get("worker", ""),
        drawn=drawn,
        fitting=result.get("fitting", 0.0),
    )


def _seconds(time: datetime) -> float:
    # Hyperopt's are UTC, and do not say so.
    return time.replace(tzinfo=UTC).timestamp()


@contextmanager
def _watched(
    trials: Trials,
    space: dict[str, Any],
    told: list[Trial],
    on_trial: Callable[[Trial], None],
) -> Iterator[None]:
    # SparkTrials tells nobody when a trial ends; its documents do.
    known = set(range(len(told)))
    over = Event()

    def tell() -> None:
        # Of these, `trials.trials` leaves out those that were lost.
        for document in list(trials._dynamic_trials):
            if document["tid"] in known or document["state"] not in (
                JOB_STATE_DONE,
                JOB_STATE_ERROR,
            ):
                continue
            trial = _read(document, space, len(told))
            on_trial(trial)
            known.add(document["tid"])
            told.append(trial)

    def watch() -> None:
        while not over.wait(0.5):
            with suppress(Exception):  # told again, at the latest at the end
                tell()

    watcher = Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        tell()
