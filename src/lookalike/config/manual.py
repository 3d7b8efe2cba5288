"""A recipe's keys for people: pydantic's JSON schema of the models, a line a key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from lookalike.config.recipe import Config
from lookalike.errors import ConfigError

_KINDS = {"string": "text", "number": "a number", "integer": "an integer"}
_BOUNDS = {
    "minimum": "{} or more",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


@dataclass(frozen=True)
class Key:
    """A key of a recipe.

    Attributes:
        name: dotted, e.g. 'train.epochs'.
        allowed: its type and bounds, or its values.
        default: as JSON, which YAML reads; None where a recipe must name it.
        about: what it is; may be empty.
        only: where it may stand, e.g. 'source: folder'; empty for no condition.
    """

    name: str
    allowed: str
    default: str | None
    about: str
    only: tuple[str, ...] = ()


def keys(beginning: str = "") -> list[Key]:
    """All keys, in the models' order, or one with those below it.

    Raises:
        ConfigError: there is none of this name.
    """
    schema = Config.model_json_schema()
    every = list(_below(schema, schema["$defs"], "", {}))
    found = [k for k in every if not beginning or f"{k.name}.".startswith(f"{beginning}.")]
    if not found:
        above = beginning
        while above and not any(key.name.startswith(f"{above}.") for key in every):
            above = above.rpartition(".")[0]
        prefix = f"{above}." if above else ""
        below = [k.name.removeprefix(prefix) for k in every if k.name.startswith(prefix)]
        names = dict.fromkeys(prefix + name.partition(".")[0] for name in below)
        raise ConfigError(f"a recipe has no key {beginning!r}", allowed=", ".join(names))
    return found


def _below(
    model: dict[str, Any], models: dict[str, Any], prefix: str, given: dict[str, Any]
) -> Iterator[Key]:
    """Keys of a model.

    Args:
        model: its schema.
        models: schemas by name.
        prefix: what its keys' names begin with.
        given: values of it that a recipe which does not name it has, before the model's own.
    """
    for name, field in model["properties"].items():
        choices = [c for c in field.get("anyOf", [field]) if c.get("type") != "null"]
        inner = [models[_named(c["$ref"])] for c in choices if "$ref" in c]
        default = given.get(name, field.get("default"))
        if "discriminator" in field:
            yield from _one_of(field, models, f"{prefix}{name}.")
        elif inner and "properties" in inner[0]:
            yield from _below(inner[0], models, f"{prefix}{name}.", default or {})
        else:
            required = name in model.get("required", ())
            allowed = " | ".join(map(_allowed, inner or choices))
            about = field.get("description") or choices[0].get("description", "")
            yield Key(prefix + name, allowed, None if required else json.dumps(default), about)


def _one_of(field: dict[str, Any], models: dict[str, Any], prefix: str) -> Iterator[Key]:
    """The key that says which model it is, then the keys of all of them: one for each form that it
    takes."""
    which, mapping = field["discriminator"]["propertyName"], field["discriminator"]["mapping"]
    default = json.dumps(field["default"][which]) if "default" in field else None
    yield Key(prefix + which, " | ".join(mapping), default, "")
    found: dict[Key, list[str]] = {}
    for value, place in mapping.items():
        for key in _below(models[_named(place)], models, prefix, {}):
            if key.name != prefix + which:
                found.setdefault(key, []).append(f"{which}: {value}")
    for key, only in found.items():
        yield replace(key, only=() if len(only) == len(mapping) else (*key.only, *only))


def _named(place: str) -> str:
    return place.rpartition("/")[2]


def _allowed(choice: dict[str, Any]) -> str:
    if "enum" in choice:
        return " | ".join(map(str, choice["enum"]))
    match choice.get("type"):
        case "boolean":
            return "true | false"
        case "array":
            return f"a list of: {_allowed(choice.get('items', {}))}"
        case "object":
            names = choice.get("propertyNames", {}).get("enum", ())
            keys = f"keys ({', '.join(names)})" if names else "keys"
            values = choice.get("additionalProperties")
            return f"{keys} with: {_allowed(values)}" if isinstance(values, dict) else keys
        case None:
            return "any value"
        case kind:
            bounds = [text.format(choice[b]) for b, text in _BOUNDS.items() if b in choice]
            return ", ".join([_KINDS.get(kind, kind), *bounds])
