"""Values of trials, as numbers."""

import pytest

from lookalike.steps.trials import MISSING, Column


def test_places_are_logarithmic_where_values_span_much() -> None:
    column = Column.of([0.001, 0.01, 0.1], log=True)
    assert column.places(column.codes).tolist() == pytest.approx([0, 0.5, 1])
    column = Column.of([1, 3, 19], log=True)
    assert column.places(column.codes).tolist() == pytest.approx([0, 1 / 9, 1])


def test_none_is_a_value_and_what_is_not_set_is_missing() -> None:
    column = Column.of([1.0, MISSING, 2.0])
    assert column.missing.tolist() == [False, True, False]
    assert not Column.of(["a", None]).missing.any()
