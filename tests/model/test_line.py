"""The line from ranks to the driver, by real sockets and real processes."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from lookalike.model.line import HUNG_UP, Address, Exchange

HERE = "127.0.0.1"
Start = Callable[[Address, int, str], subprocess.Popen[bytes]]


def until(true: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)


_RANK = """
import sys, time
from lookalike.model.line import Address, Line

host, port, secret, number, kind = sys.argv[1:]
with Line(Address(host, int(port), secret), int(number)) as line:
    line.at(7, 40)
    line.tell("epoch", loss=0.5)
    if kind == "raises":
        raise ValueError("no")
    if kind != "ends":
        time.sleep(120)
"""


@pytest.fixture
def started() -> Iterator[Start]:
    processes = []

    def start(address: Address, number: int, kind: str) -> subprocess.Popen[bytes]:
        told = (address.host, str(address.port), address.secret, str(number), kind)
        processes.append(subprocess.Popen([sys.executable, "-c", _RANK, *told]))
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


def test_what_a_rank_says_arrives_and_a_goodbye_is_no_loss(started: Start) -> None:
    with Exchange(HERE) as exchange:
        process = started(exchange.address, 3, "ends")
        who, message = exchange.said.get(timeout=20)
        assert (who.rank, who.pid, message["loss"]) == (3, process.pid, 0.5)
        assert (who.step, who.steps) == (7, 40)
        assert process.wait(20) == 0
        until(lambda: not exchange.ranks)
        assert exchange.lost == []


@pytest.mark.parametrize("kind", ["raises", "killed"])
def test_a_line_that_breaks_is_a_loss(started: Start, kind: str) -> None:
    with Exchange(HERE) as exchange:
        process = started(exchange.address, 1, kind)
        if kind == "killed":
            until(lambda: 1 in exchange.ranks)
            process.kill()
        until(lambda: exchange.lost)
        assert [rank.rank for rank in exchange.lost] == [1]
        assert str(exchange.lost[0]).startswith(f"rank 1 (process {process.pid} on ")


def test_a_stopped_rank_falls_silent_and_another_does_not(started: Start) -> None:
    with Exchange(HERE) as exchange:
        stopped, _ = (started(exchange.address, number, "sleeps") for number in (0, 1))
        until(lambda: len(exchange.ranks) == 2)
        stopped.send_signal(signal.SIGSTOP)
        until(lambda: exchange.silent(3))
        assert [rank.rank for rank in exchange.silent(3)] == [0]
        stopped.send_signal(signal.SIGCONT)
        until(lambda: not exchange.silent(3))


def test_ranks_end_when_the_driver_hangs_up(started: Start) -> None:
    with Exchange(HERE) as exchange:
        process = started(exchange.address, 0, "sleeps")
        until(lambda: exchange.ranks)
    assert process.wait(20) == HUNG_UP
    assert exchange.lost == []


@pytest.mark.parametrize("hello", [b"", b"GET / HTTP/1.1\r\n\r\n", b"{}\n", b"\xff\n", None])
def test_strangers_are_not_heard(hello: bytes | None) -> None:
    with Exchange(HERE) as exchange:
        wrong = {"secret": "guess", "rank": 0, "host": "h", "pid": 1}
        with socket.create_connection((HERE, exchange.address.port)) as stranger:
            stranger.sendall(json.dumps(wrong).encode() + b"\n" if hello is None else hello)
            stranger.shutdown(socket.SHUT_WR)
            assert stranger.recv(1) == b""
        assert exchange.ranks == {}
        assert exchange.said.empty()


def test_the_secret_is_not_shown() -> None:
    address = Address(HERE, 1, "hunter2")
    assert "hunter2" not in repr(address)
