"""MLflow: runs, figures, registry."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient, entities
from mlflow.entities import Metric, Param, RunStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import fluent
from mlflow.tracking._model_registry import utils as registries
from mlflow.utils.time import get_current_time_millis

from lookalike import artifacts
from lookalike.errors import ConfigError

CHAMPION = "champion"
PREVIOUS = "previous"
_EXPERIMENT, _REGISTRY = "MLFLOW_EXPERIMENT_ID", "MLFLOW_REGISTRY_URI"
_PARENT = "mlflow.parentRunId"
_GOES_ON_FROM = "goes_on_from"
_MAX_PARAM = 500


@dataclass(frozen=True)
class Tracking:
    """Where runs are logged. Small and picklable: rank 0 of a training gets it too.

    Attributes:
        uri: MLflow tracking URI.
        experiment: name of the experiment.
        artifact_root: folder of the experiment's artefacts; None leaves it to the server.
        registry_uri: of the models; None where they are kept beside the runs.
    """

    uri: str
    experiment: str
    artifact_root: str | None = None
    registry_uri: str | None = None

    @classmethod
    def of(
        cls,
        files: str,
        experiment: str,
        tracking_uri: str | None,
        registry_uri: str | None = None,
    ) -> Tracking:
        """The configured server, else MLFLOW_TRACKING_URI, else SQLite inside the warehouse.

        Raises:
            ConfigError: none is set and the warehouse is remote, where SQLite cannot live.
        """
        if uri := tracking_uri or os.environ.get("MLFLOW_TRACKING_URI"):
            return cls(uri, experiment, registry_uri=registry_uri)
        if "DATABRICKS_RUNTIME_VERSION" in os.environ:
            return cls("databricks", experiment, registry_uri=registry_uri)
        folder = artifacts.local_path(files)
        if folder is None:
            raise ConfigError(
                f"mlflow.tracking_uri is not set, and warehouse.files = {files!r} is remote, where "
                "MLflow's embedded database cannot live",
                remedy="Set mlflow.tracking_uri, or MLFLOW_TRACKING_URI in the environment",
            )
        (folder / "mlflow").mkdir(parents=True, exist_ok=True)
        return cls(
            f"sqlite:///{folder}/mlflow/mlflow.db",
            experiment,
            f"{folder}/mlflow/artifacts",
            registry_uri,
        )

    @property
    def models(self) -> str:
        """Which registry: its URI."""
        return self.registry_uri or self.uri

    @property
    def client(self) -> MlflowClient:
        # Creating SQLite's tables tells of every migration.
        logging.getLogger("alembic").setLevel(logging.WARNING)
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        return MlflowClient(self.uri, self.registry)

    @property
    def registry(self) -> str | None:
        """As MLflow is told of it: on Databricks it knows which of its registries is meant."""
        return self.models if self.registry_uri or self.uri != "databricks" else None

    def experiment_id(self) -> str:
        client = self.client
        if found := client.get_experiment_by_name(self.experiment):
            return str(found.experiment_id)
        try:
            return str(client.create_experiment(self.experiment, self.artifact_root))
        except MlflowException:  # another process was first
            found = client.get_experiment_by_name(self.experiment)
            if found is None:
                raise
            return str(found.experiment_id)

    @contextmanager
    def connected(self) -> Iterator[None]:
        """MLflow's own functions log here meanwhile, and afterwards where they did before.

        They keep that in globals and in the environment, which `of` reads: two recipes in one
        process must not come to share a server because one of them was the first.
        """
        uri = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None
        # There is no public way to ask which experiment is set, nor to unset it.
        experiment, told = fluent._active_experiment_id, os.environ.get(_EXPERIMENT)
        registry, named = registries._registry_uri, os.environ.get(_REGISTRY)
        mlflow.set_tracking_uri(self.uri)
        if self.registry is not None:
            mlflow.set_registry_uri(self.registry)
        try:
            mlflow.set_experiment(experiment_id=self.experiment_id())
            yield
        finally:
            fluent._active_experiment_id = experiment
            os.environ.pop(_EXPERIMENT, None)
            if told is not None:
                os.environ[_EXPERIMENT] = told
            mlflow.set_registry_uri(registry)  # type: ignore[arg-type]
            os.environ.pop(_REGISTRY, None)
            if named is not None:
                os.environ[_REGISTRY] = named
            mlflow.set_tracking_uri(uri)  # type: ignore[arg-type]

    @contextmanager
    def run(self, name: str, again: str | None = None) -> Iterator[Run]:
        """A run that ends as what happened: FINISHED, FAILED, or KILLED by a person.

        Args:
            name: of a new run.
            again: the id of one to go on with, in place of a new one.
        """
        if again is None:
            run = self.start(name)
        else:
            run = Run(self, again)
            self.client.update_run(again, status=RunStatus.to_string(RunStatus.RUNNING))
        status = RunStatus.FAILED
        try:
            yield run
            status = RunStatus.FINISHED
        except KeyboardInterrupt:
            status = RunStatus.KILLED
            raise
        finally:
            run.end(status)

    def going_on(self, run_id: str) -> Run:
        """A run that has ended, to log more to; a new one that has, where this server has it not:
        the recipe has come to name another, or somebody deleted the run."""
        if self.has(run_id):
            return Run(self, run_id)
        other = f"tags.`{_GOES_ON_FROM}` = '{run_id}'"
        if found := self.client.search_runs([self.experiment_id()], other, max_results=1):
            return Run(self, found[0].info.run_id)
        run = self.start("model")
        run.tags({_GOES_ON_FROM: run_id})
        run.end(RunStatus.FINISHED)
        return run

    def has(self, run_id: str) -> bool:
        """Whether a run is there, and not deleted."""
        try:
            found = self.client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return bool(found.info.lifecycle_stage == "active")

    def abandon(self, tag: str, value: str) -> None:
        """End as KILLED the runs with a tag that a killed process left open."""
        left = f"attributes.status = 'RUNNING' AND tags.`{tag}` = '{value}'"
        for run in self.client.search_runs([self.experiment_id()], left):
            Run(self, run.info.run_id).end(RunStatus.KILLED)

    def start(self, name: str, parent: str | None = None, start_time: int | None = None) -> Run:
        """A run that the caller ends."""
        client = self.client
        created = client.create_run(
            self.experiment_id(),
            start_time=start_time,
            tags={_PARENT: parent} if parent else {},
            run_name=name,
        )
        return Run(self, created.info.run_id)


@dataclass(frozen=True)
class Run:
    """An MLflow run. Small and picklable."""

    tracking: Tracking
    run_id: str

    def within(self) -> list[entities.Run]:
        """The runs that have this one as their parent."""
        found, token = [], None
        while True:
            page = self.tracking.client.search_runs(
                [self.tracking.experiment_id()],
                f"tags.`{_PARENT}` = '{self.run_id}'",
                page_token=token,
            )
            found += page
            if not (token := page.token):
                return found

    def abandon(self) -> None:
        """End as KILLED what a killed process left open: those within, and this one."""
        self.abandon_within()
        if _open(self.tracking.client.get_run(self.run_id)):
            self.end(RunStatus.KILLED)

    def abandon_within(self) -> None:
        """End as KILLED those within that a killed process left open."""
        for run in filter(_open, self.within()):
            Run(self.tracking, run.info.run_id).end(RunStatus.KILLED)

    def params(self, values: Mapping[str, Any]) -> None:
        """Log values; nested ones by dotted names."""
        entries = [Param(k, str(v)[:_MAX_PARAM]) for k, v in flat(values).items()]
        self.tracking.client.log_batch(self.run_id, params=entries)

    def metrics(self, values: Mapping[str, float], step: int = 0) -> None:
        now = get_current_time_millis()
        entries = [Metric(name, float(value), now, step) for name, value in values.items()]
        self.tracking.client.log_batch(self.run_id, metrics=entries)

    def tags(self, values: Mapping[str, str]) -> None:
        client = self.tracking.client
        for name, value in values.items():
            client.set_tag(self.run_id, name, value)

    def retag(self, prefix: str, values: Mapping[str, str]) -> None:
        """Set the tags below a prefix to these, and no others."""
        client = self.tracking.client
        for name in client.get_run(self.run_id).data.tags:
            if name.startswith(prefix) and name.removeprefix(prefix) not in values:
                client.delete_tag(self.run_id, name)
        self.tags({f"{prefix}{name}": value for name, value in values.items()})

    def file(self, path: Path, folder: str | None = None) -> None:
        self.tracking.client.log_artifact(self.run_id, str(path), folder)

    def json(self, value: Mapping[str, Any], name: str) -> None:
        self.tracking.client.log_dict(self.run_id, dict(value), name)

    def end(self, status: int, end_time: int | None = None) -> None:
        self.tracking.client.set_terminated(self.run_id, RunStatus.to_string(status), end_time)


def _open(run: entities.Run) -> bool:
    return bool(run.info.status == RunStatus.to_string(RunStatus.RUNNING))


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted names."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            result.update(flat(value, f"{name}."))
        else:
            result[name] = value
    return result
