"""A source into the tables: contents, splits and rejects first, items last.

An item's row carries the version of its source, by which the next load knows what it need not
read. It is written when all else is, so a load killed anywhere is finished by the next.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lookalike import images
from lookalike.columns import TEST, TRAIN, VALIDATION
from lookalike.errors import DataError, ImageError
from lookalike.lake.session import translated
from lookalike.lake.sources import STAGED, Source, staged_schema
from lookalike.lake.tables import Tables

_EXAMINED = f"{STAGED}, sha256 string, width int, height int, phash string"
_PREFIX = 2  # hexadecimal digits of sha256 by which contents are laid out


@dataclass(frozen=True)
class Loaded:
    """What a load did: `seen` = `used` + `rejected`; `changed` of the used are new or other."""

    seen: int
    used: int
    rejected: int
    changed: int


@dataclass(frozen=True)
class Rules:
    """How a load decides.

    Attributes:
        validation_share: of the source's training items, by hash.
        max_reject_share: above it the load is refused.
        phash: whether perceptual hashes are computed.
        seed: of the split.
    """

    validation_share: float
    max_reject_share: float
    phash: bool
    seed: int


def load(tables: Tables, source: Source, rules: Rules) -> Loaded:
    """Load what is new or changed.

    Raises:
        DataError: unreadable source, or more rejects than allowed; nothing is committed.
    """
    with translated():
        staged = source.changed(tables.read("items"))
        if staged is None:
            return Loaded(0, 0, 0, 0)
        phash = rules.phash
        rows = staged.mapInArrow(lambda b: _examined(b, phash), _EXAMINED)
        rows = rows.persist(StorageLevel.DISK_ONLY)
        try:
            return _commit(tables, rows, rules)
        finally:
            rows.unpersist()


def _commit(tables: Tables, rows: DataFrame, rules: Rules) -> Loaded:
    used = rows.where("reason IS NULL")
    rejected = rows.where("reason IS NOT NULL")
    counts = rows.select(F.count("*").alias("seen"), F.count("reason").alias("rejected")).first()
    seen, bad = counts["seen"], counts["rejected"]  # type: ignore[index]
    if bad > rules.max_reject_share * seen:
        commonest = rejected.groupBy("reason").count().orderBy("count", ascending=False).first()
        example = rejected.where(F.col("reason") == commonest["reason"]).first()  # type: ignore[index]
        raise DataError(
            f"{bad:,} of {seen:,} items cannot be used, most of them for "
            f"{commonest['reason']!r}, for example {example['item_id']}: {example['detail']}",  # type: ignore[index]
            allowed=f"a share of {rules.max_reject_share} (data.max_reject_share)",
            remedy="Mend the source or raise data.max_reject_share; nothing was loaded",
        )
    _add_contents(tables, used)
    _add_splits(tables, used, rules)
    _add_rejects(tables, rejected)
    changed = _put_items(tables, used)
    # Counted where they came to lie, not inferred.
    return Loaded(
        seen=seen,
        used=tables.read("items").join(used.select("item_id"), "item_id", "left_semi").count(),
        rejected=rejected.select("item_id")
        .join(tables.read("rejects").select("item_id").distinct(), "item_id")
        .count(),
        changed=changed,
    )


def _add_contents(tables: Tables, used: DataFrame) -> None:
    known = tables.read("contents").select("sha256")
    contents = (
        used.select("sha256", "media", "bytes", "width", "height", "phash")
        .dropDuplicates(["sha256"])
        .join(known, "sha256", "left_anti")
        # Files hold neighbouring hashes, so a look for some hashes opens few of them.
        .repartitionByRange(F.substring("sha256", 1, _PREFIX))
        .sortWithinPartitions("sha256")
    )
    tables.insert_new("contents", contents, ("sha256",))


def _add_splits(tables: Tables, used: DataFrame, rules: Rules) -> None:
    splits = used.select(
        "item_id",
        _split(rules).alias("split"),
        F.when(F.col("split") == TEST, "source").otherwise("hash").alias("decided_by"),
    )
    tables.insert_new("splits", splits, ("item_id",))


def _split(rules: Rules) -> Column:
    # By what the photo shows, not by its id: copies and a product's photos stay on one side.
    key = F.coalesce(F.col("group_id"), F.col("sha256"))
    part = F.pmod(F.xxhash64(key, F.lit(rules.seed)), F.lit(10_000)) / 10_000
    return F.when(F.col("split") == TEST, TEST).otherwise(
        F.when(part < rules.validation_share, VALIDATION).otherwise(TRAIN)
    )


def _add_rejects(tables: Tables, rejected: DataFrame) -> None:
    rows = rejected.select(
        "item_id", "source", "reason", "detail", F.current_timestamp().alias("seen_at")
    )
    if not rows.isEmpty():
        tables.insert_new("rejects", rows, ("item_id", "source", "reason"))


def _put_items(tables: Tables, used: DataFrame) -> int:
    compared = ("group_id", "sha256", "label", "attributes", "source", "source_version")
    old = tables.read("items").select(
        "item_id", F.struct(*(_comparable(c) for c in compared)).alias("old")
    )
    items = (
        used.select("item_id", *compared)
        .join(old, "item_id", "left")
        .where(~F.struct(*(_comparable(c) for c in compared)).eqNullSafe(F.col("old")))
        .select("item_id", *compared, F.current_timestamp().alias("updated_at"))
        .persist(StorageLevel.DISK_ONLY)
    )
    try:
        changed = items.count()
        if changed:
            tables.upsert("items", items, "item_id")
        return changed
    finally:
        items.unpersist()


def _comparable(column: str) -> Column:
    # Spark compares no maps.
    if column == "attributes":
        return F.array_sort(F.map_entries(column)).alias(column)
    return F.col(column)


def _examined(batches: Iterable[pa.RecordBatch], phash: bool) -> Iterator[pa.RecordBatch]:
    schema = staged_schema()
    for extra in (
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
    ):
        schema = schema.append(pa.field(*extra))
    schema = schema.append(pa.field("phash", pa.string()))
    for batch in batches:
        rows = [_examine(row, phash) for row in batch.to_pylist()]
        yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _examine(row: dict[str, object], phash: bool) -> dict[str, object]:
    data = row["bytes"]
    if row["reason"] is not None or not isinstance(data, bytes):
        return row
    try:
        width, height = images.check(data)
        row |= {"width": width, "height": height, "sha256": images.content_hash(data)}
        row["phash"] = images.perceptual_hash(data) if phash else None
    except ImageError as error:
        row |= {"reason": error.reason, "detail": str(error)}
    return row
