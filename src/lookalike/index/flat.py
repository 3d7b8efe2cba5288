"""Whole vectors: compared with one by one, along a graph, or in a k-d tree."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from lookalike.index.metric import Metric, distances
from lookalike.index.plan import Plan
from lookalike.index.rows import Rows
from lookalike.index.vectors import (
    IN_ORDER,
    PASSED,
    VECTORS_FILE,
    Found,
    Vectors,
    Within,
    by_differences,
    nearest_of,
    ranged,
)


class Flat(Vectors):
    """Whole vectors, in order: kind 'exact', and what 'hnsw' and 'kd_tree' stand on."""

    def __init__(self, plan: Plan, metric: Metric, index: faiss.Index):
        super().__init__(plan, metric)
        self.index = index

    @property
    def count(self) -> int:
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        return int(self.index.d)

    @property
    def fetching(self) -> float:
        return 0.5

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(vectors)

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._matrix[rows]

    @property
    def _storage(self) -> faiss.IndexFlat:
        return self.index

    @property
    def _matrix(self) -> np.ndarray:
        # A view of faiss's own memory, or of the mapped file.
        values = faiss.rev_swig_ptr(self._storage.get_xb(), self.count * self.index.d)
        return values.reshape(self.count, self.index.d)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:  # noqa: ARG002
        chosen = rows.parameters(faiss.SearchParameters)
        values, found = by_differences(
            lambda few: self.index.search(few, k, params=chosen), queries, self.metric
        )
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:  # noqa: ARG002
        return 0 if rows.whole else IN_ORDER * rows.count + PASSED * rows.total

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        return ranged(
            self._storage, queries, radius, self.metric, rows.parameters(faiss.SearchParameters)
        )

    def write(self, folder: Path) -> None:
        """Write what `read` opens."""
        faiss.write_index(self.index, str(folder / VECTORS_FILE))


class Graph(Flat):
    """Kind 'hnsw': a graph over whole vectors. `within` compares with all of them."""

    @cached_property
    def _storage(self) -> faiss.IndexFlat:
        return faiss.downcast_index(self.index.storage)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        chosen = rows.parameters(faiss.SearchParametersHNSW, efSearch=max(effort, k))
        values, found = self.index.search(queries, k, params=chosen)
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:  # noqa: ARG002
        # About half of a node's 2m neighbours have been seen.
        return max(effort, k) * self.plan.m


class Tree(Flat):
    """Kind 'kd_tree': exact, for few dimensions. The file holds the vectors; the tree is grown from
    them when it is first asked for, in doubles.

    Cosine distances of unit vectors are half the squared Euclidean ones. Two more dimensions, one
    of kept zeros and one of zeros that are searched for, give zero its distance of 1 to everything.
    """

    @cached_property
    def _tree(self) -> Any:
        from sklearn.neighbors import KDTree

        return KDTree(self._placed(self._matrix, 0))

    def _placed(self, vectors: np.ndarray, side: int) -> np.ndarray:
        if self.metric != "cosine":
            return vectors.astype(np.float64)
        placed = np.zeros((len(vectors), vectors.shape[1] + 2))
        placed[:, :-2] = vectors
        placed[~vectors.any(axis=1), vectors.shape[1] + side] = 1
        return placed

    def add(self, vectors: np.ndarray) -> None:
        super().add(vectors)
        self.__dict__.pop("_tree", None)

    def _distances(self, euclidean: np.ndarray) -> np.ndarray:
        values = euclidean**2 / 2 if self.metric == "cosine" else euclidean
        return values.astype(np.float32)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        # The nearest of all, as many as should hold k of those that may be found.
        many = min(k if rows.whole else k * effort, self.count)
        far, found = self._tree.query(self._placed(queries, 1), many)
        found = found.astype(np.int64)
        if rows.whole:
            return self._distances(far[:, :k]), found[:, :k]
        far = np.where(rows.mask[found], far, np.inf)
        near, found = nearest_of(far, found, k)
        return self._distances(near), found

    def work(self, k: int, rows: Rows, effort: int) -> float:
        return min(20.0 * (k if rows.whole else k * effort), rows.total)

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        reach = np.sqrt(2 * (radius + 1e-6)) if self.metric == "cosine" else radius * (1 + 1e-6)
        parts, far = self._tree.query_radius(
            self._placed(queries, 1), max(reach, 0), return_distance=True
        )
        allowed = [rows.mask[part] for part in parts]
        kept = [part[keep] for part, keep in zip(parts, allowed, strict=True)]
        owners = np.repeat(np.arange(len(kept)), [len(part) for part in kept])
        near = [f[keep] for f, keep in zip(far, allowed, strict=True)]
        return owners, self._distances(np.concatenate(near)), np.concatenate(kept).astype(np.int64)
