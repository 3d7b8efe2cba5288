"""What MLflow keeps of releases: registered versions, the models behind them, and removing both."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from lookalike.serving.release import KIND
from lookalike.tracking import Tracking

_GONE = "RESOURCE_DOES_NOT_EXIST"


@dataclass(frozen=True)
class Version:
    """A registered version of a model.

    Attributes:
        name, number: of the model, and of the version.
        at: when it was registered; aware.
        sources: what its files are of: a logged model's id, 'NAME/NUMBER' of a version copied.
        run_id: of the run that it belongs to.
        aliases: that point to it.
        tags: see `lookalike.serving.release.log`.
    """

    name: str
    number: int
    at: datetime
    sources: frozenset[str]
    run_id: str
    aliases: tuple[str, ...]
    tags: dict[str, str]

    def __str__(self) -> str:
        return f"{self.name}/{self.number}"


@dataclass(frozen=True)
class Logged:
    """A logged model that holds a release: its id, when it was logged, bytes, its run."""

    model_id: str
    at: datetime
    size: int
    run_id: str


def versions(tracking: Tracking, name: str) -> list[Version]:
    """All registered versions of a model; none where there is no such model."""
    return _versions(tracking.client, f"name='{name}'")


def versions_of_run(tracking: Tracking, run_id: str) -> list[Version]:
    """All registered versions, of whatever model, of what a run logged."""
    return _versions(tracking.client, f"run_id='{run_id}'")


def logged(tracking: Tracking, name: str, known: Collection[str]) -> Iterator[Logged]:
    """The logged models that hold a release.

    Args:
        tracking: whose experiment is searched.
        name: of the registered model.
        known: ids of models that do, wherever they are.
    """
    client = tracking.client
    models: dict[str, Any] = {}
    if experiment := client.get_experiment_by_name(tracking.experiment):
        found = _all(client.search_logged_models, experiment_ids=[experiment.experiment_id])
        models = {model.model_id: model for model in found}
    for model_id in set(known) - models.keys():
        with _unless_gone():
            models[model_id] = client.get_logged_model(model_id)
    for model_id, model in models.items():
        # Of a model whose version is gone, MLflow keeps in a tag that there was one.
        registered = json.loads(model.tags.get("mlflow.modelVersions", "[]"))
        ours = model_id in known or any(version["name"] == name for version in registered)
        files = _files(tracking, model)
        if ours or files.list_artifacts(f"artifacts/{KIND}"):
            yield Logged(
                model_id, _time(model.creation_timestamp), _size(files), model.source_run_id
            )


def withdraw(tracking: Tracking, name: str, number: int) -> None:
    """Take a version out of the registry; what was logged, and its run, stay."""
    with _unless_gone():
        tracking.client.delete_model_version(name, str(number))


def discard(tracking: Tracking, model_id: str) -> None:
    """Remove a logged model with its files; its run and figures stay."""
    client = tracking.client
    with _unless_gone():
        model = client.get_logged_model(model_id)
        # Databricks keeps these files itself, and MLflow has no way to delete them there.
        if not tracking.uri.startswith("databricks"):
            files = _files(tracking, model)
            # First what MLflow opens a model by, and last what it is found by: killed in between,
            # it is no model any more, and the next time it is found again.
            files.delete_artifacts("MLmodel")
            files.delete_artifacts()
        client.delete_logged_model(model_id)


def _versions(client: MlflowClient, query: str) -> list[Version]:
    versions = []
    for hit in _all(client.search_model_versions, filter_string=query):
        with _unless_gone():
            # Unity Catalog's search tells of no tags and aliases.
            found = client.get_model_version(hit.name, hit.version)
            version = Version(
                name=found.name,
                number=int(found.version),
                at=_time(found.creation_timestamp),
                sources=frozenset(filter(None, (found.model_id, _model(found.source)))),
                run_id=found.run_id,
                aliases=tuple(sorted(found.aliases)),
                tags=dict(found.tags),
            )
            versions.append(version)
    return versions


def _model(source: str | None) -> str:
    return (source or "").removeprefix("models:/")


def _all(search: Callable[..., Any], **arguments: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(page_token=token, **arguments)
        yield from page
        if not (token := page.token):
            return


def _files(tracking: Tracking, model: Any) -> Any:
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    return get_artifact_repository(model.artifact_location, tracking_uri=tracking.uri)


def _size(files: Any, folder: str | None = None) -> int:
    return sum(
        _size(files, info.path) if info.is_dir else info.file_size or 0
        for info in files.list_artifacts(folder)
    )


def _time(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


@contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except MlflowException as error:
        if error.error_code != _GONE:
            raise
