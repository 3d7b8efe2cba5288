"""Which of an item's neighbours are given: one of a family, few of a brand, none too far."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lookalike.columns import FAMILY, LABEL
from lookalike.errors import DataError
from lookalike.index import Index, Neighbour
from lookalike.index.metric import ROUNDING
from lookalike.metrics import Calibration
from lookalike.serving.contract import Options

_WIDER = 4
_DEEPEST = 10_000
"""Neighbours of a query that are looked through, where k of them do not do."""
_TOGETHER = 100_000
"""Neighbours looked through at a time, of all queries."""


@dataclass(frozen=True)
class Rules:
    """How neighbours are chosen.

    Attributes:
        k: how many at most.
        radius: distance beyond which none is given, but for rounding.
        collapse: whether one is given of a family, the nearest.
        most: by 'label' or key of an attribute, how many of one value.
        matching: how many items may be found.
    """

    k: int
    radius: float
    collapse: bool
    most: dict[str, int]
    matching: int

    @classmethod
    def of(cls, options: Options, index: Index, calibration: Calibration | None) -> Rules:
        """From what a request asks for.

        Raises:
            DataError: it asks for a probability and there is no calibration, limits a key that no
                item has, or filters by what is no filter or names what no item has.
        """
        radius = math.inf if options.within is None else options.within
        if options.min_similarity is not None:
            if calibration is None:
                raise DataError(
                    "min_similarity was asked for, and this release's encoder has no calibration "
                    "that would tell probabilities",
                    remedy="Ask with `within`, a distance",
                )
            radius = min(radius, calibration.distance(options.min_similarity))
        keys = [key for key in index.keys if key != FAMILY]
        if unknown := [key for key in options.most if key not in (LABEL, *keys)]:
            raise DataError(
                f"max_per names {', '.join(unknown)[:100]}, which no item has",
                allowed=", ".join([LABEL, *keys][:20]),
            )
        radius += ROUNDING
        collapse = options.collapse and FAMILY in index.keys
        return cls(options.k, radius, collapse, options.most, index.count(options.where))

    @property
    def keys(self) -> list[str]:
        """Of the attributes that decide."""
        return [key for key in self.most if key != LABEL] + ([FAMILY] if self.collapse else [])


def choose(
    index: Index,
    vectors: np.ndarray,
    own: Sequence[str | None],
    rules: Rules,
    options: Options,
) -> list[list[Neighbour]]:
    """Of each query the neighbours to give, nearest first: `k`, or all that may be given of the
    10,000 nearest that match.

    Args:
        index: that is searched.
        vectors: float32 (n, dim).
        own: n, of each query the item that it is and that is not to be given; or None.
        rules: see `Rules`.
        options: `where` and `effort` of them.
    """
    chosen: list[list[Neighbour]] = [[] for _ in own]
    pending = list(range(len(own))) if rules.matching else []
    asked = rules.k + any(item_id is not None for item_id in own)
    if rules.collapse or rules.most:
        asked *= 2
    deepest = min(rules.matching, max(_DEEPEST, asked))
    while pending:
        asked = min(asked, deepest)
        short = []
        for begin in range(0, len(pending), step := max(1, _TOGETHER // asked)):
            part = pending[begin : begin + step]
            found = index.search(vectors[part], asked, options.where, options.effort)
            values = {key: found.attribute(key) for key in rules.keys}
            for place, number in enumerate(part):
                near = found[place]
                own_part = slice(found.limits[place], found.limits[place + 1])
                about = {key: texts[own_part] for key, texts in values.items()}
                chosen[number] = _picked(near, about, own[number], index, rules)
                all_seen = len(near) < asked or asked == deepest or near[-1].distance > rules.radius
                if len(chosen[number]) < rules.k and not all_seen:
                    short.append(number)
        pending, asked = short, asked * _WIDER
    return chosen


def _picked(
    near: Sequence[Neighbour],
    values: Mapping[str, Sequence[str | None]],
    own: str | None,
    index: Index,
    rules: Rules,
) -> list[Neighbour]:
    """Those to give of some neighbours, whose attributes by key are `values`."""
    families: set[str | None] = set()
    if own is not None and rules.collapse:
        families.add((index.about(own) or {}).get(FAMILY))
    counts: Counter[tuple[str, str]] = Counter()
    picked: list[Neighbour] = []
    for place, neighbour in enumerate(near):
        if neighbour.distance > rules.radius or len(picked) == rules.k:
            break
        family = values[FAMILY][place] if rules.collapse else None
        if neighbour.item_id == own or (family is not None and family in families):
            continue
        texts = {key: neighbour.label if key == LABEL else values[key][place] for key in rules.most}
        # What an item lacks is no value of which there could be too many.
        known = [(key, text) for key, text in texts.items() if text is not None]
        if any(counts[value] >= rules.most[value[0]] for value in known):
            continue
        counts.update(known)
        families.add(family)
        picked.append(neighbour)
    return picked
