"""Serve the champion with MLflow's own scoring server."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import NoReturn

from lookalike.errors import ConfigError
from lookalike.steps.context import Context


def check(host: str, port: int) -> None:
    """See whether one can listen there.

    Raises:
        ConfigError: no.
    """
    try:
        with socket.socket() as free:
            free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            free.bind((host, port))
    except OSError as error:
        raise ConfigError(
            f"nothing can listen on {host}:{port} ({error.strerror})",
            remedy="Give another --port, or --host",
        ) from error


def run(context: Context, host: str, port: int) -> NoReturn:
    """Serve until stopped.

    Args:
        context: whose champion is served.
        host, port: where.

    Raises:
        DataError: there is no champion yet.
    """
    from lookalike.serving.release import need_champion

    tracking, name = context.tracking, context.config.model_name
    number = need_champion(tracking, name).version
    environment = os.environ | {
        "MLFLOW_TRACKING_URI": tracking.uri,
        # Or MLflow would take one that happens to be set.
        **({"MLFLOW_REGISTRY_URI": tracking.registry} if tracking.registry else {}),
        # MLflow looks for its web server on the PATH.
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
    }
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--env-manager", "local"]
    command += ["--host", host, "--port", str(port), "--model-uri", f"models:/{name}/{number}"]
    # In this process's place: who stops this, stops the server.
    os.execve(command[0], command, environment)
