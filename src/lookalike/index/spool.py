"""Vectors on their way into an index: spooled to the local disk, sampled and added from there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import faiss
import numpy as np

from lookalike.index import kinds
from lookalike.index.kinds import Built
from lookalike.index.metric import Metric
from lookalike.index.plan import Plan
from lookalike.index.vectors import ORIGINALS_FILE

_CHUNK = 2**14
_TRAINED_ON = 64  # vectors a cell
_SEED = 17


@dataclass(frozen=True)
class Spool:
    """Vectors on the local disk, in the order in which they are to be rows.

    Attributes:
        array: float32 (n, dim), mapped.
        order: int (n,), where each row lies; None for as they come.
    """

    array: np.ndarray
    order: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.array)

    @property
    def dim(self) -> int:
        return int(self.array.shape[1])

    def rows(self, rows: np.ndarray | slice) -> np.ndarray:
        """float32 (m, dim)."""
        if self.order is None:
            return np.ascontiguousarray(self.array[rows])
        return np.ascontiguousarray(self.array[self.order[rows]])

    def sample(self, count: int, among: int) -> np.ndarray:
        """A random sample of the first `among` rows, in their order."""
        if count >= among:
            return self.rows(slice(0, among))
        chosen = np.random.default_rng(_SEED).choice(among, count, replace=False)
        return self.rows(np.sort(chosen))


def filled(spool: Spool, plan: Plan, metric: Metric, folder: Path, count: int) -> Built:
    """The first `count` rows of a spool, kept by a plan; `extend` adds the rest."""
    originals = None
    if plan.keeps_originals:
        originals = np.lib.format.open_memmap(  # type: ignore[no-untyped-call]
            folder / ORIGINALS_FILE, "w+", np.float16, (len(spool), spool.dim)
        )
    sample = spool.sample(max(2**12, _TRAINED_ON * plan.nlist), count)
    vectors = kinds.empty(plan, metric, sample, originals)
    extend(vectors, spool, count)
    return vectors


def extend(vectors: Built, spool: Spool, until: int) -> None:
    """Add a spool's rows from where the vectors end."""
    # Threads would add to a graph in another order each time.
    with using(1 if vectors.plan.kind == "hnsw" else None):
        for begin in range(vectors.count, until, _CHUNK):
            vectors.add(spool.rows(slice(begin, min(begin + _CHUNK, until))))


@contextmanager
def using(threads: int | None) -> Iterator[None]:
    """faiss in so many threads, of this thread's; None for as many as it takes already."""
    if threads is None:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
