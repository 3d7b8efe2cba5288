"""A few items of a catalogue, and a few rejects, to look at."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Final

import pyarrow as pa
from pyspark.sql import Window
from pyspark.sql import functions as F

from lookalike.lake.inspection import readable_rejects, with_split
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.tables import Tables
from lookalike.lake.tiles import Tile, tile

_TILED: Final = "sha256 string, png binary, words string"
_BATCH_ROWS = "4"  # contents that a worker holds at a time


@dataclass(frozen=True)
class Specimen:
    """An item to look at. Its split is None where it has none."""

    item_id: str
    label: str | None
    split: str | None
    tile: Tile


@dataclass(frozen=True)
class Reject:
    """An item that cannot be used."""

    reason: str
    item_id: str
    detail: str


def random_ids(tables: Tables, items_version: int, seed: int, most: int) -> list[str]:
    """Some items, by hash: the same ones for a seed, whatever else the catalogue holds."""
    items = tables.read("items", items_version).select("item_id")
    order = F.xxhash64("item_id", F.lit(seed))
    return [row["item_id"] for row in items.orderBy(order, "item_id").limit(most).collect()]


def look_at(tables: Tables, versions: dict[str, int], item_ids: list[str]) -> dict[str, Specimen]:
    """A few items to look at, by id; without those that the catalogue does not have.

    Args:
        tables: the warehouse's.
        versions: as `inspection.labels` takes them.
        item_ids: which.
    """
    few = tables.read("items", versions["items"]).where(F.col("item_id").isin(item_ids))
    rows = with_split(tables, versions, few, "sha256").collect()
    wanted = list({row["sha256"] for row in rows})
    contents = tables.read("contents").where(F.col("sha256").isin(wanted))
    with translated(), configured(tables.spark, {ARROW_ROWS: _BATCH_ROWS}):
        # On the workers: a photo has megabytes, a tile kilobytes.
        tiled = contents.select("sha256", "media", "bytes").mapInArrow(_tiled, _TILED).collect()
    seen = {row["sha256"]: Tile(_bytes(row["png"]), row["words"]) for row in tiled}
    lost = Tile(None, "its content is gone")
    return {
        row["item_id"]: Specimen(
            row["item_id"], row["label"], row["split"], seen.get(row["sha256"], lost)
        )
        for row in rows
    }


def worst_rejects(tables: Tables, version: int, most: int) -> tuple[Reject, ...]:
    """Some rejects: of each reason one, as far as they go, then the next; frequent reasons first.

    Args:
        tables: the warehouse's.
        version: of the table 'rejects'.
        most: how many.
    """
    rows = readable_rejects(tables, version)
    counts = rows.groupBy("reason").count()
    order = Window.partitionBy("reason").orderBy("item_id")
    few = (
        rows.withColumn("place", F.row_number().over(order))
        .where(F.col("place") <= most)
        .join(F.broadcast(counts), "reason")
        .orderBy("place", F.col("count").desc(), "reason")
        .limit(most)
        .orderBy(F.col("count").desc(), "reason", "place")
    )
    return tuple(Reject(**r.asDict()) for r in few.select("reason", "item_id", "detail").collect())


def _bytes(value: bytearray | None) -> bytes | None:
    return None if value is None else bytes(value)


def _tiled(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = [
            {"sha256": row["sha256"], **asdict(tile(row["bytes"] or b"", row["media"]))}
            for row in batch.to_pylist()
        ]
        schema = pa.schema({"sha256": pa.string(), "png": pa.binary(), "words": pa.string()})
        yield pa.RecordBatch.from_pylist(rows, schema=schema)
