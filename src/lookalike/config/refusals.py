"""What pydantic refuses, in a recipe's own words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from lookalike.config.fields import Model
from lookalike.config.losses import LOSSES
from lookalike.config.sources import SOURCES
from lookalike.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

_UNIONS: dict[str, tuple[str, Mapping[str, type[Model]]]] = {
    "data": ("source", SOURCES),
    "loss": ("name", LOSSES),
}
"""Where one key says which others there are: that key, and what it may say."""

_MAY_HOLD_SECRETS = ("spark", "mlflow")


def validated(model: type[M], raw: Any, where: str) -> M:
    """A model of what YAML gives.

    Args:
        model: what it is to be.
        raw: keys and values.
        where: they come from; an error begins with it.

    Raises:
        ConfigError: an unknown or missing key, a wrong type or an impossible value; all of them.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_in_words(model, e) for e in error.errors())
        ) from None


def _in_words(model: type[BaseModel], error: Any) -> str:
    path, siblings = _place(model, error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}. Allowed here: {', '.join(siblings)}"
    if error["type"] == "missing":
        return f"{key!r} is missing"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag, members = _UNIONS[path[-1]]
        given = error["ctx"].get("tag")
        said = "is missing" if given is None else f"= {given!r}"
        return f"{key}.{tag} {said}. Allowed: {', '.join(members)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key or path[0] in _MAY_HOLD_SECRETS:
        return f"{key}: {message}".removeprefix(": ")
    return f"{key} = {error['input']!r}: {message}"


def _place(model: Any, location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Keys from the recipe's top to where an error is, and the keys that may stand there."""
    keys: list[str] = []
    for depth, part in enumerate(location):
        if keys and keys[-1] in _UNIONS and part in _UNIONS[keys[-1]][1]:
            # pydantic names the member of the union, a recipe does not
            model = _UNIONS[keys[-1]][1][part]
            continue
        keys.append(str(part))
        if depth == len(location) - 1:
            break
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else field.annotation
    known = sorted(model.model_fields) if hasattr(model, "model_fields") else []
    return keys, known or ["see `lookalike keys`"]
