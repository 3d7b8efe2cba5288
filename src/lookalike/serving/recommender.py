"""The MLflow pyfunc: rows of images, ids or vectors in, flat rows of similar items out."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PythonModel

from lookalike.encoder import normalised
from lookalike.errors import DataError, LookalikeError
from lookalike.index import Neighbour
from lookalike.serving.release import DEFAULT_K, KIND, Release

KINDS: Final = ("image", "item_id", "vector")
COLUMNS: Final = (
    "query",
    "rank",
    "item_id",
    "label",
    "distance",
    "similarity",
    "error",
)
MAX_ROWS = 1_000
MAX_K = 1_000
MAX_IMAGE_BYTES = 16 * 2**20


class Recommender(PythonModel):
    """Similar items by image (base64 with or without a data-URL prefix, or bytes), id or vector.

    A row in gives up to k rows out, nearest first: `query` (the row's key, else its number),
    `rank` from 1, `item_id`, `label`, `distance` (of the index's metric), `similarity` (the
    probability that the two share a label, by the encoder's calibration; None where it has none).
    A row that cannot be answered gives one row of rank 0 with `error`, the others are answered. An
    item is not its own neighbour. A release whose encoder takes vectors answers no image.
    """

    _release: Release

    def load_context(self, context: Any) -> None:
        # A serving process takes requests side by side: threads of their own would only compete.
        self._release = Release.open(Path(context.artifacts[KIND]), threads=1)

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        k = _k(params or {})
        if len(model_input) > MAX_ROWS:
            raise MlflowException.invalid_parameter_value(
                f"the request has {len(model_input):,} rows. Allowed: at most {MAX_ROWS:,}."
            )
        records = model_input.to_dict("records")
        rows = [row for i, record in enumerate(records) for row in self._answer(i, record, k)]
        # As objects, what is missing stays None: JSON has no NaN.
        return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)

    def _answer(self, number: int, record: Mapping[Any, Any], k: int) -> list[dict[str, Any]]:
        query = record.get("key")
        query = number if _missing(query) else query
        try:
            neighbours = self._neighbours(record, k)
        except LookalikeError as error:
            return [dict.fromkeys(COLUMNS) | {"query": query, "rank": 0, "error": str(error)}]
        return [
            {
                "query": query,
                "rank": rank,
                "item_id": neighbour.item_id,
                "label": neighbour.label,
                "distance": neighbour.distance,
                "similarity": similarity,
                "error": None,
            }
            for rank, (neighbour, similarity) in enumerate(
                zip(neighbours, self._similarities(neighbours), strict=True), start=1
            )
        ]

    def _similarities(self, neighbours: list[Neighbour]) -> list[float | None]:
        calibration = self._release.encoder.specification.calibration
        if calibration is None:
            return [None] * len(neighbours)
        return [float(s) for s in calibration.similarity([n.distance for n in neighbours])]

    def _neighbours(self, record: Mapping[Any, Any], k: int) -> list[Neighbour]:
        given = [kind for kind in KINDS if not _missing(record.get(kind))]
        takes_images = self._release.encoder.specification.input == "pixels"
        allowed = KINDS if takes_images else KINDS[1:]
        if len(given) != 1:
            raise DataError(
                f"the row has {' and '.join(given) or 'nothing to look for'}",
                allowed=f"one of {', '.join(allowed)}",
            )
        (kind,) = given
        value, index = record[kind], self._release.index
        if kind not in allowed:
            raise DataError(
                "the row has an image, but this release was made of vectors and has no network "
                "that would encode it",
                allowed=f"an item_id, or a vector of {index.dim} numbers",
            )
        if kind == "item_id":
            vector = index.vector(str(value))
            if vector is None:
                raise DataError(f"there is no item {str(value)[:100]!r} in the index")
            found = index.search(vector[None], k + 1)[0]
            return [n for n in found if n.item_id != str(value)][:k]
        if kind == "image":
            return index.search(self._release.encoder.encode([_image(value)]), k)[0]
        return index.search(_vector(value, index.dim), k)[0]


def _k(params: Mapping[str, Any]) -> int:
    k = int(params.get("k", DEFAULT_K))
    if not 1 <= k <= MAX_K:
        raise MlflowException.invalid_parameter_value(f"k = {k}. Allowed: 1 to {MAX_K:,}.")
    return k


def _missing(value: Any) -> bool:
    # What a row does not have arrives from MLflow as NaN.
    return value is None or (isinstance(value, float) and np.isnan(value))


def _image(value: Any) -> bytes:
    if isinstance(value, str):
        if len(value) > MAX_IMAGE_BYTES * 4 // 3 + 100:
            raise _too_many_bytes(len(value) * 3 // 4)
        try:
            value = base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except (binascii.Error, ValueError):
            raise DataError(
                "the image is a string that is not base64",
                allowed="base64 of an image file, with or without a data-URL prefix",
            ) from None
    if not isinstance(value, bytes):
        raise DataError(
            f"the image is a {type(value).__name__}",
            allowed="base64 of an image file, or bytes",
        )
    if len(value) > MAX_IMAGE_BYTES:
        raise _too_many_bytes(len(value))
    return value


def _too_many_bytes(found: int) -> DataError:
    return DataError(f"the image has {found:,} bytes", allowed=f"at most {MAX_IMAGE_BYTES:,}")


def _vector(value: Any, dim: int) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError):
        raise DataError("the vector is no list of numbers", allowed=f"{dim} numbers") from None
    return normalised(vector, dim)[None]
