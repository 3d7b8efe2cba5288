"""Images in folders: what an item is, its path tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike.config import FolderData
from lookalike.errors import scrubbed
from lookalike.lake.sources import LISTED, READ, arrow_schema
from lookalike.lake.sources.files import Files, unfit

_ROLES = ("label", "group_id", "split")
_LOST = {
    "hidden_name": "Spark leaves out names with a leading _. Rename the file or its folder",
    "empty": "the file has 0 bytes",
    "broken_link": "the link leads to no file",
}


@dataclass(frozen=True)
class Place:
    """What a path says of its item; `split` is the word that stands in the path."""

    label: str | None
    group_id: str | None
    split: str | None
    attributes: dict[str, str]


def place(path: str, data: FolderData) -> Place:
    """What a path says.

    Args:
        path: below the root, with '/' between its parts.
        data: which level or group of the pattern is what.
    """
    folders = path.split("/")[:-1]

    def at(level: int | None) -> str | None:
        if level is None or not 1 <= abs(level) <= len(folders):
            return None
        return folders[level - 1 if level > 0 else level]

    found = re.search(data.pattern, path) if data.pattern else None
    named = {k: v for k, v in (found.groupdict() if found else {}).items() if v is not None}
    levels = {name: at(level) for name, level in data.attributes.items()}
    attributes = {name: value for name, value in levels.items() if value is not None}
    attributes |= {name: value for name, value in named.items() if name not in _ROLES}
    return Place(
        label=named.get("label", at(data.label)),
        group_id=named.get("group_id"),
        split=named.get("split", at(data.split)),
        attributes=attributes,
    )


@dataclass(frozen=True)
class FolderSource:
    """Image files below a folder; an item's id is its path there."""

    spark: SparkSession
    data: FolderData

    media = None
    repeats = False

    @property
    def names(self) -> tuple[str, ...]:
        return (scrubbed(self._files.location),)

    def types(self) -> dict[str, str]:
        return {}

    def state(self) -> str | None:
        return None

    def passed_over(self) -> dict[str, int]:
        return self._beside[1]

    def listing(self) -> DataFrame:
        data, (source,) = self.data, self.names
        files = self._files.listing()
        found = files.mapInArrow(lambda batches: _listed(batches, data, source), LISTED)
        if not (lost := self._beside[0]):
            return found
        rows = [(name, source, reason, _LOST[reason]) for name, reason in lost.items()]
        schema = "item_id string, source string, reason string, detail string"
        bad = self.spark.createDataFrame(rows, schema)
        return found.unionByName(bad, allowMissingColumns=True)

    def read(self, wanted: DataFrame) -> DataFrame:
        contents = self._files.read(wanted.select(F.col("place").alias("path")))
        return contents.select(
            self._files.relative().alias("item_id"),
            F.col("content").alias("bytes"),
            *(F.lit(None).cast("string").alias(name) for name in ("reason", "detail")),
        ).select(*(column.split()[0] for column in READ.split(", ")))

    @cached_property
    def _files(self) -> Files:
        return Files(self.spark, self.data.root, self.data.suffixes)

    @cached_property
    def _beside(self) -> tuple[dict[str, str], dict[str, int]]:
        return self._files.beside()


def _listed(
    batches: Iterable[pa.RecordBatch], data: FolderData, source: str
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = []
        for file in batch.to_pylist():
            said = place(file["relative"], data)
            rows.append(
                {
                    "item_id": file["relative"],
                    "group_id": said.group_id,
                    "label": said.label,
                    "attributes": list(said.attributes.items()),
                    "given_split": said.split,
                    "source": source,
                    "source_version": file["version"],
                    "place": file["path"],
                    "position": file["relative"],
                    **unfit(file["size"], data.max_bytes),
                }
            )
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(LISTED))
