"""Claim: the whole way on the shipped sample takes at most 8 minutes and beats raw pixels.

Runs `lookalike run --conf conf/demo.yaml` in an empty warehouse. The rival, nearest neighbours by
raw pixels on the same images, is measured in the same run, by the `evaluate` step.

    uv run benchmarks/whole_way.py [--json PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
MINUTES = 8.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        report = _run(Path(folder))
    figures = _figures(report)
    table = Table("figure", "value", "goal", title="The whole way on 12,000 images")
    for name, figure in figures.items():
        goal = "" if figure["goal"] is None else f"{figure['goal']:.4g}"
        table.add_row(name, f"{figure['value']:.4g} {figure['unit']}", goal)
    Console().print(table)
    if arguments.json is not None:
        content = {"name": "whole_way", "machine": _machine(), "figures": figures}
        arguments.json.write_text(json.dumps(content, indent=1))


def _run(folder: Path) -> dict[str, Any]:
    settings = ["--set", f"warehouse.tables={folder}/tables", "--set", f"warehouse.files={folder}"]
    command = [sys.executable, "-m", "lookalike.cli", "run", "--conf", "conf/demo.yaml", *settings]
    done = subprocess.run([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _figures(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    figures: dict[str, dict[str, Any]] = {}

    def add(name: str, value: float, goal: float | None, better: str, unit: str) -> None:
        figures[name] = {"value": value, "goal": goal, "better": better, "unit": unit}

    add("minutes, all nine steps", report["seconds"] / 60, MINUTES, "lower", "min")
    for step, seconds in report["seconds_by_step"].items():
        add(f"share of {step}", seconds / report["seconds"], None, "lower", "")
    evaluated = report["steps"]["evaluate"]
    for protocol, metric in product("AB", ("p_at_1", "map_at_r")):
        measured = evaluated["figures"][protocol]
        raw = measured["raw_pixels"][metric]
        add(f"{metric}, protocol {protocol}, raw pixels", raw, None, "higher", "")
        add(f"{metric}, protocol {protocol}", measured["encoder"][metric], raw, "higher", "")
    add("recall@10 of the index", evaluated["index_recall"], None, "higher", "")
    return figures


def _machine() -> dict[str, Any]:
    return {"cores": os.cpu_count(), "machine": platform.machine(), "system": platform.system()}


if __name__ == "__main__":
    main()
