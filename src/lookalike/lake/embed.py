"""Vectors of all contents of the catalogue, by Spark and an encoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from lookalike.encoder import Encoder
from lookalike.errors import ContentError
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.sources import sent
from lookalike.lake.tables import Tables

_BATCH = 64
_ENCODED: Final = "sha256 string, encoder string, vector array<float>, reason string, detail string"


@dataclass(frozen=True)
class Embedded:
    """What embedding did, in distinct contents: `seen` = `known` + `embedded` + `rejected`."""

    seen: int
    known: int
    embedded: int
    rejected: int


def embed(
    tables: Tables,
    encoder_uri: str,
    fingerprint: str,
    items_version: int,
    among: DataFrame | None = None,
) -> Embedded:
    """Add the vectors that the encoder's part of the embeddings table does not have.

    Args:
        tables: the warehouse's.
        encoder_uri: a committed encoder that Spark's workers can read.
        fingerprint: its fingerprint.
        items_version: version of the items table.
        among: sha256 of the contents that are wanted; None for all. Of those, what cannot be
            encoded is no reject: it is asked whether another encoder would do.
    """
    wanted = tables.read("items", items_version).select("sha256").distinct()
    if among is not None:
        wanted = wanted.join(among, "sha256", "left_semi")
    known = tables.pinned("embeddings").where(F.col("encoder") == fingerprint).select("sha256")
    missing = wanted.join(known, "sha256", "left_anti")
    seen, new = wanted.count(), missing.count()
    if new == 0:
        return Embedded(seen, seen, 0, 0)
    tasks = 2 * tables.spark.sparkContext.defaultParallelism
    encoded = (
        tables.read("contents")
        .select("sha256", "bytes")
        .join(sent(missing, new), "sha256")
        .repartition(tasks, "sha256")
        .mapInArrow(lambda batches: _encoded(batches, encoder_uri, fingerprint), _ENCODED)
        .persist(StorageLevel.DISK_ONLY)
    )
    try:
        # Of photos: what a worker holds at a time.
        with translated(), configured(tables.spark, {ARROW_ROWS: str(_BATCH)}):
            rejected = encoded.where("reason IS NOT NULL")
            bad = rejected.count()
            good = encoded.where("reason IS NULL").select("sha256", "encoder", "vector")
            embedded = good.count()
            tables.insert_new("embeddings", good, ("encoder", "sha256"))
            if bad and among is None:
                _add_rejects(tables, rejected, items_version)
    finally:
        encoded.unpersist()
    return Embedded(seen, seen - new, embedded, bad)


def _add_rejects(tables: Tables, rejected: Any, items_version: int) -> None:
    items = tables.read("items", items_version)
    columns = ("item_id", "source", "source_version", "reason", "detail")
    rows = items.join(rejected, "sha256").select(*columns, F.current_timestamp().alias("seen_at"))
    tables.upsert("rejects", rows, "item_id", columns[1:])


def _encoded(
    batches: Iterable[pa.RecordBatch], uri: str, fingerprint: str
) -> Iterator[pa.RecordBatch]:
    encoder = Encoder.open(uri)
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH):
            part = batch.slice(start, _BATCH)
            hashes, contents = part.column(0).to_pylist(), part.column(1).to_pylist()
            try:
                vectors: list[Any] = list(encoder.encode(contents))
                reasons: list[Any] = [None] * len(contents)
                details: list[Any] = [None] * len(contents)
            except ContentError:
                vectors, reasons, details = _one_by_one(encoder, contents)
            yield pa.RecordBatch.from_arrays(
                [
                    pa.array(hashes, pa.string()),
                    pa.array([fingerprint] * len(contents), pa.string()),
                    pa.array(vectors, pa.list_(pa.float32())),
                    pa.array(reasons, pa.string()),
                    pa.array(details, pa.string()),
                ],
                names=["sha256", "encoder", "vector", "reason", "detail"],
            )


def _one_by_one(
    encoder: Encoder, contents: list[bytes]
) -> tuple[list[Any], list[str | None], list[str | None]]:
    vectors: list[Any] = []
    reasons: list[str | None] = []
    details: list[str | None] = []
    for data in contents:
        try:
            vectors.append(encoder.encode([data])[0])
            reasons.append(None)
            details.append(None)
        except ContentError as error:
            vectors.append(None)
            reasons.append(error.reason)
            details.append(str(error))
    return vectors, reasons, details
