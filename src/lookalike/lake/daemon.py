"""pyspark's forking daemon, which first imports what LOOKALIKE_PRELOAD names.

Spark starts this module where a session's `spark.python.daemon.module` says so. Its workers are
forked, so what it has imported they have, and each is still a clean process.
"""

from __future__ import annotations

import importlib
import os


def preload() -> None:
    """Import the modules named in the environment; nothing is initialised."""
    for name in filter(None, os.environ.get("LOOKALIKE_PRELOAD", "").split(",")):
        importlib.import_module(name)


if __name__ == "__main__":
    from pyspark import daemon

    preload()
    daemon.manager()  # type: ignore[no-untyped-call]
