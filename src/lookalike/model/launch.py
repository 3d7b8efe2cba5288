"""Training on several ranks: Horovod inside a Spark job, begun again where a rank dies."""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import Empty
from typing import Any

import numpy as np

from lookalike import errors
from lookalike.config import Train
from lookalike.errors import LookalikeError
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.line import Address, Exchange, Heard, Line, Message

_PATIENCE = 15.0
"""Seconds in which ranks may end by themselves once one of them is lost."""

_LONGEST_WAIT = 60.0


@dataclass(frozen=True)
class Job:
    """All that a rank needs to know. Small and picklable.

    Attributes:
        snapshot: URI of the snapshot.
        encoders: folder or URI of all encoders; rank 0 commits there.
        checkpoints: folder or URI of this training's checkpoints.
        train: see `Train`.
        seed: of everything random.
        made_from: what the encoder's manifest says of its origin.
    """

    snapshot: str
    encoders: str
    checkpoints: str
    train: Train
    seed: int
    made_from: dict[str, Any]


@dataclass(frozen=True)
class Trained:
    """What rank 0 committed, and what it saw.

    Attributes:
        uri: of the encoder.
        fingerprint: of the encoder.
        scores: on the validation split, itself left out.
        repeated: images that came twice in an epoch, as a share.
        steps: that every rank took.
        curve: what each epoch brought, by name.
        before, after: float32 (n, ...), vectors of the validation images, see `fit.Fitted`.
        classes: int32 (n,), their class numbers.
        precision: Keras's policy that was trained with.
    """

    uri: str
    fingerprint: str
    scores: dict[str, float]
    repeated: float
    steps: int
    curve: list[dict[str, float]]
    before: np.ndarray
    after: np.ndarray
    classes: np.ndarray
    precision: str


@dataclass(frozen=True)
class Audience:
    """Who is told how a training goes.

    Attributes:
        progress: steps done, steps in all, and images a second over all ranks, in words.
        epoch: what an epoch brought, by name.
        say: a sentence for people.
    """

    progress: Callable[[int, int, str], None]
    epoch: Callable[[dict[str, float]], None]
    say: Callable[[str], None]


class RankError(LookalikeError):
    """A rank ended or fell silent; the others cannot go on without it."""


def prepare() -> None:
    """Let Horovod find out, beside other work, whether it can: that imports TensorFlow once.

    Its launcher asks each time, between the start of the Spark tasks and that of the ranks, and
    keeps the answer.
    """
    from horovod.common.util import gloo_built

    threading.Thread(target=gloo_built, kwargs={"verbose": False}, daemon=True).start()


def train(job: Job, audience: Audience, log: Path) -> Trained:
    """Train on `job.train.ranks` ranks and commit the encoder.

    Each rank is a Spark task of the active session, which needs as many slots. Where one dies, all
    begin again from the last checkpoint, up to `job.train.restarts` times.

    Args:
        job: what to do.
        audience: told how it goes.
        log: file for what the ranks print.

    Raises:
        LookalikeError: what a rank raised.
        RankError: which rank ended, and where its output is.
    """
    told: set[float] = set()

    def once(epoch: dict[str, float]) -> None:
        if epoch["epoch"] not in told:  # what is done again after a restart ends alike
            told.add(epoch["epoch"])
            heard(epoch)

    heard, audience = audience.epoch, replace(audience, epoch=once)
    for attempt in range(job.train.restarts + 1):
        try:
            return _attempt(job, audience, log)
        except RankError as error:
            step = _kept_step(job)
            if attempt == job.train.restarts:
                raise RankError(
                    error.fact,
                    remedy=f"What it printed is in {log}. Run `lookalike train` again: it goes on "
                    f"from {step}",
                ) from error
            wait = min(2.0**attempt, _LONGEST_WAIT)
            audience.say(
                f"{error.fact}; what it printed is in {log}. All begin again from {step} in "
                f"{wait:.0f} s (restart {attempt + 1} of {job.train.restarts})"
            )
            time.sleep(wait)
    raise AssertionError("unreachable")


def _kept_step(job: Job) -> str:
    """Where all begin again, in words."""
    try:
        last = Checkpoints(job.checkpoints).newest()
    except LookalikeError:  # no reason not to try
        return "the last checkpoint"
    return f"step {0 if last is None else last.meta['step']:,}"


def _attempt(job: Job, audience: Audience, log: Path) -> Trained:
    # Imported late: it takes a second, and its launcher alone, no TensorFlow, comes with it.
    from horovod.spark import run
    from horovod.spark.driver import job_id
    from pyspark import SparkContext

    spark = SparkContext._active_spark_context
    assert spark is not None, "the caller opens a session"
    # The group of the job that `run` starts next: cancelling it ends even ranks that hang.
    settings = spark.getConf()
    host = str(settings.get("spark.driver.host", "127.0.0.1"))
    group = f"horovod.spark.run.{job_id.next_job_id() + 1}"
    seen = _Seen()
    with (
        _Output(log) as output,
        Exchange(host, settings.get("spark.driver.bindAddress")) as exchange,
    ):
        try:
            with _watched(exchange, seen, job.train, audience, lambda: spark.cancelJobGroup(group)):
                results = run(
                    _rank,
                    args=(job, exchange.address),
                    num_proc=job.train.ranks,
                    use_gloo=True,
                    stdout=output,
                    stderr=output,
                    verbose=0,
                )
        except Exception as error:
            raise seen.error(exchange, error) from error
    return Trained(**results[0])


def _rank(job: Job, driver: Address) -> dict[str, Any] | None:
    from lookalike.model import fit as training
    from lookalike.model import process, progress
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    ranks = Ranks.all()
    first = ranks.rank == 0
    # Horovod puts the number of Spark's task before each line, which may be another.
    print(f"This is rank {ranks.rank} of {ranks.size}.", flush=True)
    with Line(driver, ranks.rank) as line:

        class Watcher(progress.Watcher):
            def step(self, done: int, total: int) -> None:
                line.at(done, total)

            def epoch(self, epoch: progress.Epoch) -> None:
                if first:
                    line.tell("epoch", **_named(epoch))

            def resumed(self, step: int) -> None:
                if first:
                    line.tell("resumed", at=step)

        try:
            process.set_up(job.train, ranks)
            snapshot = Snapshot.open(job.snapshot)
            checkpoints = Checkpoints(job.checkpoints)
            fitted = training.fit(snapshot, job.train, job.seed, ranks, Watcher(), checkpoints)
            return _commit(job, snapshot, fitted) if first else None
        except Exception as error:
            error = _ours(job, error) or error
            if not isinstance(error, LookalikeError):
                line.tell("failed", ours=None, words=f"{type(error).__name__}: {error}"[:2000])
            else:
                kind, facts = type(error).__name__, error.__dict__
                line.tell("failed", ours=kind, words=str(error), facts=facts)
            raise error


def _ours(job: Job, error: Exception) -> LookalikeError | None:
    """What would come again when all have begun again, as an error for people; else None."""
    import tensorflow as tf

    if isinstance(error, LookalikeError):
        return error
    here = socket.gethostname()
    again = "and run `lookalike train` again: it goes on from its last checkpoint"
    if isinstance(error, OSError) and error.errno in errors.NO_ROOM:
        return LookalikeError(
            f"there is no room to write in ({error.strerror}): {here} keeps temporary files in "
            f"{tempfile.gettempdir()}, and the encoder goes to {job.encoders}",
            remedy=f"Make room there, or name another folder in TMPDIR, {again}",
        )
    if isinstance(error, tf.errors.ResourceExhaustedError):
        batch = job.train.batch
        # TensorFlow puts stack frames before what it says.
        said = [line for line in error.message.splitlines() if "alloc" in line] or [error.message]
        return LookalikeError(
            f"{batch.classes} x {batch.images} images are more than the memory of {here} takes at "
            f"once ({said[0].strip()[:200]})",
            remedy="Lower train.classes_per_batch or train.images_per_class; or let nobody else "
            f"use the GPU, {again}",
        )
    return None


_CURVE = ("p_at_1", "knn_accuracy", "map_at_10", "map_at_r")


def _named(epoch: Any) -> dict[str, float]:
    return {
        "epoch": epoch.number + 1,
        "loss": epoch.loss,
        **{name: getattr(epoch.validation, name) for name in _CURVE},
        "images_per_second": epoch.images_per_second,
        "waiting": epoch.waiting,
    }


def _commit(job: Job, snapshot: Any, fitted: Any) -> dict[str, Any]:
    from lookalike import encoder
    from lookalike.metrics import calibrate, has_pairs
    from lookalike.model import export

    # Validation is a sample: of many classes of a few items it may be one of each.
    calibration = None
    if has_pairs(fitted.classes):
        calibration = calibrate(fitted.after, fitted.classes, job.seed)
    specification = encoder.Specification(
        preprocessing=snapshot.preprocessing,
        metric="cosine",
        dim=job.train.embedding_size,
        calibration=calibration,
    )
    scores = {name: getattr(fitted.scores, name) for name in fitted.scores.METRICS}
    # What it was, where the recipe leaves it to the machine.
    recipe = job.train.recorded() | {"precision": fitted.precision}
    committed = encoder.commit(
        job.encoders,
        export.to_onnx(fitted.network, snapshot.preprocessing),
        specification,
        {**job.made_from, "train": recipe, "validation": scores},
        weights=export.weights(fitted.network),
    )
    steps = sum(epoch.steps for epoch in fitted.epochs)
    repeated = sum(epoch.repeated for epoch in fitted.epochs)
    trained = Trained(
        uri=committed.uri,
        fingerprint=committed.meta["fingerprint"],
        scores=scores,
        repeated=repeated / (steps * job.train.batch.size),
        steps=steps,
        curve=[_named(epoch) for epoch in fitted.epochs],
        before=fitted.before,
        after=fitted.after,
        classes=fitted.classes,
        precision=fitted.precision,
    )
    return asdict(trained)


class _Seen:
    """What went wrong, as the lines told it."""

    def __init__(self) -> None:
        self.refused: LookalikeError | None = None
        """What a rank raised on purpose: beginning again would end alike."""
        self.failed: list[str] = []
        self.silent: list[Heard] = []

    def error(self, exchange: Exchange, cause: Exception) -> LookalikeError:
        """The first thing that went wrong: what follows in other ranks follows from it."""
        if self.refused is not None:
            return self.refused
        if self.silent:
            seconds = time.monotonic() - self.silent[0].at
            return RankError(f"{self.silent[0]} said nothing for {seconds:.0f} seconds")
        if exchange.lost:
            # A rank that raised said so before its line broke; what a killed one had no time to
            # say, others say for it, later.
            lost = str(exchange.lost[0])
            told = [words for words in self.failed if words.startswith(lost)]
            return RankError(told[0] if told else f"{lost} ended without a word")
        lines = [line for line in str(cause).splitlines() if line.strip()]
        return RankError(f"the ranks did not start, or ended ({'; '.join(lines[-2:])[:300]})")

    def hear(self, who: Heard, message: Message) -> None:
        if message["ours"] is None:
            self.failed.append(f"{who} failed with {message['words']}")
        elif self.refused is None:
            kind = getattr(errors, message["ours"], LookalikeError)
            self.refused = errors.restored(kind, message["words"], message["facts"])


@contextmanager
def _watched(
    exchange: Exchange,
    seen: _Seen,
    train: Train,
    audience: Audience,
    cancel: Callable[[], object],
) -> Iterator[None]:
    over = threading.Event()
    begin: tuple[float, int] | None = None
    trouble: float | None = None

    def hear() -> None:
        # For so long in all: epochs of a moment must not keep from looking at the ranks.
        until = time.monotonic() + 0.5
        with suppress(Empty):
            while (left := until - time.monotonic()) > 0:
                who, message = exchange.said.get(timeout=left)
                if message["kind"] == "failed":
                    seen.hear(who, message)
                elif message["kind"] == "resumed":
                    audience.say(f"Going on from the checkpoint at step {message['at']:,}")
                elif message["kind"] == "epoch":
                    audience.epoch(
                        {k: v for k, v in message.items() if k not in ("kind", "step", "steps")}
                    )

    def show() -> None:
        nonlocal begin
        first = exchange.ranks.get(0)
        if first is None or not first.steps:
            return
        now, step = time.monotonic(), first.step
        if begin is None:
            begin = (now, step)
        images = (step - begin[1]) * train.batch.size * train.ranks
        pace = f"{images / (now - begin[0]):,.0f} images/s" if now > begin[0] and images else ""
        audience.progress(step, first.steps, pace)

    def watch() -> None:
        nonlocal trouble
        while not over.is_set() or not exchange.said.empty():
            hear()
            show()
            if not seen.silent:
                seen.silent = exchange.silent(train.silence)
            if trouble is None and (seen.silent or exchange.lost):
                # The others wait for it in a collective operation: some notice, some do not.
                trouble = time.monotonic()
            patience = 0 if seen.silent else _PATIENCE
            if trouble is not None and time.monotonic() - trouble > patience:
                # Others may have given a stopped rank up before the driver does.
                seen.silent = seen.silent or exchange.silent(_PATIENCE - 5)
                exchange.hang_up()
                cancel()
                trouble = float("inf")

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        hear()
        show()


class _Output:
    """The stream that ranks' output comes through, into a file."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._file = log.open("a", encoding="utf-8")
        self._lock = threading.Lock()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._file.close()

    def write(self, text: str) -> int:
        with self._lock:
            if not self._file.closed:
                self._file.write(text)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.flush()
