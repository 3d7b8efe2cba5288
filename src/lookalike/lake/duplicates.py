"""Pictures that are in the catalogue twice: byte for byte, or nearly.

Near is what a perceptual hash puts close together and a closer look confirms:

    distinct hashes --banded join--> those with a neighbour --their files--> sketches
        --banded join, confirmed by sketches--> pairs --connected components--> clusters

Only files of hashes that have a neighbour, or that several files share, are opened. The join and
the components work on distinct hashes and sketches, so that equal ones are one node, not a pair
each.

A hash with few bits set says nothing: it is of a picture of one colour, or as good as that, and
all of these have the same. By construction half of its 64 bits are above their median, so fewer
mean that many were equal. Such pictures are duplicates where their bytes are the same, and so
are contents without a hash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark import StorageLevel
from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from lookalike.errors import ImageError
from lookalike.lake import hamming
from lookalike.lake.components import EDGES, Forest, connected, rows_of
from lookalike.lake.hamming import Agree, Runs
from lookalike.lake.looks import SKETCH_BYTES, alike, sketch
from lookalike.lake.session import ARROW_ROWS, configured, translated
from lookalike.lake.tables import Tables

EXACT: Final = "exact"
NEAR: Final = "near"

_TELLING = 24  # bits set of a hash that says something; of pictures nearly all have 32
_SKETCHED: Final = "sha256 string not null, hash long not null, sketch binary not null"
_CHUNK = 2**16  # hashes that are looked through at a time, or a run's, if it has more
_BROADCAST = 100_000  # sha256 sent to all workers, about 10 MB
_BATCH_ROWS = "64"  # image files that a worker holds at a time

Keep = Callable[[DataFrame], DataFrame]


@dataclass(frozen=True)
class Found:
    """What the duplicates table holds.

    Attributes:
        clusters: of two items or more.
        exact: items of which another has the same bytes.
        near: other items in clusters.
        largest: items of the largest cluster.
        unhashed: images without a perceptual hash.
        version: of the table.
    """

    clusters: int
    exact: int
    near: int
    largest: int
    unhashed: int
    version: int


def write(tables: Tables, items_version: int, max_distance: int | None) -> Found:
    """Find the duplicates among items, and put them in place of what the table held.

    Args:
        tables: the warehouse's.
        items_version: version of the items table.
        max_distance: differing bits of 64 at most; None: only equal bytes are looked for.
    """
    items = tables.read("items", items_version).select("item_id", "sha256")
    with translated(), ExitStack() as kept:

        def keep(rows: DataFrame) -> DataFrame:
            kept.callback(rows.unpersist)
            return rows.persist(StorageLevel.DISK_ONLY)

        looks = None if max_distance is None else _looks(tables, items, max_distance, keep)
        tables.replace("duplicates", _clusters(items, looks))
    version = tables.version("duplicates")
    sizes = (
        tables.read("duplicates", version)
        .groupBy("cluster_id")
        .agg(F.count("*").alias("items"), F.count_if(F.col("kind") == EXACT).alias("exact"))
    )
    row = sizes.select(
        F.count("*"),
        *(F.coalesce(c, F.lit(0)) for c in (F.sum("exact"), F.sum("items"), F.max("items"))),
    ).first()
    clusters, exact, both, largest = row  # type: ignore[misc]
    unhashed = (
        tables.read("contents")
        .where("phash IS NULL AND media LIKE 'image/%'")
        .join(items.select("sha256").distinct(), "sha256", "left_semi")
        .count()
    )
    return Found(clusters, exact, both - exact, largest, unhashed, version)


def near(points: DataFrame, distance: int) -> DataFrame:
    """The trees of points that lie close together, and the distance of each to its nearest.

    Args:
        points: node (long), hash (long: its 64 bits); or node, hash and sketch (binary), where the
            sketches must be alike too. A node once.
        distance: most bits in which hashes may differ.

    Returns:
        Rows of `components.EDGES`, of nodes that are near another: node, root, distance.
    """
    masks = hamming.bands(distance)
    bands = [
        F.struct(F.lit(i).alias("band"), F.col("hash").bitwiseAND(_signed(mask)).alias("key"))
        for i, mask in enumerate(masks)
    ]
    tasks = 2 * points.sparkSession.sparkContext.defaultParallelism
    edges = (
        points.select(F.explode(F.array(*bands)).alias("at"), *points.columns)
        .select("at.band", "at.key", *points.columns)
        .repartition(tasks, "band", "key")
        .sortWithinPartitions("band", "key")
        .mapInArrow(lambda batches: _searched(batches, masks, distance), EDGES)
    )
    return connected(edges)


def _looks(tables: Tables, items: DataFrame, distance: int, keep: Keep) -> DataFrame | None:
    """sha256, look, hash, distance of contents that may have a near one, to `look` the nodes of one
    cluster's contents; None where there is none."""
    wanted = items.select("sha256").distinct()
    hashed = keep(
        tables.read("contents")
        .where(F.length("phash") == 16)
        .select("sha256", _hash().alias("hash"))
        .where(F.bit_count("hash") >= _TELLING)
        .join(wanted, "sha256", "left_semi")
    )
    if hashed.isEmpty():  # texts, vectors
        return None
    shared = hashed.groupBy("hash").count()
    close = shared.where("count > 1").select("hash")
    if distance > 0:
        neighbours = near(shared.select(F.col("hash").alias("node"), "hash"), distance)
        close = close.unionByName(neighbours.select(F.col("node").alias("hash"))).distinct()
    candidates = keep(hashed.join(close, "hash", "left_semi").select("sha256", "hash"))
    count = candidates.count()
    if count == 0:
        return None
    with configured(tables.spark, {ARROW_ROWS: _BATCH_ROWS}):
        sketched = keep(_sketched(tables, candidates, count))
        sketched.count()
    # Equal looks are one node, whichever files they are of. Its number is a hash of 64 bits: that
    # of ten million looks any two are mixed up has a probability of three in a million.
    nodes = sketched.withColumn("node", F.xxhash64("hash", "sketch"))
    trees = near(nodes.select("node", "hash", "sketch").dropDuplicates(["node"]), distance)
    return nodes.join(trees, "node", "left").select(
        "sha256", "node", F.coalesce("root", "node").alias("look"), "distance"
    )


def _sketched(tables: Tables, candidates: DataFrame, count: int) -> DataFrame:
    few = F.broadcast(candidates) if count <= _BROADCAST else candidates
    return (
        tables.read("contents")
        .select("sha256", "bytes")
        .join(few, "sha256")
        .repartition(2 * tables.spark.sparkContext.defaultParallelism, "sha256")
        .mapInArrow(_sketches, _SKETCHED)
    )


def _clusters(items: DataFrame, looks: DataFrame | None) -> DataFrame:
    """Rows of the duplicates table."""
    if looks is None:
        empty = "sha256 string, node long, look long, distance int"
        looks = items.sparkSession.createDataFrame([], empty)
    members = items.join(looks, "sha256", "left").withColumn(
        "cluster", F.coalesce(F.col("look").cast("string"), "sha256")
    )
    # All by "cluster" first, so that rows move once.
    whole = Window.partitionBy("cluster")
    same_bytes = Window.partitionBy("cluster", "sha256")
    same_look = Window.partitionBy("cluster", "node")
    exact = F.col("copies") > 1
    return (
        members.withColumn("members", F.count("*").over(whole))
        .where("members > 1")
        .withColumn("cluster_id", F.min("item_id").over(whole))
        .withColumn("copies", F.count("*").over(same_bytes))
        .withColumn("lookalikes", F.count("node").over(same_look))
        .select(
            "item_id",
            "cluster_id",
            F.when(exact, EXACT).otherwise(NEAR).alias("kind"),
            F.when(exact | (F.col("lookalikes") > 1), 0)
            .otherwise(F.col("distance"))
            .alias("distance"),
        )
    )


def _hash() -> Column:
    # In halves: `conv` gives unsigned numbers, and a long is signed.
    high, low = (F.conv(F.substring("phash", start, 8), 16, 10).cast("long") for start in (1, 9))
    return F.shiftleft(high, 32).bitwiseOR(low)


def _signed(mask: int) -> Column:
    return F.lit(int(np.uint64(mask).astype(np.int64))).cast("long")


def _sketches(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        found: list[tuple[str, int, bytes]] = []
        for sha256, hash_, data in zip(
            *(batch.column(name).to_pylist() for name in ("sha256", "hash", "bytes")), strict=True
        ):
            try:
                found.append((sha256, hash_, sketch(data)))
            except ImageError:
                continue  # no picture to confirm by; equal bytes are found without one
        columns = list(zip(*found, strict=True)) or [(), (), ()]
        types = (pa.string(), pa.int64(), pa.binary())
        yield pa.RecordBatch.from_arrays(
            [pa.array(c, t) for c, t in zip(columns, types, strict=True)],
            names=["sha256", "hash", "sketch"],
        )


def _searched(
    batches: Iterable[pa.RecordBatch], masks: list[int], distance: int
) -> Iterator[pa.RecordBatch]:
    forest = Forest()
    for chunk in _whole_runs(batches):
        band, key, nodes, hashes = (
            chunk.column(name).to_numpy() for name in ("band", "key", "node", "hash")
        )
        agree = _agreement(chunk, distance)
        runs = hamming.numbered(band, key)
        for number in np.unique(band):
            rows = np.flatnonzero(band == number)
            among = Runs(
                rows,
                hashes[rows].view(np.uint64),
                runs[rows] - runs[rows[0]],
                hamming.ALL & ~masks[number],
                tuple(masks[:number]),
            )
            hamming.search(among, distance, nodes, forest, agree)
    yield from rows_of(forest)


def _agreement(chunk: pa.Table, distance: int) -> Agree | None:
    if "sketch" not in chunk.column_names:
        return None
    joined = b"".join(chunk.column("sketch").to_pylist())
    sketches = np.frombuffer(joined, np.uint8).reshape(-1, SKETCH_BYTES)
    return lambda a, b: alike(sketches[a], sketches[b], distance)


def _whole_runs(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Sorted rows in chunks that end where a run of equal band and key does."""
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        if batch.num_rows == 0:
            continue
        held.append(batch)
        rows += batch.num_rows
        if rows < _CHUNK:
            continue
        runs = hamming.numbered(batch.column("band").to_numpy(), batch.column("key").to_numpy())
        last = int(np.searchsorted(runs, runs[-1]))
        if last > 0:
            yield pa.Table.from_batches([*held[:-1], batch.slice(0, last)])
            held = [batch.slice(last)]
            rows = held[0].num_rows
    if held:
        yield pa.Table.from_batches(held)
