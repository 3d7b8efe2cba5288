"""The daemon that Spark's workers are forked from."""

from __future__ import annotations

import socket
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

import pytest

from lookalike.lake.daemon import acknowledging

_SCRIPT = """
import importlib, sys, zipimport
from lookalike.lake.daemon import trust_archives

first, second = sys.argv[1:]
reads = []
read = zipimport._read_directory
zipimport._read_directory = lambda archive: reads.append(archive) or read(archive)
sys.path.append(first)
import first_module
importlib.invalidate_caches()
assert len(reads) > 1, "this Python reads archives once by itself: trust_archives can go"
trust_archives()
reads.clear()
importlib.invalidate_caches()
assert not reads, reads
sys.path.append(second)
importlib.invalidate_caches()
import second_module
assert reads == [second]
"""


def test_archives_are_read_once_and_new_ones_are_found(tmp_path: Path) -> None:
    archives = []
    for name in ("first", "second"):
        archives.append(str(tmp_path / f"{name}.zip"))
        with zipfile.ZipFile(archives[-1], "w") as archive:
            archive.writestr(f"{name}_module.py", "")
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, *archives], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not hasattr(socket, "TCP_QUICKACK"), reason="only Linux delays by a setting")
def test_what_comes_to_a_task_is_acknowledged_at_once() -> None:
    option = (socket.IPPROTO_TCP, socket.TCP_QUICKACK)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.create_connection(server.getsockname()) as here,
        server.accept()[0] as there,
        there.makefile("rb") as incoming,
        there.makefile("wb") as outgoing,
    ):
        there.setsockopt(*option, 0)  # as after an answer
        assert there.getsockopt(*option) == 0

        def main(incoming: BinaryIO, outgoing: BinaryIO) -> tuple[int, bytes]:
            outgoing.write(b"done")
            return there.getsockopt(*option), incoming.read(4)

        here.sendall(b"task")
        assert acknowledging(main)(incoming, outgoing) == (1, b"task")
        outgoing.flush()  # the connection is as open as it was
        assert here.recv(4) == b"done"
