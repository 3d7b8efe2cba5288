"""What a warehouse may lose and what it must keep: a decision on plain values, no file touched."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

SNAPSHOT, ENCODER, INDEX, REPORT, RELEASE, INSPECTION = COUNTED = (
    "snapshot",
    "encoder",
    "index",
    "report",
    "release",
    "inspection",
)
"""Kinds whose newest stay."""
PART, MODEL, VECTORS, LEFTOVER = "index-part", "model", "embeddings", "leftover"
"""Kinds that stay only with what needs them."""
ORDER: Final = (
    INSPECTION,
    RELEASE,
    MODEL,
    REPORT,
    INDEX,
    PART,
    VECTORS,
    ENCODER,
    SNAPSHOT,
    LEFTOVER,
)
"""What needs goes before what is needed: killed in between, nothing is left without its parts."""
GRACE: Final = timedelta(days=1)
"""How long what nobody names yet may belong to a step that is still at work."""


@dataclass(frozen=True)
class Thing:
    """Something that can be removed by itself.

    Attributes:
        kind: one of `ORDER`.
        name: what it is called; unique in its kind.
        at: when it was made; aware.
        size: in bytes.
        names: all that others may call it.
        needs: what it is of no use without, by its names.
        uri: where its files are; none for what tables and registries hold.
    """

    kind: str
    name: str
    at: datetime
    size: int
    names: frozenset[str]
    needs: frozenset[str] = frozenset()
    uri: str | None = None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Kept:
    """What stays, and why."""

    thing: Thing
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """What goes, in the order in which it does, and what stays."""

    going: tuple[Thing, ...]
    staying: tuple[Kept, ...]

    def within(self, agreed: Plan) -> Plan:
        """This plan without what another, which a person has seen, did not name."""
        seen = {(thing.kind, thing.name) for thing in agreed.going}
        going = tuple(thing for thing in self.going if (thing.kind, thing.name) in seen)
        return replace(self, going=going)


def decide(
    things: Collection[Thing], pins: Mapping[str, Collection[str]], keep: int, now: datetime
) -> Plan:
    """Decide what goes.

    What stays: of each of `COUNTED` the newest; what is pinned; what is young and named by nobody;
    and what any of these need, and these in turn. A name that several of a kind have, as encoders
    of equal fingerprint do, means the newest of them.

    Args:
        things: all there is.
        pins: by a name, the reasons why what is called so stays.
        keep: how many stay of each of `COUNTED`; at least 1.
        now: aware.
    """
    things = sorted(things, key=lambda thing: (ORDER.index(thing.kind), thing.at, thing.name))
    reasons: dict[Thing, dict[str, None]] = {thing: {} for thing in things}
    called: dict[str, dict[str, Thing]] = defaultdict(dict)
    for thing in things:
        for name in thing.names:
            called[name][thing.kind] = thing
    needed = {name for thing in things for name in thing.needs}
    for kind in COUNTED:
        for thing in [thing for thing in things if thing.kind == kind][-keep:]:
            reasons[thing]["the newest" if keep == 1 else f"one of the newest {keep}"] = None
    for name, why in pins.items():
        for thing in called[name].values():
            reasons[thing] |= dict.fromkeys(why)
    for thing in things:
        waits = thing.kind not in COUNTED and needed.isdisjoint(thing.names)
        if waits and now - thing.at < GRACE:
            reasons[thing]["younger than a day: a step may be at work on it"] = None
    ahead = [thing for thing in things if reasons[thing]]
    while ahead:
        thing = ahead.pop()
        for other in [other for name in thing.needs for other in called[name].values()]:
            if not reasons[other]:
                ahead.append(other)
            reasons[other][f"needed by {thing}"] = None
    return Plan(
        going=tuple(thing for thing in things if not reasons[thing]),
        staying=tuple(Kept(thing, tuple(reasons[thing])) for thing in things if reasons[thing]),
    )


def names_in(value: Any) -> Iterator[str]:
    """What a JSON value may name: each string in it, of a path or URI the last part."""
    match value:
        case str():
            yield value.rstrip("/").rsplit("/", 1)[-1]
        case dict():
            yield from (name for inner in value.values() for name in names_in(inner))
        case list():
            yield from (name for inner in value for name in names_in(inner))


def versions_in(value: Any, tables: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Tables with their versions in a JSON value: {"items_version": 3}, {"versions": {"items": 3}}.

    Args:
        value: of a manifest or a commit.
        tables: names to look for.
    """
    match value:
        case dict():
            for table in tables:
                versions = value.get("versions")
                named = versions.get(table) if isinstance(versions, dict) else None
                for version in (value.get(f"{table}_version"), named):
                    if isinstance(version, int):
                        yield table, version
            for inner in value.values():
                yield from versions_in(inner, tables)
        case list():
            for inner in value:
                yield from versions_in(inner, tables)
