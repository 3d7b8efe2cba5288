import os
from pathlib import Path

import mlflow
import pytest
from mlflow.entities import RunStatus

from lookalike.errors import ConfigError
from lookalike.tracking import Run, Tracking, flat


@pytest.fixture(autouse=True)
def no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_config_wins_over_environment_over_the_warehouse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Tracking.of(str(tmp_path), "x", None)
    assert own.uri == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert own.artifact_root == f"{tmp_path}/mlflow/artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert Tracking.of(str(tmp_path), "x", None) == Tracking("http://there", "x")
    assert Tracking.of(str(tmp_path), "x", "http://here") == Tracking("http://here", "x")


def test_a_remote_warehouse_needs_a_server() -> None:
    with pytest.raises(ConfigError, match=r"mlflow.tracking_uri is not set.*s3://bucket"):
        Tracking.of("s3://bucket/x", "x", None)


def test_a_run_ends_as_what_happened(tmp_path: Path) -> None:
    tracking = Tracking.of(str(tmp_path), "x", None)
    with tracking.run("good") as good:
        good.params({"a": {"b": 1}, "long": "x" * 600})
        good.metrics({"m": 0.5}, step=3)
    with pytest.raises(ValueError, match="no"), tracking.run("bad") as bad:
        raise ValueError("no")
    with pytest.raises(KeyboardInterrupt), tracking.run("stopped") as stopped:
        raise KeyboardInterrupt
    client = tracking.client
    found = {run.run_id: client.get_run(run.run_id) for run in (good, bad, stopped)}
    assert [run.info.status for run in found.values()] == ["FINISHED", "FAILED", "KILLED"]
    assert found[good.run_id].data.params["a.b"] == "1"
    assert found[good.run_id].data.metrics == {"m": 0.5}


def test_a_run_that_was_killed_is_gone_on_with_or_abandoned(tmp_path: Path) -> None:
    tracking = Tracking.of(str(tmp_path), "x", None)
    left = tracking.start("killed")
    inner = [tracking.start(f"part {i}", left.run_id) for i in range(3)]
    inner[0].end(RunStatus.FINISHED)
    assert {run.info.run_id for run in left.within()} == {run.run_id for run in inner}

    def statuses(*runs: Run) -> list[str]:
        return [tracking.client.get_run(run.run_id).info.status for run in runs]

    with tracking.run("never a name", again=left.run_id) as again:
        assert again.run_id == left.run_id
        again.abandon_within()
        assert statuses(left, *inner) == ["RUNNING", "FINISHED", "KILLED", "KILLED"]
    assert statuses(left) == ["FINISHED"]
    left.abandon()
    assert statuses(left) == ["FINISHED"]
    alone = tracking.start("killed too")
    alone.abandon()
    assert statuses(alone) == ["KILLED"]


def test_what_is_gone_on_with_is_where_it_is_logged(tmp_path: Path) -> None:
    tracking = Tracking.of(str(tmp_path), "x", None)
    with tracking.run("model") as run:
        pass
    assert tracking.going_on(run.run_id) == run
    tracking.client.delete_run(run.run_id)
    elsewhere = Tracking.of(str(tmp_path / "other"), "x", None)
    for server in (tracking, elsewhere):
        new = server.going_on(run.run_id)
        assert new.run_id != run.run_id
        assert server.going_on(run.run_id) == new  # the same one whenever it is asked for
        new.metrics({"m": 1})
        found = server.client.get_run(new.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.metrics == {"m": 1}


def test_what_a_killed_process_left_open_is_found_by_its_tag(tmp_path: Path) -> None:
    tracking = Tracking.of(str(tmp_path), "x", None)
    runs = [tracking.start(f"run {i}") for i in range(3)]
    for run, value in zip(runs, ("mine", "mine", "another's"), strict=True):
        run.tags({"training": value})
    runs[1].end(RunStatus.FINISHED)
    tracking.abandon("training", "mine")
    found = [tracking.client.get_run(run.run_id).info.status for run in runs]
    assert found == ["KILLED", "FINISHED", "RUNNING"]


def test_mlflow_logs_elsewhere_again_afterwards(tmp_path: Path) -> None:
    first, second = (Tracking.of(str(tmp_path / name), name, None) for name in "ab")
    with first.connected():
        with second.connected(), mlflow.start_run() as inner:
            pass
        with mlflow.start_run() as outer:
            pass
    assert second.client.get_run(inner.info.run_id).info.experiment_id == second.experiment_id()
    assert first.client.get_run(outer.info.run_id).info.experiment_id == first.experiment_id()
    third = Tracking.of(str(tmp_path / "c"), "c", None)
    assert third.uri == f"sqlite:///{tmp_path}/c/mlflow/mlflow.db"
    assert not {"MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_ID"} & os.environ.keys()


def test_flat() -> None:
    assert flat({"a": {"b": {"c": 1}}, "d": 2}) == {"a.b.c": 1, "d": 2}


def test_models_may_be_kept_elsewhere(tmp_path: Path) -> None:
    registry = f"sqlite:///{tmp_path}/models.db"
    tracking = Tracking.of(str(tmp_path / "runs"), "x", None, registry)
    before = mlflow.get_registry_uri(), os.environ.get("MLFLOW_REGISTRY_URI")
    with tracking.connected():
        assert mlflow.get_registry_uri() == registry
    assert (mlflow.get_registry_uri(), os.environ.get("MLFLOW_REGISTRY_URI")) == before
    tracking.client.create_registered_model("boots")
    own = Tracking.of(str(tmp_path / "runs"), "x", None)
    assert (tracking.models, own.models) == (registry, own.uri)
    assert [m.name for m in tracking.client.search_registered_models()] == ["boots"]
    assert list(own.client.search_registered_models()) == []
