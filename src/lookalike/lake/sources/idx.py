"""Images and labels in IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, reduce
from typing import Final

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike import images
from lookalike.columns import TEST, TRAIN
from lookalike.config import IdxData, IdxFiles
from lookalike.errors import scrubbed
from lookalike.lake import idx
from lookalike.lake.sources import LISTED, READ, arrow_schema, sent
from lookalike.lake.sources.files import missing
from lookalike.lake.sources.table import files_state

_CHUNK_IMAGES = 500
_FEW = 5_000  # ids that go to the workers with the code
_PARTS = 4  # of a file, each a task's; each task unpacks the whole file
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
        names = self.data.label_names
        # Pixels are listed where they are unpacked: to send them about takes longer than to hash.
        return self._files(_PARTS).mapInArrow(lambda batches: _listed(batches, names), LISTED)

    def read(self, wanted: DataFrame) -> DataFrame:
        ids = wanted.select("item_id")
        some = frozenset(row["item_id"] for row in ids.limit(_FEW + 1).collect())
        if len(some) <= _FEW:
            splits = {item_id.rpartition("-")[0] for item_id in some}
            files = self._files(1).where(F.col("split").isin(splits))
            return files.mapInArrow(lambda batches: _encoded(_raw(batches, some)), READ)
        raw = self._files(_PARTS).mapInArrow(_raw, _RAW).join(sent(ids), "item_id", "left_semi")
        tasks = 2 * self.spark.sparkContext.defaultParallelism
        return raw.repartition(tasks, "item_id").mapInArrow(_encoded, READ)

    def _files(self, most: int) -> DataFrame:
        """Each pair of files once for each of the parts, `most` or fewer, that it is read in."""
        parts = min(most, self.spark.sparkContext.defaultParallelism)
        each = [
            pair.withColumns({"part": F.lit(part), "parts": F.lit(parts)})
            for pair in self._pairs
            for part in range(parts)
        ]
        return reduce(DataFrame.unionByName, each)

    @cached_property
    def _pairs(self) -> tuple[DataFrame, DataFrame]:
        # Each look at the files lists them: one serves listing and reading.
        return self._pair(TRAIN, self.data.train), self._pair(TEST, self.data.test)

    def _pair(self, split: str, files: IdxFiles) -> DataFrame:
        return (
            self._file(files.images)
            .select(F.col("content").alias("images"))
            .crossJoin(self._file(files.labels).select(F.col("content").alias("labels")))
            .select(
                F.lit(split).alias("split"),
                "images",
                "labels",
                F.lit(files.images).alias("images_name"),
                F.lit(files.labels).alias("labels_name"),
            )
        )

    def _file(self, path: str) -> DataFrame:
        try:
            return self.spark.read.format("binaryFile").load(path)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" in str(error):
                raise missing(path) from error
            raise


@dataclass(frozen=True)
class _Chunk:
    """Some images of a file, one after another."""

    split: str
    source: str
    ids: list[str]
    pixels: np.ndarray
    labels: np.ndarray


def _chunks(batches: Iterable[pa.RecordBatch]) -> Iterator[_Chunk]:
    for batch in batches:
        for file in batch.to_pylist():
            names = file["images_name"], file["labels_name"]
            pixels, labels = idx.parse_pair(file["images"], file["labels"], *names)
            split, source = file["split"], scrubbed(names[0])
            ends = np.linspace(0, len(pixels), file["parts"] + 1).astype(int).tolist()
            first, end = ends[file["part"] : file["part"] + 2]
            for start in range(first, end, _CHUNK_IMAGES):
                part = slice(start, min(start + _CHUNK_IMAGES, end))
                ids = [f"{split}-{number:06d}" for number in range(part.start, part.stop)]
                yield _Chunk(split, source, ids, pixels[part], labels[part])


def _listed(
    batches: Iterable[pa.RecordBatch], names: tuple[str, ...] | None
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(LISTED)
    named = [str(label) for label in range(256)] if names is None else names
    unknown = f"is not among the {len(names or ())} of data.label_names"
    for chunk in _chunks(batches):
        labels, count = chunk.labels.tolist(), len(chunk.ids)
        known = [names is None or label < len(names) for label in labels]
        columns = {
            "item_id": chunk.ids,
            "label": [named[n] if k else None for n, k in zip(labels, known, strict=True)],
            "attributes": [[]] * count,
            "given_split": [chunk.split] * count,
            "source": [chunk.source] * count,
            "source_version": [hashlib.sha256(image).hexdigest()[:32] for image in chunk.pixels],
            "position": chunk.ids,
            "reason": [None if k else "unknown_label" for k in known],
            "detail": [
                None if k else f"label {n} {unknown}" for n, k in zip(labels, known, strict=True)
            ],
        }
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _raw(
    batches: Iterable[pa.RecordBatch], few: frozenset[str] | None = None
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(_RAW)
    for chunk in _chunks(batches):
        _, height, width = chunk.pixels.shape
        rows = [
            {"item_id": item_id, "pixels": image.tobytes(), "height": height, "width": width}
            for item_id, image in zip(chunk.ids, chunk.pixels, strict=True)
            if few is None or item_id in few
        ]
        if rows:
            yield pa.RecordBatch.from_pylist(rows, schema=schema)


def _encoded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            shape = (row["height"], row["width"])
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(shape)
            rows.append({"item_id": row["item_id"], "bytes": images.encode_png(pixels)})
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(READ))
