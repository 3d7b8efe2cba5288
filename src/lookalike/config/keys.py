"""Keys of a recipe, dotted."""

from __future__ import annotations

from typing import Any

from lookalike.errors import ConfigError


def put(raw: dict[str, Any], key: str, value: Any, known: bool = False) -> None:
    """Set one value of a recipe or a part of it, in place.

    Args:
        raw: as YAML gives it.
        key: dotted, e.g. "loss.alpha"; what is missing above it is made.
        value: what it is set to.
        known: nothing is made: the key must be there already, as those of `train` are.

    Raises:
        ConfigError: a key below what holds no keys, or one that is not known.
    """
    # Spark's own keys have dots of theirs: below spark.conf a key is one.
    head, conf, rest = key.partition("spark.conf.")
    *parents, last = ["spark", "conf", rest] if conf and not head else key.split(".")
    inner: Any = raw
    for parent in parents:
        inner = inner.get(parent) if known else inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key!r}: {parent!r} has no keys below it")
    if known and last not in inner:
        raise ConfigError(f"{key!r} is no key of train", allowed=", ".join(sorted(inner)))
    inner[last] = value
