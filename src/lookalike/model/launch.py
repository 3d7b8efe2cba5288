"""Training on several ranks: Horovod inside a Spark job."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow.exceptions import MlflowException

from lookalike.config import Train
from lookalike.errors import LookalikeError, raised_in
from lookalike.tracking import Run

_KEPT_LINES = 200
_TOLD_EVERY = 2.0
"""Seconds between two words on progress, which go by MLflow: it is where all ranks can write."""


@dataclass(frozen=True)
class Job:
    """All that a rank needs to know. Small and picklable.

    Attributes:
        snapshot: URI of the snapshot.
        encoders: folder or URI of all encoders; rank 0 commits there.
        train: see `Train`.
        seed: of everything random.
        made_from: what the encoder's manifest says of its origin.
        run: the MLflow run that rank 0 logs to.
    """

    snapshot: str
    encoders: str
    train: Train
    seed: int
    made_from: dict[str, Any]
    run: Run


@dataclass(frozen=True)
class Trained:
    """What rank 0 committed.

    Attributes:
        uri: of the encoder.
        fingerprint: of the encoder.
        scores: on the validation split, itself left out.
        repeated: images that came twice in an epoch, as a share, on rank 0.
        steps: that every rank took.
    """

    uri: str
    fingerprint: str
    scores: dict[str, float]
    repeated: float
    steps: int


def train(job: Job, on_step: Callable[[int, int], None], log: Path) -> Trained:
    """Train on `job.train.ranks` ranks and commit the encoder.

    Each rank is a Spark task of the active session, which needs as many slots.

    Args:
        job: what to do.
        on_step: told the steps done and the steps in all.
        log: file for what the ranks print.

    Raises:
        LookalikeError: what a rank raised, or that one ended and where its output is.
    """
    # Imported late: it takes a second, and its launcher alone, no TensorFlow, comes with it.
    from horovod.spark import run

    with _Output(log) as output, _watched(job.run, on_step):
        try:
            results = run(
                _rank,
                args=(job,),
                num_proc=job.train.ranks,
                use_gloo=True,
                stdout=output,
                stderr=output,
                verbose=0,
            )
        except LookalikeError:
            raise
        except Exception as error:
            raise output.error(error) from error
    return Trained(**results[0])


def _rank(job: Job) -> dict[str, Any] | None:
    from lookalike.model import fit as training
    from lookalike.model.batches import Snapshot
    from lookalike.model.ranks import Ranks

    ranks = Ranks.all()
    training.set_threads(job.train.threads, ranks.local_rank)
    snapshot = Snapshot.open(job.snapshot)
    first = ranks.rank == 0

    told = 0.0

    def on_step(step: int, steps: int) -> None:
        nonlocal told
        if first and (time.monotonic() - told > _TOLD_EVERY or step == steps):
            told = time.monotonic()
            with suppress(MlflowException, OSError):  # no training ends for want of a word
                job.run.metrics({"step": step, "steps": steps}, step=step)

    def on_epoch(epoch: training.Epoch) -> None:
        if first:
            values = {f"validation_{k}": getattr(epoch.validation, k) for k in _CURVE}
            job.run.metrics({"loss": epoch.loss, **values}, step=epoch.number)

    fitted = training.fit(snapshot, job.train, job.seed, ranks, on_step, on_epoch)
    return _commit(job, snapshot, fitted) if first else None


_CURVE = ("p_at_1", "knn_accuracy", "map_at_10", "map_at_r")


def _commit(job: Job, snapshot: Any, fitted: Any) -> dict[str, Any]:
    from lookalike import encoder
    from lookalike.metrics import calibrate
    from lookalike.model.export import to_onnx

    specification = encoder.Specification(
        preprocessing=snapshot.preprocessing,
        metric="cosine",
        dim=job.train.embedding_size,
        calibration=calibrate(fitted.validation_vectors, fitted.validation_classes, job.seed),
    )
    scores = {name: getattr(fitted.scores, name) for name in fitted.scores.METRICS}
    committed = encoder.commit(
        job.encoders,
        to_onnx(fitted.network, snapshot.preprocessing),
        specification,
        {**job.made_from, "train": job.train.model_dump(), "validation": scores},
    )
    steps = sum(epoch.steps for epoch in fitted.epochs)
    repeated = sum(epoch.repeated for epoch in fitted.epochs)
    return asdict(
        Trained(
            uri=committed.uri,
            fingerprint=committed.meta["fingerprint"],
            scores=scores,
            repeated=repeated / (steps * job.train.batch.size),
            steps=steps,
        )
    )


@contextmanager
def _watched(run: Run, on_step: Callable[[int, int], None]) -> Iterator[None]:
    over = threading.Event()

    def watch() -> None:
        while not over.wait(_TOLD_EVERY):
            with suppress(MlflowException, OSError):
                values = run.latest()
                if "steps" in values:
                    on_step(int(values["step"]), int(values["steps"]))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


class _Output:
    """The stream that ranks' output comes through: into a file, the end of it kept."""

    def __init__(self, log: Path):
        log.parent.mkdir(parents=True, exist_ok=True)
        self._path = log
        self._file = log.open("a", encoding="utf-8")
        self._last: deque[str] = deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, text: str) -> int:
        with self._lock:
            if self._file.closed:
                return len(text)
            self._file.write(text)
            self._last.append(text)
        return len(text)

    def flush(self) -> None:
        with self._lock:
            if not self._file.closed:
                self._file.flush()

    def error(self, cause: Exception) -> LookalikeError:
        """What a rank raised, else what Horovod says."""
        if (ours := raised_in("".join(self._last))) is not None:
            return ours
        lines = [line for line in str(cause).splitlines() if line.strip()]
        return LookalikeError(
            f"a rank of the training ended ({'; '.join(lines[-2:])[:300]})",
            remedy=f"Its output is in {self._path}; run `lookalike train` again",
        )
