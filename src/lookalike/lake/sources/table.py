"""Tables of items: CSV, JSON lines, Parquet, Delta."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Any

from delta.tables import DeltaTable
from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, DataFrameReader, SparkSession, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, DataType, MapType, StructField, StructType

from lookalike import artifacts
from lookalike.config import IdxData, TableData
from lookalike.errors import ConfigError, DataError, scrubbed
from lookalike.lake.sources import sent
from lookalike.lake.sources.files import Files, located, missing

_BROKEN = "_lookalike_broken_row"
_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
}
_OURS = ("item_id", "label", "group_id", "split", "version")


@dataclass(frozen=True)
class Table:
    """A table as a source reads it.

    Attributes:
        spark: the session.
        data: where it is, and what its columns mean.
        column: the column that says or holds what an item is; it must be there.
    """

    spark: SparkSession
    data: TableData
    column: str

    @property
    def name(self) -> str:
        """The table, whatever the working folder."""
        if self.format == "delta" and "/" not in self.data.table:
            return self.data.table
        return located(self.data.table)

    @cached_property
    def format(self) -> str:
        """'csv', 'json', 'parquet' or 'delta'."""
        if self.data.format is not None:
            return self.data.format
        found = re.search(r"(\.\w+?)(\.gz|\.bz2|\.zst)?/?$", self.data.table.lower())
        if found and found[1] in _FORMATS:
            return _FORMATS[found[1]]
        return "delta"

    def types(self) -> dict[str, str]:
        """Types of the columns in Spark's words, see `Source.types`."""
        fields = [field for field in self._read.schema if field.name != _BROKEN]
        return {name: kind for f in fields for name, kind in _types(_path(f.name), f.dataType)}

    def kind(self, name: str) -> str:
        """The kind of a column's type, such as 'string' or 'array'."""
        return self._read.schema[name].dataType.typeName()

    def state(self) -> str | None:
        """See `Source.state`."""
        if self.format == "delta":
            history = DeltaTable.forName if "/" not in self.name else DeltaTable.forPath
            version = history(self.spark, self.name).history(1).first()["version"]  # type: ignore[index]
            return artifacts.fingerprint([version, self.data.model_dump(mode="json")])
        return files_state(self.spark, [self.name], self.data)

    def rows(self) -> DataFrame:
        """item_id, group_id, label, attributes, given_split, version, position, row (a hash of one
        without an id), broken (whether it cannot be parsed), and `content`: the column that says
        or holds what an item is.

        Raises:
            ConfigError: a column that the recipe names is not there.
            DataError: no such table.
        """
        table, data = self._read, self.data
        names = {role: getattr(data, role) for role in _OURS}
        self._check(names)
        roles = {role: name for role, name in names.items() if name in table.columns}
        taken = {*roles.values(), self.column, _BROKEN}
        texts = [f for f in table.schema if f.dataType.typeName() != "binary"]
        others = [f for f in texts if f.name not in taken]

        def role(name: str) -> Column:
            found = column(roles[name]).cast("string") if name in roles else F.lit(None)
            return found.cast("string")

        # The order in which the table's files hold its rows, however Spark deals them out.
        position = F.format_string(
            "%s %020d %020d",
            F.col("_metadata.file_path"),
            F.col("_metadata.file_block_start"),
            F.monotonically_increasing_id(),
        )
        whole = F.to_json(F.struct(*(column(f.name) for f in texts)))
        whole = F.substring(F.md5(whole), 1, 12)
        broken = column(_BROKEN).isNotNull() if _BROKEN in table.columns else F.lit(False)
        return table.select(
            role("item_id").alias("item_id"),
            *(F.nullif(role(name), F.lit("")).alias(name) for name in ("group_id", "label")),
            _attributes(others).alias("attributes"),
            role("split").alias("given_split"),
            role("version").alias("version"),
            position.alias("position"),
            broken.alias("broken"),
            F.when(broken | (F.coalesce(F.trim(role("item_id")), F.lit("")) == ""), whole).alias(
                "row"
            ),
            column(self.column).alias("content"),
        )

    def _check(self, names: dict[str, str | None]) -> None:
        known = self._read.columns
        needed = {"item_id", *(r for r in names if r in self.data.model_fields_set)}
        asked = {f"data.{role}": names[role] for role in names if role in needed}
        for role, name in [*asked.items(), ("its content", self.column)]:
            if name is not None and name not in known:
                raise ConfigError(
                    f"{self.data.table} has no column {name!r} ({role})",
                    allowed=", ".join(c for c in known if c != _BROKEN),
                    remedy="Name the column under `data` in the recipe",
                )

    @cached_property
    def _read(self) -> DataFrame:
        try:
            match self.format:
                case "csv":
                    return self._csv()
                case "json":
                    found = self._reader(columnNameOfCorruptRecord=_BROKEN).json(self.name)
                    if found.columns == [_BROKEN]:
                        raise DataError(f"{self.data.table} has no line that is a JSON object")
                    return found
                case "parquet":
                    return self._reader().parquet(self.name)
            if "/" in self.name:
                return self.spark.read.format("delta").load(self.name)
            return self.spark.table(self.name)
        except AnalysisException as error:
            said = str(error).splitlines()[0]
            if any(word in said for word in ("PATH_NOT_FOUND", "TABLE_OR_VIEW_NOT_FOUND")):
                raise missing(self.data.table) from error
            raise DataError(
                f"{self.data.table} cannot be read as {self.format} ({said[:200]})",
                remedy="Check data.table and data.format in the recipe",
            ) from error

    def _csv(self) -> DataFrame:
        tabs = ".tsv" in self.data.table.lower()
        options: dict[str, Any] = {
            "header": True,
            "sep": self.data.delimiter or ("\t" if tabs else ","),
            "multiLine": True,
            "quote": '"',
            "escape": '"',
            "columnNameOfCorruptRecord": _BROKEN,
        }
        names = self._reader(**options).csv(self.name).columns
        # With a schema, rows of more or fewer values are told; without, they are cut in silence.
        schema = ", ".join(f"`{n.replace('`', '``')}` string" for n in [*names, _BROKEN])
        return self._reader(**options, enforceSchema=False).schema(schema).csv(self.name)

    def _reader(self, **options: Any) -> DataFrameReader:
        # A file may be named 'feed [1].csv': names are names, not patterns.
        return self.spark.read.option("__globPaths__", "false").options(**options)


def column(name: str) -> Column:
    """A column by its name, whatever characters it holds."""
    return F.col(f"`{name.replace('`', '``')}`")


def digest(content: Column | str) -> Column:
    """What stands in for the version of content or address: the beginning of its sha256."""
    return F.substring(F.sha2(content, 256), 1, 32)


def listed(rows: DataFrame, source: str) -> DataFrame:
    """Rows as the listing of a source.

    Args:
        rows: of `Table.rows`, with source_version, place, reason and detail.
        source: its name.

    Returns:
        Of schema `LISTED`; a row that cannot be parsed or has no item_id has its reason.
    """
    nameless = F.coalesce(F.trim("item_id"), F.lit("")) == ""
    reason = (
        F.when(F.col("broken"), "broken_row")
        .when(nameless, "no_item_id")
        .when(F.col("reason").isNotNull(), F.col("reason"))
        .when(F.col("source_version").isNull(), "no_content")
    )
    detail = (
        F.when(F.col("broken"), "the row has more or fewer values than the table has columns")
        .when(nameless, "the row has no item_id")
        .when(F.col("reason").isNotNull(), F.col("detail"))
        .when(F.col("source_version").isNull(), "the row has nothing in the column of its content")
    )
    # Rejects are told apart by id, so what has none gets a stand-in.
    # Others have no `row`, and would all be numbered by one task.
    same = Window.partitionBy(F.coalesce("row", "item_id"))
    number = F.row_number().over(same.orderBy("position"))
    count = F.when(number > 1, F.concat(F.lit(", "), number.cast("string"))).otherwise("")
    stand_in = F.concat(F.lit("row without id "), "row", count)
    return rows.select(
        F.when(nameless | F.col("broken"), stand_in).otherwise(F.col("item_id")).alias("item_id"),
        "group_id",
        "label",
        "attributes",
        "given_split",
        F.lit(source).alias("source"),
        "source_version",
        "place",
        "position",
        reason.alias("reason"),
        detail.alias("detail"),
    )


@dataclass(frozen=True)
class Inline:
    """Items whose contents lie in their table.

    Attributes:
        rows: of `Table.rows`, with bytes, reason and detail.
        source: its name.
    """

    rows: DataFrame
    source: str

    def listing(self) -> DataFrame:
        """See `Source.listing`."""
        rows = self._versioned().withColumn("place", F.lit(None).cast("string"))
        return listed(rows.drop("bytes"), self.source)

    def read(self, wanted: DataFrame) -> DataFrame:
        """See `Source.read`."""
        keys = wanted.select("item_id", "source_version")
        found = self._versioned().where("reason IS NULL AND NOT broken")
        return (
            found.join(sent(keys), ["item_id", "source_version"], "left_semi")
            # Rows that repeat an item repeat its content, where their versions are equal.
            .dropDuplicates(["item_id"])
            .select("item_id", "bytes", "reason", "detail")
        )

    def _versioned(self) -> DataFrame:
        return self.rows.withColumn("source_version", F.coalesce("version", digest("bytes")))


@dataclass(frozen=True)
class TableSource:
    """What sources have in common that are tables; see `Source`."""

    spark: SparkSession
    data: TableData

    repeats = True

    @property
    def names(self) -> tuple[str, ...]:
        return (scrubbed(self._table.name),)

    def types(self) -> dict[str, str]:
        return self._table.types()

    def state(self) -> str | None:
        return self._table.state()

    def passed_over(self) -> dict[str, int]:
        return {}

    def listing(self) -> DataFrame:
        return self._inline.listing()

    def read(self, wanted: DataFrame) -> DataFrame:
        return self._inline.read(wanted)

    @property
    def _table(self) -> Table:
        raise NotImplementedError

    @property
    def _inline(self) -> Inline:
        raise NotImplementedError


def files_state(spark: SparkSession, paths: list[str], data: TableData | IdxData) -> str:
    """What changes when one of these files does, or what the recipe says of them.

    Raises:
        DataError: there is no such file.
    """
    # Without its content column, Spark's binaryFile lists files and opens none.
    files = [Files(spark, path).listing().withColumn("named", F.lit(path)) for path in paths]
    rows = (
        reduce(DataFrame.unionByName, files)
        .groupBy("named")
        .agg(F.count("*"), F.bit_xor(F.xxhash64("path", "version")))
        .collect()
    )
    found = {name: [count, total] for name, count, total in rows}
    for path in paths:
        if path not in found:
            raise missing(path)
    return artifacts.fingerprint([found, data.model_dump(mode="json")])


def _types(path: str, kind: DataType) -> Iterator[tuple[str, str]]:
    """A column's type and those of what is in it: a new field adds one, and changes none."""
    match kind:
        case StructType():
            yield path, kind.typeName()
            for field in kind:
                yield from _types(f"{path}.{_path(field.name)}", field.dataType)
        case ArrayType():
            yield path, kind.typeName()
            yield from _types(f"{path}[]", kind.elementType)
        case MapType():
            yield path, kind.typeName()
            yield from _types(f"{path}{{key}}", kind.keyType)
            yield from _types(f"{path}{{}}", kind.valueType)
        case _:
            yield path, kind.simpleString()


def _path(name: str) -> str:
    """A name as part of a path: quoted where it could be taken for one."""
    return f"`{name}`" if re.search(r"[.`\[\]{}]", name) else name


def _attributes(fields: list[StructField]) -> Column:
    if not fields:
        return F.create_map().cast("map<string,string>")
    pairs = []
    for field in fields:
        value = column(field.name)
        nested = field.dataType.typeName() in ("array", "map", "struct")
        text = F.to_json(value) if nested else value.cast("string")
        pairs += [F.lit(field.name), text]
    return F.map_filter(F.create_map(*pairs), lambda _, value: value.isNotNull())
