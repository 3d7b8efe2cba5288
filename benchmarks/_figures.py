"""What every benchmark ends with: a table, and JSON where it is asked for."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


class Figures:
    """Named figures with their goals.

    Args:
        name: of the benchmark.
        title: of its table: on what data it was measured.
    """

    def __init__(self, name: str, title: str):
        self.name = name
        self.title = title
        self._figures: dict[str, dict[str, Any]] = {}
        self._unlisted: set[str] = set()

    def add(
        self, name: str, value: float, unit: str = "", goal: float | None = None,
        better: str = "lower", spread: float | None = None, listed: bool = True,
    ) -> None:  # fmt: skip
        """Add a figure.

        Args:
            better: 'lower' or 'higher'.
            spread: half the range of what `value` is the mean of.
            listed: whether the table has it; the JSON has all.
        """
        figure = {"value": value, "goal": goal, "better": better, "unit": unit}
        self._figures[name] = figure if spread is None else figure | {"spread": spread}
        if not listed:
            self._unlisted.add(name)

    def show(self, path: Path | None) -> None:
        """Print the table, and write the JSON."""
        table = Table("figure", "value", "goal", title=self.title)
        for name, figure in self._figures.items():
            if name in self._unlisted:
                continue
            goal, sign = figure["goal"], "<=" if figure["better"] == "lower" else ">="
            value = f"{figure['value']:.4g} {figure['unit']}".strip()
            table.add_row(name, value, "" if goal is None else f"{sign} {goal:.4g}")
        if table.row_count:
            Console().print(table)
        if path is not None:
            machine = {"cores": os.cpu_count(), "machine": platform.machine(),
                       "system": platform.system()}  # fmt: skip
            content = {"name": self.name, "machine": machine, "figures": self._figures}
            path.write_text(json.dumps(content, indent=1))


def asked(description: str | None) -> argparse.ArgumentParser:
    """The command line of a benchmark, which it may add to."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="write the figures here")
    return parser


def in_process(file: str, *arguments: str) -> dict[str, float]:
    """Figures that a benchmark prints last, as JSON, when it is run with these arguments."""
    command = [sys.executable, file, *arguments]
    quiet = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=quiet)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)}: {done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found
