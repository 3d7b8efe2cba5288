"""An index as loops over Python's values: the oracle of `lookalike.index`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike.index import Index, Plan, Wishes, build

ENCODER = "e" * 64


@dataclass(frozen=True)
class Item:
    vector: np.ndarray
    label: str | None = None
    attributes: dict[str, str] | None = None


def distance(x: np.ndarray, y: np.ndarray, metric: str) -> float:
    x, y = x.astype(np.float64), y.astype(np.float64)
    if metric == "l2":
        return float(np.sqrt(((x - y) ** 2).sum()))
    if metric == "dot":
        return float(-(x * y).sum())
    lengths = float(np.sqrt((x * x).sum()) * np.sqrt((y * y).sum()))
    return 1 - float((x * y).sum()) / lengths if lengths else 1.0


@dataclass
class Naive:
    """Items by id."""

    metric: str
    items: dict[str, Item] = field(default_factory=dict)

    def ranked(
        self, query: np.ndarray, matches: Callable[[str, Item], bool] = lambda *_: True
    ) -> list[tuple[float, str]]:
        found = (
            (distance(query, item.vector, self.metric), item_id)
            for item_id, item in self.items.items()
            if matches(item_id, item)
        )
        return sorted(found)


def batch_of(items: Iterable[tuple[str, Item]]) -> pa.RecordBatch:
    """Items as the index takes them; in the order given."""
    rows = list(items)
    maps = [None if i.attributes is None else list(i.attributes.items()) for _, i in rows]
    columns = [
        pa.array([item_id for item_id, _ in rows], pa.string()),
        pa.array([item.label for _, item in rows], pa.string()),
        pa.array(maps, pa.map_(pa.string(), pa.string())),
        pa.array([item.vector.astype(np.float32) for _, item in rows], pa.list_(pa.float32())),
    ]
    return pa.record_batch(columns, ["item_id", "label", "attributes", "vector"])


def indexed(naive: Naive, folder: Path, plan: Plan | Wishes, **more: Any) -> Index:
    """The same items in an index, in batches of 500."""
    rows = sorted(naive.items.items())
    batches = [batch_of(rows[begin : begin + 500]) for begin in range(0, len(rows), 500)]
    dim = len(rows[0][1].vector)
    made = build(str(folder), batches, dim, plan, {"encoder": ENCODER}, metric=naive.metric, **more)
    return Index.open(str(folder), made.name, threads=1)
