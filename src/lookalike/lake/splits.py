"""Which split an item is in, decided once.

A family is what hangs together by groups and duplicate clusters: photos of one product, and copies
of them. Where the source leaves a choice, a family stays together.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from typing import Final

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lookalike.columns import TEST, TRAIN, UNSEEN, VALIDATION
from lookalike.errors import ConfigError
from lookalike.lake.components import connected
from lookalike.lake.session import translated
from lookalike.lake.tables import Tables

SOURCE: Final = "source"
FAMILY: Final = "family"
HASH: Final = "hash"

_SHOWN = 10  # items of each split that a leak names
_SHARES = 10_000


@dataclass(frozen=True)
class Rules:
    """How splits are decided.

    Attributes:
        validation_share: of what is not for testing, where the source gives no validation.
        test_share: of items without a split of the source, where it gives no test.
        unseen_classes: share, or names, of the classes kept out of training.
        seed: of the hashes that decide.
    """

    validation_share: float
    test_share: float
    unseen_classes: float | tuple[str, ...]
    seed: int


@dataclass(frozen=True)
class Counts:
    """Items by split; classes kept out of training that have items; items of classes that are to
    be kept out, but were in training or validation before that was said; leaks by `between`."""

    items: dict[str, int]
    unseen_classes: int
    seen_before: int
    leaks: dict[str, int]


def assign(tables: Tables, versions: dict[str, int], rules: Rules) -> None:
    """Give each item without a split one. A row of `splits` never changes.

    In this order, with what `decided_by` says of it:

    - Items of a class kept out of training are for testing ('unseen_class').
    - What the source says holds ('source'), except that a choice is left where it gives no
      validation split: of what it gives for training, some goes there.
    - Where there is a choice, an item goes where a member of its family is: to test, else
      validation, else training ('family'); but what the source gives for training never to test.
    - A family of which no member has a split goes where its hash says ('hash'); not to test, if
      the source gives one of them for training.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items' and 'duplicates'.
        rules: see `Rules`.

    Raises:
        ConfigError: a class to keep out of training is not among the labels.
    """
    items = tables.read("items", versions["items"])
    _check_classes(items, rules)
    given = items.agg(*(F.max(_given(split)).alias(split) for split in (TEST, VALIDATION))).first()
    gives = {split: bool(given[split]) for split in (TEST, VALIDATION)}  # type: ignore[index]
    with translated():
        rows = _decided(tables, versions, rules, gives).persist(StorageLevel.DISK_ONLY)
        try:
            # A merge of nothing would be a version all the same.
            if not rows.isEmpty():
                tables.insert_new("splits", rows, ("item_id",))
        finally:
            rows.unpersist()


def families(items: DataFrame, duplicates: DataFrame) -> DataFrame:
    """item_id, family (long): equal for items that groups and clusters join, by however many steps.

    Groups and clusters are told apart by hashes of 64 bits. Should two ever have one hash, two
    families are one: none is ever torn.

    Args:
        items: item_id, group_id.
        duplicates: item_id, cluster_id.
    """
    group = _named("group_id")
    cluster = _named("cluster_id")
    members = items.select("item_id", "group_id").join(
        duplicates.select("item_id", "cluster_id"), "item_id", "left"
    )
    edges = members.where("group_id IS NOT NULL AND cluster_id IS NOT NULL").select(
        cluster.alias("node"), group.alias("root"), F.lit(0).alias("distance")
    )
    trees = connected(edges.distinct()).select("node", "root")
    return (
        members.withColumn("node", F.coalesce(cluster, group, _named("item_id")))
        .join(trees, "node", "left")
        .select("item_id", F.coalesce("root", "node").alias("family"))
    )


def leaks(tables: Tables, versions: dict[str, int]) -> DataFrame:
    """Clusters and groups of which members are in different splits.

    They are there where the source put them so, or where something that joins them came later than
    their splits were decided.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items', 'duplicates' and 'splits'.

    Returns:
        kind ('cluster' or 'group'), id, between ('test': training or validation against test;
        'validation': training against validation only), then for each split its count of members
        (`train`, `validation`, `test`) and the first ten of their ids (`train_ids` ...).
    """
    groups = tables.read("items", versions["items"]).where("group_id IS NOT NULL")
    clusters = tables.read("duplicates", versions["duplicates"])
    splits = tables.read("splits", versions["splits"]).select("item_id", "split")
    both = (
        groups.select(F.lit("group").alias("kind"), F.col("group_id").alias("id"), "item_id")
        .unionByName(clusters.select(F.lit("cluster").alias("kind"),
                                     F.col("cluster_id").alias("id"), "item_id"))
        .join(splits, "item_id")
    )  # fmt: skip
    # First ids and counts in one pass, with no more than ten ids of a split in memory.
    order = Window.partitionBy("kind", "id", "split").orderBy("item_id")
    names = (TRAIN, VALIDATION, TEST)

    def ids(split: str) -> Column:
        first = (F.col("split") == split) & (F.col("place") <= _SHOWN)
        return F.array_sort(F.collect_list(F.when(first, F.col("item_id"))))

    return (
        both.withColumn("place", F.row_number().over(order))
        .groupBy("kind", "id")
        .agg(
            *(F.count_if(F.col("split") == name).alias(name) for name in names),
            *(ids(name).alias(f"{name}_ids") for name in names),
        )
        .where(
            " OR ".join(f"({a} > 0 AND {b} > 0)" for a, b in combinations(names, 2))
        )
        .withColumn("between", F.when(F.col(TEST) > 0, TEST).otherwise(VALIDATION))
        .select("kind", "id", "between", *names, *(f"{name}_ids" for name in names))
    )  # fmt: skip


def count(tables: Tables, versions: dict[str, int], rules: Rules) -> Counts:
    """Count the splits of the items of a version, and the leaks.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items', 'duplicates' and 'splits'.
        rules: that they were decided by.
    """
    items = tables.read("items", versions["items"]).select("item_id", "label")
    unseen = F.when(F.col("decided_by") == UNSEEN, F.col("label"))
    rows = (
        items.join(tables.read("splits", versions["splits"]), "item_id")
        .groupBy("split")
        .agg(
            F.count("*").alias("items"),
            F.countDistinct(unseen).alias("unseen"),
            F.count_if(_unseen(rules) & (F.col("split") != TEST)).alias("before"),
        )
        .collect()
    )
    found = leaks(tables, versions).groupBy("between").count().collect()
    return Counts(
        items=dict.fromkeys((TRAIN, VALIDATION, TEST), 0) | {r["split"]: r["items"] for r in rows},
        unseen_classes=sum(row["unseen"] for row in rows),
        seen_before=sum(row["before"] for row in rows),
        leaks=dict.fromkeys((VALIDATION, TEST), 0) | {r["between"]: r["count"] for r in found},
    )


def _decided(
    tables: Tables, versions: dict[str, int], rules: Rules, gives: dict[str, bool]
) -> DataFrame:
    items = tables.read("items", versions["items"])
    duplicates = tables.read("duplicates", versions["duplicates"])
    known = tables.read("splits").select("item_id", F.col("split").alias("known"))
    one = (
        items.select("item_id", "group_id", "sha256", "label", "given_split")
        .join(families(items, duplicates), "item_id")
        .join(known, "item_id", "left")
        .withColumn("unseen", _unseen(rules))
        .withColumn("direct", _direct(gives))
        .withColumn("has", F.coalesce("known", "direct"))
    )
    family = Window.partitionBy("family")
    for split in (TEST, VALIDATION, TRAIN):
        one = one.withColumn(f"has_{split}", F.max(F.col("has").eqNullSafe(split)).over(family))
    open_to_training = F.col("has").isNull() & _given(TRAIN)
    one = (
        one.withColumn("of_training", F.max(open_to_training).over(family))
        .withColumn("key", F.min(F.coalesce("group_id", "sha256")).over(family))
        .where("known IS NULL")
    )
    inherited = (
        F.when(F.col(f"has_{TEST}") & ~_given(TRAIN), TEST)
        .when(F.col(f"has_{VALIDATION}"), VALIDATION)
        .when(F.col(f"has_{TRAIN}"), TRAIN)
    )
    by = (
        F.when(F.col("unseen"), UNSEEN)
        .when(F.col("direct").isNotNull(), SOURCE)
        .when(inherited.isNotNull(), FAMILY)
        .otherwise(HASH)
    )
    decision = F.coalesce("direct", inherited, _hashed(rules, gives))
    return one.select("item_id", decision.alias("split"), by.alias("decided_by"))


def _direct(gives: dict[str, bool]) -> Column:
    """The split that leaves no choice."""
    found = F.when(F.col("unseen"), TEST)
    for split in (TEST, VALIDATION):
        found = found.when(_given(split), split)
    return found.when(_given(TRAIN), TRAIN) if gives[VALIDATION] else found


def _hashed(rules: Rules, gives: dict[str, bool]) -> Column:
    """The split that the family's key falls to."""
    part = F.pmod(F.xxhash64("key", F.lit(rules.seed)), F.lit(_SHARES)) / _SHARES
    test = 0.0 if gives[TEST] else rules.test_share
    validation = 0.0 if gives[VALIDATION] else rules.validation_share
    # With its test share at 0, what is left for the others is the whole.
    tested = F.when(F.col("of_training"), 0.0).otherwise(test)
    return (
        F.when(part < tested, TEST)
        .when(part < tested + (1 - tested) * validation, VALIDATION)
        .otherwise(TRAIN)
    )


def _unseen(rules: Rules) -> Column:
    chosen = rules.unseen_classes
    if isinstance(chosen, tuple):
        found = F.col("label").isin(*chosen) if chosen else F.lit(False)
    else:
        # Salted: else it were the same hash as that of a group that bears the label's name.
        part = F.pmod(F.xxhash64(F.lit(UNSEEN), "label", F.lit(rules.seed)), F.lit(_SHARES))
        found = F.col("label").isNotNull() & (part / _SHARES < chosen)
    return F.coalesce(found, F.lit(False))


def _given(split: str) -> Column:
    return F.col("given_split").eqNullSafe(split)


def _named(column: str) -> Column:
    """A hash that no other column's values have; null of null."""
    return F.when(F.col(column).isNotNull(), F.xxhash64(F.lit(column), column))


def _check_classes(items: DataFrame, rules: Rules) -> None:
    if not isinstance(rules.unseen_classes, tuple) or not rules.unseen_classes:
        return
    found = items.where(F.col("label").isin(*rules.unseen_classes)).select("label").distinct()
    missing = set(rules.unseen_classes) - {row["label"] for row in found.collect()}
    if missing:
        examples = [
            r["label"] for r in items.select("label").distinct().dropna().limit(5).collect()
        ]
        raise ConfigError(
            f"data.unseen_classes names {', '.join(map(repr, sorted(missing)))}, and no item has "
            "that label",
            allowed=f"labels of the catalogue, such as {', '.join(map(repr, sorted(examples)))}",
            remedy="Correct the names: an item never changes its split",
        )
