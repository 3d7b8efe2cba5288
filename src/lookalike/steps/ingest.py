"""Load the source into the tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
        return (
            f"{self.seen:,} in = {self.used:,} out + {self.rejected:,} rejected; "
            f"{self.changed:,} new or changed; {self.items:,} items in the catalogue"
        )


def run(context: Context) -> Ingested:
    """Load what is new or changed in the source, and commit the tables' versions."""
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


def _check(loaded: Loaded) -> None:
    if loaded.seen != loaded.used + loaded.rejected:
        raise AssertionError(f"items were lost: {loaded}")
