"""What a run shows: the picture of neighbours, and the table of figures."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from lookalike import artifacts

NEIGHBOURS = 8
_RIGHT, _WRONG, _QUERY = "#2a9d5c", "#d64550", "#33415c"


def chosen_queries(labels: np.ndarray, test: np.ndarray, count: int) -> np.ndarray:
    """Rows of test items to show: classes in turn, of each its first items.

    Args:
        labels: (n,) class names.
        test: bool (n,).
        count: how many, at most.
    """
    rows = np.flatnonzero(test)
    places = np.zeros(len(rows), dtype=np.int64)
    for name in np.unique(labels[rows]):
        own = labels[rows] == name
        places[own] = np.arange(own.sum())
    order = np.lexsort((labels[rows], places))
    return np.sort(rows[order[:count]])


def draw_neighbours(
    rows: np.ndarray,
    columns: dict[str, np.ndarray],
    pictures: dict[int, bytes],
    labels: np.ndarray,
    path: Path,
) -> None:
    """A PNG of queries with their nearest neighbours; frames say whether the class is the same.

    Args:
        rows: (n,) the queries.
        columns: by title, (n, k) neighbours of each query.
        pictures: image file of each row that is shown.
        labels: class name by row.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure
    from PIL import Image

    depth = next(iter(columns.values())).shape[1]
    wide = 1 + len(columns) * depth
    figure = Figure(figsize=(0.62 * wide + 0.6, 0.78 * len(rows) + 0.5), dpi=110)
    grid = figure.add_gridspec(
        len(rows), wide + len(columns), wspace=0.08, hspace=0.35,
        left=0.01, right=0.99, top=1 - 0.5 / (0.78 * len(rows) + 0.5), bottom=0.01,
        width_ratios=[1, *([0.35, *([1] * depth)] * len(columns))],
    )  # fmt: skip

    def show(line: int, column: int, row: int, colour: str, title: str | None = None) -> Any:
        axes = figure.add_subplot(grid[line, column])
        image = Image.open(io.BytesIO(pictures[row]))
        axes.imshow(image, cmap="gray" if image.mode == "L" else None, interpolation="nearest")
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color(colour)
            spine.set_linewidth(2)
        if title:
            axes.set_title(title, fontsize=7, pad=2, color=colour, parse_math=False)
        return axes

    for line, query in enumerate(rows):
        show(line, 0, int(query), _QUERY, str(labels[query])[:14])
        for block, neighbours in enumerate(columns.values()):
            for place, row in enumerate(neighbours[line]):
                same = labels[row] == labels[query]
                column = 2 + block * (depth + 1) + place
                show(line, column, int(row), _RIGHT if same else _WRONG)
    for block, title in enumerate(columns):
        middle = (1.35 + block * (depth + 0.35) + depth / 2) / (1 + len(columns) * (depth + 0.35))
        figure.text(middle, 0.995, title, ha="center", va="top", fontsize=11, weight="bold")
    figure.text(0.01, 0.995, "query", ha="left", va="top", fontsize=11, weight="bold")
    figure.savefig(path, facecolor="white")


def file_name(item_id: str) -> str:
    """An item's id as the name of a file."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", item_id)[:100] or "_"


def write_report(files: str, content: dict[str, Any]) -> str:
    """Write `report.json` below the warehouse's files: the figures of the newest run.

    Returns:
        Where it is.
    """
    uri = artifacts.join(files, "report.json")
    text = json.dumps(content, indent=1, default=str)
    if (local := artifacts.local_path(uri)) is not None:
        aside = local.with_name(f".{artifacts.new_name()}.json")
        aside.write_text(text)
        aside.replace(local)
        return uri
    inner, path = artifacts.filesystem(uri)
    with inner.open_output_stream(path) as stream:  # object stores show it when it is whole
        stream.write(text.encode())
    return uri
