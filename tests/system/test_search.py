"""Searches over Spark's workers, with MLflow behind HTTP: killed, gone on with, extended."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Run
from pyspark.sql import SparkSession
from support import mlflow_server

from lookalike import config
from lookalike.errors import ConfigError, DataError, LookalikeError
from lookalike.model import tune as engine
from lookalike.planning import BatchShape
from lookalike.steps import train, tune
from lookalike.steps.context import Context
from lookalike.steps.tune import Tuned

DEADLY = """
import os, signal

def network(images, dim):
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does where memory is out
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with mlflow_server(tmp_path_factory.mktemp("mlflow")) as url:
        yield url


@pytest.fixture
def recipe(
    spark: SparkSession, make_snapshot: Callable[..., str], tmp_path: Path, server: str
) -> Callable[..., Context]:
    """Contexts of one warehouse, whose ledger has a snapshot."""
    written = {
        "name": tmp_path.name.replace("_", "-"),
        "seed": 3,
        "warehouse": {"tables": str(tmp_path / "tables"), "files": str(tmp_path / "files")},
        "data": {"source": "folder", "root": "nowhere"},
        "images": {"size": 16, "channels": 1},
        "mlflow": {"tracking_uri": server},
        "tune": {
            "trials": 2,
            "parallelism": 1,
            "budget": {"steps": 3},
            "space": {"learning_rate": {"log_uniform": [0.001, 0.01]}},
        },
        "train": {
            "ranks": 2,
            "network": "simple_cnn",
            "embedding_size": 8,
            "classes_per_batch": 4,
            "images_per_class": 4,
            "epochs": 1,
        },
    }
    conf = tmp_path / "recipe.yaml"
    conf.write_text(yaml.safe_dump(written))

    def make(*settings: str) -> Context:
        context = Context(config.load(conf, settings))
        context.__dict__["spark"] = spark
        return context

    snapshot = make_snapshot([24] * 5, BatchShape(4, 4), blocks=6)
    make().ledger.commit("snapshot", {}, {"uri": snapshot}, {})
    return make


def runs_of(context: Context, name: str = "search") -> tuple[list[Run], dict[str, list[Run]]]:
    """The searches' runs of a name, newest first, and those within each."""
    client, experiment = context.tracking.client, context.tracking.experiment_id()
    found = client.search_runs([experiment], f"tags.search = '{name}'")
    within = {
        run.info.run_id: client.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        )
        for run in found
    }
    return found, within


def test_a_lost_worker_is_a_failed_trial_and_the_search_is_logged_and_extended(
    recipe: Callable[..., Context], spark: SparkSession, tmp_path: Path
) -> None:
    deadly = tmp_path / "deadly.py"
    deadly.write_text(DEADLY)
    spark.sparkContext.addPyFile(str(deadly))
    space = (
        "tune.space={learning_rate: {log_uniform: [0.001, 0.01]},"
        " network: {choice: [simple_cnn, 'deadly:network']},"
        " loss: {choice: [{alpha: {uniform: [1, 3]}}, {name: triplet, margin: 0.3}]}}"
    )
    settings = (space, "tune.algorithm=random", "tune.trials=6", "tune.parallelism=2", "seed=5")
    context = recipe(*settings)
    found = tune.run(context)
    assert isinstance(found, Tuned)
    assert found.trials == 6
    assert 0 < found.failed < 6
    assert found.values["network"] == "simple_cnn"
    assert tune.run(recipe(*settings)).unchanged

    (parent,), within = runs_of(context)
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["validation_map_at_r"] == pytest.approx(found.score)
    runs = {int(run.data.tags["trial"]): run for run in within[parent.info.run_id]}
    assert sorted(runs) == list(range(6))
    for run in runs.values():
        lost = run.data.params["network"] == "deadly:network"
        assert run.info.status == ("FAILED" if lost else "FINISHED")
        assert ("lost" in run.data.tags.get("error", "")) == lost
        assert ("validation_map_at_r" in run.data.metrics) != lost
        assert run.data.metrics["seconds"] > 0
        assert ("loss.alpha" in run.data.params) != ("loss.margin" in run.data.params)
        assert lost or ":" in run.data.tags["worker"]
    assert found.score == max(
        run.data.metrics.get("validation_map_at_r", 0) for run in runs.values()
    )
    pictures = {file.path for file in context.tracking.client.list_artifacts(parent.info.run_id)}
    assert {"best_so_far.png", "parallel_coordinates.png"} <= pictures

    longer = tune.run(recipe(*settings), more=2)
    assert isinstance(longer, Tuned)
    assert longer.trials == 8
    assert longer.run_id == found.run_id
    (parent,), within = runs_of(context)
    assert sorted(int(r.data.tags["trial"]) for r in within[parent.info.run_id]) == list(range(8))

    # Killed when one trial more had ended, the same words go on to as many as they meant.
    context = recipe(*settings)
    search = tune._found(
        context, tune.inputs_of(context, context.ledger.need("snapshot").outputs["uri"]), False
    )
    assert search is not None
    search.keep(replace(search.trials()[0], number=8))
    assert tune.run(context, more=2).trials == 10


def test_another_search_is_refused_with_the_difference_or_begun_anew(
    recipe: Callable[..., Context],
) -> None:
    first = tune.run(recipe())
    other = "tune.space={learning_rate: {log_uniform: [0.002, 0.01]}, warmup: {uniform: [0, 0.3]}}"
    words = (
        r"search 'search' was made with others: tune\.space\.learning_rate\.log_uniform was"
        r" \[0\.001, 0\.01\], and is \[0\.002, 0\.01\]; tune\.space\.warmup\.uniform was not there"
    )
    with pytest.raises(ConfigError, match=words):
        tune.run(recipe(other), fresh=False)
    with pytest.raises(ConfigError, match=r"tune\.objective was 'map_at_r', and is 'p_at_1'"):
        tune.run(recipe("tune.objective=p_at_1"), more=1, fresh=False)
    second = tune.run(recipe(other), fresh=True)
    assert isinstance(second, Tuned)
    assert second.trials == 2
    assert not second.unchanged
    assert second.run_id != first.run_id
    named = tune.run(recipe("tune.name=another"), fresh=False)
    assert named.run_id not in (first.run_id, second.run_id)
    assert named.values == first.values  # the same seed, one trial after the other


FUSSY = """
from pathlib import Path
import tensorflow as tf

def network(images, dim):
    if not Path("{mended}").exists():
        raise RuntimeError("a library is missing")
    return tf.keras.layers.Dense(dim)(tf.keras.layers.Flatten()(images))
"""


def test_where_all_trials_failed_the_search_is_begun_anew(
    recipe: Callable[..., Context], spark: SparkSession, tmp_path: Path
) -> None:
    """What they ran into is none of what the search is made from, and may be mended."""
    mended, fussy = tmp_path / "mended", tmp_path / "fussy.py"
    fussy.write_text(FUSSY.replace("{mended}", str(mended)))
    spark.sparkContext.addPyFile(str(fussy))
    settings = ("tune.space={network: {choice: ['fussy:network']}}",)
    for _ in range(2):
        with pytest.raises(LookalikeError, match=r"all 2 trials failed: 2 with '.*is missing"):
            tune.run(recipe(*settings))
    mended.touch()
    context = recipe(*settings)
    found = tune.run(context)
    assert (found.trials, found.failed) == (2, 0)
    assert tune.run(recipe(*settings)).unchanged
    runs, within = runs_of(context)
    assert [run.info.status for run in runs] == ["FINISHED", "FAILED", "FAILED"]
    assert [len(within[run.info.run_id]) for run in runs] == [2, 2, 2]


def test_a_search_on_another_snapshot_is_refused_with_the_difference(
    recipe: Callable[..., Context], make_snapshot: Callable[..., str]
) -> None:
    tune.run(recipe())
    other = make_snapshot([24] * 6, BatchShape(4, 4), blocks=6)
    recipe().ledger.commit("snapshot", {}, {"uri": other}, {})
    with pytest.raises(ConfigError, match=rf"snapshot was '.*', and is '{other}'"):
        tune.run(recipe(), fresh=False)


def test_trials_that_would_share_a_gpu_are_refused_before_they_start(
    recipe: Callable[..., Context], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of this machine nothing but the number of GPUs is made up."""
    monkeypatch.setattr(engine, "_seen_gpus", lambda _: 1)
    settings = ("tune.trials=6", "tune.parallelism=2")
    with pytest.raises(ConfigError, match=r"parallelism = 2: trials would share a GPU.*Allowed: 1"):
        tune.run(recipe(*settings))
    spark, alone = recipe().spark, recipe("tune.trials=6", "tune.parallelism=null").config.tune
    assert engine._at_once(spark, alone, 6) == 1
    monkeypatch.setattr(engine, "_seen_gpus", lambda _: 0)
    assert engine._at_once(spark, alone, 6) == 2
    assert engine._at_once(spark, alone, 5) == 1  # two at once would be drawn at random


def test_training_takes_the_best_values_and_says_whose_they_are(
    recipe: Callable[..., Context],
) -> None:
    space = (
        "tune.space={learning_rate: {log_uniform: [0.001, 0.01]}, warmup: {uniform: [0, 0.5]},"
        " embedding_size: {int: [4, 8]}, weight_decay: {normal: [0.02, 0.005]},"
        " augment.flip: {choice: [true, false]},"
        " loss: {choice: [{name: triplet, margin: {uniform: [0.1, 0.5]}}]}}"
    )
    context = recipe(space, "tune.name=every-word", "train.ranks=1")
    found = tune.run(context)
    trained = train.run(context)
    run = context.tracking.client.get_run(trained.run_id)
    assert run.data.tags["search.name"] == "every-word"
    assert run.data.tags["search.trial"] == str(found.best)
    assert run.data.tags["search.run_id"] == found.run_id
    used = {key.removeprefix("train."): value for key, value in run.data.params.items()}
    values = found.values | {f"loss.{key}": value for key, value in found.values["loss"].items()}
    del values["loss"]
    assert {key: used[key] for key in values} == {k: str(v) for k, v in values.items()}
    made_from = json.loads((Path(trained.uri) / "manifest.json").read_text())["meta"]
    # What trials do not take from the recipe makes no other search; what they do, does.
    uri = context.ledger.need("snapshot").outputs["uri"]
    same = recipe(space, "tune.name=every-word", "train.epochs=7", "train.threads=1")
    assert train._searched(same, uri) is not None
    other = recipe(space, "tune.name=every-word", "train.ema=0.5")
    with pytest.raises(
        DataError, match=r"the newest is of others: train\.ema was 0\.0, and is 0\.5"
    ):
        train.run(other)
    with pytest.raises(DataError, match=r"snapshot has size = 16, not 32 and group_by = None, not"):
        train.run(recipe("images.size=32", "train.group_by=kind"))
    assert made_from["made_from"]["search"] == {
        "name": "every-word",
        "trial": found.best,
        "run_id": found.run_id,
    }


def test_a_killed_search_goes_on_and_leaves_nothing_half_open(
    recipe: Callable[..., Context], tmp_path: Path
) -> None:
    settings = ("tune.trials=6", "tune.parallelism=2")
    trials = tmp_path / "files" / "searches" / "search"
    arguments = [w for s in (*settings, "spark.master=local[2]") for w in ("--set", s)]
    killed = subprocess.Popen(
        [sys.executable, "-m", "lookalike.cli", "tune", "--conf", str(tmp_path / "recipe.yaml"),
         *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (done := list(trials.glob("*/trials/*/manifest.json"))):
        assert killed.poll() is None, "it ended before it was killed"
        assert time.monotonic() < deadline, "no trial ended"
        time.sleep(0.05)
    killed.kill()
    killed.wait(60)
    kept = {path: path.read_text() for path in trials.glob("*/trials/*/manifest.json")}
    assert set(done) <= set(kept)
    assert len(kept) < 6
    context = recipe(*settings)
    (parent,), _ = runs_of(context)
    assert parent.info.status == "RUNNING"

    said: list[str] = []
    context.say = said.append
    found = tune.run(context, fresh=False)
    assert isinstance(found, Tuned)
    assert (found.trials, found.failed) == (6, 0)
    assert f"{len(kept)} trials are done" in said[0]
    now = {path: path.read_text() for path in trials.glob("*/trials/*/manifest.json")}
    assert len(now) == 6
    assert kept.items() <= now.items()
    (parent,), within = runs_of(context)
    assert (parent.info.run_id, parent.info.status) == (found.run_id, "FINISHED")
    inner = within[found.run_id]
    assert {run.info.status for run in inner} <= {"FINISHED", "KILLED"}
    finished = [run for run in inner if run.info.status == "FINISHED"]
    assert {int(run.data.tags["trial"]) for run in finished} | {
        int(run.data.tags.get("trial", -1)) for run in inner
    } >= set(range(6))
