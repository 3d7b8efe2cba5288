"""Where catalogues come from. A source gives the rows that are new or changed, unread otherwise."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Final, Protocol

import numpy as np
import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike import images
from lookalike.artifacts import fingerprint
from lookalike.config import IdxData, IdxFiles
from lookalike.errors import DataError
from lookalike.lake import idx

STAGED: Final = (
    "item_id string, group_id string, label string, attributes map<string,string>, "
    "source string, source_version string, split string, media string, bytes binary, "
    "reason string, detail string"
)
"""What a source gives: items with their original bytes; `reason` where one cannot be used."""

_CHUNK_IMAGES = 500
_CHUNK: Final = (
    "split string, source string, source_version string, start long, pixels binary, height int, "
    "width int, labels binary"
)


class Source(Protocol):
    """A catalogue. `changed` reads no bytes of what the items table has in the same version."""

    def changed(self, items: DataFrame) -> DataFrame | None:
        """Rows of schema `STAGED` that are new or of another version; None where all is known."""
        ...


@dataclass(frozen=True)
class IdxSource:
    """Items from IDX files: 'train-000042' is the image at row 42 of the training file."""

    spark: SparkSession
    data: IdxData

    def changed(self, items: DataFrame) -> DataFrame | None:
        # A source's first item is in each of its versions; later ones may stem from a longer one.
        first = items.groupBy("source").agg(F.min_by("source_version", "item_id").alias("version"))
        known = {(row["source"], row["version"]) for row in first.toLocalIterator()}
        # Names decide what an item is as the files do.
        named = fingerprint(self.data.label_names)[:8]
        both = (("train", self.data.train), ("test", self.data.test))
        found = self._versions([p for _, files in both for p in (files.images, files.labels)])
        parts = []
        for split, files in both:
            version = f"{found[files.images]}+{found[files.labels]}+{named}"
            if (files.images, version) not in known:
                parts.append(self._chunks(split, files, version))
        if not parts:
            return None
        chunks = reduce(DataFrame.unionByName, parts)
        names = self.data.label_names
        return chunks.repartition(
            4 * self.spark.sparkContext.defaultParallelism, "split", "start"
        ).mapInArrow(lambda batches: _rows(batches, names), STAGED)

    def _versions(self, paths: list[str]) -> dict[str, str]:
        # Without its content column, Spark's binaryFile lists files and opens none.
        listed = [
            self._file(path).select(F.lit(path).alias("name"), "modificationTime", "length")
            for path in paths
        ]
        rows = reduce(DataFrame.unionByName, listed).collect()
        found = {
            row["name"]: f"{row['modificationTime'].timestamp():.3f}-{row['length']}"
            for row in rows
        }
        for path in paths:
            if path not in found:
                raise _missing(path)
        return found

    def _file(self, path: str) -> DataFrame:
        try:
            return self.spark.read.format("binaryFile").load(path)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" in str(error):
                raise _missing(path) from error
            raise

    def _chunks(self, split: str, files: IdxFiles, version: str) -> DataFrame:
        both = (
            self._file(files.images)
            .select(F.col("content").alias("images"))
            .crossJoin(self._file(files.labels).select(F.col("content").alias("labels")))
            .withColumn("split", F.lit(split))
            .withColumn("source_version", F.lit(version))
        )
        names = (files.images, files.labels)
        return both.mapInArrow(lambda batches: _split_up(batches, *names), _CHUNK)


def _missing(path: str) -> DataError:
    return DataError(
        f"there is no file {path}", remedy="Check the paths under `data` in the recipe"
    )


def _split_up(
    batches: Iterable[pa.RecordBatch], images_name: str, labels_name: str
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for row in batch.to_pylist():
            pixels, labels = idx.parse_pair(row["images"], row["labels"], images_name, labels_name)
            for start in range(0, len(pixels), _CHUNK_IMAGES):
                stop = start + _CHUNK_IMAGES
                yield pa.RecordBatch.from_pylist(
                    [
                        {
                            "split": row["split"],
                            "source": images_name,
                            "source_version": row["source_version"],
                            "start": start,
                            "pixels": pixels[start:stop].tobytes(),
                            "height": pixels.shape[1],
                            "width": pixels.shape[2],
                            "labels": labels[start:stop].tobytes(),
                        }
                    ],
                    schema=_chunk_schema(),
                )


def _chunk_schema() -> pa.Schema:
    return pa.schema(
        [
            ("split", pa.string()),
            ("source", pa.string()),
            ("source_version", pa.string()),
            ("start", pa.int64()),
            ("pixels", pa.binary()),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("labels", pa.binary()),
        ]
    )


def staged_schema() -> pa.Schema:
    """`STAGED` in Arrow."""
    strings = ("item_id", "group_id", "label")
    return pa.schema(
        [
            *((name, pa.string()) for name in strings),
            ("attributes", pa.map_(pa.string(), pa.string())),
            *((name, pa.string()) for name in ("source", "source_version", "split", "media")),
            ("bytes", pa.binary()),
            ("reason", pa.string()),
            ("detail", pa.string()),
        ]
    )


def _rows(
    batches: Iterable[pa.RecordBatch], names: tuple[str, ...] | None
) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        for chunk in batch.to_pylist():
            shape = (-1, chunk["height"], chunk["width"])
            pixels = np.frombuffer(chunk["pixels"], np.uint8).reshape(shape)
            labels = np.frombuffer(chunk["labels"], np.uint8)
            yield pa.RecordBatch.from_pylist(
                [
                    _row(chunk, chunk["start"] + i, pixels[i], int(labels[i]), names)
                    for i in range(len(pixels))
                ],
                schema=staged_schema(),
            )


def _row(
    chunk: dict[str, object],
    number: int,
    pixels: np.ndarray,
    label: int,
    names: tuple[str, ...] | None,
) -> dict[str, object]:
    named = str(label) if names is None else names[label] if label < len(names) else None
    return {
        "item_id": f"{chunk['split']}-{number:06d}",
        "label": named,
        "attributes": [],
        "source": chunk["source"],
        "source_version": chunk["source_version"],
        "split": chunk["split"],
        "media": "image/png",
        "bytes": images.encode_png(pixels),
        "reason": None if named is not None else "unknown_label",
        "detail": None
        if named is not None
        else f"label {label} is not among the {len(names or ())} of data.label_names",
    }
