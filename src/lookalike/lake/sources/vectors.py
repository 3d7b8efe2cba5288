"""A table of items that bring vectors of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
from pyspark.sql import functions as F

from lookalike.columns import VECTOR_MEDIA
from lookalike.config import VectorsData
from lookalike.errors import DataError
from lookalike.lake.sources.table import Inline, Table, TableSource

_TAKEN = "bytes binary, reason string, detail string"


@dataclass(frozen=True)
class VectorsSource(TableSource):
    """Rows of a table; the content of an item is its vector, as little-endian float32."""

    data: VectorsData

    media = VECTOR_MEDIA

    @cached_property
    def _table(self) -> Table:
        return Table(self.spark, self.data, self.data.vector)

    @cached_property
    def _inline(self) -> Inline:
        given, vector = self._table.rows(), F.col("content")
        kind = self._table.kind(self.data.vector)
        if kind == "string":  # CSV has no lists; text that is none becomes an empty one
            said = F.from_json(vector, "array<double>")
            vector = F.when(vector.isNotNull(), F.coalesce(said, F.array().cast("array<double>")))
        elif kind != "array":
            raise DataError(
                f"the column {self.data.vector!r} of {self.data.table} holds {kind}",
                allowed="lists of numbers, or their JSON as text",
            )
        dim, others = self.data.dim, given.drop("content")
        rows = given.select(*others.columns, vector.cast("array<double>").alias("content"))
        schema = ", ".join(f"{f.name} {f.dataType.simpleString()}" for f in others.schema)
        return Inline(
            rows.mapInArrow(lambda batches: _taken(batches, dim), f"{schema}, {_TAKEN}"),
            *self.names,
        )


def _taken(batches: Iterable[pa.RecordBatch], dim: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        found = [_bytes(vector, dim) for vector in batch.column(batch.num_columns - 1).to_pylist()]
        columns = [batch.column(i) for i in range(batch.num_columns - 1)]
        data, reasons, details = zip(*found, strict=True) if found else ((), (), ())
        yield pa.RecordBatch.from_arrays(
            [*columns, pa.array(data, pa.binary()), pa.array(reasons, pa.string()),
             pa.array(details, pa.string())],
            names=[*batch.schema.names[:-1], "bytes", "reason", "detail"],
        )  # fmt: skip


def _bytes(
    vector: list[float | None] | None, dim: int
) -> tuple[bytes | None, str | None, str | None]:
    if vector is None:
        return None, None, None
    if not vector:
        return None, "not_a_vector", "the vector is no list of numbers, or an empty one"
    values = np.array([np.nan if v is None else v for v in vector], dtype="<f4")
    data = values.tobytes()
    if len(values) != dim:
        return data, "wrong_length", f"the vector has {len(values)} numbers, not data.dim = {dim}"
    if not np.isfinite(values).all():
        return data, "not_finite", "the vector holds NaN, infinity or nothing"
    if not values.any():
        return data, "zero_vector", "the vector is zero and has no direction"
    return data, None, None
