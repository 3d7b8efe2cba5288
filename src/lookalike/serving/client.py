"""Asking an endpoint, over REST."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from lookalike.errors import DataError, RequestError

_RETRIED = (429, 503)


@dataclass(frozen=True)
class Similar:
    """An item found: rank from 1, cosine distance, probability that it is similar where known."""

    rank: int
    item_id: str
    label: str | None
    distance: float
    similarity: float | None


class Endpoint:
    """An endpoint that serves a release.

    Args:
        url: of the server, e.g. http://127.0.0.1:5001, or of its invocations.
        token: bearer token, where the endpoint wants one.
        timeout: seconds to wait for an answer.
        retries: of a request that is answered 429 or 503, with backoff.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 30, retries: int = 3):
        self._url = url.rstrip("/")
        if not self._url.endswith("/invocations"):
            self._url += "/invocations"
        self._timeout = timeout
        self._session = requests.Session()
        retry = Retry(
            total=retries,
            connect=0,
            read=0,
            status_forcelist=_RETRIED,
            allowed_methods=None,
            backoff_factor=0.5,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry))
        if token:
            self._session.headers["Authorization"] = f"Bearer {token}"

    def similar(
        self,
        image: bytes | Path | None = None,
        *,
        item_id: str | None = None,
        vector: Sequence[float] | None = None,
        k: int = 10,
    ) -> list[Similar]:
        """Items similar to one image file (its bytes or path), item or vector.

        Raises:
            DataError: the endpoint cannot answer for this query.
            RequestError: no endpoint there, or it refused the request.
        """
        return similar_of(self._ask([row_of(image, item_id, vector)], k))

    def _ask(self, rows: list[dict[str, Any]], k: int) -> list[dict[str, Any]]:
        body = {"dataframe_records": rows, "params": {"k": k}}
        try:
            answer = self._session.post(self._url, json=body, timeout=self._timeout)
        except (requests.RequestException, ValueError) as error:
            raise RequestError(
                f"{self._url} does not answer ({type(error).__name__})",
                remedy="Start `lookalike serve`, or check --url",
            ) from error
        try:
            content = answer.json()
        except ValueError:
            content = None
        if answer.status_code != requests.codes.ok or not isinstance(content, dict):
            said = content.get("message") if isinstance(content, dict) else None
            raise RequestError(
                f"{self._url} answered {answer.status_code}: {said or answer.reason}"
            )
        predictions = content.get("predictions")
        if not isinstance(predictions, list):
            raise RequestError(
                f"{self._url} is no endpoint of a lookalike release",
                remedy="Check --url",
            )
        return predictions


def row_of(
    image: bytes | Path | None = None,
    item_id: str | None = None,
    vector: Sequence[float] | None = None,
) -> dict[str, Any]:
    """A query as a release takes it: a row of JSON values."""
    row: dict[str, Any] = {}
    if image is not None:
        data = image.read_bytes() if isinstance(image, Path) else image
        row["image"] = base64.b64encode(data).decode()
    if item_id is not None:
        row["item_id"] = item_id
    if vector is not None:
        row["vector"] = [float(x) for x in vector]
    return row


def similar_of(rows: list[dict[str, Any]]) -> list[Similar]:
    """The answer to one query, from the rows that a release gives.

    Raises:
        DataError: the release could not answer.
    """
    for row in rows:
        if row["error"] is not None:
            raise DataError(str(row["error"]))
    fields = ("rank", "item_id", "label", "distance", "similarity")
    return [Similar(**{name: row[name] for name in fields}) for row in rows]
