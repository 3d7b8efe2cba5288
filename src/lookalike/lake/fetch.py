"""Images by their URLs: fetched side by side, each within bounds of time and bytes.

Feeds name dead links, redirect loops and servers that never finish. Whatever a URL does becomes
its file or the reason why there is none.
"""

from __future__ import annotations

import io
import socket
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from http.client import HTTPResponse, responses
from importlib.metadata import version
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter
from requests.exceptions import InvalidURL
from urllib3.exceptions import HTTPError, InvalidHeader, LocationValueError, ProtocolError
from urllib3.exceptions import TimeoutError as NetworkTimeout
from urllib3.util import Retry

from lookalike.errors import DataError, scrubbed

_REDIRECTS = 5
_PIECE = 2**16
_REST = 2**12
_RETRIED = ("timeout", "unreachable", "http_429", *(f"http_{n}" for n in range(500, 600)))
_BYTES = ("application/octet-stream", "binary/octet-stream")
_PACKED = {"gzip", "x-gzip", "deflate", "compress", "x-compress", "br", "zstd"}
_here = threading.local()  # .turn: what this thread is at


@dataclass(frozen=True)
class Limits:
    """How long, how often and how much.

    Attributes:
        connections: URLs that one call fetches at once, each in a thread.
        timeout: seconds for connecting, and between bytes.
        deadline: seconds for one URL, with all redirects, retries and waits. What the resolver
            takes to look up a host comes on top: nothing can end that.
        retries: further tries after one that failed in passing.
        backoff: seconds before the first retry, doubled for each further one.
        max_bytes: size of the largest file.
    """

    connections: int
    timeout: float
    deadline: float
    retries: int
    backoff: float
    max_bytes: int


@dataclass(frozen=True)
class Fetched:
    """A URL's file, or why there is none.

    Attributes:
        url: as it was asked for.
        data: the file's bytes; None where `reason` is set.
        media: content type that the server named, without parameters.
        reason: one word for counting: 'bad_url', 'empty', 'timeout', 'too_many_bytes',
            'unreachable', 'wrong_type', or 'http_' and the status.
        detail: a sentence with the facts, without users and passwords.
    """

    url: str
    data: bytes | None
    media: str | None
    reason: str | None
    detail: str | None


def fetch(urls: Iterable[str], limits: Limits) -> Iterator[Fetched]:
    """Fetch files, `limits.connections` at once, in the order of their URLs.

    The caller's thread reads `urls`, at most `2 * limits.connections` ahead, so no more files are
    held. A URL that fails is not an error. Closed early, it leaves threads that end by themselves,
    about `limits.timeout` later.
    """
    stop = threading.Event()
    ahead: deque[Future[Fetched]] = deque()
    threads = ThreadPoolExecutor(limits.connections, "fetch")
    with _session(limits.connections) as session:
        try:
            for url in urls:
                ahead.append(threads.submit(_fetch_one, session, url, limits, stop))
                if len(ahead) == 2 * limits.connections:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            stop.set()
            threads.shutdown(wait=False, cancel_futures=True)


@dataclass
class _Turn:
    """The URL that a thread is at, `shown` with the redirects so far, until a monotonic time."""

    url: str
    shown: str
    limits: Limits
    until: float
    stop: threading.Event

    def left(self) -> float:
        """Seconds that the network may keep it waiting now."""
        left = min(self.limits.timeout, self.until - time.monotonic())
        if left <= 0 or self.stop.is_set():
            raise TimeoutError
        return left

    def failed(self, reason: str, fact: str, allowed: str, remedy: str) -> Fetched:
        error = DataError(f"{self.shown!r} {fact}", allowed=allowed, remedy=remedy)
        return Fetched(self.url, None, None, reason, scrubbed(str(error)))


class _Timed(io.RawIOBase):
    """What a socket receives, up to the deadline: a socket's timeout begins anew with each byte."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket):
        self._raw, self._sock = raw, sock

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_here.turn.left())
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()
        super().close()


class _TimedResponse(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, **options: Any):
        super().__init__(sock, *args, **options)
        self.fp = io.BufferedReader(_Timed(self.fp.detach(), sock))


class _Adapter(HTTPAdapter):
    def get_connection_with_tls_context(self, *args: Any, **options: Any) -> Any:
        return _timed(super().get_connection_with_tls_context(*args, **options))

    def get_connection(self, *args: Any, **options: Any) -> Any:  # requests before 2.32
        return _timed(super().get_connection(*args, **options))

    def close(self) -> None:
        # urllib3 2 leaves it to the garbage collector to close the connections of a pool.
        for manager in (self.poolmanager, *self.proxy_manager.values()):
            for key in manager.pools.keys():  # noqa: SIM118
                if pool := manager.pools.get(key):
                    pool.close()
        super().close()


def _timed(pool: Any) -> Any:
    kind = pool.ConnectionCls  # of HTTP, of HTTPS, or of a SOCKS proxy
    if kind.response_class is not _TimedResponse:
        pool.ConnectionCls = type(kind.__name__, (kind,), {"response_class": _TimedResponse})
    return pool


def _session(connections: int) -> requests.Session:
    session = requests.Session()
    session.headers["User-Agent"] = f"lookalike/{version('lookalike')}"
    # Images hardly shrink by packing, and what unpacks can grow without bounds.
    session.headers["Accept-Encoding"] = "identity"
    for scheme in ("http://", "https://"):
        session.mount(scheme, _Adapter(connections, connections))
    return session


def _fetch_one(
    session: requests.Session, url: str, limits: Limits, stop: threading.Event
) -> Fetched:
    # Not urllib3's Retry: its waits know of no deadline, it reads a refusal's body to the end
    # whatever its size, and it is done before a file's body is read.
    turn = _here.turn = _Turn(url, url, limits, time.monotonic() + limits.deadline, stop)
    for tried in range(limits.retries + 1):
        found, after = _try(session, turn)
        wait = limits.backoff * 2**tried if after is None else after
        if found.reason not in _RETRIED or time.monotonic() + wait >= turn.until:
            break
        if tried < limits.retries and stop.wait(wait):
            break
    return found


def _try(session: requests.Session, turn: _Turn) -> tuple[Fetched, float | None]:
    # With the seconds after which the server wants to be asked again, where it says so.
    try:
        return _follow(session, turn)
    except (InvalidURL, LocationValueError):
        allowed = "an http:// or https:// URL"
        return turn.failed("bad_url", "is no address", allowed, "Correct the feed"), None
    except (requests.Timeout, NetworkTimeout, TimeoutError):
        within = f"{turn.limits.timeout:g} s between bytes, {turn.limits.deadline:g} s in all"
        return turn.failed("timeout", "does not answer in time", within, "Try later"), None
    except (requests.RequestException, HTTPError) as error:
        fact = f"cannot be fetched ({_root(error)})"
        return turn.failed("unreachable", fact, "a whole file", "Check the URL, or try later"), None


def _follow(session: requests.Session, turn: _Turn) -> tuple[Fetched, float | None]:
    # Not requests' redirects: it reads the body of each, whatever its size.
    turn.shown = turn.url
    request, options = _request(session, turn.url)
    turn.shown = str(request.url)
    for _ in range(_REDIRECTS + 1):
        adapter = session.get_adapter(str(request.url))
        with adapter.send(request, timeout=turn.left(), **options) as response:
            if response.status_code == requests.codes.ok:
                return _file(response, turn), None
            _spare(response)
            if not response.is_redirect:
                return _refusal(response, turn)
            turn.shown += f" -> {scrubbed(response.headers['Location'])[:500]}"
            request, options = _request(session, str(request.url), response)
    return _refusal(response, turn)


def _request(
    session: requests.Session, url: str, moved: requests.Response | None = None
) -> tuple[requests.PreparedRequest, Any]:
    try:
        if moved is None:
            request = session.prepare_request(requests.Request("GET", url))
        else:
            request = moved.request.copy()
            request.prepare_url(urljoin(url, session.get_redirect_target(moved)), None)
            session.rebuild_auth(request, moved)  # type: ignore[no-untyped-call]
        session.get_adapter(str(request.url))  # there are those of http and https alone
        return request, session.merge_environment_settings(request.url, {}, True, None, None)
    except ValueError as error:  # requests, urllib3, urllib.parse and codecs have many
        raise InvalidURL(url) from error


def _file(response: requests.Response, turn: _Turn) -> Fetched:
    raw, headers = response.raw, response.headers
    media = headers.get("Content-Type", "").partition(";")[0].strip().lower()[:100] or None
    packing = {word.strip() for word in headers.get("Content-Encoding", "").lower().split(",")}
    if packing & _PACKED or not (media is None or media.startswith("image/") or media in _BYTES):
        fact = " packed by ".join([f"is {media or 'a file'}", *(packing & _PACKED)])
        allowed = f"image/*, {', '.join(_BYTES)} or no type, not packed"
        return turn.failed("wrong_type", fact, allowed, "Link the image itself")
    raw.enforce_content_length = True  # urllib3 1 does not by itself
    pieces: list[bytes] = []
    size = raw.length_remaining or 0
    received = 0
    while size <= turn.limits.max_bytes and (piece := _read(raw, _PIECE)):
        pieces.append(piece)
        received += len(piece)
        size = max(size, received)
    if size > turn.limits.max_bytes:
        fact, allowed = f"has at least {size:,} bytes", f"at most {turn.limits.max_bytes:,} bytes"
        return turn.failed("too_many_bytes", fact, allowed, "Link a smaller image")
    if not size:
        return turn.failed("empty", "has 0 bytes", "an image", "Replace the file")
    return Fetched(turn.url, b"".join(pieces), media, None, None)


def _refusal(response: requests.Response, turn: _Turn) -> tuple[Fetched, float | None]:
    reason, after = f"http_{response.status_code}", None
    fact = f"answers {response.status_code} {responses.get(response.status_code, '')}".rstrip()
    # A header of any text: InvalidHeader, and of numbers beyond all calendars the other two.
    with suppress(KeyError, InvalidHeader, ValueError, OverflowError):
        after = float(Retry().parse_retry_after(response.headers["Retry-After"]))
        fact += f" and wants to be asked again after {after:,.0f} s"
    remedy = "Try later" if reason in _RETRIED else "Correct the feed"
    return turn.failed(reason, fact, f"200 OK after at most {_REDIRECTS} redirects", remedy), after


def _spare(response: requests.Response) -> None:
    # Read to the end, its connection serves again; a long body is not worth that.
    rest = response.raw.length_remaining
    if rest is not None and rest <= _REST:
        with suppress(HTTPError):
            _read(response.raw, _REST)


def _read(raw: Any, size: int) -> bytes:
    try:
        return raw.read(size, decode_content=False)
    except ValueError as error:  # what http.client says to chunks of a negative size
        raise ProtocolError(str(error)) from None


def _root(error: BaseException) -> str:
    while below := error.__cause__ or (None if error.__suppress_context__ else error.__context__):
        error = below
    return str(error) or type(error).__name__
