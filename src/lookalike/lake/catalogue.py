"""The catalogue with its vectors, as the index and the evaluation take it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lookalike.images import Preprocessing, decode
from lookalike.lake.tables import Tables

_SAMPLE: Final = "item_id string, label string, split string, vector array<float>, pixels binary"


def with_vectors(tables: Tables, fingerprint: str, items_version: int) -> DataFrame:
    """Items that have a vector: item_id, label, vector; by ascending item_id.

    Args:
        tables: the warehouse's.
        fingerprint: of the encoder.
        items_version: version of the items table.
    """
    return (
        tables.read("items", items_version)
        .join(_vectors(tables, fingerprint), "sha256")
        .select("item_id", "label", "vector")
        .orderBy("item_id")
    )


def without_vectors(tables: Tables, fingerprint: str, items_version: int) -> DataFrame:
    """Items that have no vector of an encoder."""
    vectors = _vectors(tables, fingerprint)
    return tables.read("items", items_version).join(vectors, "sha256", "left_anti")


def sample(
    tables: Tables,
    fingerprint: str,
    versions: dict[str, int],
    preprocessing: Preprocessing,
    limits: tuple[int, int],
) -> DataFrame:
    """A bounded sample of labelled items, by hash, with vector and decoded pixels.

    Args:
        tables: the warehouse's.
        fingerprint: of the encoder.
        versions: of the tables 'items' and 'splits'.
        preprocessing: size and channels of `pixels`.
        limits: test items, and items of the other splits.

    Returns:
        item_id, label, split, vector, pixels (uint8 size x size x channels), by item_id.
    """
    items = tables.read("items", versions["items"]).where("label IS NOT NULL")
    splits = tables.read("splits", versions["splits"]).select("item_id", "split")
    both = items.select("item_id", "sha256", "label").join(splits, "item_id")
    chosen = [
        both.where(side).orderBy(F.xxhash64("item_id"), "item_id").limit(limit)
        for side, limit in zip(("split = 'test'", "split <> 'test'"), limits, strict=True)
    ]
    return (
        chosen[0]
        .unionByName(chosen[1])
        .join(_vectors(tables, fingerprint), "sha256")
        .join(tables.read("contents").select("sha256", "bytes"), "sha256")
        .select("item_id", "label", "split", "vector", "bytes")
        .repartitionByRange(2 * tables.spark.sparkContext.defaultParallelism, "item_id")
        .sortWithinPartitions("item_id")
        .mapInArrow(lambda batches: _with_pixels(batches, preprocessing), _SAMPLE)
    )


def originals(tables: Tables, item_ids: list[str], items_version: int) -> dict[str, bytes]:
    """The original bytes of a few items."""
    few = tables.read("items", items_version).where(F.col("item_id").isin(item_ids))
    rows = few.select("item_id", "sha256").join(tables.read("contents"), "sha256")
    return {
        row["item_id"]: bytes(row["bytes"]) for row in rows.select("item_id", "bytes").collect()
    }


def _vectors(tables: Tables, fingerprint: str) -> DataFrame:
    embeddings = tables.read("embeddings").where(F.col("encoder") == fingerprint)
    return embeddings.select("sha256", "vector")


def _with_pixels(
    batches: Iterable[pa.RecordBatch], preprocessing: Preprocessing
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        pixels = [decode(b, preprocessing) for b in batch.column("bytes").to_pylist()]
        raw = pa.array([np.ascontiguousarray(p).tobytes() for p in pixels], pa.binary())
        kept = [batch.column(name) for name in ("item_id", "label", "split", "vector")]
        yield pa.RecordBatch.from_arrays(
            [*kept, raw], names=["item_id", "label", "split", "vector", "pixels"]
        )
