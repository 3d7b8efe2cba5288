"""A table of items whose images lie at a path, at a URL, or in the table itself."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from lookalike.config import ManifestData
from lookalike.errors import ConfigError
from lookalike.lake.fetch import Limits, fetch
from lookalike.lake.sources import READ, arrow_schema, sent
from lookalike.lake.sources.files import SCHEME, Files
from lookalike.lake.sources.table import Inline, Table, TableSource, digest, listed


@dataclass(frozen=True)
class ManifestSource(TableSource):
    """Rows of a table; an image's bytes come from where its row says."""

    data: ManifestData

    media = None

    def state(self) -> str | None:
        # Files change while their paths do not, and what is dead today may answer tomorrow.
        return super().state() if self.data.bytes is not None else None

    def listing(self) -> DataFrame:
        if self.data.bytes is not None:
            return super().listing()
        rows = self._table.rows().withColumns({"reason": _none(), "detail": _none()})
        if self.data.url is not None:
            url = F.nullif(F.trim(F.col("content").cast("string")), F.lit(""))
            version = F.coalesce("version", digest(url))
            rows = rows.withColumns({"place": url, "source_version": version})
            return listed(rows, *self.names)
        return listed(self._with_files(rows), *self.names)

    def read(self, wanted: DataFrame) -> DataFrame:
        if self.data.bytes is not None:
            return super().read(wanted)
        wanted = wanted.select("item_id", "place")
        if self.data.url is not None:
            return self._fetched(wanted)
        contents = self._files.read(wanted.select(F.col("place").alias("path")).distinct())
        return (
            contents.withColumnRenamed("path", "place")
            .join(sent(wanted), "place")
            .select("item_id", F.col("content").alias("bytes"), *_fine())
        )

    @cached_property
    def _table(self) -> Table:
        data = self.data
        return Table(self.spark, data, data.path or data.url or data.bytes or "")

    @cached_property
    def _files(self) -> Files:
        folder, slash, _ = self._table.name.rpartition("/")
        if self.data.root is None and not slash:
            raise ConfigError(
                f"the table {self.data.table} is known by its name and lies in no folder that "
                "paths could be below",
                remedy="Set data.root to the folder that holds them",
            )
        return Files(self.spark, self.data.root or folder or "/")

    def _with_files(self, rows: DataFrame) -> DataFrame:
        """With place and source_version of the files that the paths mean."""
        files = self._files
        root = re.sub(SCHEME, "/", files.location) + "/"
        path = F.trim(F.col("content").cast("string"))
        # 'file:/a', 'file:///a' and '/a' are one, as are 'dbfs:/Volumes' and '/Volumes'; what is
        # below the root is told apart below it.
        plain = F.regexp_replace(path, SCHEME, "/")
        below = F.when(
            F.startswith(plain, F.lit(root)), plain.substr(F.lit(len(root) + 1), F.length(plain))
        )
        below = F.coalesce(below, F.regexp_replace(plain, r"^(\./+)+", ""))
        found = files.listing().select(
            "relative",
            F.col("path").alias("place"),
            F.col("version").alias("file_version"),
            "size",
        )
        empty = F.coalesce(path, F.lit("")) == ""
        joined = rows.withColumn("relative", below).join(found, "relative", "left")
        lost = ~empty & F.col("place").isNull()
        limit = self.data.max_bytes
        large = F.col("size") > limit
        reason = F.when(lost, "missing_file").when(large, "too_many_bytes")
        # Spark lists no empty files.
        nowhere = F.lit(f" below {files.location}, or it has 0 bytes")
        detail = F.when(lost, F.concat(F.lit("there is no file "), path, nowhere)).when(
            large, F.concat(F.lit("the file has "), "size", F.lit(f" bytes, over {limit:,}"))
        )
        return joined.withColumns(
            {
                "reason": reason,
                "detail": detail,
                "source_version": F.coalesce("version", "file_version", F.when(~empty, path)),
            }
        )

    @cached_property
    def _inline(self) -> Inline:
        rows, content = self._table.rows(), F.col("content")
        if self._table.kind(self._table.column) == "binary":
            found = rows.withColumns({"bytes": content, "reason": _none(), "detail": _none()})
        else:
            decoded = F.expr("try_to_binary(content, 'base64')")
            broken = content.isNotNull() & decoded.isNull()
            found = rows.withColumns(
                {
                    "bytes": F.coalesce(decoded, F.encode(content, "utf-8")),
                    "reason": F.when(broken, "not_base64"),
                    "detail": F.when(broken, f"the text in {self._table.column} is not base64"),
                }
            )
        return Inline(found, *self.names)

    def _fetched(self, wanted: DataFrame) -> DataFrame:
        asked = self.data.fetch
        tasks = min(asked.connections, self.spark.sparkContext.defaultParallelism)
        limits = Limits(
            connections=asked.connections // tasks,
            timeout=asked.timeout,
            deadline=asked.deadline,
            retries=asked.retries,
            backoff=asked.backoff,
            max_bytes=self.data.max_bytes,
        )
        # Sizes and colours of a product often share a photo: it is fetched once.
        shared = wanted.groupBy("place").agg(F.collect_list("item_id").alias("item_ids"))
        return shared.repartition(tasks).mapInArrow(lambda batches: _fetch(batches, limits), READ)


def _none() -> Column:
    return F.lit(None).cast("string")


def _fine() -> tuple[Column, Column]:
    return _none().alias("reason"), _none().alias("detail")


def _fetch(batches: Iterable[pa.RecordBatch], limits: Limits) -> Iterator[pa.RecordBatch]:
    waiting: deque[list[str]] = deque()

    def places() -> Iterator[str]:
        for batch in batches:
            for row in batch.to_pylist():
                waiting.append(row["item_ids"])
                yield row["place"]

    for found in fetch(places(), limits):  # in the order of the places
        for item_id in waiting.popleft():  # a batch each: a placeholder may have thousands of items
            row = {
                "item_id": item_id,
                "bytes": found.data,
                "reason": found.reason,
                "detail": found.detail,
            }
            yield pa.RecordBatch.from_pylist([row], schema=arrow_schema(READ))
