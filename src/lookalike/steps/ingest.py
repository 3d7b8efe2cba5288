"""Load the source into the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lookalike import artifacts, planning
from lookalike.config import Config
from lookalike.errors import LookalikeError
from lookalike.lake import idx
from lookalike.steps.context import Context, Result

if TYPE_CHECKING:
    from lookalike.lake.ingest import Loaded

STEP = "ingest"


class Ingested(Result):
    """`seen` items came, of which `used` are in the tables now and `rejected` in `rejects`.

    `items` is how many the catalogue holds; the versions are what later steps pin.
    """

    seen: int
    used: int
    rejected: int
    changed: int
    items: int
    items_version: int
    splits_version: int

    @property
    def words(self) -> str:
        if self.unchanged:
            return f"the source is as it was; {self.items:,} items in the catalogue"
        if self.seen == 0:
            return f"a load cut short is finished; {self.items:,} items in the catalogue"
        return (
            f"{self.seen:,} in = {self.used:,} out + {self.rejected:,} rejected; "
            f"{self.changed:,} new or changed; {self.items:,} items in the catalogue"
        )


def run(context: Context) -> Ingested:
    """Load what is new or changed in the source, and commit the tables' versions.

    Raises:
        DataError: the source is missing or damaged; nothing is committed.
        ConfigError: the batch asks for more than the source holds.
    """
    preflight(context.config)
    from lookalike.lake import ingest
    from lookalike.lake.sources import IdxSource

    config, tables = context.config, context.tables
    rules = ingest.Rules(
        validation_share=config.data.validation_share,
        max_reject_share=config.data.max_reject_share,
        phash=config.data.phash,
        seed=config.seed,
    )
    loaded = ingest.load(tables, IdxSource(context.spark, config.data), rules)
    _check(loaded)
    versions = {
        "items_version": tables.version("items"),
        "splits_version": tables.version("splits"),
    }
    if (last := context.ledger.find(STEP, versions)) and loaded.seen == 0:
        return Ingested(**last.outputs | {"unchanged": True})
    result = Ingested(
        seen=loaded.seen,
        used=loaded.used,
        rejected=loaded.rejected,
        changed=loaded.changed,
        items=tables.read("items").count(),
        **versions,
    )
    context.ledger.commit(STEP, versions, result.model_dump(), config.recorded())
    return result


def preflight(config: Config) -> None:
    """Refuse in a moment, before Spark starts, what local files already show to be impossible.

    Raises:
        DataError: a file is missing, is no IDX file or one of the other kind, or counts differ.
        ConfigError: the batch asks for more classes or images than the training labels have.
    """
    for files in (config.data.train, config.data.test):
        images, labels = artifacts.local_path(files.images), artifacts.local_path(files.labels)
        if images is not None and labels is not None:
            counts = idx.peek(images, idx.IMAGES), idx.peek(labels, idx.LABELS)
            idx.check_counts(*counts, files.images, files.labels)
    name = config.data.train.labels
    if (path := artifacts.local_path(name)) is not None:
        sizes = np.bincount(idx.parse(path.read_bytes(), idx.LABELS, name))
        planning.check_classes(sizes[sizes > 0], config.train.batch)
        # Validation is cut by hash, so its share is met only about.
        left = int(sizes.sum() * (1 - config.data.validation_share))
        planning.steps_per_epoch(left, config.train.ranks, config.train.batch)


def _check(loaded: Loaded) -> None:
    if loaded.seen != loaded.used + loaded.rejected:
        raise LookalikeError(f"items were lost: {loaded}", remedy="Run `lookalike ingest` again")
