"""The Delta tables: their schemas, and reading and merging them."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from delta.tables import DeltaMergeBuilder, DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike import artifacts
from lookalike.errors import ConfigError, DataError, LookalikeError

FORMAT = "1"
_FORMAT_PROPERTY = "lookalike.format"

SCHEMAS: Final = {
    "items": (
        "item_id string not null, group_id string, sha256 string not null, label string, "
        "attributes map<string,string>, given_split string, source string, source_version string, "
        "updated_at timestamp"
    ),
    "contents": (
        "sha256 string not null, media string, bytes binary, width int, height int, phash string"
    ),
    "splits": "item_id string not null, split string not null, decided_by string",
    "rejects": (
        "item_id string not null, source string, source_version string, reason string, "
        "detail string, seen_at timestamp"
    ),
    "duplicates": (
        "item_id string not null, cluster_id string not null, kind string not null, distance int"
    ),
    "embeddings": "sha256 string not null, encoder string not null, vector array<float> not null",
    "ledger": (
        "step string not null, version bigint not null, inputs string, outputs string, "
        "config string, at timestamp"
    ),
}
_CHANGE_FEED = ("items",)
_PARTITIONED = {"embeddings": ("encoder",)}
_HISTORY = 1_000  # newest commits that are looked at
_MAINTENANCE = (
    "OPTIMIZE",
    "SET TBLPROPERTIES",
    "VACUUM END",
    "VACUUM START",
)
_TRIES = 6
_LOOKS = 3
_LOST_RACE = re.compile(
    r"\b(Concurrent(Append|DeleteRead|DeleteDelete|Transaction|Write|Modification)"
    r"|MetadataChanged|ProtocolChanged)Exception|DELTA_CONCURRENT_|DELTA_METADATA_CHANGED"
)


@dataclass(frozen=True)
class Tables:
    """The tables of a warehouse.

    Attributes:
        spark: a session with Delta.
        location: folder or URI, or 'catalog.schema' in Unity Catalog.
        log_days: how long old versions can be named.
        deleted_days: how long files of old versions are kept from a vacuum.
    """

    spark: SparkSession
    location: str
    log_days: int = 30
    deleted_days: int = 7

    def name(self, table: str) -> str:
        """The table's name in SQL."""
        if found := re.fullmatch(r"([^\s/:.`]+)\.([^\s/:.`]+)", self.location):
            return f"`{found[1]}`.`{found[2]}`.{table}"
        return f"delta.`{artifacts.plain_uri(self.location)}/{table}`"

    def ensure(self) -> None:
        """Create the tables that are not there.

        Raises:
            ConfigError: the place cannot be written to.
            DataError: a table of an unknown format.
        """
        folder = artifacts.local_path(self.location) if "/" in self.location else None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"warehouse.tables = {self.location!r} cannot be made a folder "
                    f"({error.strerror})",
                    remedy="Name a folder that can be written to",
                ) from error
        for table, schema in SCHEMAS.items():
            for attempt in range(_LOOKS):
                try:
                    if not self._exists(table):
                        _retried(lambda t=table, s=schema: self._create(t, s))  # type: ignore[misc]
                    self._check(table, schema)
                    break
                except (PySparkException, Py4JError) as error:
                    if attempt < _LOOKS - 1:  # another job may just be making it
                        time.sleep(1)
                        continue
                    raise DataError(
                        f"the table {self.name(table)} cannot be opened "
                        f"({str(error).strip().splitlines()[0][:200]})",
                        remedy="Make the schema (CREATE SCHEMA), restore the table's folder, or "
                        "name another warehouse.tables",
                    ) from error

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """A table, now or as it was at a version.

        Raises:
            DataError: there is no such table.
        """
        query = f"SELECT * FROM {self.name(table)}"
        try:
            if version is None:
                return self.spark.sql(query)
            return self.spark.sql(f"{query} VERSION AS OF {self._same_rows(table, version)}")
        except AnalysisException as error:
            raise DataError(
                f"the table {self.name(table)} cannot be read ({str(error).splitlines()[0]})",
                remedy="Run `lookalike ingest` first, or check warehouse.tables",
            ) from error

    def version(self, table: str) -> int:
        """The table's newest version that holds other rows than the one before.

        Maintenance, which a lakehouse may do by itself, makes versions that hold the same.
        """
        commits = self._history(table)
        changes = [version for version, what in commits if what not in _MAINTENANCE]
        return max(changes or [version for version, _ in commits])

    def pinned(self, table: str) -> DataFrame:
        """A table as it is now. What is kept of it stays, whatever is written to it later: of a
        table that is not pinned, Spark throws away what is kept, and makes it anew."""
        newest = self._history(table, 1)[0][0]
        return self.spark.sql(f"SELECT * FROM {self.name(table)} VERSION AS OF {newest}")

    def _same_rows(self, table: str, version: int) -> int:
        """The newest version that maintenance alone has made of one: the files of that one may
        have been vacuumed since."""
        found = version
        for newer, what in reversed(self._history(table)):
            if newer == found + 1 and what in _MAINTENANCE:
                found = newer
        return found

    def _history(self, table: str, commits: int = _HISTORY) -> list[tuple[int, str]]:
        """Versions and what made them, the newest first."""
        history = self.spark.sql(f"DESCRIBE HISTORY {self.name(table)} LIMIT {commits}")
        return [(int(row["version"]), row["operation"]) for row in history.collect()]

    def insert_new(self, table: str, rows: DataFrame, keys: tuple[str, ...]) -> None:
        """Add the rows whose keys are not in the table."""
        matched = " AND ".join(f"old.{k} <=> new.{k}" for k in keys)
        _retried(lambda: self._merge(table, rows, matched).whenNotMatchedInsertAll().execute())

    def upsert(self, table: str, rows: DataFrame, key: str, compared: tuple[str, ...] = ()) -> None:
        """Replace rows by key, and add those that are new.

        Args:
            table: its name.
            rows: all of its columns; a key at most once.
            key: the column that tells rows apart.
            compared: rows that are equal in these columns stay as they are; none: all are replaced.
        """
        differ = " OR ".join(f"NOT ({_comparable('old', c)} <=> {_comparable('new', c)})"
                             for c in compared)  # fmt: skip
        _retried(
            lambda: (
                self._merge(table, rows, f"old.{key} = new.{key}")
                .whenMatchedUpdateAll(differ or None)
                .whenNotMatchedInsertAll()
                .execute()
            )
        )

    def delete(self, table: str, keys: DataFrame, key: str) -> None:
        """Delete the rows whose key is among `keys`, a frame of that one column."""
        _retried(
            lambda: (
                self._merge(table, keys.distinct(), f"old.{key} = new.{key}")
                .whenMatchedDelete()
                .execute()
            )
        )

    def replace(self, table: str, rows: DataFrame) -> None:
        """Put these rows in place of all that the table holds."""
        columns = [field.split()[0] for field in SCHEMAS[table].split(", ")]
        _retried(lambda: rows.select(*columns).writeTo(self.name(table)).overwrite(F.lit(True)))

    def _merge(self, table: str, rows: DataFrame, matched: str) -> DeltaMergeBuilder:
        return self._delta(table).alias("old").merge(rows.alias("new"), matched)

    def _delta(self, table: str) -> DeltaTable:
        name = self.name(table)
        if found := re.fullmatch(r"delta\.`(.+)`", name):
            return DeltaTable.forPath(self.spark, found[1])
        return DeltaTable.forName(self.spark, name)

    def _exists(self, table: str) -> bool:
        name = self.name(table)
        if found := re.fullmatch(r"delta\.`(.+)`", name):
            return DeltaTable.isDeltaTable(self.spark, found[1])
        return self.spark.catalog.tableExists(name)

    def _create(self, table: str, schema: str) -> None:
        parts = _PARTITIONED.get(table)
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.name(table)} ({schema}) USING delta "
            + (f"PARTITIONED BY ({', '.join(parts)}) " if parts else "")
            + f"TBLPROPERTIES ({_listed(self._properties(table))})"
        )

    def _properties(self, table: str) -> dict[str, str]:
        feed = {"delta.enableChangeDataFeed": "true"} if table in _CHANGE_FEED else {}
        return feed | {
            _FORMAT_PROPERTY: FORMAT,
            "delta.logRetentionDuration": f"interval {self.log_days} days",
            "delta.deletedFileRetentionDuration": f"interval {self.deleted_days} days",
        }

    def _check(self, table: str, schema: str) -> None:
        shown = self.spark.sql(f"SHOW TBLPROPERTIES {self.name(table)}").collect()
        found = {row["key"]: row["value"] for row in shown}
        if found.get(_FORMAT_PROPERTY) != FORMAT:
            raise DataError(
                f"the table {self.name(table)} has format {found.get(_FORMAT_PROPERTY)!r}",
                allowed=f"format {FORMAT}",
                remedy="Name another warehouse.tables, or use the version that wrote it",
            )
        wanted = self._properties(table)
        if wanted.items() - found.items():
            self._alter(table, f"SET TBLPROPERTIES ({_listed(wanted)})")
        known = self.read(table).columns
        # Columns that came with a later version of lookalike; older rows have none of them.
        if missing := [f for f in schema.split(", ") if f.split()[0] not in known]:
            self._alter(table, f"ADD COLUMNS ({', '.join(missing)})")

    def _alter(self, table: str, change: str) -> None:
        _retried(lambda: self.spark.sql(f"ALTER TABLE {self.name(table)} {change}"))


def _listed(properties: dict[str, str]) -> str:
    return ", ".join(f"'{key}' = '{value}'" for key, value in properties.items())


def _comparable(side: str, column: str) -> str:
    # Spark compares no maps.
    found = f"{side}.{column}"
    return f"array_sort(map_entries({found}))" if column == "attributes" else found


def _retried(write: Callable[[], object]) -> None:
    """Write; where another's commit came first, look at the table anew and write again."""
    lost: Exception | None = None
    for attempt in range(_TRIES):
        try:
            write()
            return
        except Exception as error:  # Delta's Python errors and Spark's have no common ancestor
            if not _LOST_RACE.search(f"{type(error).__name__} {error}"):
                raise
            lost = error
            time.sleep(random.uniform(0.5, 1) * 2**attempt)
    raise LookalikeError(
        f"{_TRIES} other commits came first, time and again", remedy="Run fewer jobs at a time"
    ) from lost
