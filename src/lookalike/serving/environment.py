"""A logged model in an environment made of its requirements alone, as a server would make it."""

from __future__ import annotations

import json
import subprocess
import venv
from pathlib import Path
from typing import Any, Final

import mlflow

from lookalike import artifacts
from lookalike.errors import LookalikeError
from lookalike.tracking import Tracking

_ASK: Final = """
import json, sys
import mlflow.pyfunc, pandas
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = model.predict(pandas.DataFrame([json.loads(sys.argv[2])]), params={"about": True})
heavy = sorted({"pyspark", "tensorflow"} & set(sys.modules))
print(json.dumps({"rows": rows.to_dict("records"), "heavy": heavy}))
"""
_SHOWN = 2_000  # characters of what went wrong


def check(tracking: Tracking, model_uri: str, row: dict[str, Any]) -> dict[str, Any]:
    """Make the model's environment from nothing, and ask it one question.

    Args:
        tracking: where the model is logged.
        model_uri: of it.
        row: a query, JSON values.

    Returns:
        `about` of the answer: what answered.

    Raises:
        LookalikeError: the environment cannot be made, or the model does not answer in it.
    """
    with artifacts.workbench() as bench:
        with tracking.connected():
            folder = Path(mlflow.artifacts.download_artifacts(model_uri, dst_path=str(bench)))
        home = bench / "environment"
        venv.create(home, with_pip=True)
        python = home / "bin" / "python"
        # Isolated: what this process was told of other packages is not for that one.
        _run([python, "-I", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
              "-r", folder / "requirements.txt"], "its environment cannot be made")  # fmt: skip
        said = _run([python, "-I", "-c", _ASK, folder, json.dumps(row)], "it does not answer")
    answer: dict[str, Any] = json.loads(said.splitlines()[-1])
    errors = [found["error"] for found in answer["rows"] if found["error"] is not None]
    if errors or answer["heavy"] or not answer["rows"]:
        why = errors or answer["heavy"] or "no answer"
        raise LookalikeError(f"in an environment of its own the model gave {why}")
    about: dict[str, Any] = answer["rows"][0]["about"]
    return about


def _run(command: list[str | Path], what: str) -> str:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LookalikeError(
            f"the model was logged, but {what}: {done.stderr.strip()[-_SHOWN:]}",
            remedy="The champion stays. Make its requirements installable here, or release "
            "without --check",
        )
    return done.stdout
