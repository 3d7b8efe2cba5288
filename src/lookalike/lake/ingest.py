"""A source into the tables: contents first, then rejects, items last.

An item's row carries the version of its source, by which the next load knows what it need not
read. It is written when all else is, so a load killed anywhere is finished by the next.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import reduce
from typing import Literal

import pandas as pd
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.pandas.functions import pandas_udf

from lookalike import images
from lookalike.config import Data, Split
from lookalike.errors import DataError, ImageError
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.sources import Source, sent
from lookalike.lake.sources.files import MANY_SMALL_FILES
from lookalike.lake.tables import Tables

_METADATA = ("group_id", "label", "attributes", "given_split")
_ITEM = (*_METADATA, "source", "source_version", "sha256")
_SEEN = (
    "sha256 string, media string, width int, height int, phash string, reason string, detail string"
)
_SETTINGS = MANY_SMALL_FILES | {
    ARROW_ROWS: "64",
    # What is kept is kept for seconds: to find out how it would be packed takes longer.
    "spark.sql.inMemoryColumnarStorage.compressed": "false",
}
_FOR_GOOD = ("empty", "not_an_image", "damaged", "too_large")
"""Reasons that lie in the content. What else was rejected may be used under another recipe, or
answer tomorrow, and is looked at again by each load."""
_NAMED = 10
_SIGNATURES = (
    ("FFD8FF", "image/jpeg"),
    ("89504E47", "image/png"),
    ("474946", "image/gif"),
    ("52494646", "image/webp"),
    ("424D", "image/bmp"),
    ("49492A00", "image/tiff"),
    ("4D4D002A", "image/tiff"),
)


@dataclass(frozen=True)
class Loaded:
    """What a load did: of the `seen` items of the source, `used` + `rejected`.

    Attributes:
        seen: items that the source lists.
        used: of them, those in the items table.
        rejected: of them, those in the rejects.
        read: contents that were read.
        changed: items that are new, or other than they were.
        taken: items that were another source's before.
        pruned: items that the source has no more, and that are deleted.
    """

    seen: int
    used: int
    rejected: int
    read: int
    changed: int
    taken: int = 0
    pruned: int = 0


@dataclass(frozen=True)
class Rules:
    """How a load decides.

    Attributes:
        max_reject_share: of the source's items; above it the load is refused.
        repeated_ids: what becomes of rows with one item_id.
        check: whether images are decoded once, so that damaged ones are rejected.
        phash: whether perceptual hashes are computed.
        max_bytes: larger contents are rejected.
        split_names: the split that a word in the source means; none: the word itself.
    """

    max_reject_share: float
    repeated_ids: Literal["refuse", "first", "last"] = "refuse"
    check: bool = True
    phash: bool = True
    max_bytes: int = 64 * 2**20
    split_names: dict[str, Split] | None = None

    @classmethod
    def of(cls, data: Data) -> Rules:
        """The rules that a recipe gives."""
        return cls(
            max_reject_share=data.max_reject_share,
            repeated_ids=data.repeated_ids,
            check=data.check,
            phash=data.phash,
            max_bytes=data.max_bytes,
            split_names=getattr(data, "split_names", None),
        )


def load(tables: Tables, source: Source, rules: Rules, prune: bool = False) -> Loaded:
    """Load what is new or changed.

    Args:
        tables: the warehouse's.
        source: the catalogue.
        rules: how to decide.
        prune: whether items that the source has no more are deleted.

    Raises:
        DataError: unreadable or empty source, an item_id that comes twice, or more rejects than
            allowed; nothing is committed.
    """
    with translated(), configured(tables.spark, _SETTINGS), ExitStack() as kept:

        def keep(rows: DataFrame) -> DataFrame:
            kept.callback(rows.unpersist)
            return rows.persist(StorageLevel.MEMORY_AND_DISK)

        listing = _listed(source, rules)
        if source.repeats:  # it is looked at twice; else it is kept with what is to be done
            listing = _one_each(keep(listing), source, rules)
        changes = keep(_changes(tables, listing, source))
        found = _found(changes)
        if found.seen == 0:
            raise _nothing(source)
        moved = changes.where("change NOT IN ('same', 'known') OR mended")
        if 2 * found.moved < found.seen:  # what stays as it was is looked through once
            moved = keep(moved)
        wanted = moved.where("change = 'read'")
        contents = outcome = None
        if found.read:
            contents = keep(_examined(source.read(wanted), source.media, rules))
            outcome = keep(_outcome(wanted, contents, found.read))
        loaded = _Load(tables, moved, found, contents, outcome)
        good, bad, mended = loaded.counts()
        if bad + found.known > rules.max_reject_share * found.seen:
            raise _too_many(loaded.rejects, bad + found.known, found.seen, rules)
        changed = good + found.relabelled
        loaded.commit(good, bool(bad), bool(mended + found.mended))
        pruned = _prune(tables, source, changes.select("item_id")) if prune else 0
        used, rejected = found.same, found.known
        if changed or bad:  # counted where they came to lie, not inferred
            other = moved.where("change != 'same'")  # those that are the same are counted
            new_used, new_rejected = _counted(tables, other, found.moved, bad)
            used, rejected = used + new_used, rejected + new_rejected
        return Loaded(found.seen, used, rejected, found.read, changed, found.taken, pruned)


@dataclass(frozen=True)
class _Found:
    """What the listing shows, in items."""

    seen: int
    same: int
    relabelled: int
    read: int
    known: int
    rejected: int
    mended: int
    taken: int

    @property
    def moved(self) -> int:
        """Items that do not stay as they were."""
        return self.seen - self.same - self.known


@dataclass(frozen=True)
class _Load:
    """What came, before it is committed."""

    tables: Tables
    moved: DataFrame
    found: _Found
    contents: DataFrame | None
    outcome: DataFrame | None

    @property
    def rejects(self) -> DataFrame:
        columns = ("item_id", "source", "source_version", "reason", "detail")
        rows = self.moved.where("change = 'reject'").select(*columns)
        if self.outcome is not None:
            bad = self.outcome.where("reason IS NOT NULL").select(*columns)
            rows = rows.unionByName(bad)
        return rows

    def counts(self) -> tuple[int, int, int]:
        """Items whose content was read and can be used; all new rejects; rejects of before that
        can be used now."""
        if self.outcome is None:
            return 0, self.found.rejected, 0
        row = self.outcome.agg(
            F.count_if(F.col("reason").isNull()),
            F.count("reason"),
            F.count_if(F.col("reason").isNull() & F.col("was_rejected")),
        ).first()
        good, bad, mended = row  # type: ignore[misc]
        return good, bad + self.found.rejected, mended

    def commit(self, good: int, bad: bool, mended: bool) -> None:
        """Write what there is of each; items last."""
        tables = self.tables
        used = [self.moved.where("change = 'relabel'")] if self.found.relabelled else []
        fixed = self.moved.where("mended").select("item_id")
        if self.contents is not None and self.outcome is not None and good:
            read = self.outcome.where("reason IS NULL")
            _add_contents(tables, self.contents, read, good)
            used.append(read)
            fixed = fixed.unionByName(read.where("was_rejected").select("item_id"))
        if bad:
            rejects = self.rejects.withColumn("seen_at", F.current_timestamp())
            compared = ("source", "source_version", "reason", "detail")
            tables.upsert("rejects", rejects, "item_id", compared)
        if mended:
            tables.delete("rejects", fixed, "item_id")
        if used:
            # A worker lost by now takes what it read along; read again, it may be something else.
            kept = tables.read("contents").select("sha256")
            rows = reduce(DataFrame.unionByName, [part.select("item_id", *_ITEM) for part in used])
            items = rows.join(kept, "sha256", "left_semi")
            items = items.withColumn("updated_at", F.current_timestamp())
            tables.upsert("items", items, "item_id", _ITEM)


def _found(changes: DataFrame) -> _Found:
    def of(change: str) -> Column:
        return F.count_if(F.col("change") == change)

    row = changes.agg(
        F.count("*"),
        *map(of, ("same", "relabel", "read", "known", "reject")),
        *(F.count_if(F.col(name)) for name in ("mended", "taken")),
    ).first()
    return _Found(*row)  # type: ignore[misc]


def _listed(source: Source, rules: Rules) -> DataFrame:
    """The listing, with the names of splits put into ours."""
    listing = source.listing()
    if rules.split_names is None:
        return listing
    names = F.create_map(*(F.lit(text) for pair in rules.split_names.items() for text in pair))
    word = F.nullif(F.lower(F.trim("given_split")), F.lit(""))
    unknown = F.col("reason").isNull() & word.isNotNull() & names[word].isNull()
    detail = F.concat(
        F.lit("the split '"),
        "given_split",
        F.lit(f"' is none of {', '.join(rules.split_names)} (data.split_names)"),
    )
    return listing.withColumns(
        {
            "given_split": names[word],
            "reason": F.when(unknown, "unknown_split").otherwise(F.col("reason")),
            "detail": F.when(unknown, detail).otherwise(F.col("detail")),
        }
    )


def _one_each(listing: DataFrame, source: Source, rules: Rules) -> DataFrame:
    counts = listing.groupBy("item_id").count().where("count > 1")
    repeated = counts.orderBy("item_id").limit(_NAMED + 1).collect()
    if not repeated:
        return listing
    if rules.repeated_ids == "refuse":
        shown = ", ".join(f"{row['item_id']} ({row['count']} times)" for row in repeated[:_NAMED])
        more = " and more" if len(repeated) > _NAMED else ""
        raise DataError(
            f"{' and '.join(source.names)} has an item_id more than once: {shown}{more}",
            allowed="one row an item_id",
            remedy="Mend the source, or set data.repeated_ids to first or last; nothing was loaded",
        )
    order = F.col("position").asc() if rules.repeated_ids == "first" else F.col("position").desc()
    number = F.row_number().over(Window.partitionBy("item_id").orderBy(order))
    return listing.withColumn("number", number).where("number = 1").drop("number")


def _changes(tables: Tables, listing: DataFrame, source: Source) -> DataFrame:
    """The listing with `change`: what is to be done for an item.

    same: nothing; relabel: its row is other, its content is not; read: its content is new, or may
    be; reject: the listing shows that it cannot be used; known: it has been rejected before. Of
    same and known there is the id alone.
    `mended`: it need not be read to be a reject no more; `taken`: another source had it before.
    """
    with ThreadPoolExecutor() as looks:  # each takes a look at the table's log
        items, rejects = looks.map(tables.pinned, ("items", "rejects"))
    items = items.select(
        "item_id",
        F.col("sha256"),
        F.col("source").alias("old_source"),
        F.col("source_version").alias("old_version"),
        F.struct(*map(_comparable, _METADATA)).alias("old"),
    )
    rejects = rejects.select(
        "item_id",
        F.col("source").alias("bad_source"),
        F.col("source_version").alias("bad_version"),
        F.col("reason").alias("bad_reason"),
        F.col("reason").isin(*_FOR_GOOD).alias("for_good"),
    )
    old = F.col("old_source").eqNullSafe(F.col("source")) & F.col("old_version").eqNullSafe(
        F.col("source_version")
    )
    bad = F.col("bad_source").eqNullSafe(F.col("source")) & F.col("bad_version").eqNullSafe(
        F.col("source_version")
    )
    listed_bad = F.col("reason").isNotNull()
    change = (
        F.when(listed_bad & bad & F.col("bad_reason").eqNullSafe(F.col("reason")), "known")
        .when(listed_bad, "reject")
        .when(old & F.col("old").eqNullSafe(F.struct(*map(_comparable, _METADATA))), "same")
        .when(old, "relabel")
        .when(bad & F.col("for_good"), "known")
        .otherwise("read")
    )
    rejected = F.col("bad_reason").isNotNull()
    found = F.col("change")
    # `embed` rejects what is in the tables, of the same version.
    mended = rejected & ((found == "relabel") | ((found == "same") & ~bad))
    taken = F.col("old_source").isNotNull() & ~F.col("old_source").isin(list(source.names))
    # What stays as it was is counted, and told by its id.
    stays = found.isin("same", "known") & ~F.col("mended")
    told = [F.when(~stays, F.col(c)).alias(c) for c in listing.columns if c != "item_id"]
    return (
        listing.join(items, "item_id", "left")
        .join(rejects, "item_id", "left")
        .withColumn("change", change)
        .withColumns({"was_rejected": rejected, "mended": mended, "taken": taken})
        .select("item_id", *told, "sha256", "was_rejected", "mended", "taken", "change")
    )


def _examined(read: DataFrame, media: str | None, rules: Rules) -> DataFrame:
    """Contents with what they are: `READ` and sha256, media, width, height, phash."""
    limit = rules.max_bytes
    if media is None and rules.check:
        phash = rules.phash

        @pandas_udf(_SEEN)  # type: ignore[call-overload]
        def seen(contents: pd.Series) -> pd.DataFrame:
            return pd.DataFrame([_examine(data, phash, limit) for data in contents],
                                columns=[c.split()[0] for c in _SEEN.split(", ")])  # fmt: skip

        # As a function of a column, the bytes go to Python and need not come back.
        return read.select(
            "item_id", "bytes", F.col("reason").alias("first"), F.col("detail").alias("told"),
            seen("bytes").alias("seen"),
        ).select(
            "item_id", "bytes", "seen.sha256", "seen.media", "seen.width", "seen.height",
            "seen.phash",
            F.coalesce("first", "seen.reason").alias("reason"),
            F.coalesce("told", "seen.detail").alias("detail"),
        )  # fmt: skip
    size = F.length("bytes")
    reason = F.when(size == 0, "empty").when(size > limit, "too_many_bytes")
    detail = F.concat(F.lit("the content has "), size, F.lit(f" bytes, of 1 to {limit:,} allowed"))
    return read.withColumns(
        {
            "sha256": F.sha2("bytes", 256),
            "media": _signature() if media is None else F.lit(media),
            "width": F.lit(None).cast("int"),
            "height": F.lit(None).cast("int"),
            "phash": F.lit(None).cast("string"),
            "reason": F.coalesce("reason", reason),
            "detail": F.coalesce("detail", F.when(reason.isNotNull(), detail)),
        }
    )


def _examine(data: bytes | None, phash: bool, limit: int) -> tuple[object, ...]:
    if data is None:
        return (None,) * 7
    if len(data) > limit:
        said = f"the image has {len(data):,} bytes. Allowed: at most {limit:,} (data.max_bytes)"
        return (None, None, None, None, None, "too_many_bytes", said)
    try:
        found = images.examine(data, phash)
    except ImageError as error:
        return (None, None, None, None, None, error.reason, str(error))
    sha256 = images.content_hash(data)
    return (sha256, found.media, found.width, found.height, found.phash, None, None)


def _outcome(wanted: DataFrame, contents: DataFrame, count: int) -> DataFrame:
    """The wanted rows with the sha256 of their content, or the reason why there is none."""
    read = sent(contents.select("item_id", "sha256", "reason", "detail"), count)
    unread = F.col("sha256").isNull() & F.col("reason").isNull()
    return (
        wanted.drop("sha256", "reason", "detail")
        .join(read, "item_id", "left")
        .withColumns(
            {
                "reason": F.when(unread, "unreadable").otherwise(F.col("reason")),
                "detail": F.when(unread, "its content is gone, or cannot be read").otherwise(
                    F.col("detail")
                ),
            }
        )
    )


def _add_contents(tables: Tables, contents: DataFrame, used: DataFrame, count: int) -> None:
    # The bytes stay where they are: what is sent about is the ids, one for each content. Which of
    # them are new the MERGE finds; where none is, Delta records no commit.
    firsts = used.groupBy("sha256").agg(F.min("item_id").alias("item_id")).select("item_id")
    rows = contents.join(sent(firsts, count), "item_id", "left_semi").where("reason IS NULL")
    columns = ("sha256", "media", "bytes", "width", "height", "phash")
    tables.insert_new("contents", rows.select(*columns), ("sha256",))


def _prune(tables: Tables, source: Source, ids: DataFrame) -> int:
    ours = F.col("source").isin(list(source.names))
    gone = tables.read("items").where(ours).select("item_id").join(ids, "item_id", "left_anti")
    if pruned := gone.count():
        tables.delete("items", gone, "item_id")
    bad = tables.read("rejects").where(ours).select("item_id").join(ids, "item_id", "left_anti")
    if not bad.isEmpty():
        tables.delete("rejects", bad, "item_id")
    return pruned


def _counted(tables: Tables, moved: DataFrame, count: int, bad: int) -> tuple[int, int]:
    """How many of these are in the tables of items and of rejects."""

    def there(table: str, wanted: DataFrame, *keys: str) -> int:
        # Of a table much larger than these, nothing is sent about.
        ids = sent(wanted.select(*keys), count)
        return tables.read(table).join(ids, list(keys), "left_semi").count()

    # A reject whose content was not read has no version.
    rejected = there("rejects", moved, "item_id") if bad else 0
    used = moved.where("reason IS NULL")
    return there("items", used, "item_id", "source", "source_version"), rejected


def _nothing(source: Source) -> DataError:
    others = ", ".join(f"{count:,} {suffix}" for suffix, count in source.passed_over().items())
    return DataError(
        f"there are no items in {' and '.join(source.names)}"
        + (f" (passed over: {others})" if others else ""),
        remedy="Check `data` in the recipe; nothing was loaded",
    )


def _too_many(rejects: DataFrame, bad: int, seen: int, rules: Rules) -> DataError:
    fact = f"{bad:,} of {seen:,} items cannot be used"
    commonest = rejects.groupBy("reason").count().orderBy("count", ascending=False).first()
    if commonest is not None:
        example = rejects.where(F.col("reason") == commonest["reason"]).orderBy("item_id").first()
        fact += (
            f", most of them for {commonest['reason']!r}, for example {example['item_id']}: "  # type: ignore[index]
            f"{example['detail']}"  # type: ignore[index]
        )
    return DataError(
        fact,
        allowed=f"a share of {rules.max_reject_share} (data.max_reject_share)",
        remedy="Mend the source or raise data.max_reject_share; nothing was loaded",
    )


def _signature() -> Column:
    """The media type that a file's first bytes tell, where it is not decoded."""
    found = F.lit(None).cast("string")
    for start, media in reversed(_SIGNATURES):
        begins = F.hex(F.substring("bytes", 1, len(start) // 2)) == start
        found = F.when(begins, media).otherwise(found)
    return found


def _comparable(column: str) -> Column:
    # Spark compares no maps.
    if column == "attributes":
        return F.array_sort(F.map_entries(column)).alias(column)
    return F.col(column)
