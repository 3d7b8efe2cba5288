"""Ask the champion: what looks like this?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array
from pydantic import BaseModel

from lookalike import artifacts
from lookalike.errors import ConfigError, DataError
from lookalike.steps.context import Context, Result

STEP = "query"
_ONE_VECTOR = "one vector: a list of numbers in .json, an array of one dimension in .npy"


class Found(BaseModel):
    """A similar item: see `lookalike.serving.client.Similar`."""

    rank: int
    item_id: str
    label: str | None
    distance: float
    similarity: float | None


class Answered(Result):
    """Neighbours by query, in the order asked."""

    answers: dict[str, list[Found]]

    @property
    def words(self) -> str:
        found = sum(len(answer) for answer in self.answers.values())
        return f"{len(self.answers)} queries, {found} similar items"


def run(
    context: Context, paths: Sequence[Path] = (), k: int = 10, url: str | None = None
) -> Answered:
    """Find similar items.

    Args:
        context: whose champion is asked.
        paths: image files, or files of one vector each: .npy, or .json with a list of numbers;
            none: the sample queries that `evaluate` kept for the champion.
        k: neighbours of each.
        url: of an endpoint to ask; None asks in this process.

    Raises:
        DataError: no such file, not an image or a vector, or no champion yet.
        ConfigError: more neighbours than the champion gives.
        RequestError: no endpoint there.
    """
    from mlflow.exceptions import MlflowException

    from lookalike.serving.client import Endpoint, Query, Similar, similar_of
    from lookalike.serving.release import load_champion

    queries = {str(path): _read(path) for path in paths} or _samples(context)
    if url is not None:
        endpoint = Endpoint(url)

        def asked(query: dict[str, Any]) -> list[Similar]:
            return endpoint.similar(**query, k=k)
    else:
        import pandas as pd

        model = load_champion(context.tracking, context.config.model_name)

        def asked(query: dict[str, Any]) -> list[Similar]:
            try:
                answer = model.predict(pd.DataFrame([Query(**query).row]), params={"k": k})
            except MlflowException as error:  # what a server would answer 400
                raise ConfigError(error.message) from error
            return similar_of(answer.to_dict("records"))

    found = {}
    for name, query in queries.items():
        try:
            found[name] = asked(query)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    return Answered(
        answers={
            name: [Found.model_validate(similar, from_attributes=True) for similar in rows]
            for name, rows in found.items()
        }
    )


def _read(path: Path) -> dict[str, Any]:
    """What `serving.client.Query` takes."""
    try:
        if path.suffix == ".npy":
            with path.open("rb") as stream:
                array = read_array(stream)  # type: ignore[no-untyped-call]
            return {"vector": _vector(array, path)}
        if path.suffix == ".json":
            return {"vector": _vector(json.loads(path.read_text(encoding="utf-8")), path)}
        return {"image": path.read_bytes()}
    except OSError as error:
        raise DataError(
            f"the query {path} cannot be read ({error.strerror})",
            remedy="Name files that exist",
        ) from error
    except ValueError as error:
        raise DataError(f"{path} holds no vector ({error})", allowed=_ONE_VECTOR) from error


def _vector(values: Any, path: Path) -> list[float]:
    vector = np.asarray(values)
    if vector.ndim != 1 or vector.dtype.kind not in "iuf" or not np.isfinite(vector).all():
        raise DataError(
            f"{path} holds {vector.dtype} of shape {vector.shape}, or NaN or infinity",
            allowed=_ONE_VECTOR,
        )
    return [float(value) for value in vector]


def _samples(context: Context) -> dict[str, dict[str, Any]]:
    from lookalike.serving.release import need_champion

    tags = need_champion(context.tracking, context.config.model_name).tags
    report = artifacts.open_artifact(tags["report"], "report")
    with artifacts.workbench() as folder:
        local = artifacts.fetch(report, folder)
        return {str(p): _read(p) for p in sorted((local / "queries").iterdir())}
