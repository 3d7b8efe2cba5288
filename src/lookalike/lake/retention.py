"""What the tables hold for those who decide what goes: commits, vectors, old versions."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime

from pyspark.errors import PySparkException
from pyspark.sql import SparkSession, Window
from pyspark.sql import functions as F

from lookalike.lake.ledger import Commit
from lookalike.lake.tables import SCHEMAS, Tables

_LOGGING = "spark.databricks.delta.vacuum.logging.enabled"
_MARGIN_HOURS = 24


@dataclass(frozen=True)
class Vectors:
    """An encoder's part of the embeddings table: bytes of its files, and when the newest came."""

    fingerprint: str
    size: int
    at: datetime


def newest_commits(tables: Tables) -> list[Commit]:
    """The newest commit of each step; of `release`, of each model in each registry."""
    of = [F.get_json_object("inputs", f"$.{key}") for key in ("model", "registry")]
    whose = F.when(F.col("step") == "release", F.concat_ws(" ", *of))
    newest = Window.partitionBy("step", whose).orderBy(F.col("version").desc())
    rows = tables.read("ledger").withColumn("place", F.row_number().over(newest))
    return [
        Commit(row["step"], row["version"], json.loads(row["inputs"]), json.loads(row["outputs"]))
        for row in rows.where("place = 1").collect()
    ]


def vectors(tables: Tables) -> list[Vectors]:
    """The encoders whose vectors the embeddings table holds."""
    files = (
        tables.read("embeddings")
        .select("encoder", "_metadata.file_path", "_metadata.file_size",
                F.unix_seconds("_metadata.file_modification_time").alias("at"))
        .distinct()
    )  # fmt: skip
    rows = files.groupBy("encoder").agg(F.sum("file_size").alias("size"), F.max("at").alias("at"))
    return [
        Vectors(row["encoder"], row["size"], datetime.fromtimestamp(row["at"], UTC))
        for row in rows.collect()
    ]


def forget(tables: Tables, fingerprint: str) -> None:
    """Delete an encoder's vectors. Their files go with a later vacuum."""
    tables.spark.sql(
        f"DELETE FROM {tables.name('embeddings')} WHERE encoder = :encoder",
        args={"encoder": fingerprint},
    )


def retained_hours(tables: Tables, pinned: Mapping[str, int]) -> dict[str, int]:
    """How long a vacuum must leave each table's deleted files alone, in hours.

    Args:
        tables: the warehouse's.
        pinned: by table, the oldest version that must stay readable.
    """
    configured = 24 * tables.deleted_days
    # A version needs files that later ones deleted: all of them deleted after it was committed. So
    # what was deleted in as many hours as the oldest pinned version is old has to stay.
    return {
        table: max(configured, _age(tables, table, pinned[table]) if table in pinned else 0)
        for table in SCHEMAS
    }


def vacuum(tables: Tables, hours: Mapping[str, int]) -> None:
    """Remove files that no version of the last so many hours names, by table."""
    with _unlogged(tables.spark):
        for table, retained in hours.items():
            tables.spark.sql(f"VACUUM {tables.name(table)} RETAIN {retained} HOURS")


def _age(tables: Tables, table: str, version: int) -> int:
    history = tables.spark.sql(f"DESCRIBE HISTORY {tables.name(table)}")
    seconds = F.unix_seconds(F.current_timestamp()) - F.unix_seconds("timestamp")
    row = history.agg(
        F.max("version").alias("newest"), F.max(F.when(F.col("version") == version, seconds))
    ).first()
    newest, age = row  # type: ignore[misc]
    # Nothing of the newest version is deleted; of one that the log has lost, nothing can be read.
    if version == newest or age is None:
        return 0
    # Writers note the time at which they delete before their commit is in the log.
    return int(-(-age // 3600)) + _MARGIN_HOURS


@contextmanager
def _unlogged(spark: SparkSession) -> Iterator[None]:
    # A vacuum would commit two versions of each table, in which nothing changed; whoever looks for
    # a newer version would take them for news.
    before = spark.conf.get(_LOGGING, None)
    try:
        spark.conf.set(_LOGGING, "false")
    except PySparkException:  # some shared clusters let nobody set this
        yield
        return
    try:
        yield
    finally:
        spark.conf.unset(_LOGGING)
        if before is not None:
            spark.conf.set(_LOGGING, before)
