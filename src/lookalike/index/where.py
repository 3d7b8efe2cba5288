"""Filters: a small language over labels and attributes, parsed and never run as code.

    label == 'boots' and price < 80
    colour in ('red', 'dark red') or not (season != 'winter')
    10 <= attributes['heel height'] < 12

- Names: `label`, `item_id`, and the keys of attributes; `attributes['KEY']` names any key.
- Comparisons: == != < <= > >= and chains of them, `in` and `not in` a list in parentheses or
  brackets; joined by and, or, not and parentheses.
- Literals: strings, numbers, and None, which == and != compare with what an item lacks.

Texts are compared with strings as texts, by code point. With a number they are compared as
numbers: '80', '80.0' and '8e1' equal 80; a text that is no decimal number is equal to none, and
neither less nor more than any. What an item lacks is equal to nothing but None: on it == < <= > >=
and `in` are false. `!=` is always `not ==`, and `not in` is `not in`: so both are true of it.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.columns import ITEM_ID, LABEL
from lookalike.errors import DataError
from lookalike.index.items import Items, column_of

Literal = str | float | None
Matches = Callable[[Items], np.ndarray]

_ALLOWED: Final = (
    "names, strings, numbers and None, compared by == != < <= > >= in, joined by and, or, not and "
    "parentheses: colour == 'red' and price < 80"
)
_LONGEST: Final = 100_000
_DEEPEST: Final = 100
_OWN: Final = (ITEM_ID, LABEL)
_ORDER: Final[dict[type[ast.cmpop], str]] = {
    ast.Lt: "less", ast.LtE: "less_equal", ast.Gt: "greater", ast.GtE: "greater_equal",
}  # fmt: skip
_TURNED: Final = {
    "less": "greater", "less_equal": "greater_equal", "greater": "less",
    "greater_equal": "less_equal", "equal": "equal",
}  # fmt: skip


@dataclass(frozen=True)
class Where:
    """A filter, understood.

    Attributes:
        text: as it was written.
        keys: of the attributes that it names.
        matches: items to bool (rows,).
    """

    text: str
    keys: frozenset[str]
    matches: Matches


def parse(text: str) -> Where:
    """Understand a filter.

    Raises:
        DataError: it is none: what was found, and what is allowed.
    """
    if len(text) > _LONGEST:
        raise _wrong(text, f"it has {len(text):,} characters, more than {_LONGEST:,}")
    try:
        # The parser of Python; its tree is walked here, and nothing of it is ever run.
        tree = ast.parse(text.strip(), mode="eval").body
        reading = _Reading(text)
        matches = reading.condition(tree)
    except SyntaxError as error:
        raise _wrong(text, f"{error.msg}, at character {error.offset}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise _wrong(text, str(error) or "it is nested too deep") from None
    return Where(text, frozenset(reading.keys), matches)


class _Reading:
    """One walk through a tree; collects the keys that it comes across."""

    def __init__(self, text: str):
        self._text = text
        self.keys: set[str] = set()

    def condition(self, node: ast.expr, depth: int = 0) -> Matches:
        if depth > _DEEPEST:
            raise _wrong(self._text, "it is nested too deep")
        match node:
            case ast.BoolOp(op=op, values=values):
                parts = [self.condition(value, depth + 1) for value in values]
                joined = np.logical_and if isinstance(op, ast.And) else np.logical_or
                return lambda items: reduce(joined, (part(items) for part in parts))
            case ast.UnaryOp(op=ast.Not(), operand=operand):
                inner = self.condition(operand, depth + 1)
                return lambda items: ~inner(items)
            case ast.Compare(left=left, ops=ops, comparators=rights):
                sides = [left, *rights]
                pairs = zip(sides, ops, rights, strict=False)
                parts = [self._comparison(one, op, other) for one, op, other in pairs]
                return lambda items: reduce(np.logical_and, (part(items) for part in parts))
        raise self._unknown(node)

    def _comparison(self, left: ast.expr, op: ast.cmpop, right: ast.expr) -> Matches:
        match op:
            case ast.In() | ast.NotIn():
                matches = self._among(left, right)
                return matches if isinstance(op, ast.In) else lambda items: ~matches(items)
            case ast.Eq() | ast.NotEq():
                function = "equal"
            case _ if type(op) in _ORDER:
                function = _ORDER[type(op)]
            case _:
                raise _wrong(self._text, "it compares by `is`")
        if self._is_literal(left):
            left, right, function = right, left, _TURNED[function]
        column, literal = self._column(left), self._literal(right)
        if literal is None and function != "equal":
            raise _wrong(self._text, "None has no order")
        matches = _compared(column, function, literal)
        return (lambda items: ~matches(items)) if isinstance(op, ast.NotEq) else matches

    def _among(self, left: ast.expr, right: ast.expr) -> Matches:
        if not isinstance(right, ast.Tuple | ast.List):
            raise _wrong(self._text, f"`in {ast.unparse(right)}` is no list: write ('a', 'b')")
        column = self._column(left)
        literals = [self._literal(one) for one in right.elts]
        texts = [one for one in literals if isinstance(one, str)]
        others = [_compared(column, "equal", one) for one in literals if not isinstance(one, str)]

        def matches(items: Items) -> np.ndarray:
            values = pa.array(texts, pa.string())
            found = _told(items, column, lambda t: pc.is_in(t, value_set=values.cast(t.type)))
            return reduce(np.logical_or, (other(items) for other in others), found)

        return matches

    def _column(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name) if name in _OWN:
                return name
            case (
                ast.Name(id=key)
                | ast.Subscript(value=ast.Name(id="attributes"), slice=ast.Constant(value=str(key)))
            ):
                self.keys.add(self._text_of(key))
                return column_of(key)
        raise self._unknown(node)

    @staticmethod
    def _is_literal(node: ast.expr) -> bool:
        return isinstance(node, ast.Constant | ast.UnaryOp)

    def _literal(self, node: ast.expr) -> Literal:
        match node:
            case ast.Constant(value=bool()):
                pass  # Python's are numbers, ours are not
            case ast.Constant(value=None):
                return None
            case ast.Constant(value=str() as text):
                return self._text_of(text)
            case ast.Constant(value=int() | float() as number):
                return self._finite(number)
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as number)):
                return -self._finite(number)
        raise self._unknown(node)

    def _finite(self, number: float) -> float:
        if isinstance(number, bool) or not -1e300 < number < 1e300:
            raise _wrong(self._text, f"{number!r} is no number that can be compared with")
        return float(number)

    def _text_of(self, text: str) -> str:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise _wrong(self._text, f"{text!a:.60} is half a character") from None
        return text

    def _unknown(self, node: ast.expr) -> DataError:
        what = ast.unparse(node)
        return _wrong(self._text, f"{what[:60]!r} cannot stand there")


def _compared(column: str, function: str, literal: Literal) -> Matches:
    if literal is None:
        return lambda items: _told(items, column, None)
    if isinstance(literal, float):
        compare = getattr(np, function)

        def of_numbers(items: Items) -> np.ndarray:
            return _told(items, column, lambda _: compare(items.numbers(column), literal))

        return of_numbers
    arrow = getattr(pc, function)
    return lambda items: _told(items, column, lambda texts: arrow(texts, literal))


def _told(items: Items, column: str, tell: Callable[[Any], Any] | None) -> np.ndarray:
    """Tell of each different text whether it matches, and so of each row; None: who has no text."""
    found = items.texts(column)
    if found is None:
        return np.full(len(items), tell is None)
    texts, codes = found
    told = np.full(len(texts) + 1, tell is None)
    told[:-1] = False if tell is None else np.asarray(tell(texts), dtype=bool)
    return told[codes]


def _wrong(text: str, what: str) -> DataError:
    shown = text if len(text) <= 100 else f"{text[:100]}..."
    return DataError(f"the filter {shown!r} is not understood: {what}", allowed=_ALLOWED)


def unknown(where: Where, known: set[str]) -> DataError:
    """The error that names what a filter names and no item has."""
    missing = ", ".join(sorted(where.keys - known))
    return DataError(
        f"the filter {where.text[:100]!r} names {missing}, which no item has",
        allowed=", ".join([*_OWN, *sorted(known)]),
    )
