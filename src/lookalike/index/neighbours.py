"""What a search found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import NamedTuple, overload

import numpy as np


class Neighbour(NamedTuple):
    """An item found: its id, its label, its distance (see `lookalike.index.metric`)."""

    item_id: str
    label: str | None
    distance: float


class Neighbours(Sequence[list[Neighbour]]):
    """By query, the items found, nearest first; also all of them as columns, one query after
    another.

    Attributes:
        limits: int64 (queries + 1,), where in the columns each query's begin.
        distances: float32 (found,).
    """

    def __init__(
        self,
        ids: Callable[[np.ndarray], list[str]],
        labels: Callable[[np.ndarray], list[str | None]],
        attribute: Callable[[np.ndarray, str], list[str | None]],
        limits: np.ndarray,
        distances: np.ndarray,
        rows: np.ndarray,
    ):
        self.limits = limits
        self.distances = distances
        self._rows = rows
        self._ids = ids
        self._labels = labels
        self._attribute = attribute

    def __len__(self) -> int:
        return len(self.limits) - 1

    @overload
    def __getitem__(self, query: int) -> list[Neighbour]: ...
    @overload
    def __getitem__(self, query: slice) -> list[list[Neighbour]]: ...
    def __getitem__(self, query: int | slice) -> list[Neighbour] | list[list[Neighbour]]:
        if isinstance(query, slice):
            return [self[number] for number in range(*query.indices(len(self)))]
        number = range(len(self))[query]
        part = slice(self.limits[number], self.limits[number + 1])
        found = zip(self.ids[part], self.labels[part], self.distances[part].tolist(), strict=True)
        return list(map(Neighbour._make, found))

    # Looked up when they are first asked for: who wants distances alone pays for no names.
    @cached_property
    def ids(self) -> list[str]:
        """Ids of all that was found."""
        return self._ids(self._rows)

    @cached_property
    def labels(self) -> list[str | None]:
        """Labels of all that was found."""
        return self._labels(self._rows)

    def attribute(self, key: str) -> list[str | None]:
        """An attribute's value of all that was found; None for an item without it."""
        return self._attribute(self._rows, key)
