"""The client beside servers that are busy, broken, or something else."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import pytest
from support import served

from lookalike.errors import DataError, RequestError
from lookalike.serving.client import Endpoint

FOUND = {"query": 0, "rank": 1, "item_id": "a", "label": None, "distance": 0.5,
         "similarity": None, "error": None}  # fmt: skip
ANSWER = json.dumps({"predictions": [FOUND]})


@contextmanager
def server(*answers: tuple[int, str]) -> Iterator[tuple[str, list[str]]]:
    """A server that gives these answers, the last again and again; and what tokens it saw."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, body = answers[min(len(seen), len(answers) - 1)]
            seen.append(self.headers.get("Authorization", ""))
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url, seen


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_endpoint_is_asked_again(status: int) -> None:
    with server((status, "{}"), (status, "{}"), (200, ANSWER)) as (url, seen):
        (found,) = Endpoint(url, token="secret").similar(item_id="b")
    assert found.item_id == "a"
    assert seen == ["Bearer secret"] * 3


def test_it_is_not_asked_for_ever() -> None:
    with (
        server((503, '{"message": "starting"}')) as (url, seen),
        pytest.raises(RequestError, match="answered 503: starting"),
    ):
        Endpoint(url, retries=2).similar(item_id="b")
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (400, '{"message": "k = 0"}', "answered 400: k = 0"),
        (404, "<html>", "answered 404: Not Found"),
        (200, "<html>", "answered 200"),
        (200, '{"hello": 1}', "no endpoint of a lookalike release"),
    ],
)
def test_other_answers_are_told(status: int, body: str, said: str) -> None:
    with server((status, body)) as (url, seen), pytest.raises(RequestError, match=said):
        Endpoint(url).similar(item_id="b")
    assert len(seen) == 1


def test_what_is_no_question_is_not_asked() -> None:
    with server((200, ANSWER)) as (url, seen):
        with pytest.raises(RequestError, match=r"no endpoint takes foo. Allowed: k, within"):
            Endpoint(url).similar(item_id="b", foo=2)
        with pytest.raises(DataError, match=r"the image is a str. .*item_id"):
            Endpoint(url).similar("train-000042")
    assert seen == []
    with pytest.raises(RequestError, match=r"'127.0.0.1:5001' has no scheme"):
        Endpoint("127.0.0.1:5001")
