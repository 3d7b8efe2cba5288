"""The words of a search space: what a hyperparameter may become.

A part of a space is a word with its numbers, `{log_uniform: [0.0001, 0.01]}`; a choice, whose
options may hold parts of their own, which exist where that option is drawn; or any other value,
which stands for itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

Value = Any
"""Anything that YAML holds."""

_WITHIN = 0.6180339887
"""Where between two bounds a type that takes only whole numbers is found out."""


@dataclass(frozen=True)
class LogUniform:
    """Numbers whose logarithm is spread evenly."""

    low: float
    high: float
    WORD: ClassVar = "log_uniform"


@dataclass(frozen=True)
class Uniform:
    """Numbers, spread evenly."""

    low: float
    high: float
    WORD: ClassVar = "uniform"


@dataclass(frozen=True)
class Integers:
    """Whole numbers, spread evenly, the last one too."""

    low: int
    high: int
    WORD: ClassVar = "int"


@dataclass(frozen=True)
class Normal:
    """Numbers of a normal distribution."""

    mean: float
    deviation: float
    WORD: ClassVar = "normal"


@dataclass(frozen=True)
class Choice:
    """One of some options, each as likely."""

    options: tuple[Value, ...]
    WORD: ClassVar = "choice"


Part = LogUniform | Uniform | Integers | Normal | Choice | dict[str, Any] | Value
WORDS = {kind.WORD: kind for kind in (LogUniform, Uniform, Integers, Normal, Choice)}


def part(value: Value) -> Part:
    """What a value of the recipe says.

    Args:
        value: as YAML gives it.

    Raises:
        ValueError: a word with numbers that it cannot mean.
    """
    if not isinstance(value, Mapping):
        return value
    if len(value) == 1 and (word := next(iter(value))) in WORDS:
        return _worded(word, value[word])
    return {str(key): part(inner) for key, inner in value.items()}


def samples(inner: Part) -> list[Value]:
    """Values that a part may become: its ends, one between, every option; to check types by."""
    match inner:
        case LogUniform(low, high) | Uniform(low, high):
            return [low, high, low + _WITHIN * (high - low)]
        case Integers(low, high):
            return [low, high]
        case Normal(mean, deviation):  # beyond, a draw in 370 lies
            return [mean - 3 * deviation, mean + 3 * deviation, mean + _WITHIN * deviation]
        case Choice(options):
            return [value for option in options for value in samples(option)]
        case dict():
            several = {key: samples(value) for key, value in inner.items()}
            first = {key: values[0] for key, values in several.items()}
            others = [
                {**first, key: value} for key, values in several.items() for value in values[1:]
            ]
            return [first, *others]
    return [inner]


def flat(values: Mapping[str, Value]) -> dict[str, Value]:
    """Drawn values with those of options by dotted keys: {"loss": {"name": "triplet"}} is
    {"loss.name": "triplet"}."""
    return dict(_flat(values, ""))


def _flat(values: Mapping[str, Value], prefix: str) -> Iterator[tuple[str, Value]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _worded(word: str, given: Value) -> Part:
    if not isinstance(given, list | tuple):
        raise ValueError(f"{word}: {given!r} is no list")
    if word == Choice.WORD:
        if not given:
            raise ValueError("choice: there are no options. Name at least 1")
        return Choice(tuple(part(option) for option in given))
    whole = word == Integers.WORD
    kinds = (int,) if whole else (int, float)
    if len(given) != 2 or not all(type(number) in kinds for number in given):
        numbers = "whole numbers" if whole else "numbers"
        hint = ". YAML reads 1e-4 as text: write 1.0e-4" if str in map(type, given) else ""
        raise ValueError(f"{word}: {list(given)!r} are not two {numbers}{hint}")
    first, second = given
    if word == Normal.WORD:
        if not second > 0:
            raise ValueError(f"normal: the standard deviation is {second}. Allowed: above 0")
    elif not first < second:
        raise ValueError(f"{word} goes from {first} to {second}, not upwards")
    if word == LogUniform.WORD and not first > 0:
        raise ValueError(f"log_uniform begins at {first}. Allowed: above 0")
    kind: Any = WORDS[word]
    found: Part = kind(first, second)
    return found
