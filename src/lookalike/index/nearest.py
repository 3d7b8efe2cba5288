"""Exactly as many neighbours as were asked for: searching one part, wider where a filter is narrow.

An approximate search stops when it has looked at enough rows, whether they may be found or not.
So it looks the harder the fewer may be; what still lacks neighbours looks harder yet; and where
comparing with every row that may be found takes less than that, this is done.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import ceil
from typing import Final

import faiss
import numpy as np

from lookalike.index.flat import Flat
from lookalike.index.metric import code_of, distances
from lookalike.index.rows import Rows
from lookalike.index.vectors import (
    IN_ORDER,
    Found,
    Vectors,
    Within,
    by_differences,
    joined,
    nearest_of,
    ranged,
)

_CHUNK: Final = 2**16  # vectors compared with at a time
_FEW: Final = 2**20  # numbers in the vectors of some rows that are kept at hand (4 MiB)
_WIDER: Final = 4
_NEIGHBOURS: Final = 10
"""That an effort is meant for."""


def search(vectors: Vectors, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
    """The `k` nearest of some rows, or all of them where there are fewer.

    Args:
        vectors: of a part.
        queries: float32 (n, dim), `prepared`.
        k: at least 1.
        rows: which may be found.
        effort: see `Plan.effort`; for 10 neighbours among all rows.

    Returns:
        (n, min(k, rows.count)) distances and rows, none of them -1.
    """
    k = min(k, rows.count)
    if not k or not len(queries):
        return np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    # More neighbours lie farther away.
    wide = max(1.0, effort / rows.share * max(1.0, k / _NEIGHBOURS) ** 0.5)
    if _narrow(vectors, len(queries), k, rows, wide):
        return exact(vectors, queries, k, rows)
    near, found = vectors.search(queries, k, rows, ceil(wide))
    if len(queries) == 1 and found[0, -1] >= 0:
        return near, found  # of one query each operation on arrays is felt
    # What was not found comes last.
    while len(waiting := np.flatnonzero(found[:, -1] < 0)):
        wide *= _WIDER
        if _narrow(vectors, len(waiting), k, rows, wide):
            near[waiting], found[waiting] = exact(vectors, queries[waiting], k, rows)
        else:
            effort = ceil(wide)
            near[waiting], found[waiting] = vectors.search(queries[waiting], k, rows, effort)
    return near, found


def _narrow(vectors: Vectors, queries: int, k: int, rows: Rows, effort: float) -> bool:
    """Whether comparing with every row that may be found costs less than a search."""
    # Queries share what is fetched; whole vectors that are all wanted are used where they lie, and
    # those of a few rows are at hand when the same filter is asked again. It must not matter
    # whether it was asked before: the same question has the same answer.
    whole = rows.whole and isinstance(vectors, Flat)
    fetched = 0 if whole or _few(vectors, rows) else vectors.fetching
    every = rows.count * (fetched / queries + IN_ORDER)
    return vectors.work(k, rows, ceil(effort)) >= every


def _few(vectors: Vectors, rows: Rows) -> bool:
    """Whether the vectors of some rows are few enough to be kept at hand."""
    return not rows.whole and rows.count * vectors.dim <= _FEW


def exact(vectors: Vectors, queries: np.ndarray, k: int, rows: Rows) -> Found:
    """As `search`, by comparing with every row that may be found: at least one."""
    k = min(k, rows.count)
    parts: list[Found] = []
    code = code_of(vectors.metric)
    for numbers, some in _chunks(vectors, rows):
        search = partial(faiss.knn, xb=some, k=min(k, len(some)), metric=code)
        values, places = by_differences(search, queries, vectors.metric)
        parts.append((distances(values, vectors.metric), numbers[places]))
        if len(parts) > 1:
            near, found = (np.concatenate(part, axis=1) for part in zip(*parts, strict=True))
            parts = [nearest_of(near, found, k)]
    near, found = parts[0]
    if (near[:, 1:] <= near[:, :-1]).any():  # equal ones come by row
        near, found = nearest_of(near, found, k)
    return near, found


def within(vectors: Vectors, queries: np.ndarray, radius: float, rows: Rows) -> Within:
    """All of some rows that are at most so far away, in any order."""
    if not len(queries) or not rows.count:
        return np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.int64)
    if (own := vectors.within(queries, radius, rows)) is not None:
        return own
    parts = []
    for numbers, some in _chunks(vectors, rows):
        flat = faiss.IndexFlat(some.shape[1], code_of(vectors.metric))
        flat.add(np.ascontiguousarray(some))
        owners, near, places = ranged(flat, queries, radius, vectors.metric)
        parts.append((owners, near, numbers[places]))
    return joined(parts)


def _chunks(vectors: Vectors, rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers that may be found, with their vectors: those side by side without a copy."""
    if rows.count and _few(vectors, rows):
        yield rows.numbers, vectors.at_hand(rows)
        return
    for begin in range(0, rows.count, _CHUNK):
        if rows.whole:
            numbers = np.arange(begin, min(begin + _CHUNK, rows.total))
            yield numbers, vectors.take(slice(begin, begin + len(numbers)))
        else:
            numbers = rows.numbers[begin : begin + _CHUNK]
            yield numbers, vectors.take(numbers)
