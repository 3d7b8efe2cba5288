"""Images and labels in IDX files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
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
_CHUNK: Final = (
    "given_split string, source string, start long, pixels binary, height int, width int, "
    "labels binary"
)
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
        return self._chunks().mapInArrow(lambda batches: _listed(batches, names), LISTED)

    def read(self, wanted: DataFrame) -> DataFrame:
        ids = wanted.select("item_id")
        few = frozenset(row["item_id"] for row in ids.limit(_FEW + 1).collect())
        if len(few) <= _FEW:
            raw = self._chunks().mapInArrow(lambda batches: _raw(batches, few), _RAW)
        else:
            raw = self._chunks().mapInArrow(lambda batches: _raw(batches, None), _RAW)
            raw = raw.join(sent(ids), "item_id", "left_semi")
        return raw.mapInArrow(_encoded, READ)

    def _chunks(self) -> DataFrame:
        both = ((TRAIN, self.data.train), (TEST, self.data.test))
        chunks = reduce(DataFrame.unionByName, [self._split(*each) for each in both])
        tasks = 2 * self.spark.sparkContext.defaultParallelism
        return chunks.repartition(tasks, "given_split", "start")

    def _split(self, split: str, files: IdxFiles) -> DataFrame:
        both = (
            self._file(files.images)
            .select(F.col("content").alias("images"))
            .crossJoin(self._file(files.labels).select(F.col("content").alias("labels")))
            .withColumn("given_split", F.lit(split))
        )
        names = (files.images, files.labels)
        return both.mapInArrow(lambda batches: _split_up(batches, *names), _CHUNK)

    def _file(self, path: str) -> DataFrame:
        try:
            return self.spark.read.format("binaryFile").load(path)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" in str(error):
                raise missing(path) from error
            raise


def _split_up(
    batches: Iterable[pa.RecordBatch], images_name: str, labels_name: str
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for row in batch.to_pylist():
            pixels, labels = idx.parse_pair(row["images"], row["labels"], images_name, labels_name)
            for start in range(0, len(pixels), _CHUNK_IMAGES):
                stop = start + _CHUNK_IMAGES
                chunk = {
                    "given_split": row["given_split"],
                    "source": scrubbed(images_name),
                    "start": start,
                    "pixels": pixels[start:stop].tobytes(),
                    "height": pixels.shape[1],
                    "width": pixels.shape[2],
                    "labels": labels[start:stop].tobytes(),
                }
                yield pa.RecordBatch.from_pylist([chunk], schema=arrow_schema(_CHUNK))


def _images(batches: Iterable[pa.RecordBatch]) -> Iterator[tuple[dict, list[str], np.ndarray]]:
    """Chunks with the ids and pixels of their images."""
    for batch in batches:
        for chunk in batch.to_pylist():
            shape = (-1, chunk["height"], chunk["width"])
            pixels = np.frombuffer(chunk["pixels"], np.uint8).reshape(shape)
            first = chunk["start"]
            ids = [f"{chunk['given_split']}-{first + i:06d}" for i in range(len(pixels))]
            yield chunk, ids, pixels


def _listed(
    batches: Iterable[pa.RecordBatch], names: tuple[str, ...] | None
) -> Iterator[pa.RecordBatch]:
    for chunk, ids, pixels in _images(batches):
        labels = list(chunk["labels"])
        count = len(labels)
        known = [names is None or label < len(names) for label in labels]
        named = [str(label) for label in range(256)] if names is None else names
        unknown = f"is not among the {len(names or ())} of data.label_names"
        columns = {
            "item_id": ids,
            "label": [named[n] if k else None for n, k in zip(labels, known, strict=True)],
            "attributes": [[]] * count,
            "given_split": [chunk["given_split"]] * count,
            "source": [chunk["source"]] * count,
            "source_version": [hashlib.sha256(image).hexdigest()[:32] for image in pixels],
            "position": ids,
            "reason": [None if k else "unknown_label" for k in known],
            "detail": [
                None if k else f"label {n} {unknown}" for n, k in zip(labels, known, strict=True)
            ],
        }
        schema = arrow_schema(LISTED)
        arrays = [pa.array(columns.get(field.name, [None] * count), field.type) for field in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _raw(batches: Iterable[pa.RecordBatch], few: frozenset[str] | None) -> Iterator[pa.RecordBatch]:
    for chunk, ids, pixels in _images(batches):
        rows = [
            {
                "item_id": item_id,
                "pixels": image.tobytes(),
                "height": chunk["height"],
                "width": chunk["width"],
            }
            for item_id, image in zip(ids, pixels, strict=True)
            if few is None or item_id in few
        ]
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(_RAW))


def _encoded(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        rows = []
        for row in batch.to_pylist():
            shape = (row["height"], row["width"])
            pixels = np.frombuffer(row["pixels"], np.uint8).reshape(shape)
            rows.append({"item_id": row["item_id"], "bytes": images.encode_png(pixels)})
        yield pa.RecordBatch.from_pylist(rows, schema=arrow_schema(READ))
