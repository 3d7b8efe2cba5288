"""Load the source into the tables."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from lookalike import artifacts, planning
from lookalike.config import Config, FolderData, IdxData
from lookalike.errors import DataError, LookalikeError
from lookalike.lake import idx
from lookalike.steps.context import Context, Result

if TYPE_CHECKING:
    from lookalike.lake.ingest import Loaded
    from lookalike.lake.ledger import Commit
    from lookalike.lake.sources import Source

STEP = "ingest"
_WHOLE = ("struct<", "array<", "map<")
"""Beginnings of types that earlier versions noted in one word, with all that is in them."""


class Ingested(Result):
    """Of the `seen` items of the source, `used` are in the tables and `rejected` in `rejects`.

    `read` contents were read, `changed` items are new or other than they were, `taken` were another
    source's before, `pruned` are gone, and `passed_over` are files that are no items, by suffix.
    `items` is how many the catalogue holds; the versions are what later steps pin.
    """

    seen: int
    used: int
    rejected: int
    read: int
    changed: int
    taken: int
    pruned: int
    passed_over: dict[str, int]
    items: int
    items_version: int
    rejects_version: int

    @property
    def words(self) -> str:
        holds = f"{self.items:,} items in the catalogue"
        if self.unchanged:
            return f"the source is as it was; {holds}"
        pruned = f"{self.pruned:,} pruned; " if self.pruned else ""
        taken = f"{self.taken:,} were another source's before; " if self.taken else ""
        others = ", ".join(f"{count:,} {suffix}" for suffix, count in self.passed_over.items())
        return (
            f"{self.seen:,} in = {self.used:,} out + {self.rejected:,} rejected; "
            f"{self.changed:,} new or changed, {self.read:,} read; {taken}{pruned}{holds}"
            + (f"; passed over: {others}" if others else "")
        )


def run(context: Context, prune: bool = False) -> Ingested:
    """Load what is new or changed in the source, and commit the tables' versions.

    Args:
        context: with the recipe.
        prune: whether items that the source has no more are deleted.

    Raises:
        DataError: the source is missing, empty or damaged, a column has another type than before,
            an item_id comes twice, or more is rejected than allowed; nothing is committed.
        ConfigError: the recipe asks for what the source does not have.
    """
    preflight(context.config)
    from lookalike.lake import ingest
    from lookalike.lake.sources import open_source

    config, tables, ledger = context.config, context.tables, context.ledger
    source = open_source(context.spark, config.data)
    last = ledger.last(STEP)
    known = _sources(last)
    told = _told(source, known)
    inputs = _versions(context) | {"sources": known | told}
    if last and not prune and _states(told) and last.inputs == inputs:
        return Ingested(**last.outputs | {"unchanged": True})
    loaded = ingest.load(tables, source, ingest.Rules.of(config.data), prune)
    _check(loaded)
    versions = _versions(context)
    # Other sources may have been loaded meanwhile.
    inputs = versions | {"sources": _sources(ledger.last(STEP)) | told}
    if loaded.changed == 0 and loaded.pruned == 0 and (same := ledger.find(STEP, inputs)):
        return Ingested(**same.outputs | {"unchanged": True})
    result = Ingested(
        **asdict(loaded),
        passed_over=source.passed_over(),
        items=tables.read("items").count(),
        **versions,
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def preflight(config: Config) -> None:
    """Refuse in a moment, before Spark starts, what local files already show to be impossible.

    Raises:
        DataError: a file or folder is missing, or no IDX file or one of the other kind, or counts
            differ.
        ConfigError: the batch asks for more classes or images than the training labels have.
    """
    data = config.data
    if isinstance(data, IdxData):
        _preflight_idx(config, data)
        return
    place = data.root if isinstance(data, FolderData) else data.table
    local = artifacts.local_path(place)
    # Elsewhere a path without a scheme may be HDFS's or DBFS's.
    here = place.startswith("file:") or (config.spark.master or "").startswith("local")
    if here and "/" in place and local is not None and not local.exists():
        raise DataError(f"there is no {place}", remedy="Check the paths under `data` in the recipe")


def _preflight_idx(config: Config, data: IdxData) -> None:
    for files in (data.train, data.test):
        images, labels = artifacts.local_path(files.images), artifacts.local_path(files.labels)
        if images is not None and labels is not None:
            counts = idx.peek(images, idx.IMAGES), idx.peek(labels, idx.LABELS)
            idx.check_counts(*counts, files.images, files.labels)
    name = data.train.labels
    if (path := artifacts.local_path(name)) is not None:
        sizes = np.bincount(idx.parse(path.read_bytes(), idx.LABELS, name))
        planning.check_classes(sizes[sizes > 0], config.train.batch)
        # Validation is cut by hash, so its share is met only about.
        left = int(sizes.sum() * (1 - data.validation_share))
        planning.steps_per_epoch(left, config.train.ranks, config.train.batch)


def _versions(context: Context) -> dict[str, Any]:
    tables = context.tables
    return {f"{name}_version": tables.version(name) for name in ("items", "rejects")}


def _sources(last: Commit | None) -> dict[str, Any]:
    """What the last load knew of each source."""
    return dict(last.inputs.get("sources", {})) if last else {}


def _told(source: Source, known: dict[str, Any]) -> dict[str, Any]:
    """What the source tells of itself unread; its columns' types are checked."""
    name = source.names[0]
    types, noted = source.types(), known.get(name, {}).get("types", {})
    before = {column: kind for column, kind in noted.items() if not kind.startswith(_WHOLE)}
    for column, kind in types.items():
        if before.get(column, kind) != kind:
            raise DataError(
                f"the column {column!r} of {name} holds {kind}, and held {before[column]} when it "
                "was loaded last",
                allowed=before[column],
                remedy="Write it as before, under another name, or load it into a new warehouse",
            )
    return {name: {"types": before | types, "state": source.state()}}


def _states(told: dict[str, Any]) -> bool:
    return all(each["state"] is not None for each in told.values())


def _check(loaded: Loaded) -> None:
    if loaded.seen != loaded.used + loaded.rejected:
        raise LookalikeError(f"items were lost: {loaded}", remedy="Run `lookalike ingest` again")
