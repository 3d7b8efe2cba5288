"""Some rows of a part: those that a search may find."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Final

import faiss
import numpy as np

_EFFORTS: Final = 64
"""That faiss's parameters are kept of, for each set of rows."""
_ONES = np.array([bin(i).count("1") for i in range(256)], np.uint8)


class Rows:
    """A set of rows as bits, in faiss's order: that of row r is bit r % 8 of byte r // 8.

    Args:
        bits: uint8 (ceil(total / 8),); never changed afterwards.
        total: rows of the part.
        count: rows of the set; None: they are counted.
    """

    def __init__(self, bits: np.ndarray, total: int, count: int | None = None):
        self.bits = bits
        self.total = total
        self.count = _ones(bits) if count is None else count
        self._parameters: dict[tuple[Any, ...], faiss.SearchParameters] = {}

    @classmethod
    def of(cls, mask: np.ndarray) -> Rows:
        """The rows at which a bool (total,) is true."""
        return cls(np.packbits(mask, bitorder="little"), len(mask))

    def __and__(self, other: Rows) -> Rows:
        return Rows(self.bits & other.bits, self.total)

    def without(self, rows: np.ndarray) -> Rows:
        """All but some rows."""
        bits = self.bits.copy()
        np.bitwise_and.at(bits, rows >> 3, ~(np.uint8(1) << (rows & 7).astype(np.uint8)))
        touched = np.unique(rows >> 3)
        count = self.count - _ones(self.bits[touched]) + _ones(bits[touched])
        return Rows(bits, self.total, count)

    def __contains__(self, row: int) -> bool:
        return bool(self.bits[row >> 3] >> (row & 7) & 1)

    @cached_property
    def mask(self) -> np.ndarray:
        """bool (total,)."""
        return np.unpackbits(self.bits, count=self.total, bitorder="little").view(bool)

    @cached_property
    def numbers(self) -> np.ndarray:
        """int64 (count,), ascending."""
        return np.flatnonzero(self.mask)

    @property
    def share(self) -> float:
        return self.count / max(self.total, 1)

    @property
    def whole(self) -> bool:
        return self.count == self.total

    @cached_property
    def _selector(self) -> faiss.IDSelector:
        return None if self.whole else faiss.IDSelectorBitmap(self.bits)

    def parameters(self, kind: type[faiss.SearchParameters], **efforts: Any) -> Any:
        """What tells faiss to look so hard, and to find these rows alone.

        To make one takes as long as a short search does: a few are kept.
        """
        key = (kind, *efforts.items())
        known = self._parameters.get(key)
        if known is None:
            known = kind(sel=self._selector, **efforts)
            if len(self._parameters) >= _EFFORTS:
                self._parameters.clear()
            self._parameters[key] = known
        return known


def _ones(bits: np.ndarray) -> int:
    return int(_ONES[bits].sum(dtype=np.int64))
