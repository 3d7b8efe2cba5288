"""Trainings on real Horovod ranks in Spark tasks: killed, stopped, refused; always the same end."""

from __future__ import annotations

import pickle
import re
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest

from lookalike.config import Train
from lookalike.encoder import Encoder
from lookalike.errors import ConfigError, LookalikeError
from lookalike.images import encode_png
from lookalike.model import launch
from lookalike.model.batches import Shard, repeats
from lookalike.model.launch import Audience, Job, RankError, Trained
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape

pytestmark = pytest.mark.usefixtures("spark")

BATCH = BatchShape(5, 4)
SIZES = [60, 36, 48, 48, 48]
"""12 batches of 20: 6 steps an epoch on each of two ranks, of which one repeats more images."""


@dataclass
class Listener:
    """Remembers what it is told, and does something at some steps, once at each."""

    acts: dict[int, Callable[[], None]] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)
    epochs: list[dict[str, float]] = field(default_factory=list)
    places: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def audience(self) -> Audience:
        return Audience(self._progress, self.epochs.append, self.said.append)

    def _progress(self, done: int, total: int, pace: str) -> None:
        self.places.append((done, total, pace))
        if self.acts and done >= (at := min(self.acts)):
            self.acts.pop(at)()


@pytest.fixture
def job(make_snapshot: Callable[..., str], tmp_path: Path) -> Callable[..., Job]:
    snapshot = make_snapshot(SIZES, BATCH, blocks=12)

    def make(name: str, **values: object) -> Job:
        given = {
            "network": "simple_cnn", "embedding_size": 8, "ranks": 2, "threads": 1, "epochs": 100,
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


def ranks_of(driver: int | None = None) -> list[psutil.Process]:
    """The processes of the ranks that belong to a driver, else to this one, by rank."""
    found = []
    for process in psutil.Process(driver).children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            # Horovod starts each by a shell and a process between: the rank is the innermost.
            command = " ".join(process.cmdline())
            if "horovod.spark.task.gloo_exec_fn" in command and not process.children():
                found.append(process)
    return sorted(found, key=lambda process: int(process.environ()["HOROVOD_RANK"]))


def send(rank: int, number: signal.Signals) -> Callable[[], None]:
    return lambda: ranks_of()[rank].send_signal(number)


def weights(trained: Trained) -> list[np.ndarray]:
    with np.load(Path(trained.uri) / "weights.npz") as held:
        return [held[name] for name in held]


def apart(one: Trained, other: Trained) -> float:
    pairs = zip(weights(one), weights(other), strict=True)
    return max(float(np.abs(a - b).max()) for a, b in pairs)


def test_killed_ranks_begin_again_and_end_alike(job: Callable[..., Job], tmp_path: Path) -> None:
    normalised = {"network": "compact_resnet", "epochs": 30, "detail": 0.3}
    whole = Listener()
    asked = job("whole", **normalised)
    unkilled = launch.train(asked, whole.audience, tmp_path / "whole.log")
    assert unkilled.steps == 180
    assert whole.said == []
    assert [epoch["epoch"] for epoch in whole.epochs] == list(range(1, 31))
    assert whole.places[-1][:2] == (180, 180)
    assert any("images/s" in pace for *_, pace in whole.places)
    snapshot = Snapshot.open(asked.snapshot)
    again = [
        repeats(snapshot, Shard(rank, 2, BATCH, asked.seed, 10**6), epoch)
        for epoch in range(30)
        for rank in range(2)
    ]
    assert sum(again[::2]) != sum(again[1::2])
    assert unkilled.repeated == pytest.approx(sum(again) / (2 * 180 * BATCH.size))

    # The other rank, then the one that writes the checkpoints.
    killed = Listener({40: send(1, signal.SIGKILL), 110: send(0, signal.SIGKILL)})
    trained = launch.train(job("killed", **normalised), killed.audience, tmp_path / "killed.log")
    assert len(killed.said) == 4
    for restart, rank in enumerate((1, 0), start=1):
        lost, resumed = killed.said[2 * restart - 2 : 2 * restart]
        found = re.match(rf"rank {rank} \(.*, step (\d+)\) ended without a word", lost)
        assert found, lost
        assert str(tmp_path / "killed.log") in lost
        assert f"restart {restart} of 3" in lost
        step = int(resumed.rpartition(" ")[2])
        assert int(found[1]) - step <= 20  # an interval, no more
        assert step % 20 == 0
    assert trained.steps == 180
    assert [epoch["epoch"] for epoch in killed.epochs] == list(range(1, 31))
    assert apart(trained, unkilled) <= 1e-5
    assert np.abs(trained.after - unkilled.after).max() <= 1e-3
    # Each rank made vectors of every other image, with the detail that rank 0's encoder has.
    pixels, _ = snapshot.validation()
    encoder = Encoder.open(trained.uri)
    vectors = encoder.encode([encode_png(image[:, :, 0]) for image in pixels])
    assert np.abs(vectors - trained.after).max() <= 1e-4
    assert trained.repeated == pytest.approx(unkilled.repeated)


def test_a_rank_that_hangs_is_named_and_all_begin_again(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    stopped = Listener({30: send(0, signal.SIGSTOP)})
    trained = launch.train(job("stopped", silence=5), stopped.audience, tmp_path / "stopped.log")
    assert re.match(
        r"rank [01] \(process \d+ on .*\) said nothing for \d+ seconds", stopped.said[0]
    )
    assert trained.steps == 600
    assert ranks_of() == []


def test_the_only_rank_hangs_and_there_are_no_restarts(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    alone = Listener({20: send(0, signal.SIGSTOP)})
    lonely = job("alone", ranks=1, silence=5, restarts=0, checkpoint_steps=5)
    with pytest.raises(
        RankError, match=r"rank 0 .*said nothing for \d+ sec.*alone.log.*from step \d"
    ):
        launch.train(lonely, alone.audience, tmp_path / "alone.log")
    assert ranks_of() == []


@pytest.mark.parametrize(
    ("change", "kind", "said"),
    [
        (
            {"learning_rate": 1.0, "weight_decay": 1e30},
            LookalikeError,
            r"became .*nan.*step \d+.*checkpoint",
        ),
        ({"images_per_class": 24}, ConfigError, "laid out for"),
        ({"network": "no.such:network"}, ConfigError, "no.such"),
    ],
)
def test_what_would_end_alike_is_not_begun_again(
    job: Callable[..., Job],
    tmp_path: Path,
    change: dict[str, object],
    kind: type[LookalikeError],
    said: str,
) -> None:
    refused = Listener()
    with pytest.raises(kind, match=f"(?i){said}"):
        launch.train(job("refused", **change), refused.audience, tmp_path / "refused.log")
    assert refused.said == []
    assert not (tmp_path / "refused" / "encoders").exists()
    assert ranks_of() == []


def test_checkpoints_that_cannot_be_kept_end_the_training(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    blocked = job("blocked")
    Path(blocked.checkpoints).parent.mkdir()
    Path(blocked.checkpoints).write_text("a file where the folder should be")
    with pytest.raises(LookalikeError, match=r"checkpoints in .* cannot be listed"):
        launch.train(blocked, Listener().audience, tmp_path / "blocked.log")


def test_no_room_for_the_encoder_is_told_and_not_tried_again(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    def limit() -> None:
        for rank in ranks_of():
            resource.prlimit(rank.pid, resource.RLIMIT_FSIZE, (4096, 4096))

    crammed, full = job("crammed", ranks=1, epochs=50, checkpoint_steps=1000), Listener({1: limit})
    with pytest.raises(LookalikeError, match=r"no room .* goes to .*crammed/encoders.*TMPDIR"):
        launch.train(crammed, full.audience, tmp_path / "crammed.log")
    assert full.said == []


def test_a_batch_that_memory_cannot_hold_is_told(job: Callable[..., Job]) -> None:
    import tensorflow as tf

    words = "Graph execution error:\n\nAt node x\nOOM when allocating tensor with shape[9]\n"
    for message, said in ((words, r"OOM when allocating tensor with shape\[9\]"), ("", "")):
        error = tf.errors.ResourceExhaustedError(None, None, message)
        told = str(launch._ours(job("greedy"), error))
        assert re.match(rf"5 x 4 images are more than .* at once \({said}\)\. Lower train", told)
    assert launch._ours(job("broken"), ValueError("anything else")) is None


_DRIVER = """
import pickle, sys
from pathlib import Path
from lookalike.config import Spark
from lookalike.lake.session import open_session
from lookalike.model import launch

job, log, master = pickle.loads(Path(sys.argv[1]).read_bytes())
spark = open_session(Spark(master=master), "driver")
told = launch.Audience(lambda done, total, pace: print(done, flush=True), print, print)
trained = launch.train(job, told, log)
Path(sys.argv[1]).write_bytes(pickle.dumps(trained))
"""


def driver(job: Job, folder: Path, master: str) -> tuple[subprocess.Popen[str], Path]:
    """A driver in a process of its own; what it trained is pickled where its job was."""
    told = folder / "job.pickle"
    told.write_bytes(pickle.dumps((job, folder / "driver.log", master)))
    process = subprocess.Popen(
        [sys.executable, "-c", _DRIVER, str(told)], stdout=subprocess.PIPE, text=True
    )
    return process, told


def test_a_killed_driver_leaves_no_rank_and_the_next_goes_on(
    job: Callable[..., Job], tmp_path: Path
) -> None:
    asked = job("orphans")
    process, _ = driver(asked, tmp_path, "local[2]")
    assert process.stdout is not None
    for line in process.stdout:
        if line.strip().isdigit() and int(line) >= 50:
            break
    ranks = ranks_of(process.pid)
    assert len(ranks) == 2
    process.kill()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    assert alive == []

    again = Listener()
    trained = launch.train(asked, again.audience, tmp_path / "again.log")
    assert re.fullmatch(r"Going on from the checkpoint at step \d+", again.said[0])
    assert int(again.said[0].rpartition(" ")[2]) >= 40
    assert trained.steps == 600
    whole = launch.train(job("whole"), Listener().audience, tmp_path / "whole.log")
    assert apart(trained, whole) <= 1e-5


def test_where_the_ranks_run_changes_nothing(job: Callable[..., Job], tmp_path: Path) -> None:
    """One worker with two slots, two workers with one: the same batches, the same weights."""
    done = []
    for name, master in (("one", "local-cluster[1,2,1024]"), ("two", "local-cluster[2,1,1024]")):
        folder = tmp_path / name
        folder.mkdir()
        process, told = driver(job(f"{name}/of", epochs=10), folder, master)
        process.communicate(timeout=300)
        assert process.returncode == 0
        done.append(pickle.loads(told.read_bytes()))
    assert apart(*done) == 0
    assert [epoch["loss"] for epoch in done[0].curve] == [epoch["loss"] for epoch in done[1].curve]
