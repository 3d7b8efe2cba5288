"""The language of filters, beside Python's own meaning of the same words."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike.errors import DataError
from lookalike.index.items import Items
from lookalike.index.where import parse

TEXTS = ["", "a", "b", "A", "é", "10", "9", "1e1", "-3", " 10", "nan", "inf", "1_0", "0x1", "+.5"]
NUMBERS = {"10": 10.0, "9": 9.0, "1e1": 10.0, "-3": -3.0, "+.5": 0.5}
COLUMNS = ("item_id", "label", "size", "heel height")
ITEMS = st.lists(
    st.tuples(
        st.sampled_from([None, *TEXTS]),
        st.one_of(
            st.none(),
            st.dictionaries(st.sampled_from(["size", "heel height"]), st.sampled_from(TEXTS)),
        ),
    ),
    min_size=1,
    max_size=8,
)
LITERALS = st.one_of(st.none(), st.sampled_from(TEXTS), st.sampled_from([10, 9.0, -3, 0.5, 7]))
OPERATORS = {"==": "eq", "!=": "ne", "<": "lt", "<=": "le", ">": "gt", ">=": "ge"}


@st.composite
def conditions(draw: Any, depth: int = 3) -> Any:
    """A filter as a tree of tuples."""
    kind = draw(st.sampled_from(["compare", "in"] + (["and", "or", "not"] if depth else [])))
    if kind == "compare":
        by, literal = draw(st.sampled_from(list(OPERATORS))), draw(LITERALS)
        if literal is None:
            by = draw(st.sampled_from(["==", "!="]))
        return kind, draw(st.sampled_from(COLUMNS)), by, literal
    if kind == "in":
        few = draw(st.lists(LITERALS, max_size=3))
        return kind, draw(st.sampled_from(COLUMNS)), draw(st.booleans()), few
    if kind == "not":
        return kind, draw(conditions(depth - 1))
    return kind, draw(conditions(depth - 1)), draw(conditions(depth - 1))


def written(tree: Any) -> str:
    match tree:
        case ("compare", column, by, literal):
            return f"{named(column)} {by} {literal!r}"
        case ("in", column, negated, few):
            return f"{named(column)} {'not in' if negated else 'in'} {few!r}"
        case ("not", inner):
            return f"not ({written(inner)})"
        case (word, left, right):
            return f"({written(left)}) {word} ({written(right)})"
    raise AssertionError(tree)


def named(column: str) -> str:
    return f"attributes[{column!r}]" if " " in column else column


def equal(text: str | None, literal: Any) -> bool:
    if text is None or literal is None:
        return text is literal
    return text == literal if isinstance(literal, str) else NUMBERS.get(text) == literal


def compares(text: str | None, by: str, literal: Any) -> bool:
    value: Any = text if isinstance(literal, str) or text is None else NUMBERS.get(text)
    return value is not None and bool(getattr(operator, OPERATORS[by])(value, literal))


def true_of(tree: Any, item: dict[str, str | None]) -> bool:
    """What the documentation says, one item at a time."""
    match tree:
        case ("compare", column, "==" | "!=" as by, literal):
            return equal(item[column], literal) == (by == "==")
        case ("compare", column, by, literal):
            return compares(item[column], by, literal)
        case ("in", column, negated, few):
            return any(equal(item[column], literal) for literal in few) != negated
        case ("not", inner):
            return not true_of(inner, item)
        case (word, left, right):
            both = true_of(left, item), true_of(right, item)
            return all(both) if word == "and" else any(both)
    raise AssertionError(tree)


@settings(deadline=None)
@given(items=ITEMS, tree=conditions())
def test_a_filter_means_what_it_says(items: list[Any], tree: Any) -> None:
    ids = [f"item {i}" for i in range(len(items))]
    columns = Items.of(ids, [label for label, _ in items], [found for _, found in items])
    expected = [
        true_of(
            tree,
            {
                "item_id": item_id,
                "label": label,
                "size": (found or {}).get("size"),
                "heel height": (found or {}).get("heel height"),
            },
        )
        for item_id, (label, found) in zip(ids, items, strict=True)
    ]
    assert parse(written(tree)).matches(columns).tolist() == expected


def test_chains_and_literals_on_the_left() -> None:
    items = Items.of(list("abcd"), ["x"] * 4, [{"n": n} for n in ("1", "2", "3", "x")])
    assert parse("1 < n <= 3").matches(items).tolist() == [False, True, True, False]
    assert parse("2 == n").matches(items).tolist() == [False, True, False, False]
    assert parse("3 > n and not n == 1").matches(items).tolist() == [False, True, False, False]
    assert parse("-1 >= n").matches(items).tolist() == [False] * 4


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("__import__('os').system('true')", "cannot stand there"),
        ("label", "'label' cannot stand there"),
        ("label == True", "'True' cannot stand there"),
        ("1 == 1", "'1' cannot stand there"),
        ("label.upper() == 'A'", "cannot stand there"),
        ("label is None", "compares by `is`"),
        ("price < None", "None has no order"),
        ("label in 'boots'", "is no list"),
        ("label in (other, 'a')", "'other' cannot stand there"),
        ("label == other", "'other' cannot stand there"),
        ("price == 1e999", "no number that can be compared with"),
        ("price < --1", "cannot stand there"),
        ("label == b'a'", "cannot stand there"),
        ("label == f'{1}'", "cannot stand there"),
        ("(lambda: label)() == 'a'", "cannot stand there"),
        ("attributes['a', 'b'] == 'c'", "cannot stand there"),
        ("label == 'a", "unterminated"),
        ("label == 'a'; label", "invalid syntax"),
        ("", "invalid syntax"),
        ("label == '\0'", "null bytes"),
        (r"label == '\ud800'", "half a character"),
        (r"label in ('a', '\ud800')", "half a character"),
        (r"attributes['\ud800'] == 'a'", "half a character"),
        ("not " * 150 + "label == 'a'", "nested too deep"),
        ("(" * 500 + "a == 1" + ")" * 500, "too many nested"),
        ("label == '" + "a" * 100_000 + "'", "100,011 characters"),
    ],
)
def test_what_is_no_filter_is_refused_in_words(text: str, said: str) -> None:
    with pytest.raises(DataError, match=r"not understood: .*Allowed: names, strings") as raised:
        parse(text)
    assert said in str(raised.value)
    assert len(str(raised.value)) < 500


def test_keys_are_those_that_are_named() -> None:
    where = parse("label == 'a' and (size < 3 or attributes['heel height'] in (1, 2))")
    assert where.keys == {"size", "heel height"}
    assert parse("item_id != 'x'").keys == set()


def test_maps_keep_their_last_value_and_nothing_else() -> None:
    items = Items.of(["a", "b", "c"], [None] * 3, [{"k": "1", "j": ""}, None, {}])
    assert items.keys == ["j", "k"]
    assert items.attributes(np.array([2, 0])) == [None, {"k": "1", "j": ""}]
