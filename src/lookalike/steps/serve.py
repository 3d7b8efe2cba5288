"""Serve the champion with MLflow's own scoring server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from lookalike.errors import LookalikeError
from lookalike.steps.context import Context


def run(context: Context, host: str, port: int) -> None:
    """Serve until stopped.

    Args:
        context: whose champion is served.
        host, port: where.

    Raises:
        DataError: there is no champion yet.
        LookalikeError: the server ended by itself.
    """
    from lookalike.serving.release import need_champion

    tracking, name = context.tracking, context.config.model_name
    number = need_champion(tracking, name).version
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking.uri,
        # MLflow looks for its web server on the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    where = ["--host", host, "--port", str(port)]
    ended = subprocess.run(
        [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local", *where,
         "--model-uri", f"models:/{name}/{number}"],
        env=environment,
        check=False,
    )  # fmt: skip
    if ended.returncode:
        raise LookalikeError(
            f"the server ended with {ended.returncode}",
            remedy=f"Its output is above; is port {port} free?",
        )
