"""Spark's Python workers, as a session of ours starts them."""

from __future__ import annotations

import socket
import sys
import zipimport
from collections.abc import Iterable, Iterator

import pandas as pd
from pyspark.sql import SparkSession


def test_workers_come_from_our_daemon(spark: SparkSession) -> None:
    def told(batches: Iterable[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        list(batches)
        functions = (
            zipimport.zipimporter.invalidate_caches,
            sys.modules["pyspark.daemon"].worker_main,
        )
        yield pd.DataFrame({"module": [function.__module__ for function in functions]})

    rows = spark.range(0, 1, 1, 1).mapInPandas(told, "module string").collect()
    archives, task = (row["module"] for row in rows)
    assert archives == "__main__"  # which the daemon is
    assert task == ("__main__" if hasattr(socket, "TCP_QUICKACK") else "pyspark.worker")
