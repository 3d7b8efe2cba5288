import itertools
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

import pytest

from lookalike.lake.fetch import Fetched, Limits, fetch

FILE = bytes(range(256)) * 10
LIMITS = Limits(connections=3, timeout=5, deadline=20, retries=2, backoff=0.01, max_bytes=100_000)
TRIES = LIMITS.retries + 1
CHUNKED = {"Content-Length": None, "Transfer-Encoding": "chunked"}

Get = Callable[..., Fetched]


class Site(ThreadingHTTPServer):
    """Answers by the first word of the path; what is slow ends when `over` is set."""

    daemon_threads = False  # closing waits for them

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.over = threading.Event()
        self.lock = threading.Lock()
        self.together = threading.Barrier(LIMITS.connections, timeout=20)
        self.hits: Counter[str] = Counter()
        self.last, self.headers = "", dict[str, str]()
        self.connections = self.open = self.most = 0

    def handle_error(self, *_: object) -> None:
        """Clients hang up: that is what is tested."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 20
    server: Site

    def setup(self) -> None:
        super().setup()
        with self.server.lock:
            self.server.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(self.path)
        with self.server.lock:
            self.server.hits[path] += 1
            self.first = self.server.hits[path] == 1
            self.server.last, self.server.headers = self.path, dict(self.headers)
        word, _, rest = path[1:].partition("/")
        getattr(self, f"on_{word}", self.on_ok)(rest)

    def answer(self, status: int = 200, *, body: bytes = FILE, **headers: str | None) -> None:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        plain = {"Content-Type": "Image/PNG; q=1", "Content-Length": str(len(body))}
        self.send_response(status)
        for name, value in {**plain, **named}.items():
            if value is not None:
                self.send_header(name, value.encode().decode("latin-1"))
        self.end_headers()
        self.wfile.write(body)

    def drip(self) -> None:
        while not self.server.over.wait(0.02):
            self.wfile.write(b"x")

    def on_ok(self, _: str) -> None:
        self.answer()

    def on_status(self, status: str) -> None:
        self.answer(int(status), body=b"<html>")

    def on_once(self, status: str) -> None:
        self.answer(int(status) if self.first else 200, Retry_After="0" if self.first else None)

    def on_later(self, when: str) -> None:
        self.answer(503, Retry_After=when)

    def on_moved(self, where: str) -> None:
        self.answer(301, body=b"", Location=where or "/ok")

    def on_typed(self, kind: str) -> None:
        self.answer(Content_Type=kind or None)

    def on_packed(self, how: str) -> None:
        self.answer(Content_Encoding=how)

    def on_empty(self, _: str) -> None:
        self.answer(body=b"")

    def on_cut(self, once: str) -> None:
        self.close_connection = self.first or not once
        self.answer(Content_Length="9999" if self.close_connection else str(len(FILE)))

    def on_negative(self, _: str) -> None:
        self.answer(body=b"-5\r\nabc", **CHUNKED)

    def on_huge(self, _: str) -> None:
        self.answer(Content_Length=str(LIMITS.max_bytes + 1), body=b"")
        self.server.over.wait(20)

    def on_endless(self, status: str) -> None:
        self.answer(int(status), body=b"", Location="/ok", **CHUNKED)
        while not self.server.over.is_set():
            self.wfile.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")

    def on_silent(self, _: str) -> None:
        self.server.over.wait(20)

    def on_dripping(self, what: str) -> None:
        if what == "body":
            self.answer(body=b"", Content_Length="9999")
        elif what == "chunks":
            self.answer(body=b"1000\r\n", **CHUNKED)
        else:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
        self.drip()

    def on_together(self, _: str) -> None:
        with self.server.lock:
            self.server.open += 1
            self.server.most = max(self.server.most, self.server.open)
        self.server.together.wait()
        with self.server.lock:
            self.server.open -= 1
        self.answer()


@pytest.fixture(autouse=True)
def _without_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def site() -> Iterator[Site]:
    with Site() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.over.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def get(site: Site) -> Get:
    """Fetch a path of the site, or a URL, by `LIMITS` with changes."""

    def one(path: str, **changes: float) -> Fetched:
        url = site.url + path if path.startswith("/") else path
        (found,) = fetch([url], replace(LIMITS, **changes))
        assert found.url == url
        assert (found.data is None) == (found.reason is not None) == (found.detail is not None)
        return found

    return one


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/ok", "/ok"),
        ("/moved", "/ok"),
        ("/moved//ok/\u00e4", "/ok/%C3%A4"),
        ("/moved//moved//moved//moved//moved/", "/ok"),
        ("/b \u00e4 100%.png?a=\u00e9 c#d", "/b%20%C3%A4%20100%25.png?a=%C3%A9%20c"),
    ],
)
def test_a_file_is_fetched(site: Site, get: Get, path: str, asked: str) -> None:
    found = get(path)
    assert (found.data, found.media) == (FILE, "image/png")
    assert site.last == asked
    assert site.headers["User-Agent"].startswith("lookalike/")


@pytest.mark.parametrize(
    ("kind", "media"),
    [
        ("image/webp", "image/webp"),
        ("application/octet-stream", "application/octet-stream"),
        ("binary/octet-stream", "binary/octet-stream"),
        ("", None),
    ],
)
def test_types_that_may_be_images_are_taken(get: Get, kind: str, media: str | None) -> None:
    found = get(f"/typed/{kind}")
    assert (found.data, found.media) == (FILE, media)


def test_an_encoding_that_is_none_is_taken(get: Get) -> None:
    assert get("/packed/base64").data == FILE  # so do objects in S3 call what is plain bytes


@pytest.mark.parametrize(
    ("path", "reason", "said"),
    [
        ("/status/404", "http_404", "/status/404' answers 404 Not Found. Allowed: 200 OK"),
        ("/status/204", "http_204", "204 No Content"),
        ("/status/999", "http_999", "answers 999. Allowed"),
        ("/status/302", "http_302", "302 Found"),
        ("/moved//moved//status/404", "http_404", " -> /status/404' answers 404 Not Found"),
        ("/moved/moved", "http_301", "301 Moved Permanently. Allowed: 200 OK after at most 5"),
        ("/moved/ftp://host/a", "bad_url", " -> ftp://host/a' is no address"),
        ("/moved/http://[bad", "bad_url", "is no address. Allowed: an http:// or https:// URL"),
        ("/typed/text/html", "wrong_type", "is text/html. Allowed: image/*"),
        ("/packed/gzip", "wrong_type", "is image/png packed by gzip. Allowed: "),
        ("/empty", "empty", "/empty' has 0 bytes"),
        ("/huge", "too_many_bytes", "/huge' has at least 100,001 bytes. Allowed: at most 100,000"),
        ("/endless/200", "too_many_bytes", " bytes. Allowed: at most 100,000 bytes"),
    ],
)
def test_a_link_without_a_file_is_named(
    site: Site, get: Get, path: str, reason: str, said: str
) -> None:
    found = get(path)
    assert found.reason == reason
    assert said in str(found.detail)
    assert site.hits[path] == (6 if path == "/moved/moved" else 1)


@pytest.mark.parametrize(
    "url",
    ["", " ", "host", "ftp://host/a", "file:///etc/passwd", "data:,a", "http://", "http:///a",
     "https://[bad", "http://[bad]/", "http://host:port/", "http://host:99999/", "http://a..b/",
     "http://\u00e4..b/", "http://*.b/", "//host/a", "http:host"],
)  # fmt: skip
def test_what_is_no_address_is_named(url: str) -> None:
    (found,) = fetch([url], LIMITS)
    assert found.reason == "bad_url"
    assert "Allowed: an http:// or https:// URL" in str(found.detail)


@pytest.mark.parametrize("path", ["/once/500", "/once/522", "/once/429", "/cut/once"])
def test_what_fails_in_passing_is_asked_again(site: Site, get: Get, path: str) -> None:
    assert get(path).data == FILE
    assert site.hits[path] == 2


@pytest.mark.parametrize(
    ("path", "reason", "said"),
    [
        ("/status/503", "http_503", "answers 503 Service Unavailable. Allowed: 200 OK"),
        ("/endless/503", "http_503", "answers 503 Service Unavailable. Allowed: 200 OK"),
        ("/later/soon", "http_503", "answers 503 Service Unavailable. Allowed: 200 OK"),
        ("/later/Sun, 06 Nov 1994 08:49:37 GMT", "http_503", "asked again after 0 s"),
        ("/negative", "unreachable", "cannot be fetched (read length must be non-negative or -1)"),
        ("/cut", "unreachable", "IncompleteRead(2560 bytes read, 7439 more expected)"),
    ],
)
def test_what_keeps_failing_is_given_up(
    site: Site, get: Get, path: str, reason: str, said: str
) -> None:
    found = get(path)
    assert found.reason == reason
    assert said in str(found.detail)
    assert site.hits[path] == TRIES


@pytest.mark.parametrize("when", ["3600", "9" * 400, "9" * 5000, "Fri, 31 Dec 9999 23:59:59 GMT"])
def test_no_wait_leads_beyond_the_deadline(site: Site, get: Get, when: str) -> None:
    found = get(f"/later/{when}", deadline=5, backoff=6)
    assert found.reason == "http_503"
    assert site.hits.total() == 1


@pytest.mark.parametrize("path", ["/silent", "/dripping/header", "/dripping/body",
                                  "/dripping/chunks"])  # fmt: skip
def test_a_server_that_never_finishes_is_left_at_the_deadline(get: Get, path: str) -> None:
    found = get(path, deadline=0.3)
    assert found.reason == "timeout"
    assert "Allowed: 5 s between bytes, 0.3 s in all" in str(found.detail)


def test_a_silent_server_is_asked_again(site: Site, get: Get) -> None:
    assert get("/silent", timeout=0.1).reason == "timeout"
    until = time.monotonic() + 10
    while site.hits["/silent"] < TRIES and time.monotonic() < until:
        time.sleep(0.01)  # it reads what was sent to it even after the client has left
    assert site.hits["/silent"] == TRIES


def test_a_redirect_with_an_endless_body_is_followed(get: Get) -> None:
    assert get("/endless/302").data == FILE


def test_nobody_listening_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and never listens
        (found,) = fetch([f"http://127.0.0.1:{taken.getsockname()[1]}/a"], LIMITS)
    assert found.reason == "unreachable"
    assert "Connection refused" in str(found.detail)


def test_passwords_are_sent_and_not_told(site: Site) -> None:
    address = site.url.replace("://", "://user:pass@")
    urls = [f"{address}/{path}" for path in ("status/404", "cut", f"moved/{address}/status/410")]
    for found in fetch([*urls, "http://user:pass@[bad", "ftp://user:pass@host/"], LIMITS):
        assert "pass" not in str(found.detail)
        assert "***@" in str(found.detail)
    assert site.headers["Authorization"] == "Basic dXNlcjpwYXNz"


def test_a_proxy_of_the_environment_is_asked(
    site: Site, get: Get, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", site.url)
    assert get("http://images.invalid/a").data == FILE
    assert site.hits["http://images.invalid/a"] == 1


def test_connections_serve_again(site: Site) -> None:
    urls = [site.url + path for path in ("/ok", "/moved", "/status/404", "/empty", "/ok")]
    found = list(fetch(urls, replace(LIMITS, connections=1)))
    assert [f.reason for f in found] == [None, None, "http_404", "empty", None]
    assert site.connections == 1


def test_the_order_is_kept_and_connections_are_limited(site: Site) -> None:
    urls = [f"{site.url}/together/{i}" for i in range(4 * LIMITS.connections)]
    found = list(fetch(urls, LIMITS))
    assert [f.url for f in found] == urls
    assert [f.reason for f in found] == [None] * len(urls)
    assert site.most == LIMITS.connections


def test_urls_are_read_as_files_are_taken(site: Site) -> None:
    numbers = itertools.count()
    found = fetch((f"{site.url}/ok/{i}" for i in numbers), LIMITS)
    assert [f.url for f in itertools.islice(found, 9)] == [f"{site.url}/ok/{i}" for i in range(9)]
    assert next(numbers) <= 9 + 2 * LIMITS.connections
    found.close()


def test_closing_ends_the_threads(site: Site) -> None:
    before = set(threading.enumerate())
    limits = replace(LIMITS, connections=4, timeout=1, backoff=10)
    paths = ("/ok", "/silent", "/dripping/body", "/status/503", *["/ok"] * 9)
    found = fetch([site.url + path for path in paths], limits)
    assert next(found).data == FILE
    mine = [t for t in set(threading.enumerate()) - before if t.name.startswith("fetch")]
    assert len(mine) == limits.connections
    found.close()
    until = time.monotonic() + 10
    for thread in mine:
        thread.join(until - time.monotonic())
        assert not thread.is_alive()


def test_an_error_of_the_input_is_raised(site: Site) -> None:
    def broken() -> Iterator[str]:
        yield f"{site.url}/ok"
        raise RuntimeError("the feed breaks off")

    with pytest.raises(RuntimeError, match="breaks off"):
        list(fetch(broken(), LIMITS))
