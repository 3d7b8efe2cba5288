"""Asking an endpoint, over REST."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

import requests
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from lookalike.errors import DataError, RequestError
from lookalike.serving.contract import CODE, WORDS, Asked

_RETRIED = (429, 503)
_BATCH_BYTES = 8 * 2**20


@dataclass(frozen=True)
class Similar:
    """An item found.

    Attributes:
        rank: from 1, nearest first.
        item_id, label: of it.
        distance: see `lookalike.index.metric`.
        similarity: probability that the two share a label; None where the encoder cannot tell.
        thumbnail: a JPEG file; None where it was not asked for, or there is none.
        attributes: None where they were not asked for.
    """

    rank: int
    item_id: str
    label: str | None
    distance: float
    similarity: float | None
    thumbnail: bytes | None = None
    attributes: dict[str, str] | None = None


@dataclass(frozen=True)
class Query:
    """What to look for: one of these.

    Attributes:
        image: an image file, its bytes or path.
        item_id: of an item of the catalogue.
        vector: as many numbers as the encoder gives.
        text: no encoder takes texts yet; the answer says so.
    """

    image: bytes | Path | None = None
    item_id: str | None = None
    vector: Sequence[float] | None = None
    text: str | None = None

    @property
    def row(self) -> dict[str, Any]:
        """As a release takes it: JSON values.

        Raises:
            DataError: a file that cannot be read.
        """
        row: dict[str, Any] = {}
        if self.image is not None:
            row["image"] = base64.b64encode(_file(self.image)).decode()
        if self.vector is not None:
            row["vector"] = [float(x) for x in self.vector]
        named = {"item_id": self.item_id, "text": self.text}
        return row | {name: value for name, value in named.items() if value is not None}


class Endpoint:
    """An endpoint that serves a release.

        Endpoint("http://127.0.0.1:5001").similar(Path("boot.jpg"), k=5, where="price < 80")

    Args:
        url: of the server, or of its invocations.
        token: bearer token, where the endpoint wants one.
        timeout: seconds to wait for an answer.
        retries: of a request that is answered 429 or 503, each after the time that the answer asks
            for, else after twice the time before.
        rows: of a request, at most; no more than the release's `serving.max_rows`.

    Raises:
        RequestError: a URL without http:// or https://.
    """

    def __init__(
        self,
        url: str,
        token: str | None = None,
        timeout: float = 30,
        retries: int = 3,
        rows: int = 100,
    ):
        if not url.startswith(("http://", "https://")):
            raise RequestError(
                f"the URL {url!r} has no scheme", allowed="http://... or https://..."
            )
        self._rows = rows
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
            raise_on_status=False,
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
        text: str | None = None,
        **options: Unpack[Asked],
    ) -> list[Similar]:
        """Items similar to one image file (its bytes or path), item, vector or text.

        Args:
            image, item_id, vector, text: one of them; see `Query`.
            options: see `lookalike.serving.contract.Options`.

        Returns:
            At most k; fewer where no more match.

        Raises:
            DataError: the endpoint cannot answer for this query.
            RequestError: no endpoint there, or it refused the request.
        """
        (answer,) = self.similar_to([Query(image, item_id, vector, text)], **options)
        if isinstance(answer, DataError):
            raise answer
        return answer

    def similar_to(
        self, queries: Sequence[Query], **options: Unpack[Asked]
    ) -> list[list[Similar] | DataError]:
        """As `similar`, of many queries, in as many requests as they need.

        Returns:
            Of each query its items, or the error that says why it cannot be answered.

        Raises:
            RequestError: no endpoint there, or it refused a request.
        """
        answers: list[list[Similar] | DataError] = [[] for _ in queries]
        for rows in self._batches(queries, answers):
            found: dict[int, list[dict[str, Any]]] = {number: [] for number in rows}
            for row in self._ask(rows, options):
                found[row["query"]].append(row)
            for number, each in found.items():
                try:
                    answers[number] = similar_of(each)
                except DataError as error:
                    answers[number] = error
        return answers

    def _batches(
        self, queries: Sequence[Query], answers: list[list[Similar] | DataError]
    ) -> Iterator[dict[int, dict[str, Any]]]:
        """Rows by the number of their query, as many together as a request may hold; where a query
        cannot be read, why goes to its answer."""
        rows: dict[int, dict[str, Any]] = {}
        size = 0
        for number, query in enumerate(queries):
            try:
                row = query.row
            except DataError as error:
                answers[number] = error
                continue
            bytes_ = len(row.get("image", "")) + 20 * len(row.get("vector", ()))
            if rows and (len(rows) == self._rows or size + bytes_ > _BATCH_BYTES):
                yield rows
                rows, size = {}, 0
            rows[number] = row
            size += bytes_
        if rows:
            yield rows

    def about(self) -> dict[str, Any]:
        """What the release is made of: fingerprint, versions, count of items.

        Raises:
            RequestError: as `similar`.
        """
        (row,) = self._ask({0: {}}, {"about": True})
        about: dict[str, Any] = row.get("about") or {}
        return about

    def _ask(self, rows: dict[int, dict[str, Any]], options: Asked) -> list[dict[str, Any]]:
        if unknown := options.keys() - Asked.__annotations__.keys():
            raise RequestError(
                f"no endpoint takes {', '.join(sorted(unknown))}",
                allowed=", ".join(Asked.__annotations__),
            )
        # A key of its own for each, so that rows of every kind, and of none, make a table.
        records = [{"key": number, **row} for number, row in rows.items()]
        body = {"dataframe_records": records, "params": dict(options)}
        try:
            answer = self._session.post(self._url, json=body, timeout=self._timeout)
        except (requests.RequestException, ValueError) as error:
            raise RequestError(
                f"{self._url} does not answer ({type(error).__name__})",
                remedy="Start `lookalike serve`, or check the URL",
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
                remedy="Check the URL",
            )
        return predictions


def similar_of(rows: list[dict[str, Any]]) -> list[Similar]:
    """The answer to one query, from the rows that a release gives.

    Raises:
        DataError: the release could not answer.
    """
    for row in rows:
        if isinstance(error := row["error"], str):  # a release of before errors had codes
            raise DataError(error)
        if error is not None:
            raise DataError(f"{error[WORDS].rstrip('.')} ({error[CODE]})")
    return [
        Similar(
            rank=row["rank"],
            item_id=row["item_id"],
            label=row["label"],
            distance=row["distance"],
            similarity=row["similarity"],
            thumbnail=_picture(row.get("thumbnail")),
            attributes=row.get("attributes"),
        )
        for row in rows
    ]


def _picture(url: str | None) -> bytes | None:
    return None if url is None else base64.b64decode(url.partition("base64,")[2])


def _file(image: bytes | Path) -> bytes:
    if isinstance(image, bytes):
        return image
    if not isinstance(image, Path):
        raise DataError(
            f"the image is a {type(image).__name__}",
            allowed="the bytes of a file, or its pathlib.Path",
            remedy="Give the id of an item as item_id",
        )
    try:
        return image.read_bytes()
    except OSError as error:
        raise DataError(
            f"the image {image} cannot be read ({error.strerror})", remedy="Name a file that exists"
        ) from error
