"""64-bit hashes that differ in few bits, without comparing all with all.

Two hashes that differ in at most d bits agree in one of d + 1 bands of bits (the pigeonhole
principle), so only hashes that share a band are compared: none is missed. A run of many hashes that
share one is cut up by bands of its other bits in the same way, where differences must lie.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from lookalike.lake.components import Forest

ALL: Final = 2**64 - 1
"""The mask of all bits."""

_ONES: Final = np.array([word.bit_count() for word in range(2**16)], np.uint8)
_LARGE = 1024  # hashes of a run that is cut up further
_DEPTH = 3  # so often: each time a hash comes into d + 1 runs
_WIDTH = 4  # bits of a band that still tell hashes apart

Agree = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Of pairs of rows, (n,) and (n,), which are to count: bool (n,)."""


@dataclass(frozen=True)
class Runs:
    """Hashes sorted so that those to be compared with one another lie together.

    Attributes:
        rows: int64 (n,): what `agree` knows a hash by.
        hashes: uint64 (n,).
        runs: int64 (n,), ascending from 0: the number of each one's run.
        free: mask of the bits in which hashes of a run may differ.
        earlier: bands by which they were looked through before: who agrees in one has been found.
    """

    rows: np.ndarray
    hashes: np.ndarray
    runs: np.ndarray
    free: int
    earlier: tuple[int, ...] = ()

    def take(self, places: np.ndarray) -> Runs:
        """Some of them."""
        return replace(
            self, rows=self.rows[places], hashes=self.hashes[places], runs=self.runs[places]
        )


def popcount(words: np.ndarray) -> np.ndarray:
    """Bits that are set: uint8 (n,) of uint64 (n,)."""
    ones = _ONES[np.ascontiguousarray(words).view(np.uint16)].reshape(-1, 4)
    return ones[:, 0] + ones[:, 1] + ones[:, 2] + ones[:, 3]


def bands(distance: int, free: int = ALL) -> list[int]:
    """Masks of distance + 1 bands that share out the bits of a mask.

    Its bits are dealt out in turn: those of a perceptual hash lie by frequency, and neighbours
    resemble one another, so bands of neighbouring bits would tell hashes apart less.
    """
    bits = [bit for bit in range(64) if free >> bit & 1]
    return [sum(1 << bit for bit in bits[band :: distance + 1]) for band in range(distance + 1)]


def numbered(*keys: np.ndarray) -> np.ndarray:
    """Numbers of the runs of equal keys, (n,) each, sorted so that equal ones lie together."""
    changes = np.zeros(len(keys[0]), bool)
    for key in keys:
        changes[1:] |= key[1:] != key[:-1]
    return np.cumsum(changes)


def pairs(runs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of places in the same run, in pieces of fewer than n: int64 (m,), int64 (m,).

    Args:
        runs: (n,), ascending.
    """
    left, step = np.arange(len(runs)), 1
    while True:
        # Those whose run has ended have no pair further on either.
        left = left[: np.searchsorted(left, len(runs) - step)]
        left = left[runs[left] == runs[left + step]]
        if len(left) == 0:
            return
        yield left, left + step
        step += 1


def search(
    among: Runs,
    distance: int,
    nodes: np.ndarray,
    forest: Forest,
    agree: Agree | None = None,
    depth: int = 1,
) -> int:
    """Join what lies in one run and differs in few bits.

    Memory is a small multiple of the hashes', however long a run is; time is quadratic only in
    runs that bands cannot cut up, for most of their hashes being nearly the same.

    Args:
        among: the hashes.
        distance: most bits that may differ.
        nodes: int64, by row: what the forest calls it.
        forest: takes the edges, and to each node the distance of the nearest.
        agree: which pairs of them are to count; none: all.
        depth: of the runs.

    Returns:
        How many pairs were compared. One that lies in several bands is compared in each, and
        joined in the first.
    """
    sizes = np.bincount(among.runs, minlength=1)[among.runs]
    width = among.free.bit_count() // (distance + 1)
    large = (sizes > _LARGE) & (depth < _DEPTH and width >= _WIDTH)
    compared = _compare(among.take(~large & (sizes > 1)), distance, nodes, forest, agree)
    if large.any():
        some = among.take(large)
        done = among.earlier
        for band in bands(distance, among.free):
            keys = some.hashes & np.uint64(band)
            cut = some.take(np.lexsort((keys, some.runs)))
            runs = numbered(cut.runs, cut.hashes & np.uint64(band))
            cut = replace(cut, runs=runs, free=among.free & ~band, earlier=done)
            compared += search(cut, distance, nodes, forest, agree, depth + 1)
            done = (*done, band)
    return compared


def _compare(
    among: Runs, distance: int, nodes: np.ndarray, forest: Forest, agree: Agree | None
) -> int:
    compared = 0
    for left, right in pairs(among.runs):
        compared += len(left)
        differing = among.hashes[left] ^ among.hashes[right]
        apart = popcount(differing)
        near = np.flatnonzero(apart <= distance)
        for band in among.earlier:
            near = near[differing[near] & np.uint64(band) != 0]
        a, b, apart = among.rows[left[near]], among.rows[right[near]], apart[near]
        if agree is not None and len(a):
            kept = agree(a, b)
            a, b, apart = a[kept], b[kept], apart[kept]
        forest.add(nodes[a], nodes[b], apart)
        forest.add(nodes[b], nodes[a], apart)
    return compared
