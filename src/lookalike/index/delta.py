"""What came after the base was built: a few items in memory, found by comparing with all."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lookalike.index.items import Attributes, Items
from lookalike.index.metric import Metric
from lookalike.index.plan import Plan
from lookalike.index.rows import Rows
from lookalike.index.vectors import Found, Vectors, Within


class Buffer(Vectors):
    """Whole vectors in an array that grows; what was added stays where it is."""

    def __init__(self, dim: int, metric: Metric):
        super().__init__(Plan("exact"), metric)
        self._array = np.empty((16, dim), np.float32)
        self._count = 0

    @property
    def count(self) -> int:
        return self._count

    @property
    def dim(self) -> int:
        return int(self._array.shape[1])

    @property
    def fetching(self) -> float:
        return 0.5

    def add(self, vectors: np.ndarray) -> None:
        need = self._count + len(vectors)
        if need > len(self._array):
            grown = np.empty((max(need, 2 * len(self._array)), self._array.shape[1]), np.float32)
            grown[: self._count] = self._array[: self._count]
            self._array = grown  # a search at work goes on in the one before
        self._array[self._count : need] = vectors
        self._count = need

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._array[rows]

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        raise NotImplementedError  # its `work` is never the smaller

    def work(self, k: int, rows: Rows, effort: int) -> float:  # noqa: ARG002
        return float("inf")

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:  # noqa: ARG002
        return None


class Delta:
    """Items added since; a row once given is never given again.

    Attributes:
        vectors: of the rows.
        ids, labels, attributes: of the rows.
        alive: bool, at least a place a row: whether its item has not been changed or deleted.
        rows: by item id, the row that is alive.
    """

    def __init__(self, dim: int, metric: Metric):
        self.vectors = Buffer(dim, metric)
        self.ids: list[str] = []
        self.labels: list[str | None] = []
        self.attributes: list[Attributes] = []
        self.keys: set[str] = set()
        self.alive = np.zeros(16, bool)
        self.rows: dict[str, int] = {}
        self._found: Rows | None = None

    def __len__(self) -> int:
        return self.vectors.count

    @property
    def found(self) -> Rows:
        """The rows that are alive: the same until the next change, so that what is worked out of
        them is worked out once."""
        if self._found is None:
            self._found = Rows.of(self.alive[: len(self)])
        return self._found

    def add(
        self,
        ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None],
        attributes: Sequence[Attributes],
    ) -> None:
        """Append items; `vectors` are `prepared`. They are found once all is in place."""
        begin = len(self)
        while len(self.alive) < begin + len(ids):
            self.alive = np.concatenate([self.alive, np.zeros_like(self.alive)])
        self.ids += ids
        self.labels += labels
        self.attributes += attributes
        for one in attributes:
            self.keys.update(one or ())
        self.alive[begin : begin + len(ids)] = True
        self.vectors.add(vectors)
        for row, item_id in enumerate(ids, start=begin):
            self.rows[item_id] = row
        self._found = None

    def kill(self, row: int) -> None:
        """Take a row out of what is found."""
        self.alive[row] = False
        self._found = None
        if self.rows.get(self.ids[row]) == row:
            del self.rows[self.ids[row]]

    def items(self, begin: int, end: int) -> Items:
        """Items of a stretch of rows, as Arrow columns."""
        part = slice(begin, end)
        return Items.of(self.ids[part], self.labels[part], self.attributes[part])
