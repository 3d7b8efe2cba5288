"""Where catalogues come from: one small class each behind one seam.

A source lists its items without their contents, then reads the contents that are wanted: those
whose `source_version` the tables do not have yet.
"""

from __future__ import annotations

from typing import Any, Final, Protocol

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike.config import (
    FolderData,
    IdxData,
    ManifestData,
    TextData,
    VectorsData,
)

LISTED: Final = (
    "item_id string, group_id string, label string, attributes map<string,string>, "
    "given_split string, source string, source_version string, place string, position string, "
    "reason string, detail string"
)
"""An item as its source lists it, its content unread.

`place` is where its source finds the content, `position` orders rows of one item_id, and `reason`
is set where the item cannot be used.
"""

READ: Final = "item_id string, bytes binary, reason string, detail string"
"""An item's content, or the reason why there is none."""


_FEW_IDS = 1_000_000  # about 200 MB


class Source(Protocol):
    """A catalogue."""

    @property
    def names(self) -> tuple[str, ...]:
        """All values of `source` that its items have."""
        ...

    @property
    def media(self) -> str | None:
        """Media type of all contents; None where each is an image file that says it itself."""
        ...

    @property
    def repeats(self) -> bool:
        """Whether an item_id may come twice in its listing."""
        ...

    def types(self) -> dict[str, str]:
        """Types of its columns, in Spark's words; empty where it has none.

        Of a struct `a`, `a.b` is its field; of an array, `a[]` its element; of a map, `a{key}` and
        `a{}` its key and value. Names with dots or brackets of their own are quoted: `` `a.b` ``.
        """
        ...

    def state(self) -> str | None:
        """What changes when any item does, told without reading; None where the listing tells."""
        ...

    def passed_over(self) -> dict[str, int]:
        """Files that are no items, by suffix."""
        ...

    def listing(self) -> DataFrame:
        """All items, of schema `LISTED`.

        Raises:
            DataError: there is no such source, or it cannot be read.
        """
        ...

    def read(self, wanted: DataFrame) -> DataFrame:
        """Contents, of schema `READ`, of the items in `wanted`, rows of the listing."""
        ...


def open_source(
    spark: SparkSession, data: IdxData | FolderData | ManifestData | TextData | VectorsData
) -> Source:
    """The source that a recipe names."""
    from lookalike.lake.sources.folder import FolderSource
    from lookalike.lake.sources.idx import IdxSource
    from lookalike.lake.sources.manifest import ManifestSource
    from lookalike.lake.sources.text import TextSource
    from lookalike.lake.sources.vectors import VectorsSource

    match data:
        case IdxData():
            return IdxSource(spark, data)
        case FolderData():
            return FolderSource(spark, data)
        case ManifestData():
            return ManifestSource(spark, data)
        case TextData():
            return TextSource(spark, data)
        case VectorsData():
            return VectorsSource(spark, data)


def sent(ids: DataFrame, count: int | None = None) -> DataFrame:
    """Ids to join by: sent to all workers where they are few enough, so that bytes stay put.

    Args:
        ids: a frame of ids.
        count: how many; None: they are counted.
    """
    return F.broadcast(ids) if (ids.count() if count is None else count) <= _FEW_IDS else ids


def arrow_schema(listed: str) -> pa.Schema:
    """A schema of this package in Arrow."""
    return pa.schema([_field(*column.split()) for column in listed.split(", ")])


def _field(name: str, kind: str) -> pa.Field:
    kinds: dict[str, Any] = {
        "string": pa.string(),
        "binary": pa.binary(),
        "long": pa.int64(),
        "int": pa.int32(),
        "map<string,string>": pa.map_(pa.string(), pa.string()),
    }
    return pa.field(name, kinds[kind])
