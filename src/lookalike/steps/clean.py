"""Remove what newer versions have replaced, and vacuum the tables."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel

from lookalike import artifacts, retention
from lookalike.artifacts import Manifest
from lookalike.retention import Thing
from lookalike.steps import release
from lookalike.steps.context import Context, Result

if TYPE_CHECKING:
    from lookalike.lake.ledger import Commit
    from lookalike.serving.registry import Version

STEP = "clean"


class Listed(BaseModel):
    """Something that goes or stays: when it was made, its bytes, why it stays."""

    kind: str
    name: str
    at: datetime
    size: int
    reasons: tuple[str, ...] = ()


class Cleaned(Result):
    """What was to go, what of it went, what stays, and the hours of each table's vacuum."""

    planned: list[Listed]
    removed: list[Listed]
    kept: list[Listed]
    retained_hours: dict[str, int]

    @property
    def words(self) -> str:
        size = sum(listed.size for listed in self.removed)
        return f"{len(self.removed)} removed of {size:,} bytes; {len(self.kept)} stay"


@dataclass(frozen=True)
class Plan:
    """What goes, what stays, and by table the hours for which a vacuum leaves deleted files."""

    decided: retention.Plan
    retained_hours: dict[str, int]

    def within(self, agreed: Plan) -> Plan:
        """Without what another plan, which a person has seen, did not name."""
        return replace(self, decided=self.decided.within(agreed.decided))

    @property
    def undone(self) -> Cleaned:
        """As a result before anything is done."""
        return Cleaned(
            unchanged=True,
            planned=[_listed(thing) for thing in self.decided.going],
            removed=[],
            kept=[_listed(kept.thing, kept.reasons) for kept in self.decided.staying],
            retained_hours=self.retained_hours,
        )


def plan(context: Context, keep: int) -> Plan:
    """Decide what goes. Changes nothing.

    Args:
        context: whose warehouse and registered model.
        keep: how many of the newest of each kind stay, whatever else does.

    Raises:
        ArtifactError: an artefact of a format that this version does not know.
    """
    from lookalike.lake import retention as tables
    from lookalike.lake.tables import SCHEMAS

    pins: dict[str, list[str]] = defaultdict(list)
    commits = tables.newest_commits(context.tables)
    released = _released(context, commits, pins)
    for commit in commits:
        for name in retention.names_in([commit.inputs, commit.outputs]):
            pins[name].append(f"the newest {commit.step} names it")
    folders = list(_folders(context))
    manifests = {_artefact(uri, m): m for uri, m in folders if m is not None}
    things = [*manifests, *_vectors(context), *released]
    staging = artifacts.join(context.files, "staging")
    left = [uri for uri, manifest in folders if manifest is None]
    left += [artifacts.join(staging, info.base_name) for info in artifacts.children(staging)]
    things += [_leftover(uri) for uri in left]
    decided = retention.decide(things, pins, keep, datetime.now(UTC))
    # What an inspection looked at, nobody reads again.
    needed = [
        manifests[kept.thing].meta
        for kept in decided.staying
        if kept.thing in manifests and kept.thing.kind != retention.INSPECTION
    ]
    needed += [made for commit in commits for made in (commit.inputs, commit.outputs)]
    oldest: dict[str, int] = {}
    for table, version in retention.versions_in(needed, SCHEMAS):
        oldest[table] = min(version, oldest.get(table, version))
    return Plan(decided, tables.retained_hours(context.tables, oldest))


def run(context: Context, agreed: Plan) -> Cleaned:
    """Remove what a plan says, then vacuum the tables."""
    from lookalike.lake.retention import vacuum

    going = agreed.decided.going
    for done, thing in enumerate(going):
        context.progress(done, len(going))
        _remove(context, thing)
    vacuum(context.tables, agreed.retained_hours)
    undone = agreed.undone
    return undone.model_copy(update={"removed": undone.planned, "unchanged": not going})


def _remove(context: Context, thing: Thing) -> None:
    from lookalike.lake.retention import forget
    from lookalike.serving import registry

    match thing.kind:
        case retention.RELEASE:
            name, _, number = thing.name.rpartition("/")
            registry.withdraw(context.tracking, name, int(number))
        case retention.MODEL:
            registry.discard(context.tracking, thing.name)
        case retention.VECTORS:
            forget(context.tables, thing.name)
        case _:
            assert thing.uri is not None
            artifacts.remove(thing.uri)


def _folders(context: Context) -> Iterator[tuple[str, Manifest | None]]:
    """Where artefacts are or were to be, each with its manifest where it has one."""
    for kind, root in context.kept:
        yield from artifacts.survey(root, kind)
    # Of trainings that never ended: one that does removes its own.
    for info in artifacts.children(context.checkpoints):
        yield artifacts.join(context.checkpoints, str(info.base_name)), None


def _artefact(uri: str, manifest: Manifest) -> Thing:
    name, meta = uri.rsplit("/", 1)[-1], manifest.meta
    names, needs = {name}, set[str]()
    match manifest.kind:
        case retention.ENCODER:
            names.add(meta["fingerprint"])
            needs = {_vectors_of(meta["fingerprint"])}
            needs.update(retention.names_in(meta["made_from"].get("snapshot")))
        case retention.INDEX:
            needs = {meta["encoder"], *meta["parts"]}
    return Thing(
        kind=manifest.kind,
        name=name,
        at=datetime.fromisoformat(manifest.created_at),
        size=sum(entry.size for entry in manifest.files),
        names=frozenset(names),
        needs=frozenset(needs),
        uri=uri,
    )


def _leftover(uri: str) -> Thing:
    *_, folder, name = uri.split("/")
    size, written = artifacts.footprint(uri)
    # A long step writes on below a name that it took long ago. Of unknown age is as good as new.
    times = [time for time in (artifacts.made_at(name), written) if time is not None]
    at = max(times, default=datetime.now(UTC))
    return Thing(retention.LEFTOVER, f"{folder}/{name}", at, size, frozenset({name}), uri=uri)


def _vectors(context: Context) -> Iterator[Thing]:
    from lookalike.lake.retention import vectors

    for found in vectors(context.tables):
        names = frozenset({found.fingerprint, _vectors_of(found.fingerprint)})
        yield Thing(retention.VECTORS, found.fingerprint, found.at, found.size, names)


def _vectors_of(fingerprint: str) -> str:
    # A fingerprint alone means the newest of the encoders that have it, too.
    return f"vectors of {fingerprint}"


def _released(
    context: Context, commits: Sequence[Commit], pins: dict[str, list[str]]
) -> list[Thing]:
    """Releases of the recipe's model, and the logged models behind them.

    Adds the pins of what aliases, commits, other models and other warehouses need.
    """
    from lookalike.serving import registry

    tracking, own = context.tracking, context.config.model_name
    where = release.registry_of(context)
    made = [c.outputs for c in commits if c.step == "release" and c.inputs.get("registry") == where]
    ours: list[Version] = []
    for name in {own, *(outputs["name"] for outputs in made)}:
        for version in registry.versions(tracking, name):
            here = version.tags.get("report", "").startswith(f"{context.reports}/")
            if name == own and here:
                ours.append(version)
                pins[str(version)] += [f"alias {alias}" for alias in version.aliases]
            elif version.aliases or not here:
                # Live releases of other recipes keep what they are made of, and so do releases of
                # other warehouses, which are not ours to remove.
                for need in _needs(version):
                    pins[need].append(f"release {version} needs it")
    for outputs in made:
        pins[f"{outputs['name']}/{outputs['number']}"].append("the newest release names it")
    things = [
        Thing(retention.RELEASE, str(v), v.at, 0, frozenset({str(v)}), _needs(v)) for v in ours
    ]
    behind = {source for version in ours for source in version.sources}
    runs = {version.run_id for version in ours}
    for model in registry.logged(tracking, own, {s for s in behind if s.startswith("m-")}):
        names = frozenset({model.model_id})
        things.append(Thing(retention.MODEL, model.model_id, model.at, model.size, names))
        runs.add(model.run_id)
    # Others may have registered the same files under names of their own.
    for run_id in runs:
        for version in registry.versions_of_run(tracking, run_id):
            if version.name != own:
                for source in version.sources:
                    pins[source].append(f"registered as {version}")
    return things


def _needs(version: Version) -> frozenset[str]:
    tags = [version.tags.get(tag, "") for tag in ("encoder", "index", "report")]
    return frozenset({*retention.names_in(tags), *version.sources}) - {""}


def _listed(thing: Thing, reasons: tuple[str, ...] = ()) -> Listed:
    return Listed(kind=thing.kind, name=thing.name, at=thing.at, size=thing.size, reasons=reasons)
