"""A pinned version of the tables as Parquet packs for training: decoded once, or as files.

    SNAPSHOT/train/block-00007-RANDOM.parquet        one row group: one block
    SNAPSHOT/validation/block-00000-RANDOM.parquet

A row is a pack: images of one class, side by side in one binary, and of files their lengths. File
names carry a random part, so that a task that Spark runs twice writes twice; the manifest names the
one that counts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, astuple, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, LENGTHS, PIXELS, TRAIN, VALIDATION
from lookalike.errors import ConfigError, DataError
from lookalike.images import Preprocessing, decode
from lookalike.lake.samples import in_pairs
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.tables import Tables
from lookalike.planning import BatchShape

KIND = "snapshot"
PACKS: Final = pa.schema(
    [
        pa.field(CLASS_ID, pa.int32(), nullable=False),
        pa.field(COUNT, pa.int32(), nullable=False),
        pa.field(ITEM_IDS, pa.binary(), nullable=False),
        pa.field(LENGTHS, pa.binary(), nullable=False),
        pa.field(PIXELS, pa.binary(), nullable=False),
    ]
)
_WRITTEN: Final = "split string, block long, items long, path string, size long, sha256 string"


def _nobody(*_: object) -> None:
    """Who is told of sizes where nobody asks."""


@dataclass(frozen=True)
class Recipe:
    """What a snapshot is made by. Equal recipes on equal versions make equal snapshots.

    Attributes:
        preprocessing: size and channels that images are decoded to.
        batch: P x K that its blocks are laid out for.
        validation_items: at most so many, in pairs of a class.
        seed: of the order of items.
        format: 'raw' or 'encoded': images decoded, or the files as they came.
        group_by: attribute whose commonest value among its images is a class's group, or None.
    """

    preprocessing: Preprocessing
    batch: BatchShape
    validation_items: int
    seed: int
    format: Literal["raw", "encoded"] = "raw"
    group_by: str | None = None


@dataclass(frozen=True)
class Sizes:
    """Bytes of a snapshot's images on disk: of `raw` ones, and of `encoded` ones about."""

    raw: int
    encoded: int


def write(
    tables: Tables,
    versions: dict[str, int],
    recipe: Recipe,
    files: str,
    on_sizes: Callable[[Sizes], None] = _nobody,
) -> artifacts.Artifact:
    """Write and commit a snapshot.

    Args:
        tables: the warehouse's.
        versions: of the tables 'items' and 'splits'.
        recipe: see `Recipe`.
        files: folder or URI of the warehouse's files.
        on_sizes: told what it would take in either format, before anything is written.

    Raises:
        ConfigError: the batch asks for more classes than there are, or no training item has the
            attribute to group by.
        DataError: validation has nothing to measure with.
    """
    keys = _keys(tables, versions)
    rows = keys.where(F.col("label").isNotNull()).groupBy("split", "label").count().collect()
    counts = {split: {r["label"]: r["count"] for r in rows if r["split"] == split}
              for split in (TRAIN, VALIDATION)}  # fmt: skip
    classes = sorted(counts[TRAIN])
    sizes = np.array([counts[TRAIN][label] for label in classes], dtype=np.int64)
    planning.check_classes(sizes, recipe.batch)
    known = {label: n for label, n in counts[VALIDATION].items() if label in counts[TRAIN]}
    if len(known) < 2 or max(known.values()) < 2:
        raise DataError(
            f"the validation split has {sum(known.values())} labelled items of {len(known)} "
            "classes that are trained on",
            allowed="two classes or more, and two items of one of them",
            remedy="Raise data.validation_share in a new warehouse (an item never changes its "
            "split), or add images",
        )
    validated = min(sum(known.values()), recipe.validation_items)
    trained = int(sizes.sum())
    # Blocks are laid out by the bytes of the format that is written; an estimate will do else.
    exact = recipe.format == "encoded"
    encoded = _mean_bytes(tables, keys) if exact else _approximate_mean_bytes(tables)
    per_item = Sizes(recipe.preprocessing.item_bytes, encoded)
    on_sizes(Sizes(*((trained + validated) * size for size in astuple(per_item))))
    blocks = planning.block_count(trained, getattr(per_item, recipe.format), recipe.batch)
    groups = _groups(tables, keys, versions, classes, recipe.group_by) if recipe.group_by else None
    # An order that depends on nothing but the ids and the seed.
    keys = keys.withColumn("shuffled", F.xxhash64("item_id", F.lit(recipe.seed)))
    layout = planning.lay_out(sizes, blocks, recipe.batch.images)
    placed = _train_blocks(keys, classes, layout)
    per_block = max(1, planning.BLOCK_BYTES // getattr(per_item, recipe.format))
    placed = placed.unionByName(_validation_blocks(keys, classes, recipe, per_block))
    uri = artifacts.join(files, "snapshots", artifacts.new_name())
    written = _write_blocks(tables, placed, recipe, uri, blocks)
    meta = {
        "versions": versions,
        "recipe": asdict(recipe),
        "classes": classes,
        "counts": [int(n) for n in sizes],
        "groups": groups,
        "items": {
            split: sum(w["items"] for w in written if w["split"] == split)
            for split in (TRAIN, VALIDATION)
        },
        "blocks": {
            split: [
                {"path": w["path"], "items": w["items"]} for w in written if w["split"] == split
            ]
            for split in (TRAIN, VALIDATION)
        },
        "seen": keys.where("split <> 'test'").count(),
        # Counted, not inferred: with the items written they must make up all that were seen.
        "left_out": keys.where("split <> 'test' AND label IS NULL").count()
        + sum(counts[VALIDATION].values())
        - validated,
    }
    entries = tuple(artifacts.FileEntry(w["path"], w["size"], w["sha256"]) for w in written)
    return artifacts.seal(uri, KIND, meta, entries)


def _keys(tables: Tables, versions: dict[str, int]) -> DataFrame:
    items = tables.read("items", versions["items"]).select("item_id", "sha256", "label")
    return items.join(
        tables.read("splits", versions["splits"]).select("item_id", "split"), "item_id"
    )


def _mean_bytes(tables: Tables, keys: DataFrame) -> int:
    """The bytes of an image file among `keys`, alike whatever else is loaded by now: the files are
    read once more than they are written."""
    sizes = tables.read("contents").select("sha256", F.length("bytes").alias("size"))
    used = keys.where("split <> 'test' AND label IS NOT NULL").join(sizes, "sha256")
    mean = used.agg(F.avg("size")).first()
    return max(1, round(mean[0] or 0))  # type: ignore[index]


def _approximate_mean_bytes(tables: Tables) -> int:
    """The bytes of an image file, from what is known of the table without reading it."""
    detail = tables.spark.sql(f"DESCRIBE DETAIL {tables.name('contents')}").first()
    held = 0 if detail is None else int(detail["sizeInBytes"])
    return max(1, held // max(1, tables.read("contents").count()))


def _groups(
    tables: Tables, keys: DataFrame, versions: dict[str, int], classes: list[str], attribute: str
) -> list[str | None]:
    """The commonest value of an attribute among each class's training items; of several that are,
    the first by name; None where no item has it."""
    items = tables.read("items", versions["items"]).select("item_id", "attributes")
    train = keys.where((F.col("split") == TRAIN) & F.col("label").isNotNull())
    values = train.join(items, "item_id").withColumn("value", F.col("attributes")[attribute])
    rows = (
        values.where(F.col("value").isNotNull())
        .groupBy("label", "value")
        .count()
        .groupBy("label")
        .agg(F.min(F.struct(-F.col("count"), "value"))["value"].alias("value"))
        .collect()
    )
    if not rows:
        names = values.select(F.explode(F.map_keys("attributes")).alias("name")).distinct()
        found = [row["name"] for row in names.orderBy("name").limit(20).collect()]
        raise ConfigError(
            f"train.group_by = {attribute!r} is an attribute of none of the items to train on",
            allowed=", ".join(found) or "none: they have no attributes",
        )
    value_of = {row["label"]: row["value"] for row in rows}
    return [value_of.get(label) for label in classes]


def _positions(items: DataFrame, *by: str) -> DataFrame:
    window = Window.partitionBy(*by).orderBy("shuffled", "item_id")
    return items.withColumn("position", F.row_number().over(window) - 1)


def _train_blocks(keys: DataFrame, classes: list[str], layout: planning.Layout) -> DataFrame:
    spark = keys.sparkSession
    table = spark.createDataFrame(
        [(c, i, int(layout.start[i]), int(layout.width[i])) for i, c in enumerate(classes)],
        "label string, class_id int, start long, width long",
    )
    # As in `planning.Layout.places`.
    packed = F.least(F.floor(F.col("position") / layout.images), F.col("width") - 1)
    wide = F.col("width") == layout.blocks
    turn = F.when(wide, F.col("position") % F.col("width")).otherwise(packed)
    block = (F.col("start") + turn) % layout.blocks
    return (
        _positions(
            keys.where(F.col("split") == TRAIN).join(F.broadcast(table), "label"),
            "label",
        )
        .withColumn("block", block)
        .select("split", "block", "class_id", "position", "item_id", "sha256")
    )


def _validation_blocks(
    keys: DataFrame, classes: list[str], recipe: Recipe, per_block: int
) -> DataFrame:
    spark = keys.sparkSession
    table = spark.createDataFrame(
        [(c, i) for i, c in enumerate(classes)], "label string, class_id int"
    )
    known = keys.where(F.col("split") == VALIDATION).join(F.broadcast(table), "label")
    return (
        _positions(in_pairs(known, recipe.validation_items), "split")
        .withColumn("block", F.floor(F.col("position") / per_block).cast("long"))
        .select("split", "block", "class_id", "position", "item_id", "sha256")
    )


def _write_blocks(
    tables: Tables, placed: DataFrame, recipe: Recipe, uri: str, blocks: int
) -> list[dict[str, Any]]:
    contents = tables.read("contents").select("sha256", "bytes")
    tasks = max(1, min(blocks, 2 * tables.spark.sparkContext.defaultParallelism))
    preprocessing = recipe.preprocessing if recipe.format == "raw" else None
    written = (
        placed.join(contents, "sha256")
        .select("split", "block", "class_id", "position", "item_id", "bytes")
        .repartition(tasks, "split", "block")
        .sortWithinPartitions("split", "block", "class_id", "position")
        .mapInArrow(lambda batches: _blocks(batches, preprocessing, uri), _WRITTEN)
    )
    # Photos are large, and a worker gets them by batches.
    with translated(), configured(tables.spark, {ARROW_ROWS: "64"}):
        rows = [row.asDict() for row in written.collect()]
    return sorted(rows, key=itemgetter("split", "block"))


def _blocks(
    batches: Iterable[pa.RecordBatch], preprocessing: Preprocessing | None, uri: str
) -> Iterator[pa.RecordBatch]:
    rows = (row for batch in batches for row in batch.to_pylist())
    for (split, block), members in groupby(rows, key=itemgetter("split", "block")):
        packs, items = [], 0
        for class_id, images in groupby(members, key=itemgetter("class_id")):
            pack = _pack(class_id, images, preprocessing)
            packs.append(pack)
            items += pack[COUNT]
        name = f"{split}/block-{block:05d}-{uuid4().hex[:8]}.parquet"
        with artifacts.workbench() as folder:
            file = folder / "block.parquet"
            _write_row_group(packs, file)
            entry = artifacts.entry_of(file, name)
            artifacts.copy_in(file, artifacts.join(uri, name))
        row = {"split": split, "block": block, "items": items, **asdict(entry)}
        yield pa.RecordBatch.from_pylist([row], schema=_written_schema())


def _pack(
    class_id: int, images: Iterable[dict[str, Any]], preprocessing: Preprocessing | None
) -> dict[str, Any]:
    ids, kept = [], []
    for image in images:
        ids.append(image["item_id"])
        data = image["bytes"]
        kept.append(data if preprocessing is None else decode(data, preprocessing).tobytes())
    lengths = [] if preprocessing is not None else [len(data) for data in kept]
    # Ids as JSON: Petastorm takes lists of one length only, and an id may hold any character. And
    # not as text, of which it makes all as long as the longest.
    return {
        CLASS_ID: class_id,
        COUNT: len(ids),
        ITEM_IDS: json.dumps(ids).encode(),
        LENGTHS: np.array(lengths, "<u4").tobytes(),
        PIXELS: b"".join(kept),
    }


def _write_row_group(packs: list[dict[str, Any]], file: Path) -> None:
    table = pa.Table.from_pylist(packs, schema=PACKS)
    # Read every epoch, and photos hardly shrink: so a block is as large as its images.
    pq.write_table(table, file, row_group_size=len(packs), use_dictionary=False, compression="none")


def _written_schema() -> pa.Schema:
    return pa.schema(
        [
            ("split", pa.string()),
            ("block", pa.int64()),
            ("items", pa.int64()),
            ("path", pa.string()),
            ("size", pa.int64()),
            ("sha256", pa.string()),
        ]
    )
