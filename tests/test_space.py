"""The words of a search space."""

import pytest

from lookalike.space import (
    Choice,
    Integers,
    LogUniform,
    Normal,
    Uniform,
    flat,
    part,
    samples,
)


def test_words_become_parts_and_others_stand_for_themselves() -> None:
    assert part({"log_uniform": [0.1, 1]}) == LogUniform(0.1, 1)
    assert part({"uniform": (0, 1)}) == Uniform(0, 1)
    assert part({"int": [1, 3]}) == Integers(1, 3)
    assert part({"normal": [0, 2.5]}) == Normal(0, 2.5)
    assert part({"choice": [None, "a", {"b": {"int": [1, 2]}, "c": 4}]}) == Choice(
        (None, "a", {"b": Integers(1, 2), "c": 4})
    )
    for value in (3, "uniform", None, True, [1, 2]):
        assert part(value) == value


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"uniform": 3}, "uniform: 3 is no list"),
        ({"uniform": [1]}, "are not two numbers"),
        ({"uniform": [1, "2"]}, "are not two numbers"),
        ({"log_uniform": ["1e-4", 0.1]}, "are not two numbers.*write 1.0e-4"),
        ({"uniform": [False, True]}, "are not two numbers"),
        ({"uniform": [1, 1]}, "from 1 to 1, not upwards"),
        ({"int": [1, 2.5]}, "are not two whole numbers"),
        ({"log_uniform": [-1, 1]}, "begins at -1. Allowed: above 0"),
        ({"normal": [1, 0]}, "the standard deviation is 0. Allowed: above 0"),
        ({"choice": []}, "there are no options"),
        ({"choice": [{"a": {"int": [2, 1]}}]}, "from 2 to 1"),
    ],
)
def test_words_with_what_they_cannot_mean_are_refused(value: object, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        part(value)


def test_samples_are_ends_and_options() -> None:
    assert samples(Uniform(0.0, 1.0))[:2] == [0.0, 1.0]
    assert samples(Integers(2, 9)) == [2, 9]
    assert samples(Normal(5, 1))[:2] == [2, 8]
    assert samples("x") == ["x"]
    assert samples({"a": 1, "b": Choice((2, 3))}) == [{"a": 1, "b": 2}, {"a": 1, "b": 3}]
    nested = Choice(("x", {"a": Integers(1, 2), "b": Integers(5, 6)}))
    assert samples(nested) == ["x", {"a": 1, "b": 5}, {"a": 2, "b": 5}, {"a": 1, "b": 6}]


def test_what_was_drawn_is_flattened() -> None:
    drawn = {"rate": 0.1, "loss": {"name": "triplet", "more": {"margin": 2}}}
    assert flat(drawn) == {"rate": 0.1, "loss.name": "triplet", "loss.more.margin": 2}
