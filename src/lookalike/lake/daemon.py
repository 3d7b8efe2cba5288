"""pyspark's forking daemon, which first imports what LOOKALIKE_PRELOAD names.

Spark starts this module where a session's `spark.python.daemon.module` says so. Its workers are
forked, so what it has imported they have, and each is still a clean process.

Of its own, pyspark takes .1 to .2 s for each task of a worker that is there already; here, .01.
"""

from __future__ import annotations

import importlib
import os
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO
from zipimport import zipimporter


def preload() -> None:
    """Import the modules named in the environment; nothing is initialised."""
    for name in filter(None, os.environ.get("LOOKALIKE_PRELOAD", "").split(",")):
        importlib.import_module(name)


def trust_archives() -> None:
    """Have zip archives on the path read once.

    pyspark, itself an archive there, invalidates the caches of imports before each task. Python
    3.11 then reads an archive anew for every package in it (gh-103200, mended in 3.13). Spark puts
    no other content under an archive's name, unless `spark.files.overwrite` is set.
    """
    setattr(zipimporter, "invalidate_caches", _keep)  # noqa: B010  # typed as fixed


def acknowledging(
    main: Callable[[BinaryIO, BinaryIO], object],
) -> Callable[[BinaryIO, BinaryIO], object]:
    """A worker's task that acknowledges what comes at once.

    Spark sends a task in pieces, and by Nagle's algorithm waits for the first piece to be
    acknowledged; Linux acknowledges after 40 ms, and goes back to that after each answer.
    """

    def task(incoming: BinaryIO, outgoing: BinaryIO) -> object:
        with socket.socket(fileno=os.dup(incoming.fileno())) as connection:
            connection.settimeout(None)  # the default may be another, and would be the original's
            with suppress(OSError):  # it is no connection over TCP
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        return main(incoming, outgoing)

    return task if hasattr(socket, "TCP_QUICKACK") else main


def _keep(_: zipimporter) -> None:
    pass


if __name__ == "__main__":
    from pyspark import daemon

    preload()
    trust_archives()
    daemon.worker_main = acknowledging(daemon.worker_main)  # type: ignore[attr-defined]
    daemon.manager()  # type: ignore[no-untyped-call]
