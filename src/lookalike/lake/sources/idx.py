"""Images and labels in IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike import images
from lookalike.columns import TEST, TRAIN
from lookalike.config import IdxData
from lookalike.errors import DataError, scrubbed
from lookalike.lake import idx
from lookalike.lake.sources import LISTED, READ, arrow_schema, sent
from lookalike.lake.sources.files import missing
from lookalike.lake.sources.table import files_state

_CHUNK_IMAGES = 500
_FEW = 5_000  # ids that go to the workers with the code
_RAW: Final = "item_id string, pixels binary, height int, width int"


@dataclass(frozen=True)
class IdxSource:
    """Items from IDX files: 'train-000042' is the image at row 42 of the training file.

    An item's version is a hash of its pixels, so a longer file changes nothing of the items that
    it had before.
    """

    spark: SparkSession
    data: IdxData

    media = None
    repeats = False

    @property
    def names(self) -> tuple[str, ...]:
        return (scrubbed(self.data.train.images), scrubbed(self.data.test.images))

    def types(self) -> dict[str, str]:
        return {}

    def state(self) -> str | None:
        both = (self.data.train, self.data.test)
        return files_state(self.spark, [p for f in both for p in (f.images, f.labels)], self.data)

    def passed_over(self) -> dict[str, int]:
        return {}

    def listing(self) -> DataFrame:
        labels, names = self._labels(), self.data.label_names
        # Pixels are hashed where they are unpacked: what is sent about is their listing.
        rows = self._files.mapInArrow(lambda batches: _listed(batches, labels, names), LISTED)
        return rows.repartition(self._tasks, "item_id")

    def read(self, wanted: DataFrame) -> DataFrame:
        ids = wanted.select("item_id")
        some = frozenset(row["item_id"] for row in ids.coalesce(1).limit(_FEW + 1).collect())
        if len(some) <= _FEW:
            splits = {item_id.rpartition("-")[0] for item_id in some}
            files = self._files.where(F.col("split").isin(splits))
            raw = files.mapInArrow(lambda batches: _raw(batches, some), _RAW)
        else:
            raw = self._files.mapInArrow(_raw, _RAW).join(sent(ids), "item_id", "left_semi")
        return raw.repartition(2 * self._tasks, "item_id").mapInArrow(_encoded, READ)

    @property
    def _tasks(self) -> int:
        return self.spark.sparkContext.defaultParallelism

    @cached_property
    def _files(self) -> DataFrame:
        """The image files, each a task's: a file cannot be unpacked from its middle."""
        train, test = (
            self._file(files.images).select(
                F.lit(split).alias("split"), F.lit(files.images).alias("name"), "content"
            )
            for split, files in ((TRAIN, self.data.train), (TEST, self.data.test))
        )
        return train.unionByName(test)

    def _labels(self) -> dict[str, tuple[str, np.ndarray]]:
        """By split, their file's name and uint8 (n,): so small that they go with the code."""
        found = {}
        for split, files in ((TRAIN, self.data.train), (TEST, self.data.test)):
            rows = self._file(files.labels).select("content").collect()
            if len(rows) != 1:
                raise DataError(f"{files.labels} is {len(rows)} files", allowed="one IDX file")
            found[split] = files.labels, idx.parse(rows[0]["content"], idx.LABELS, files.labels)
        return found

    def _file(self, path: str) -> DataFrame:
        try:
            return self.spark.read.format("binaryFile").load(path)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" in str(error):
                raise missing(path) from error
            raise


@dataclass(frozen=True)
class _Unpacked:
    """Images of a split: uint8 (n, height, width)."""

    split: str
    name: str
    pixels: np.ndarray

    def ids(self, rows: Iterable[int]) -> list[str]:
        return [f"{self.split}-{row:06d}" for row in rows]

    def chunks(self) -> Iterator[range]:
        """Its rows, some at a time."""
        for start in range(0, len(self.pixels), _CHUNK_IMAGES):
            yield range(start, min(start + _CHUNK_IMAGES, len(self.pixels)))


def _unpacked(batches: Iterable[pa.RecordBatch]) -> Iterator[_Unpacked]:
    for batch in batches:
        for file in batch.to_pylist():
            pixels = idx.parse(file["content"], idx.IMAGES, file["name"])
            yield _Unpacked(file["split"], file["name"], pixels)


def _listed(
    batches: Iterable[pa.RecordBatch],
    labels: dict[str, tuple[str, np.ndarray]],
    names: tuple[str, ...] | None,
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(LISTED)
    named = [str(label) for label in range(256)] if names is None else names
    unknown = f"is not among the {len(names or ())} of data.label_names"
    for file in _unpacked(batches):
        labels_name, given = labels[file.split]
        idx.check_counts(len(file.pixels), len(given), file.name, labels_name)
        for rows in file.chunks():
            ids, count = file.ids(rows), len(rows)
            numbers = given[rows.start : rows.stop].tolist()
            known = [names is None or n < len(names) for n in numbers]
            columns = {
                "item_id": ids,
                "label": [named[n] if k else None for n, k in zip(numbers, known, strict=True)],
                "attributes": [[]] * count,
                "given_split": [file.split] * count,
                "source": [scrubbed(file.name)] * count,
                "source_version": [
                    hashlib.sha256(image).hexdigest()[:32]
                    for image in file.pixels[rows.start : rows.stop]
                ],
                "position": ids,
                "reason": [None if k else "unknown_label" for k in known],
                "detail": [
                    None if k else f"label {n} {unknown}"
                    for n, k in zip(numbers, known, strict=True)
                ],
            }
            arrays = [
                pa.array(columns.get(field.name, [None] * count), field.type) for field in schema
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _raw(
    batches: Iterable[pa.RecordBatch], few: frozenset[str] | None = None
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(_RAW)
    for file in _unpacked(batches):
        _, height, width = file.pixels.shape
        for rows in file.chunks():
            found = [
                {
                    "item_id": item_id,
                    "pixels": file.pixels[row].tobytes(),
                    "height": height,
                    "width": width,
                }
                for item_id, row in zip(file.ids(rows), rows, strict=True)
                if few is None or item_id in few
            ]
            if found:
                yield pa.RecordBatch.from_pylist(found, schema=schema)


def _encoded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            shape = (row["height"], row["width"])
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(shape)
            rows.append({"item_id": row["item_id"], "bytes": images.encode_png(pixels)})
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(READ))
