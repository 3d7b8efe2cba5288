"""What filters match in the parts of an open index, remembered between searches."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np

from lookalike.columns import FAMILY
from lookalike.index.delta import Delta
from lookalike.index.items import Items
from lookalike.index.rows import Rows
from lookalike.index.where import Where, parse, unknown

_REMEMBERED = 32


class Matching:
    """The rows of base and delta that are meant, alive or not.

    Args:
        base: rows of the base.
        delta: bool, of the delta's first rows; later ones are not meant.
    """

    def __init__(self, base: Rows, delta: np.ndarray):
        self._base = base
        self.delta = delta
        self._alive: tuple[Rows, Rows] | None = None
        self._later: tuple[Rows, Rows] | None = None

    def among(self, alive: Rows, later: Rows) -> tuple[Rows, Rows]:
        """Those that are alive.

        Args:
            alive: rows of the base.
            later: rows of the delta.
        """
        # Worked out once for a state of the base, and of the delta.
        if self._alive is None or self._alive[0] is not alive:
            self._alive = (alive, self._base if alive.whole else self._base & alive)
        if self._later is None or self._later[0] is not later:
            matches = np.zeros(later.total, bool)
            matches[: len(self.delta)] = self.delta
            self._later = (later, Rows.of(later.mask & matches))
        return self._alive[1], self._later[1]


class Filters:
    """The last filters that were asked for, with what they match.

    Rows never change what they hold, so that of a filter known already only new ones are looked at.

    Args:
        items: of the base.
        delta: what came after.
    """

    def __init__(self, items: Items, delta: Delta):
        self._items = items
        self._delta = delta
        self._known: OrderedDict[str, tuple[Where, Matching]] = OrderedDict()

    @property
    def keys(self) -> set[str]:
        """Keys that attributes have: the names that filters may use."""
        return {*self._items.keys, *self._delta.keys}

    def matching(self, text: str) -> Matching:
        """What a filter matches now.

        Raises:
            DataError: it is none, or names what no item has.
        """
        if text not in self._known:
            where = parse(text)
            if where.keys - self.keys:
                raise unknown(where, self.keys - {FAMILY})
            rows = Rows.of(where.matches(self._items))
            self._known[text] = (where, Matching(rows, np.empty(0, bool)))
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
        self._known.move_to_end(text)
        where, matching = self._known[text]
        if (known := len(matching.delta)) < (size := len(self._delta)):
            later = where.matches(self._delta.items(known, size))
            matching.delta = np.concatenate([matching.delta, later])
        return matching
