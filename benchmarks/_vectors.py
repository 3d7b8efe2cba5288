"""Vectors for benchmarks of the index: made from a seed, or read from a file."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import pyarrow as pa

from lookalike.index.metric import prepared
from lookalike.index.spool import using

QUERIES = 1_000
K = 10


def clustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 unit vectors around centres of unequal sizes, as embeddings of classes lie."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(max(10, count // 500), dim)).astype(np.float32)
    sizes = random.pareto(2, size=len(centres)) + 0.2
    own = random.choice(len(centres), count, p=sizes / sizes.sum())
    noise = random.standard_normal(size=(count, dim), dtype=np.float32)
    return prepared(centres[own] + 0.7 * noise, "cosine")


def unclustered(count: int, dim: int, seed: int = 0) -> np.ndarray:
    """float32 unit vectors without any structure: the hardest there are."""
    random = np.random.default_rng(seed)
    return prepared(random.standard_normal(size=(count, dim), dtype=np.float32), "cosine")


def batches(vectors: np.ndarray) -> list[pa.RecordBatch]:
    """Vectors as the index takes them, with an attribute `bucket` of 0 to 199 in turn."""
    found = []
    kind = pa.map_(pa.string(), pa.string())
    for begin in range(0, len(vectors), 2**16):
        part = vectors[begin : begin + 2**16]
        numbers = range(begin, begin + len(part))
        lists = pa.FixedSizeListArray.from_arrays(pa.array(part.ravel()), part.shape[1])
        columns = [
            pa.array([f"item {n:08d}" for n in numbers]),
            pa.array([f"class {n % 100}" for n in numbers]),
            pa.array([[("bucket", str(n % 200))] for n in numbers], kind),
            lists.cast(pa.list_(pa.float32())),
        ]
        names = ["item_id", "label", "attributes", "vector"]
        found.append(pa.record_batch(columns, names))
    return found


def truth(vectors: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """int64 (queries, K): the nearest of unit vectors, by comparing with all."""
    found: np.ndarray = faiss.knn(queries, vectors, K, metric=faiss.METRIC_INNER_PRODUCT)[1]
    return found


def one_by_one(search: Callable[[np.ndarray], object], queries: np.ndarray) -> float:
    """Milliseconds that a query takes in one thread, one after the other."""
    with using(1):
        took = seconds(lambda: [search(queries[i : i + 1]) for i in range(len(queries))])
    return took / len(queries) * 1e3


def recall(exact: np.ndarray, found: np.ndarray) -> float:
    """Mean share of the exact neighbours that were found."""
    return float(np.mean([np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]))


def rows_of(ids: list[str]) -> np.ndarray:
    """Row numbers of the ids that `batches` gives, (queries, K)."""
    return np.array([int(item_id[5:]) for item_id in ids]).reshape(-1, K)


def timed(work: Callable[[], object], rounds: int = 3) -> float:
    """Median of the seconds that it takes."""
    return median(seconds(work) for _ in range(rounds))


def seconds(work: Callable[[], object]) -> float:
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def loaded(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Vectors and queries that `kept` wrote."""
    vectors = np.load(path)
    return vectors[:-QUERIES], vectors[-QUERIES:]


def kept(vectors: np.ndarray, folder: Path) -> str:
    """Where vectors, the last of which are queries, are kept for other processes."""
    path = folder / "vectors.npy"
    np.save(path, vectors)
    return str(path)
