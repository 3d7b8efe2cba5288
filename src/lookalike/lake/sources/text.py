"""A table of texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike.columns import TEXT_MEDIA
from lookalike.config import TextData
from lookalike.errors import scrubbed
from lookalike.lake.sources.table import Inline, Table


@dataclass(frozen=True)
class TextSource:
    """Rows of a table; the content of an item is its text in UTF-8."""

    spark: SparkSession
    data: TextData

    media = TEXT_MEDIA
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

    @cached_property
    def _table(self) -> Table:
        return Table(self.spark, self.data, self.data.text)

    @cached_property
    def _inline(self) -> Inline:
        text = F.col("content").cast("string")
        empty = F.trim(text) == ""
        rows = self._table.rows().withColumns(
            {
                "bytes": F.encode(text, "utf-8"),
                "reason": F.when(empty, "empty"),
                "detail": F.when(empty, "the text is empty"),
            }
        )
        return Inline(rows, *self.names)
