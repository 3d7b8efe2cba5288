"""The MLflow pyfunc: rows of images, ids or vectors in, flat rows of similar items out."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import PythonModel

from lookalike.columns import FAMILY
from lookalike.errors import ContentError, DataError, LookalikeError
from lookalike.index import Neighbour
from lookalike.serving import queries, server
from lookalike.serving.choice import Rules, choose
from lookalike.serving.contract import CODE, KEY, KINDS, WORDS, Options, Refused, failed
from lookalike.serving.queries import Query
from lookalike.serving.release import KIND, Release

_log = logging.getLogger(__name__)
_TOGETHER = 64  # images encoded at a time


class Recommender(PythonModel):
    """Similar items by image, item or vector; `docs/serving.md` tells the contract.

    A row in gives up to k rows out, nearest first: `query` (the row's key, else its number),
    `rank` from 1, `item_id`, `label`, `distance` (of the index's metric), `similarity` (the
    probability that the two share a label, by the encoder's calibration; None where it has none).
    A row that cannot be answered gives one row of rank 0 with `error`, the others are answered.
    """

    _release: Release

    def load_context(self, context: Any) -> None:
        server.guard()
        # A serving process takes requests side by side: threads of their own would only compete.
        self._release = Release.open(Path(context.artifacts[KIND]), threads=1)

    def predict(
        self,
        context: Any,  # noqa: ARG002  MLflow's signature
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        try:
            return self._predicted(model_input, params or {})
        except LookalikeError as error:
            raise Refused(error) from None
        except Exception:
            _log.exception("a request failed")
            raise failed() from None

    def _predicted(self, model_input: pd.DataFrame, params: dict[str, Any]) -> pd.DataFrame:
        release, limits = self._release, self._release.limits
        limits.check("rows", len(model_input), "the request's rows are")
        if not len(model_input.columns):  # of other layouts than ours nothing is left by now
            raise DataError(
                "the request has no rows, or none with a column that is known",
                allowed=f"dataframe_records with {', '.join(KINDS)} and {KEY}",
            )
        options = Options.of(params, limits)
        calibration = release.encoder.specification.calibration
        rules = Rules.of(options, release.index, calibration)
        if options.thumbnails and release.thumbnails is None:
            raise DataError(
                "this release carries no thumbnails",
                remedy="Release with serving.thumbnails set, or do not ask for them",
            )
        records = model_input.to_dict("records")
        found = self._read(records)
        asked = [number for number, query in enumerate(found) if isinstance(query, Query)]
        answers: dict[int, list[Neighbour]] = {}
        if asked:
            read = [query for query in found if isinstance(query, Query)]
            own = [query.item_id if options.exclude_self else None for query in read]
            vectors = np.stack([query.vector for query in read if query.vector is not None])
            chosen = choose(release.index, vectors, own, rules, options)
            answers = dict(zip(asked, chosen, strict=True))
        rows: list[dict[str, Any]] = []
        for number, (record, query) in enumerate(zip(records, found, strict=True)):
            key = record.get(KEY)
            name = number if queries.missing(key) else queries.whole(key)
            if isinstance(query, ContentError):
                error = {CODE: query.reason, WORDS: str(query)}
                rows.append({"query": name, "rank": 0, "error": error})
            else:
                rows += self._rows(name, answers[number], options)
        if options.about:
            about = release.about
            for row in rows:
                row["about"] = about
        # As objects, what is missing stays None: JSON has no NaN.
        filled = [[row.get(column) for column in options.columns] for row in rows]
        return pd.DataFrame(filled, columns=options.columns, dtype=object)

    def _read(self, records: list[dict[Any, Any]]) -> list[Query | ContentError]:
        """Of each row what it asks for, images encoded; or why it cannot be answered."""
        release = self._release
        found: list[Query | ContentError] = []
        for record in records:
            try:
                found.append(queries.read(record, release, release.limits))
            except ContentError as error:
                found.append(error)
        places = [n for n, q in enumerate(found) if isinstance(q, Query) and q.image is not None]
        for begin in range(0, len(places), _TOGETHER):
            part = places[begin : begin + _TOGETHER]
            files = [query.image for n in part if isinstance(query := found[n], Query)]
            encoded = self._encoded([data for data in files if data is not None])
            for number, vector in zip(part, encoded, strict=True):
                found[number] = vector if isinstance(vector, ContentError) else Query(vector=vector)
        return found

    def _encoded(self, files: list[bytes]) -> list[np.ndarray | ContentError]:
        try:
            return list(self._release.encoder.encode(files))
        except ContentError as error:
            return [error] if len(files) == 1 else [self._encoded([data])[0] for data in files]
        except DataError as error:  # the fault is not the request's
            raise RuntimeError(str(error)) from error

    def _rows(
        self, name: Any, neighbours: list[Neighbour], options: Options
    ) -> list[dict[str, Any]]:
        release = self._release
        calibration = release.encoder.specification.calibration
        distances = [n.distance for n in neighbours]
        similar: list[float | None] = [None] * len(neighbours)
        if calibration is not None:
            similar = calibration.similarity(distances).tolist()
        rows = []
        for rank, (neighbour, similarity) in enumerate(
            zip(neighbours, similar, strict=True), start=1
        ):
            row: dict[str, Any] = {
                "query": name,
                "rank": rank,
                "item_id": neighbour.item_id,
                "label": neighbour.label,
                "distance": neighbour.distance,
                "similarity": similarity,
            }
            if options.attributes:
                about = release.index.about(neighbour.item_id) or {}
                row["attributes"] = {k: v for k, v in about.items() if k != FAMILY}
            if options.thumbnails and release.thumbnails is not None:
                row["thumbnail"] = release.thumbnails.find(neighbour.item_id)
            rows.append(row)
        return rows
