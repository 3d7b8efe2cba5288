"""Trainings on real Horovod ranks in Spark tasks: killed, stopped, refused; always the same end."""

from __future__ import annotations

import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from pyspark.sql import SparkSession

from lookalike.config import Train
from lookalike.errors import ConfigError, LookalikeError
from lookalike.model import launch
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.launch import Audience, Job, RankError, Trained
from lookalike.planning import BatchShape

BATCH = BatchShape(5, 4)
SIZES = [48] * 5
"""12 batches of 20: 6 steps an epoch on each of two ranks."""


@dataclass
class Listener:
    """Remembers what it is told, and does something at a step, once."""

    at: int = 10**9
    act: Callable[[], None] = lambda: None
    said: list[str] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    places: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def audience(self) -> Audience:
        return Audience(self._progress, self.epochs.append, self.said.append)

    def _progress(self, done: int, total: int, pace: str) -> None:
        self.places.append((done, total, pace))
        if done >= self.at:
            self.at = 10**9
            self.act()


@pytest.fixture
def job(make_snapshot: Callable[..., str], tmp_path: Path) -> Callable[..., Job]:
    snapshot = make_snapshot(SIZES, BATCH, blocks=12)

    def make(name: str, **values: object) -> Job:
        given = {
            "network": "simple_cnn", "embedding_size": 8, "ranks": 2, "threads": 1, "epochs": 40,
            "classes_per_batch": BATCH.classes, "images_per_class": BATCH.images,
            "checkpoint_steps": 20, "deterministic": True, "ema": 0.9, "augment": {"shift": 1},
        }  # fmt: skip
        return Job(
            snapshot=snapshot,
            encoders=str(tmp_path / name / "encoders"),
            checkpoints=str(tmp_path / name / "checkpoints"),
            train=Train.model_validate(given | values),
            seed=3,
            made_from={},
        )

    return make


def ranks_of() -> list[psutil.Process]:
    """The processes of the ranks, those of this test's own Spark."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # Horovod starts each by a shell and a process between: the rank is the innermost.
            command = " ".join(process.cmdline())
            if "horovod.spark.task.gloo_exec_fn" in command and not process.children():
                found.append(process)
    return sorted(found, key=lambda process: process.pid)


def send(which: int, number: signal.Signals) -> Callable[[], None]:
    return lambda: ranks_of()[which].send_signal(number)


def weights(trained: Trained) -> list[np.ndarray]:
    with np.load(Path(trained.uri) / "weights.npz") as held:
        return [held[name] for name in held]


def apart(one: Trained, other: Trained) -> float:
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_killed_ranks_begin_again_and_end_alike(
    spark: SparkSession, job: Callable[..., Job], tmp_path: Path
) -> None:
    whole = Listener()
    unkilled = launch.train(job("whole"), whole.audience, tmp_path / "whole.log")
    assert unkilled.steps == 240
    assert whole.said == []
    assert [epoch["epoch"] for epoch in whole.epochs] == list(range(1, 41))
    assert whole.places[-1][:2] == (240, 240)
    assert any("images/s" in pace for *_, pace in whole.places)

    killed = Listener(at=90, act=send(1, signal.SIGKILL))
    trained = launch.train(job("killed"), killed.audience, tmp_path / "killed.log")
    assert "ended without a word" in killed.said[0]
    assert str(tmp_path / "killed.log") in killed.said[0]
    assert "restart 1 of 3" in killed.said[0]
    assert trained.steps == 240
    assert [epoch["epoch"] for epoch in killed.epochs] == list(range(1, 41))
    resumed = int(killed.said[1].rpartition(" ")[2])
    assert 90 - 20 <= resumed <= 240
    assert resumed % 20 == 0
    assert apart(trained, unkilled) <= 1e-5
    assert trained.repeated == pytest.approx(unkilled.repeated)
