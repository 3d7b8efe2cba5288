"""What a catalogue holds and how clean it is, in figures.

Spark counts; what comes to the driver is bounded, whatever the size of the catalogue.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from typing import Final

from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Row, Window
from pyspark.sql import functions as F

from lookalike.columns import TEST, TRAIN, VALIDATION
from lookalike.lake import splits
from lookalike.lake.tables import Tables

LARGEST, SMALLEST = 20, 10
"""Labels that are listed where there are more of them."""
MEMBERS: Final = 8
"""Items of a cluster that are named."""

_CLUSTERS = 10
_REASONS = 100
_DETAIL = 500  # characters
_SPLITS = (TRAIN, VALIDATION, TEST)
_SHARES = {"least": 0.0, "p5": 0.05, "p25": 0.25, "median": 0.5, "p75": 0.75, "p95": 0.95,
           "most": 1.0}  # fmt: skip


@dataclass(frozen=True)
class LabelCount:
    """Items of a label, of all labels, or (None) of those without one; by split."""

    label: str | None
    items: int
    train: int
    validation: int
    test: int
    without_split: int


@dataclass(frozen=True)
class Labels:
    """Items by label and split.

    Attributes:
        number: of labels.
        total: all items.
        unlabelled: items without a label.
        largest: labels by items, all if there are no more than `LARGEST` + `SMALLEST`.
        smallest: labels of fewest items, where not all are in `largest`.
        left_out: labels in neither.
    """

    number: int
    total: LabelCount
    unlabelled: LabelCount
    largest: tuple[LabelCount, ...]
    smallest: tuple[LabelCount, ...]
    left_out: int


@dataclass(frozen=True)
class Quantiles:
    """Of n values, that at rank ceil(share x n); to 1e-4 of n where there are many."""

    least: int
    p5: int
    p25: int
    median: int
    p75: int
    p95: int
    most: int


@dataclass(frozen=True)
class Extreme:
    """A content by the first of its items. Width and height are in pixels; None: not known."""

    item_id: str
    media: str | None
    width: int | None
    height: int | None
    bytes: int


@dataclass(frozen=True)
class Sizes:
    """Sizes of distinct contents.

    Attributes:
        contents: how many there are.
        measured: those of which width and height are known.
        width, height: in pixels; None where none is measured.
        bytes: None where there is no content.
        media: contents by their media type; 'unknown' where it is not told.
        smallest, largest: by pixels where these are known, else by bytes.
    """

    contents: int
    measured: int
    width: Quantiles | None
    height: Quantiles | None
    bytes: Quantiles | None
    media: dict[str, int]
    smallest: Extreme | None
    largest: Extreme | None


@dataclass(frozen=True)
class Reason:
    """A reason for which items were rejected, with one of them."""

    reason: str
    count: int
    item_id: str
    detail: str


@dataclass(frozen=True)
class Rejects:
    """How many there are, and why; most frequent reasons first, up to `_REASONS`."""

    number: int
    reasons: tuple[Reason, ...]


@dataclass(frozen=True)
class Cluster:
    """A cluster of duplicates.

    Attributes:
        cluster_id: its name.
        kind: 'exact' where all its items have a twin of equal bytes, 'near' where none has, else
            'both'.
        items: how many it has; those in no split are in none of the following.
        members: the first of them, one of each content before the twins.
    """

    cluster_id: str
    kind: str
    items: int
    train: int
    validation: int
    test: int
    members: tuple[str, ...]

    @property
    def between(self) -> tuple[str, ...]:
        """The splits that it lies in."""
        return tuple(name for name in _SPLITS if getattr(self, name))


@dataclass(frozen=True)
class SizeCount:
    """Clusters of `least` to `most` items."""

    least: int
    most: int
    clusters: int


@dataclass(frozen=True)
class Clusters:
    """Clusters of duplicates, by kind and by size, and the largest."""

    number: int
    items: int
    kinds: dict[str, int]
    sizes: tuple[SizeCount, ...]
    largest: tuple[Cluster, ...]


def labels(tables: Tables, versions: dict[str, int]) -> Labels:
    """Count items by label and split.

    Args:
        tables: the warehouse's.
        versions: of the table 'items', and of 'splits'; without it, the splits that the source
            gives are counted.
    """
    named = [F.count_if(F.col("split") == name).alias(name) for name in _SPLITS]
    counts = (
        with_split(tables, versions, tables.read("items", versions["items"]))
        .groupBy("label")
        .agg(F.count("*").alias("items"), *named)
        .withColumn("without_split", F.expr(f"items - {' - '.join(_SPLITS)}"))
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    try:
        known = counts.where("label IS NOT NULL")
        sums = [F.coalesce(F.sum(c), F.lit(0)).alias(c) for c in counts.columns if c != "label"]
        order = [F.col("items").desc(), F.col("label")]
        backwards = [F.col("items"), F.col("label").desc()]
        number = known.count()
        few = number <= LARGEST + SMALLEST
        largest = known.orderBy(*order).limit(number if few else LARGEST).collect()
        smallest = [] if few else known.orderBy(*backwards).limit(SMALLEST).collect()
        total, unlabelled = (
            _label_count(rows.agg(*sums).withColumn("label", F.lit(None)).first())
            for rows in (counts, counts.where("label IS NULL"))
        )
    finally:
        counts.unpersist()
    return Labels(
        number=number,
        total=total,
        unlabelled=unlabelled,
        largest=tuple(map(_label_count, largest)),
        smallest=tuple(map(_label_count, reversed(smallest))),
        left_out=number - len(largest) - len(smallest),
    )


def sizes(tables: Tables, items_version: int) -> Sizes:
    """Measure the distinct contents of the items. Reads all contents once, where they lie."""
    items = tables.read("items", items_version)
    contents = (
        tables.read("contents")
        # Before the join: what goes about is the length, not the bytes.
        .select(
            "sha256",
            "media",
            "width",
            "height",
            F.coalesce(F.length("bytes"), F.lit(0)).alias("bytes"),
        )
        .join(items.groupBy("sha256").agg(F.min("item_id").alias("item_id")), "sha256")
        .drop("sha256")
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    try:
        size = F.coalesce(F.col("width").cast("long") * F.col("height"), F.col("bytes"))
        order = F.struct(size, "bytes", "item_id")
        whole = F.struct(*Extreme.__dataclass_fields__)
        shares = F.array(*map(F.lit, _SHARES.values()))
        row = contents.agg(
            F.count("*").alias("contents"),
            F.count("width").alias("measured"),
            *(F.percentile_approx(c, shares).alias(c) for c in ("width", "height", "bytes")),
            F.min_by(whole, order).alias("smallest"),
            F.max_by(whole, order).alias("largest"),
        ).first()
        assert row is not None
        media = F.coalesce("media", F.lit("unknown")).alias("media")
        kinds = contents.groupBy(media).count().orderBy(F.col("count").desc(), "media").collect()
    finally:
        contents.unpersist()
    return Sizes(
        contents=row["contents"],
        measured=row["measured"],
        width=_quantiles(row["width"]),
        height=_quantiles(row["height"]),
        bytes=_quantiles(row["bytes"]),
        media={kind["media"]: kind["count"] for kind in kinds},
        smallest=_extreme(row["smallest"]),
        largest=_extreme(row["largest"]),
    )


def rejects(tables: Tables, version: int) -> Rejects:
    """Count the rejects by reason.

    Args:
        tables: the warehouse's.
        version: of the table 'rejects'.
    """
    rows = readable_rejects(tables, version)
    found = (
        rows.groupBy("reason")
        .agg(F.count("*").alias("count"), F.min(F.struct("item_id", "detail")).alias("first"))
        .select("reason", "count", "first.*")
        .orderBy(F.col("count").desc(), "reason")
        .limit(_REASONS)
    )
    return Rejects(rows.count(), tuple(Reason(**row.asDict()) for row in found.collect()))


def clusters(tables: Tables, versions: dict[str, int]) -> Clusters:
    """Count the clusters of duplicates, and name the largest.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items', 'duplicates' and 'splits'.
    """
    items = tables.read("items", versions["items"]).select("item_id", "sha256")
    members = tables.read("duplicates", versions["duplicates"]).drop("distance")
    exact = F.count_if(F.col("kind") == "exact")
    kind = F.when(exact == F.count("*"), "exact").when(exact == 0, "near").otherwise("both")
    found = (
        members.groupBy("cluster_id")
        .agg(F.count("*").alias("items"), kind.alias("kind"))
        .persist(StorageLevel.MEMORY_AND_DISK)
    )
    try:
        kinds = found.groupBy("kind").agg(F.count("*").alias("count"), F.sum("items").alias("sum"))
        by_kind = {row["kind"]: row for row in kinds.collect()}
        # 2, 3-4, 5-8, 9-16 ...: by the power of two that is not below.
        power = F.length(F.bin(F.col("items") - 1)).alias("power")
        by_size = found.groupBy(power).count().orderBy("power").collect()
        largest = found.orderBy(F.col("items").desc(), "cluster_id").limit(_CLUSTERS).collect()
    finally:
        found.unpersist()
    ids = [row["cluster_id"] for row in largest]
    few = members.where(F.col("cluster_id").isin(ids)).join(items, "item_id", "left")
    named = _named(tables, versions, few)
    return Clusters(
        number=sum(row["count"] for row in by_kind.values()),
        items=sum(row["sum"] for row in by_kind.values()),
        kinds={k: by_kind[k]["count"] if k in by_kind else 0 for k in ("exact", "near", "both")},
        sizes=tuple(
            SizeCount(2 ** (row["power"] - 1) + 1, 2 ** row["power"], row["count"])
            for row in by_size
        ),
        largest=tuple(_cluster(row, named[row["cluster_id"]]) for row in largest),
    )


def leaks(tables: Tables, versions: dict[str, int]) -> DataFrame:
    """All leaks, see `splits.leaks`, the largest first; ids as JSON lists, for files without lists.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items', 'duplicates' and 'splits'.
    """
    found = splits.leaks(tables, versions)
    lists = {f"{name}_ids": F.to_json(f"{name}_ids") for name in _SPLITS}
    size = F.expr(" + ".join(_SPLITS))
    return found.withColumns(lists).orderBy("between", size.desc(), "kind", "id")


def with_split(
    tables: Tables, versions: dict[str, int], items: DataFrame, *columns: str
) -> DataFrame:
    """Items by item_id, label, split (null where there is none) and these columns.

    Args:
        tables: the warehouse's.
        versions: of 'splits'; without it, a split is the one that the source gives.
        items: rows of the items table.
        columns: more of its columns.
    """
    names = ["item_id", "label", *columns]
    if "splits" not in versions:
        return items.select(*names, F.col("given_split").alias("split"))
    decided = tables.read("splits", versions["splits"]).select("item_id", "split")
    return items.select(*names).join(decided, "item_id", "left")


def _named(tables: Tables, versions: dict[str, int], members: DataFrame) -> dict[str, list[Row]]:
    """By cluster, its first members, each with how many members are in each split."""
    decided = tables.read("splits", versions["splits"]).select("item_id", "split")
    whole = Window.partitionBy("cluster_id")
    twins = Window.partitionBy("cluster_id", "sha256").orderBy("item_id")
    rows = (
        members.join(decided, "item_id", "left")
        .withColumn("twin", F.row_number().over(twins))
        .withColumns({s: F.count_if(F.col("split") == s).over(whole) for s in _SPLITS})
        .withColumn("place", F.row_number().over(whole.orderBy("twin", "item_id")))
        .where(F.col("place") <= MEMBERS)
        .orderBy("cluster_id", "place")
        .select("cluster_id", "item_id", *_SPLITS)
        .collect()
    )
    return {name: list(own) for name, own in groupby(rows, key=itemgetter("cluster_id"))}


def _cluster(row: Row, named: list[Row]) -> Cluster:
    return Cluster(
        cluster_id=row["cluster_id"],
        kind=row["kind"],
        items=row["items"],
        **{split: named[0][split] for split in _SPLITS},
        members=tuple(member["item_id"] for member in named),
    )


def readable_rejects(tables: Tables, version: int) -> DataFrame:
    """Rejects by reason, item_id and detail, none of them null, the detail of bounded length."""

    def filled(column: str, otherwise: str) -> Column:
        return F.substring(F.coalesce(column, F.lit(otherwise)), 1, _DETAIL).alias(column)

    return tables.read("rejects", version).select(
        filled("reason", "unknown"), "item_id", filled("detail", "")
    )


def _label_count(row: Row | None) -> LabelCount:
    assert row is not None
    return LabelCount(**row.asDict())


def _quantiles(values: list[int] | None) -> Quantiles | None:
    return None if values is None else Quantiles(**dict(zip(_SHARES, values, strict=True)))


def _extreme(row: Row | None) -> Extreme | None:
    return None if row is None else Extreme(**row.asDict())
