"""Claim: the whole way on the shipped sample takes at most 8 minutes and beats raw pixels.

Runs `lookalike run --conf conf/demo.yaml` in an empty warehouse. The rival, nearest neighbours by
raw pixels on the same images, is measured in the same run, by the `evaluate` step.

    uv run benchmarks/whole_way.py [--json PATH]
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

from _figures import Figures, asked

ROOT = Path(__file__).parents[1]
MINUTES = 8.0


def main() -> None:
    arguments = asked(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        report = _run(Path(folder))
    _figures(report).show(arguments.json)


def _run(folder: Path) -> dict[str, Any]:
    settings = ["--set", f"warehouse.tables={folder}/tables", "--set", f"warehouse.files={folder}"]
    command = [sys.executable, "-m", "lookalike.cli", "run", "--conf", "conf/demo.yaml", *settings]
    done = subprocess.run([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    report: dict[str, Any] = json.loads(done.stdout)
    return report


def _figures(report: dict[str, Any]) -> Figures:
    figures = Figures("whole_way", "The whole way on 12,000 images")
    figures.add("minutes, all steps", report["seconds"] / 60, "min", MINUTES)
    for step, seconds in report["seconds_by_step"].items():
        figures.add(f"share of {step}", seconds / report["seconds"])
    evaluated = report["steps"]["evaluate"]
    for protocol, metric in product("AB", ("p_at_1", "map_at_r")):
        measured = evaluated["figures"][protocol]
        raw = measured["raw_pixels"][metric]
        ours = measured["encoder"][metric]
        figures.add(f"{metric}, protocol {protocol}, raw pixels", raw, better="higher")
        figures.add(f"{metric}, protocol {protocol}", ours, "", raw, "higher")
    figures.add("recall@10 of the index", evaluated["index_recall"], better="higher")
    return figures


if __name__ == "__main__":
    main()
