"""What the trials of a search tried, as numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Final

import numpy as np

MISSING: Final = object()
"""In place of a value that a trial does not have: None is one."""

_LOG_FROM = 20  # largest by smallest value


@dataclass(frozen=True)
class Tried:
    """A trial that ended: `values` by dotted keys, `score` None where it failed.

    A key may be missing: some parameters exist only under a value of another one.
    """

    number: int
    values: dict[str, Any]
    score: float | None


@dataclass(frozen=True)
class Column:
    """A parameter's values, by trial: float (n,) `codes`, nan where it is missing.

    Codes are numbers, maybe their logarithms, or places in `names`.
    """

    codes: np.ndarray
    names: tuple[str, ...] = ()
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[Any], log: bool = False) -> Column:
        """Of values, or `MISSING`, by trial; `log`: of logarithms where numbers span much."""
        present = [value for value in values if value is not MISSING]
        if all(_is_number(value) for value in present):
            low, high = float(min(present)), float(max(present))
            log = log and low > 0 and math.log(high) - math.log(low) > math.log(_LOG_FROM)
            codes = np.array([math.nan if v is MISSING else float(v) for v in values])
            return cls(np.log10(codes) if log else codes, log=log)
        # By what they look like: lists have no hash, and True would be 1.
        ordered = sorted(present, key=lambda v: (0, v, "") if _is_number(v) else (1, 0, str(v)))
        names = tuple(dict.fromkeys(str(value) for value in ordered))
        found = [math.nan if v is MISSING else names.index(str(v)) for v in values]
        return cls(np.array(found, dtype=float), names)

    @property
    def missing(self) -> np.ndarray:
        """bool (n,)."""
        return np.isnan(self.codes)

    @property
    def distinct(self) -> np.ndarray:
        """Float: its codes once each, the least first."""
        return np.unique(self.codes[~self.missing])

    def places(self, codes: np.ndarray) -> np.ndarray:
        """Float (n,): codes from 0 for the least to 1 for the largest of this column."""
        low, high = self.distinct[[0, -1]]
        return (codes - low) / (high - low) if high > low else np.full(len(codes), 0.5)


def successful(trials: Sequence[Tried]) -> list[Tried]:
    """Those with a score, in the same order."""
    return [t for t in trials if t.score is not None and math.isfinite(t.score)]


def by_parameter(trials: Sequence[Tried]) -> dict[str, Column]:
    """What successful trials tried, by dotted key."""
    scored = successful(trials)
    keys = dict.fromkeys(key for trial in scored for key in trial.values)
    return {key: Column.of([t.values.get(key, MISSING) for t in scored], True) for key in keys}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
