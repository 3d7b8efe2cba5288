"""A line from every rank to the driver: life and progress one way, the word to end the other.

Horovod passes on what ranks print in blocks of 64 KB, its stall inspector does not see a process
that is stopped, and ranks outlive a driver that was killed. So each rank holds a connection to the
driver: JSON, a line a message, opened by the job's secret. A rank says every second how far it is.
The line breaks where a rank ends without a word, and a rank whose driver hangs up ends itself.
"""

from __future__ import annotations

import hmac
import json
import os
import secrets
import socket
import socketserver
import sys
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Any

BEAT = 1.0
"""Seconds between two words of a rank."""

_HANDSHAKE = 10.0
_MAX_LINE = 2**20
HUNG_UP = 75
"""Exit status of a rank whose driver is gone or has given the job up."""

Message = dict[str, Any]


@dataclass(frozen=True)
class Address:
    """Where the driver listens. Small and picklable."""

    host: str
    port: int
    secret: str = field(repr=False)


@dataclass
class Heard:
    """What the driver knows of a rank.

    Attributes:
        rank: its number.
        host, pid: where it runs.
        at: when it last said something, by the driver's monotonic clock.
        step, steps: how far it was, and steps in all.
    """

    rank: int
    host: str
    pid: int
    at: float
    step: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}, step {self.step:,})"


class Exchange:
    """The driver's end of all lines; a context manager.

    Args:
        host: of the driver, as ranks reach it.
        bind: the address to listen on, where that is another.
    """

    def __init__(self, host: str, bind: str | None = None):
        self.said: SimpleQueue[tuple[Heard, Message]] = SimpleQueue()
        """What ranks said beside their beats, in that order."""
        self.ranks: dict[int, Heard] = {}
        self.lost: list[Heard] = []
        """Ranks whose line broke without a goodbye, in that order."""
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._over = False
        secret = secrets.token_hex(32)
        exchange = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                exchange._hear(self, secret)

        class Server(socketserver.ThreadingTCPServer):
            daemon_threads = True
            request_queue_size = 128
            address_family = socket.AF_INET6 if ":" in (bind or host) else socket.AF_INET

        self._server = Server((bind or host, 0), Handler)
        self.address = Address(host, self._server.server_address[1], secret)

    def __enter__(self) -> Exchange:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hang_up()
        self._server.shutdown()
        self._server.server_close()

    def silent(self, seconds: float) -> list[Heard]:
        """Ranks with a line that have said nothing for so long."""
        now = time.monotonic()
        with self._lock:
            return [rank for rank in self.ranks.values() if now - rank.at > seconds]

    def hang_up(self) -> None:
        """End all ranks that can still listen."""
        with self._lock:
            self._over = True
            for line in self._open:
                with suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

    def _hear(self, handler: socketserver.StreamRequestHandler, secret: str) -> None:
        line = handler.connection
        line.settimeout(_HANDSHAKE)  # whoever does not know the secret takes no more than that
        with suppress(OSError, ValueError):
            hello = json.loads(handler.rfile.readline(_MAX_LINE))
            if not hmac.compare_digest(str(hello["secret"]), secret):
                return
            rank = Heard(hello["rank"], hello["host"], hello["pid"], time.monotonic())
            line.settimeout(None)
            with self._lock:
                if self._over:
                    return
                self.ranks[rank.rank] = rank
                self._open.add(line)
            self._listen(handler, rank)

    def _listen(self, handler: socketserver.StreamRequestHandler, rank: Heard) -> None:
        goodbye = False
        try:
            while text := handler.rfile.readline(_MAX_LINE):
                message = json.loads(text)
                with self._lock:
                    rank.at = time.monotonic()
                    rank.step, rank.steps = message["step"], message["steps"]
                goodbye = goodbye or message["kind"] == "goodbye"
                if message["kind"] not in ("beat", "goodbye"):
                    self.said.put((rank, message))
        except OSError:  # broken, as by a process that was killed
            pass
        finally:
            with self._lock:
                self._open.discard(handler.connection)
                self.ranks.pop(rank.rank, None)
                if not goodbye and not self._over:
                    self.lost.append(rank)


class Line:
    """A rank's end of its line; a context manager that says goodbye where all went well.

    It goes on beating then until the process ends: ending can hang too.

    Args:
        address: of the driver.
        rank: this one's number.

    Raises:
        OSError: the driver cannot be reached.
    """

    def __init__(self, address: Address, rank: int):
        self._place = (0, 0)
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._socket = socket.create_connection((address.host, address.port), timeout=60)
        self._socket.settimeout(None)
        self._send(
            {
                "secret": address.secret,
                "rank": rank,
                "host": socket.gethostname(),
                "pid": os.getpid(),
            }
        )
        for work in (self._beat, self._listen):
            threading.Thread(target=work, daemon=True).start()

    def __enter__(self) -> Line:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.tell("goodbye")
        else:
            self._over.set()
            with suppress(OSError):  # closing alone says nothing while the listener waits in it
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()

    def at(self, step: int, steps: int) -> None:
        """How far this rank is, for the next beat."""
        self._place = (step, steps)

    def tell(self, kind: str, **values: Any) -> None:
        """Say something now."""
        step, steps = self._place
        self._send({"kind": kind, "step": step, "steps": steps, **values})

    def _send(self, message: Message) -> None:
        data = json.dumps(message).encode() + b"\n"
        with self._lock, suppress(OSError):  # that the driver is gone, the listener notices
            self._socket.sendall(data)

    def _beat(self) -> None:
        while not self._over.wait(BEAT):
            self.tell("beat")

    def _listen(self) -> None:
        with suppress(OSError):
            self._socket.recv(1)  # the driver says nothing: this ends where it hangs up
        if not self._over.is_set():
            print("lookalike: the driver has hung up", file=sys.stderr, flush=True)
            # From a thread, and while the main one may hang in a collective operation.
            os._exit(HUNG_UP)
