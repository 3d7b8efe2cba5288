"""The vectors of one part behind one seam, whatever the kind of index that keeps them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Final

import faiss
import numpy as np

from lookalike.index.metric import Metric, apart, bound, distances
from lookalike.index.plan import Plan
from lookalike.index.rows import Rows

VECTORS_FILE, ORIGINALS_FILE = "vectors.faiss", "originals.npy"
Found = tuple[np.ndarray, np.ndarray]
"""float32 (n, k) distances, nearest first, and int64 (n, k) rows; -1 where there is none."""
Within = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Of all that was found, in any order: int64 numbers of queries, float32 distances, int64 rows."""

IN_ORDER: Final = 0.25
"""What a distance costs where vectors lie side by side, in distances computed along a graph."""
SCATTERED: Final = 3
"""How many times as much it costs where most of the others beside it are passed over."""
PASSED: Final = 0.03
"""What passing over a row costs that may not be found."""
_AT_HAND: Final = 8
"""Sets of rows whose vectors are kept, beside those that the plan has bytes for."""
PAIRWISE: Final = 16
"""Queries at once, at most, that faiss compares by differences: of more it expands the square,
which loses small distances of long vectors."""


class Vectors(ABC):
    """The vectors of one part.

    Args:
        plan: how they are kept.
        metric: of the distances.

    Attributes:
        at_hand: gives float32 (rows.count, dim), the vectors of a few rows; those of the last sets
            of rows are kept.
    """

    def __init__(self, plan: Plan, metric: Metric):
        self.plan = plan
        self.metric = metric
        self.at_hand: Callable[[Rows], np.ndarray] = lru_cache(_AT_HAND)(self._fetched)

    def _fetched(self, rows: Rows) -> np.ndarray:
        """float32 (rows.count, dim)."""
        return self.take(rows.numbers)

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def dim(self) -> int:
        """Length of a vector."""

    @property
    @abstractmethod
    def fetching(self) -> float:
        """What `take` costs a row, in distances computed along a graph."""

    @abstractmethod
    def add(self, vectors: np.ndarray) -> None:
        """Append float32 (n, dim), `prepared`."""

    @abstractmethod
    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """float32 (n, dim), as near to what was added as they are kept."""

    @abstractmethod
    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        """The nearest of some rows; fewer than `k` where that effort finds no more.

        Args:
            queries: float32 (n, dim), `prepared`.
            k: at most `rows.count`.
            rows: which may be found.
            effort: see `Plan.effort`.
        """

    @abstractmethod
    def work(self, k: int, rows: Rows, effort: int) -> float:
        """What a query costs, in distances computed along a graph."""

    @abstractmethod
    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        """All rows at most so far away, or None where they must be compared one by one."""


def apart_from(vectors: Vectors, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Distances of each query to rows of its own, from the vectors as they are kept.

    Args:
        vectors: of a part.
        queries: float32 (n, dim), `prepared`.
        rows: int (n, k); negative ones are of no matter.
    """
    found = np.empty(rows.shape, np.float32)
    step = max(1, 2**16 // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        few = slice(begin, begin + step)
        kept = vectors.take(np.maximum(rows[few], 0).ravel())
        kept = kept.reshape(*rows[few].shape, queries.shape[1])
        found[few] = apart(queries[few], kept, vectors.metric)
    return found


def by_differences(
    search: Callable[[np.ndarray], Found], queries: np.ndarray, metric: Metric
) -> Found:
    """What faiss finds when it compares with all: a few queries at a time where it would expand
    the square of more."""
    if metric != "l2" or len(queries) <= PAIRWISE:
        return search(queries)
    begins = range(0, len(queries), PAIRWISE)
    near, rows = zip(*(search(queries[b : b + PAIRWISE]) for b in begins), strict=True)
    return np.concatenate(near), np.concatenate(rows)


def nearest_of(near: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The `k` nearest of candidates: (n, m) distances, infinite where there is none, and rows.

    Equal ones come by row.
    """
    order = np.lexsort((rows, near), axis=1)[:, :k]
    near = np.take_along_axis(near, order, axis=1)
    return near, np.where(np.isinf(near), -1, np.take_along_axis(rows, order, axis=1))


def ranged(
    index: faiss.Index, queries: np.ndarray, radius: float, metric: Metric, chosen: Any = None
) -> Within:
    """All that faiss finds at most so far away, by its parameters `chosen`; at least one query."""
    parts = []
    for begin in range(0, len(queries), PAIRWISE):
        few = np.ascontiguousarray(queries[begin : begin + PAIRWISE])
        limits, values, found = index.range_search(few, bound(radius, metric), params=chosen)
        owners = np.repeat(np.arange(begin, begin + len(few)), np.diff(limits.astype(np.int64)))
        parts.append((owners, distances(values, metric), found))
    return joined(parts)


def joined(parts: Sequence[Within]) -> Within:
    """What was found in parts, at least one."""
    owners, near, rows = map(np.concatenate, zip(*parts, strict=True))
    return owners, near, rows
