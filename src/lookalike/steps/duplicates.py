"""Find pictures that are in the catalogue twice, and decide which split each item is in."""

from __future__ import annotations

from dataclasses import asdict

from lookalike.columns import TEST, TRAIN, VALIDATION
from lookalike.errors import LookalikeError
from lookalike.steps.context import Context, Result

STEP = "duplicates"


class Deduplicated(Result):
    """Of `items`, `exact` + `near` are in `clusters`; `train` + `validation` + `test` are all.

    `largest` is how many the largest cluster has, `unhashed` how many images were loaded without a
    perceptual hash, and `seen_before` how many items of unseen classes an earlier run put into
    training or validation, where they stay. `leaks` clusters and groups lie on both sides of
    the test split, `mixed` others in training and validation: because the source, or an earlier
    load, put them so. The versions are what later steps pin.
    """

    items: int
    clusters: int
    exact: int
    near: int
    largest: int
    phash: bool
    unhashed: int
    train: int
    validation: int
    test: int
    unseen_classes: int
    seen_before: int
    leaks: int
    mixed: int
    items_version: int
    duplicates_version: int
    splits_version: int

    @property
    def words(self) -> str:
        only = "" if self.phash else ", for data.phash is off and only these were looked for"
        if self.phash and self.unhashed:
            only = f", not among {self.unhashed:,} loaded without data.phash"
        unseen = f" with {self.unseen_classes} unseen classes" if self.unseen_classes else ""
        if self.seen_before:
            unseen += f", but {self.seen_before:,} of their items were in training before"
        return (
            f"{self.exact + self.near:,} of {self.items:,} items in {self.clusters:,} clusters "
            f"({self.exact:,} exact, {self.near:,} near{only}; the largest of {self.largest:,}); "
            f"{self.train:,} train + {self.validation:,} validation + {self.test:,} test{unseen}; "
            f"{self.leaks:,} clusters and groups on both sides of test"
        )


def run(context: Context) -> Deduplicated:
    """Put the newest items' duplicates into their table, and give new items their split.

    Raises:
        ConfigError: a class to keep out of training is not among the labels.
    """
    from lookalike.lake import duplicates, splits

    config, ledger, tables = context.config, context.ledger, context.tables
    items_version = ledger.need("ingest").outputs["items_version"]
    rules = splits.Rules(
        validation_share=config.data.validation_share,
        test_share=config.data.test_share,
        unseen_classes=config.data.unseen_classes,
        seed=config.seed,
    )
    distance = config.duplicates.max_distance if config.data.phash else None
    inputs = {"items_version": items_version, "max_distance": distance, "rules": asdict(rules)}
    # Of several commits, the table holds the duplicates of one.
    if last := ledger.find(
        STEP, inputs, lambda made: made["duplicates_version"] == tables.version(STEP)
    ):
        return Deduplicated(**last.outputs | {"unchanged": True})
    found = duplicates.write(tables, items_version, distance)
    versions = {"items": items_version, "duplicates": found.version}
    splits.assign(tables, versions, rules)
    versions["splits"] = tables.version("splits")
    counts = splits.count(tables, versions, rules)
    result = Deduplicated(
        items=tables.read("items", items_version).count(),
        clusters=found.clusters,
        exact=found.exact,
        near=found.near,
        largest=found.largest,
        phash=config.data.phash,
        unhashed=found.unhashed,
        train=counts.items[TRAIN],
        validation=counts.items[VALIDATION],
        test=counts.items[TEST],
        unseen_classes=counts.unseen_classes,
        seen_before=counts.seen_before,
        leaks=counts.leaks[TEST],
        mixed=counts.leaks[VALIDATION],
        **{f"{table}_version": version for table, version in versions.items()},
    )
    if result.items != result.train + result.validation + result.test:
        raise LookalikeError(
            f"items are without a split: {result.words}", remedy="Run `lookalike duplicates` again"
        )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result
