"""Vectors or their codes in cells, the nearest of which are looked into."""

from __future__ import annotations

import threading
from pathlib import Path

import faiss
import numpy as np

from lookalike.errors import ConfigError, DataError
from lookalike.index.metric import Metric, distances
from lookalike.index.plan import Plan
from lookalike.index.rows import Rows
from lookalike.index.vectors import (
    IN_ORDER,
    ORIGINALS_FILE,
    PASSED,
    SCATTERED,
    VECTORS_FILE,
    Found,
    Vectors,
    Within,
    apart_from,
    nearest_of,
    ranged,
)

_FLOAT16_MAX = 65504.0


class Cells(Vectors):
    """Kinds 'ivf_*': vectors or their codes in cells; maybe float16 vectors beside them.

    Args:
        plan: `settled`.
        metric: of the distances.
        index: faiss's, trained.
        originals: float16 (at least count, dim), times `scale`; None for codes alone.
        scale: what originals are multiplied by.
    """

    def __init__(
        self,
        plan: Plan,
        metric: Metric,
        index: faiss.Index,
        originals: np.ndarray | None,
        scale: float = 1.0,
    ):
        super().__init__(plan, metric)
        self.index = index
        self.originals = originals
        self.scale = scale
        self._cells = faiss.downcast_index(faiss.extract_index_ivf(index))
        self._lock = threading.Lock()
        lists = faiss.downcast_InvertedLists(self._cells.invlists)
        if isinstance(lists, faiss.OnDiskInvertedLists):
            lists.prefetch_nthread = 0  # else each search starts 32 threads

    @property
    def count(self) -> int:
        return int(self.index.ntotal)

    @property
    def dim(self) -> int:
        return int(self.index.d)

    @property
    def fetching(self) -> float:
        # Codes are decoded one by one.
        return 1.0 if self.originals is not None or self.plan.kind == "ivf_flat" else 4.0

    def add(self, vectors: np.ndarray) -> None:
        if self.originals is not None:
            with np.errstate(over="ignore"):
                small = (vectors / self.scale).astype(np.float16)
            if not np.isfinite(small).all():
                raise DataError(
                    f"a component of a vector is {np.abs(vectors).max():g}, which float16 cannot "
                    "hold beside the others",
                    allowed=f"at most {_FLOAT16_MAX * self.scale:g}",
                    remedy="Use the metric cosine, set index.rerank to 0, or another index.kind",
                )
            self.originals[self.count : self.count + len(vectors)] = small
        self.index.add(vectors)

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        if self.originals is not None:
            kept = self.originals[rows].astype(np.float32) * np.float32(self.scale)
            if self.metric == "cosine":  # float16 has changed their norms, too
                norms = np.sqrt(np.einsum("ij,ij->i", kept, kept))
                kept /= np.where(norms == 0, 1, norms)[:, np.newaxis]
            return kept
        with self._lock:  # where each row lies is found out once, when first asked for
            if self._cells.direct_map.type != faiss.DirectMap.Array:
                self._cells.set_direct_map_type(faiss.DirectMap.Array)
        if isinstance(rows, slice):
            rows = np.arange(self.count)[rows]
        return self.index.reconstruct_batch(np.ascontiguousarray(rows, np.int64))

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        if self.originals is None:
            return self._candidates(queries, k, rows, effort)
        many = min(k * self.plan.rerank, rows.count)
        _, found = self._candidates(queries, many, rows, effort)
        again = apart_from(self, queries, found)
        again[found < 0] = np.inf
        return nearest_of(again, found, k)

    def _candidates(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        chosen = rows.parameters(faiss.SearchParametersIVF, nprobe=min(effort, self.plan.nlist))
        if isinstance(self.index, faiss.IndexPreTransform):
            chosen = rows.parameters(faiss.SearchParametersPreTransform, index_params=chosen)
        values, found = self.index.search(queries, k, params=chosen)
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:
        looked = min(effort / self.plan.nlist, 1)
        again = k * self.plan.rerank if self.originals is not None else 0
        each = IN_ORDER * (SCATTERED - (SCATTERED - 1) * rows.share)
        seen = each * rows.count + PASSED * (rows.total - rows.count)
        return IN_ORDER * self.plan.nlist + looked * seen + again

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        if self.plan.kind == "ivf_flat":
            chosen = rows.parameters(faiss.SearchParametersIVF, nprobe=self.plan.nlist)
            return ranged(self.index, queries, radius, self.metric, chosen)
        if self.originals is None:
            raise ConfigError(
                f"an index of kind {self.plan.kind!r} that keeps codes alone cannot say what is "
                "within a radius",
                remedy="Build it with index.rerank of 1 or more, or another index.kind",
            )
        return None

    def write(self, folder: Path) -> None:
        """Write what `read` opens."""
        faiss.write_index(self.index, str(folder / VECTORS_FILE))
        if isinstance(self.originals, np.memmap):  # they lie in that folder already
            self.originals.flush()
        elif self.originals is not None:
            np.save(folder / ORIGINALS_FILE, self.originals[: self.count])


def trained(plan: Plan, shown: np.ndarray, code: int) -> faiss.Index:
    if plan.kind == "ivf_pq":
        return _product_quantised(plan, shown, code)
    dim = shown.shape[1]
    quantizer = faiss.IndexFlat(dim, code)
    if plan.kind == "ivf_flat":
        index = faiss.IndexIVFFlat(quantizer, dim, plan.nlist, code)
    else:
        eight = faiss.ScalarQuantizer.QT_8bit
        index = faiss.IndexIVFScalarQuantizer(quantizer, dim, plan.nlist, eight, code)
    index.cp.min_points_per_centroid = 1  # `lookalike` says itself how many items there are
    quantizer.this.disown()
    index.own_fields = True
    index.train(shown)
    return index


def _product_quantised(plan: Plan, shown: np.ndarray, code: int) -> faiss.Index:
    dim, pieces = shown.shape[1], plan.pq_bytes
    turned = pieces * (dim // pieces)
    quantizer = faiss.IndexFlat(turned, code)
    index = faiss.IndexIVFPQ(quantizer, turned, plan.nlist, pieces, 8, code)
    index.cp.min_points_per_centroid = index.pq.cp.min_points_per_centroid = 1
    quantizer.this.disown()
    index.own_fields = True
    rotation = faiss.OPQMatrix(dim, pieces, turned)
    rotation.niter, rotation.niter_pq_0 = 8, 16
    rotation.max_train_points = 2**13
    learned = faiss.ProductQuantizer(turned, pieces, 8)
    learned.cp.min_points_per_centroid = 1
    rotation.pq = learned
    whole = faiss.IndexPreTransform(rotation, index)
    rotation.this.disown()
    index.this.disown()
    whole.own_fields = True
    whole.train(shown)
    rotation.pq = None  # it had no more than the address
    return whole
