"""A table of texts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pyspark.sql import functions as F

from lookalike.columns import TEXT_MEDIA
from lookalike.config import TextData
from lookalike.lake.sources.table import Inline, Table, TableSource


@dataclass(frozen=True)
class TextSource(TableSource):
    """Rows of a table; the content of an item is its text in UTF-8."""

    data: TextData

    media = TEXT_MEDIA

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
