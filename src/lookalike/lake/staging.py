"""Rows from Spark to the driver as a stream of Arrow batches, by files: never all in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa
import pyarrow.dataset
from pyspark.sql import DataFrame

from lookalike import artifacts
from lookalike.lake.session import ARROW_ROWS, configured, translated

_MADE_AT_ONCE = "64"


@contextmanager
def record_batches(
    rows: DataFrame, files: str, batch_rows: int = 4096
) -> Iterator[Iterator[pa.RecordBatch]]:
    """The rows' batches, in the rows' order.

    Args:
        rows: any columns; ordered globally where the order matters.
        files: folder or URI that both Spark and this process see; used and cleaned below.
        batch_rows: rows of a batch, at most.
    """
    uri = artifacts.join(files, "staging", artifacts.new_name())
    inner, path = artifacts.filesystem(uri)
    try:
        # They may be made of photos, in Python.
        with translated(), configured(rows.sparkSession, {ARROW_ROWS: _MADE_AT_ONCE}):
            rows.write.parquet(artifacts.plain_uri(uri))
        selector = pa.fs.FileSelector(path, recursive=True)
        # Spark numbers its files in the order of the partitions.
        names = sorted(
            info.path for info in inner.get_file_info(selector) if info.path.endswith(".parquet")
        )
        dataset = pa.dataset.dataset(names, format="parquet", filesystem=inner)
        yield dataset.to_batches(batch_size=batch_rows, batch_readahead=2, fragment_readahead=1)
    finally:
        if inner.get_file_info(path).type != pa.fs.FileType.NotFound:
            inner.delete_dir(path)
