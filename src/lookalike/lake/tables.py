"""The Delta tables: their schemas, and reading and merging them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from delta.tables import DeltaTable
from py4j.protocol import Py4JError
from pyspark.errors import AnalysisException, PySparkException
from pyspark.sql import DataFrame, SparkSession

from lookalike import artifacts
from lookalike.errors import ConfigError, DataError

FORMAT = "1"
_FORMAT_PROPERTY = "lookalike.format"

SCHEMAS: Final = {
    "items": (
        "item_id string not null, group_id string, sha256 string not null, label string, "
        "attributes map<string,string>, source string, source_version string, updated_at timestamp"
    ),
    "contents": (
        "sha256 string not null, media string, bytes binary, width int, height int, phash string"
    ),
    "splits": "item_id string not null, split string not null, decided_by string",
    "rejects": "item_id string, source string, reason string, detail string, seen_at timestamp",
    "embeddings": "sha256 string not null, encoder string not null, vector array<float> not null",
    "ledger": (
        "step string not null, version bigint not null, inputs string, outputs string, "
        "config string, at timestamp"
    ),
}
_CHANGE_FEED = ("items",)
_PARTITIONED = {"embeddings": ("encoder",)}


@dataclass(frozen=True)
class Tables:
    """The tables of a warehouse.

    Attributes:
        spark: a session with Delta.
        location: folder or URI, or 'catalog.schema' in Unity Catalog.
    """

    spark: SparkSession
    location: str

    def name(self, table: str) -> str:
        """The table's name in SQL."""
        if re.fullmatch(r"\w+\.\w+", self.location):
            return f"{self.location}.{table}"
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
            try:
                if not self._exists(table):
                    self._create(table, schema)
                self._check_format(table)
            except (PySparkException, Py4JError) as error:
                raise DataError(
                    f"the table {self.name(table)} cannot be opened "
                    f"({str(error).strip().splitlines()[0][:200]})",
                    remedy="Restore its folder, or name another warehouse.tables",
                ) from error

    def read(self, table: str, version: int | None = None) -> DataFrame:
        """A table, now or as it was at a version.

        Raises:
            DataError: there is no such table.
        """
        query = f"SELECT * FROM {self.name(table)}"
        try:
            return self.spark.sql(query if version is None else f"{query} VERSION AS OF {version}")
        except AnalysisException as error:
            raise DataError(
                f"the table {self.name(table)} cannot be read ({str(error).splitlines()[0]})",
                remedy="Run `lookalike ingest` first, or check warehouse.tables",
            ) from error

    def version(self, table: str) -> int:
        """The table's newest version."""
        history = self.spark.sql(f"DESCRIBE HISTORY {self.name(table)} LIMIT 1")
        return int(history.first()["version"])  # type: ignore[index]

    def insert_new(self, table: str, rows: DataFrame, keys: tuple[str, ...]) -> None:
        """Add the rows whose keys are not in the table."""
        self._delta(table).alias("old").merge(
            rows.alias("new"), " AND ".join(f"old.{k} <=> new.{k}" for k in keys)
        ).whenNotMatchedInsertAll().execute()

    def upsert(self, table: str, rows: DataFrame, key: str) -> None:
        """Replace rows by key, and add those that are new."""
        self._delta(table).alias("old").merge(
            rows.alias("new"), f"old.{key} = new.{key}"
        ).whenMatchedUpdateAll().whenNotMatchedInsertAll().execute()

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
        properties = {_FORMAT_PROPERTY: FORMAT}
        if table in _CHANGE_FEED:
            properties["delta.enableChangeDataFeed"] = "true"
        listed = ", ".join(f"'{k}' = '{v}'" for k, v in properties.items())
        parts = _PARTITIONED.get(table)
        self.spark.sql(
            f"CREATE TABLE IF NOT EXISTS {self.name(table)} ({schema}) USING delta "
            + (f"PARTITIONED BY ({', '.join(parts)}) " if parts else "")
            + f"TBLPROPERTIES ({listed})"
        )

    def _check_format(self, table: str) -> None:
        shown = self.spark.sql(f"SHOW TBLPROPERTIES {self.name(table)}").collect()
        found = {row["key"]: row["value"] for row in shown}.get(_FORMAT_PROPERTY)
        if found != FORMAT:
            raise DataError(
                f"the table {self.name(table)} has format {found!r}",
                allowed=f"format {FORMAT}",
                remedy="Name another warehouse.tables, or use the version that wrote it",
            )
