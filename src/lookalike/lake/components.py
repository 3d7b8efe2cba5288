"""Connected components: what hangs together, from pairs that do."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from scipy.sparse import coo_matrix  # type: ignore[import-untyped]
from scipy.sparse.csgraph import connected_components  # type: ignore[import-untyped]

EDGES: Final = "node long not null, root long not null, distance int"
"""Pairs of nodes; of a tree each node with the root, which is its smallest."""

FAR: Final = 255
"""The distance of a node that none was given for."""

_PENDING = 2**20
_ROWS = 2**16


class Forest:
    """The trees that edges join nodes to; edges come piece by piece.

    It holds its nodes with their roots and at most 2**20 edges besides, whatever comes: about 100
    bytes a node while it merges. Forests of parts, added up, are the forest of the whole.
    """

    def __init__(self) -> None:
        self._edges = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.uint8))]
        self._pending = 0

    def add(self, nodes: np.ndarray, others: np.ndarray, distances: np.ndarray) -> None:
        """Join each node to its other.

        Args:
            nodes: int64 (n,).
            others: int64 (n,).
            distances: uint8 (n,): of each node, not of its other, to what is next to it.
        """
        if len(nodes) == 0:
            return
        self._edges.append((nodes, others, distances.astype(np.uint8)))
        self._pending += len(nodes)
        if self._pending > _PENDING:
            self._merge()

    def trees(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All nodes, ascending: int64 (n,), int64 (n,), uint8 (n,).

        The second is the smallest node of each one's tree, the third the smallest of its
        distances, or `FAR`.
        """
        self._merge()
        return self._edges[0]

    def _merge(self) -> None:
        nodes, others, distances = (np.concatenate(part) for part in zip(*self._edges, strict=True))
        names, places = np.unique(np.concatenate([nodes, others]), return_inverse=True)
        left, right = places[: len(nodes)], places[len(nodes) :]
        nearest = np.full(len(names), FAR, np.uint8)
        np.minimum.at(nearest, left, distances)
        joined = coo_matrix((np.ones(len(left), bool), (left, right)), (len(names), len(names)))
        _, tree = connected_components(joined, directed=False)
        _, first = np.unique(tree, return_index=True)  # names ascend: the first is the smallest
        self._edges, self._pending = [(names, names[first][tree], nearest)], 0


def connected(edges: DataFrame) -> DataFrame:
    """The trees of edges: each node with its root and its smallest distance.

    One task merges them: what holds the nodes that have an edge, at about 100 bytes each, is a
    worker's memory. Only they come to it, not the catalogue.

    Args:
        edges: rows of `EDGES`, any number to a node.
    """
    return edges.repartition(1).mapInArrow(_merged, EDGES)


def rows_of(forest: Forest) -> Iterator[pa.RecordBatch]:
    """A forest as rows of `EDGES`."""
    nodes, roots, distances = forest.trees()
    for start in range(0, len(nodes), _ROWS):
        part = slice(start, start + _ROWS)
        yield pa.RecordBatch.from_arrays(
            [pa.array(nodes[part]), pa.array(roots[part]), pa.array(distances[part], pa.int32())],
            names=["node", "root", "distance"],
        )


def _merged(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    forest = Forest()
    for batch in batches:
        forest.add(*(batch.column(name).to_numpy() for name in ("node", "root", "distance")))
    yield from rows_of(forest)
