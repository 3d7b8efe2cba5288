"""The catalogue with its vectors, as the index and the evaluation take it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

import pyarrow as pa
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lookalike.columns import FAMILY, TEST, UNSEEN
from lookalike.errors import ImageError
from lookalike.images import Preprocessing, decode_all, thumbnail, to_png
from lookalike.lake.samples import by_hash, in_pairs, with_answers
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.splits import families
from lookalike.lake.tables import Tables

_WITH_PIXELS: Final = (
    "item_id string, label string, split string, unseen boolean, vector array<float>, pixels binary"
)


def with_vectors(tables: Tables, fingerprint: str, versions: dict[str, int]) -> DataFrame:
    """Items that have a vector: item_id, label, attributes, vector; by ascending item_id.

    Those that share a group or a cluster of duplicates have `columns.FAMILY` among their
    attributes, with equal values.

    Args:
        tables: the warehouse's.
        fingerprint: of the encoder.
        versions: of the tables 'items' and 'duplicates'.
    """
    items = tables.read("items", versions["items"])
    found = families(items, tables.read("duplicates", versions["duplicates"]))
    members = F.count("*").over(Window.partitionBy("family"))
    shared = found.withColumn("members", members).where("members > 1").drop("members")
    family = F.create_map(F.lit(FAMILY), F.col("family").cast("string"))
    attributes = F.coalesce("attributes", F.create_map().cast("map<string,string>"))
    return (
        items.join(_vectors(tables, fingerprint), "sha256")
        .join(shared, "item_id", "left")
        .withColumn(
            "attributes",
            F.when(F.col("family").isNull(), F.col("attributes")).otherwise(
                F.map_concat(attributes, family)
            ),
        )
        .select("item_id", "label", "attributes", "vector")
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
    limits: tuple[int, int],
    labelled: bool,
    preprocessing: Preprocessing | None,
) -> DataFrame:
    """A bounded sample of items, with vector and decoded pixels.

    Of labelled ones the test items come in pairs of a class, and of the others those of their
    classes first: so they have something to find, as they would in the whole catalogue.

    Args:
        tables: the warehouse's.
        fingerprint: of the encoder.
        versions: of the tables 'items' and 'splits'.
        limits: test items, and items of the other splits.
        labelled: whether only items with a label are taken.
        preprocessing: size and channels of `pixels`; None where contents are no images.

    Returns:
        item_id, label, split, unseen (whether its class is kept out of training), vector and,
        of images, pixels (uint8 size x size x channels); by item_id.
    """
    rows = sampled(tables, versions, limits, labelled).join(_vectors(tables, fingerprint), "sha256")
    columns = ["item_id", "label", "split", "unseen", "vector"]
    if preprocessing is not None:
        rows = rows.join(tables.read("contents").select("sha256", "bytes"), "sha256")
        columns.append("bytes")
    rows = (
        rows.select(*columns)
        .repartitionByRange(2 * tables.spark.sparkContext.defaultParallelism, "item_id")
        .sortWithinPartitions("item_id")
    )
    if preprocessing is None:
        return rows
    return rows.mapInArrow(lambda batches: _with_pixels(batches, preprocessing), _WITH_PIXELS)


def sampled(
    tables: Tables, versions: dict[str, int], limits: tuple[int, int], labelled: bool
) -> DataFrame:
    """The items of `sample`, whether they have a vector or not: item_id, sha256, label, split,
    decided_by, unseen.

    Args: as of `sample`.
    """
    splits = tables.read("splits", versions["splits"])
    both = (
        _items(tables, versions["items"], labelled)
        .join(splits, "item_id")
        .withColumn("unseen", F.col("decided_by").eqNullSafe(UNSEEN))
    )
    test, others = both.where(F.col("split") == TEST), both.where(F.col("split") != TEST)
    if not labelled:
        return by_hash(test, limits[0]).unionByName(by_hash(others, limits[1]))
    queries = in_pairs(test, limits[0])
    return queries.unionByName(with_answers(others, queries, limits[1]))


def labelled_contents(
    tables: Tables, versions: dict[str, int], split: str, limit: int
) -> DataFrame:
    """At most `limit` labelled items of a split, in pairs of a class: label, bytes."""
    splits = tables.read("splits", versions["splits"]).where(F.col("split") == split)
    items = _items(tables, versions["items"], labelled=True).join(splits, "item_id")
    contents = tables.read("contents").select("sha256", "bytes")
    chosen = in_pairs(items, limit).join(contents, "sha256")
    return chosen.orderBy("item_id").select("label", "bytes")


def pictures(
    tables: Tables, item_ids: list[str], items_version: int, largest: int
) -> dict[str, bytes]:
    """The images of a few items as PNG files, at most `largest` pixels wide and high."""
    few = tables.read("items", items_version).where(F.col("item_id").isin(item_ids))
    rows = few.select("item_id", "sha256").join(tables.read("contents"), "sha256")
    rows = rows.select("item_id", "bytes")

    def small(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for batch in batches:
            files = [to_png(data, largest) for data in batch["bytes"].to_pylist()]
            yield pa.record_batch([batch["item_id"], pa.array(files, pa.binary())], ["id", "png"])

    # On the workers: a photo has megabytes.
    with translated(), configured(tables.spark, {ARROW_ROWS: "4"}):
        found = rows.mapInArrow(small, "id string, png binary").collect()
    return {row["id"]: bytes(row["png"]) for row in found}


def some_ids(tables: Tables, fingerprint: str, items_version: int, count: int) -> list[str]:
    """Ids of a few items that have an encoder's vector, chosen by hash."""
    return [row["item_id"] for row in _some(tables, fingerprint, items_version, count).collect()]


def some_contents(tables: Tables, fingerprint: str, items_version: int, count: int) -> DataFrame:
    """The original bytes of a few items that have an encoder's vector, chosen by hash: bytes."""
    few = _some(tables, fingerprint, items_version, count)
    contents = tables.read("contents").select("sha256", "bytes")
    return contents.join(F.broadcast(few), "sha256").select("bytes")


def thumbnails(tables: Tables, items_version: int, size: int) -> DataFrame:
    """Small pictures of the items: item_id, thumbnail (a JPEG file); by ascending item_id.

    Args:
        tables: the warehouse's.
        items_version: version of the items table.
        size: pixels of a picture's longer side, at most.
    """
    items = tables.read("items", items_version).select("item_id", "sha256")
    contents = tables.read("contents").where("media LIKE 'image/%'").select("sha256", "bytes")
    # Made where the files lie, once for each; what is sorted is small.
    small = contents.join(items.select("sha256").distinct(), "sha256", "left_semi").mapInArrow(
        lambda batches: _thumbnails(batches, size), "sha256 string, thumbnail binary"
    )
    return items.join(small, "sha256").select("item_id", "thumbnail").orderBy("item_id")


def _thumbnails(batches: Iterable[pa.RecordBatch], size: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        made = []
        for sha256, data in zip(*(batch.column(n).to_pylist() for n in ("sha256", "bytes")),
                                strict=True):  # fmt: skip
            with suppress(ImageError):  # it has no vector either, and is in no index
                made.append((sha256, thumbnail(data, size)))
        hashes, files = ([one[i] for one in made] for i in (0, 1))
        yield pa.RecordBatch.from_arrays(
            [pa.array(hashes, pa.string()), pa.array(files, pa.binary())], ["sha256", "thumbnail"]
        )


def _some(tables: Tables, fingerprint: str, items_version: int, count: int) -> DataFrame:
    items = _items(tables, items_version, labelled=False)
    return by_hash(items.join(_vectors(tables, fingerprint), "sha256", "left_semi"), count)


def _items(tables: Tables, version: int, labelled: bool) -> DataFrame:
    items = tables.read("items", version).select("item_id", "sha256", "label")
    return items.where("label IS NOT NULL") if labelled else items


def _vectors(tables: Tables, fingerprint: str) -> DataFrame:
    embeddings = tables.read("embeddings").where(F.col("encoder") == fingerprint)
    return embeddings.select("sha256", "vector")


def _with_pixels(
    batches: Iterable[pa.RecordBatch], preprocessing: Preprocessing
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        pixels = decode_all(batch.column("bytes").to_pylist(), preprocessing)
        raw = pa.array([image.tobytes() for image in pixels], pa.binary())
        names = [name for name in batch.schema.names if name != "bytes"]
        kept = [batch.column(name) for name in names]
        yield pa.RecordBatch.from_arrays([*kept, raw], names=[*names, "pixels"])
