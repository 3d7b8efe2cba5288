"""The kinds of index behind one seam: `Vectors`, the vectors of one part, searched by row."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import faiss
import numpy as np

from lookalike.errors import ArtifactError, ConfigError, DataError
from lookalike.index.metric import Metric, apart, bound, code_of, distances
from lookalike.index.plan import IVF, Plan
from lookalike.index.rows import Rows

VECTORS_FILE, ORIGINALS_FILE = "vectors.faiss", "originals.npy"
Found = tuple[np.ndarray, np.ndarray]
"""float32 (n, k) distances, nearest first, and int64 (n, k) rows; -1 where there is none."""
Within = tuple[np.ndarray, np.ndarray, np.ndarray]
"""int64 (n + 1,) where each query's begin, float32 distances and int64 rows, in any order."""

IN_ORDER: Final = 0.25
"""What a distance costs where vectors lie side by side, in distances computed along a graph."""
_PASSED: Final = 0.02
"""What passing over a row costs that may not be found."""
_PAIRWISE = 16  # queries that faiss compares by differences, not by the square's expansion
_FLOAT16_MAX = 65504.0


class Vectors(ABC):
    """The vectors of one part.

    Args:
        plan: how they are kept.
        metric: of the distances.
    """

    def __init__(self, plan: Plan, metric: Metric):
        self.plan = plan
        self.metric = metric

    @property
    @abstractmethod
    def count(self) -> int:
        """How many there are."""

    @property
    @abstractmethod
    def fetching(self) -> float:
        """What `take` costs a row, in distances computed along a graph."""

    @abstractmethod
    def add(self, vectors: np.ndarray) -> None:
        """Append float32 (n, dim), `prepared`."""

    @abstractmethod
    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        """float32 (n, dim), as near to what was added as they are kept."""

    @abstractmethod
    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        """The nearest of some rows; fewer than `k` where that effort finds no more.

        Args:
            queries: float32 (n, dim), `prepared`.
            k: at most `rows.count`.
            rows: which may be found.
            effort: see `Plan.effort`.
        """

    @abstractmethod
    def work(self, k: int, rows: Rows, effort: int) -> float:
        """What a query costs, in distances computed along a graph."""

    @abstractmethod
    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        """All rows at most so far away, or None where they must be compared one by one."""


class Flat(Vectors):
    """Whole vectors, in order: kind 'exact', and what 'hnsw' and 'kd_tree' stand on."""

    def __init__(self, plan: Plan, metric: Metric, index: faiss.Index):
        super().__init__(plan, metric)
        self.index = index

    @property
    def count(self) -> int:
        return int(self.index.ntotal)

    @property
    def fetching(self) -> float:
        return 0.5

    def add(self, vectors: np.ndarray) -> None:
        self.index.add(vectors)

    def take(self, rows: np.ndarray | slice) -> np.ndarray:
        return self._matrix[rows]

    @property
    def _storage(self) -> faiss.IndexFlat:
        return self.index

    @property
    def _matrix(self) -> np.ndarray:
        # A view of faiss's own memory, or of the mapped file.
        values = faiss.rev_swig_ptr(self._storage.get_xb(), self.count * self.index.d)
        return values.reshape(self.count, self.index.d)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:  # noqa: ARG002
        chosen = None if rows.whole else faiss.SearchParameters(sel=rows.selector)
        values, found = self.index.search(queries, k, params=chosen)
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:  # noqa: ARG002
        return 0 if rows.whole else IN_ORDER * rows.count + _PASSED * rows.total

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        return _range(self._storage, queries, radius, self.metric, rows)

    def write(self, folder: Path) -> None:
        """Write what `read` opens."""
        faiss.write_index(self.index, str(folder / VECTORS_FILE))


class Graph(Flat):
    """Kind 'hnsw': a graph over whole vectors. `within` compares with all of them."""

    @cached_property
    def _storage(self) -> faiss.IndexFlat:
        return faiss.downcast_index(self.index.storage)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        chosen = faiss.SearchParametersHNSW(
            efSearch=max(effort, k), sel=None if rows.whole else rows.selector
        )
        values, found = self.index.search(queries, k, params=chosen)
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:  # noqa: ARG002
        # About half of a node's 2m neighbours have been seen.
        return max(effort, k) * self.plan.m


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
            return self.originals[rows].astype(np.float32) * np.float32(self.scale)
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
        selector = None if rows.whole else rows.selector
        chosen = faiss.SearchParametersIVF(nprobe=min(effort, self.plan.nlist), sel=selector)
        if self.index.this != self._cells.this and isinstance(self.index, faiss.IndexPreTransform):
            chosen = faiss.SearchParametersPreTransform(index_params=chosen)
        values, found = self.index.search(queries, k, params=chosen)
        return distances(values, self.metric), found

    def work(self, k: int, rows: Rows, effort: int) -> float:
        looked = min(effort / self.plan.nlist, 1)
        again = k * self.plan.rerank if self.originals is not None else 0
        seen = IN_ORDER * rows.count + _PASSED * (rows.total - rows.count)
        return IN_ORDER * self.plan.nlist + looked * seen + again

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        if self.plan.kind == "ivf_flat":
            chosen = faiss.SearchParametersIVF(nprobe=self.plan.nlist)
            return _range(self.index, queries, radius, self.metric, rows, chosen)
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


class Tree(Flat):
    """Kind 'kd_tree': exact, for few dimensions. The file holds the vectors; the tree is grown from
    them when it is first asked for, in doubles.

    Cosine distances of unit vectors are half the squared Euclidean ones. Two more dimensions, one
    of kept zeros and one of zeros that are searched for, give zero its distance of 1 to everything.
    """

    @cached_property
    def _tree(self) -> Any:
        from sklearn.neighbors import KDTree

        return KDTree(self._placed(self._matrix, 0))

    def _placed(self, vectors: np.ndarray, side: int) -> np.ndarray:
        if self.metric != "cosine":
            return vectors.astype(np.float64)
        placed = np.zeros((len(vectors), vectors.shape[1] + 2))
        placed[:, :-2] = vectors
        placed[~vectors.any(axis=1), vectors.shape[1] + side] = 1
        return placed

    def add(self, vectors: np.ndarray) -> None:
        super().add(vectors)
        self.__dict__.pop("_tree", None)

    def _distances(self, euclidean: np.ndarray) -> np.ndarray:
        values = euclidean**2 / 2 if self.metric == "cosine" else euclidean
        return values.astype(np.float32)

    def search(self, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Found:
        # The nearest of all, as many as should hold k of those that may be found.
        many = min(k * effort, self.count)
        far, found = self._tree.query(self._placed(queries, 1), many)
        found = found.astype(np.int64)
        if rows.whole:
            return self._distances(far[:, :k]), found[:, :k]
        far = np.where(rows.mask[found], far, np.inf)
        near, found = nearest_of(far, found, k)
        return self._distances(near), found

    def work(self, k: int, rows: Rows, effort: int) -> float:
        return min(20.0 * k * effort, rows.total)

    def within(self, queries: np.ndarray, radius: float, rows: Rows) -> Within | None:
        reach = np.sqrt(2 * (radius + 1e-6)) if self.metric == "cosine" else radius * (1 + 1e-6)
        parts, far = self._tree.query_radius(
            self._placed(queries, 1), max(reach, 0), return_distance=True
        )
        allowed = [rows.mask[part] for part in parts]
        kept = [part[keep] for part, keep in zip(parts, allowed, strict=True)]
        limits = np.cumsum([0, *(len(part) for part in kept)])
        near = [f[keep] for f, keep in zip(far, allowed, strict=True)]
        return limits, self._distances(np.concatenate(near)), np.concatenate(kept).astype(np.int64)


Built = Flat | Cells


def empty(
    plan: Plan,
    metric: Metric,
    sample: np.ndarray,
    originals: np.ndarray | None = None,
) -> Built:
    """No vectors yet, of some kind, trained where it learns.

    Args:
        plan: `settled`.
        metric: of the distances.
        sample: float32 (n, dim), a random sample of the vectors, `prepared`; n at least 1.
        originals: float16 (count, dim) to fill; needed where `plan.keeps_originals`.
    """
    dim, code = sample.shape[1], code_of(metric)
    match plan.kind:
        case "exact" | "kd_tree":
            flat = faiss.IndexFlat(dim, code)
            return (Tree if plan.kind == "kd_tree" else Flat)(plan, metric, flat)
        case "hnsw":
            graph = faiss.IndexHNSWFlat(dim, plan.m, code)
            graph.hnsw.efConstruction = plan.ef_construction
            return Graph(plan, metric, graph)
    # What is learned needs some vectors; of too few, each is shown several times.
    least = max(plan.nlist, 256) if plan.kind == "ivf_pq" else plan.nlist
    shown = sample if len(sample) >= least else np.resize(sample, (least, dim))
    index = _trained(plan, np.ascontiguousarray(shown), code)
    scale = float(np.abs(sample).max()) or 1.0
    return Cells(plan, metric, index, originals if plan.keeps_originals else None, scale)


def read(folder: Path, plan: Plan, metric: Metric, scale: float) -> Built:
    """Map what `Vectors.write` wrote.

    Raises:
        ArtifactError: naming the file that cannot be read.
    """
    # faiss maps cells by one way, whole vectors by the other.
    flags = faiss.IO_FLAG_MMAP if plan.kind in IVF else faiss.IO_FLAG_MMAP_IFC
    file = folder / VECTORS_FILE
    try:
        index = faiss.read_index(str(file), flags)
        if plan.kind in IVF:
            originals = None
            if plan.keeps_originals:
                file = folder / ORIGINALS_FILE
                originals = np.load(file, mmap_mode="r")
            return Cells(plan, metric, index, originals, scale)
    except (RuntimeError, ValueError, OSError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({str(error).splitlines()[0]})",
            remedy="Run `lookalike index` again",
        ) from error
    return {"hnsw": Graph, "kd_tree": Tree}.get(plan.kind, Flat)(plan, metric, index)


def apart_from(vectors: Vectors, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Distances of each query to rows of its own, from the vectors as they are kept.

    Args:
        vectors: of a part.
        queries: float32 (n, dim), `prepared`.
        rows: int (n, k); negative ones are of no matter.
    """
    found = np.empty(rows.shape, np.float32)
    step = max(1, 2**16 // max(1, rows.shape[1]))
    for begin in range(0, len(rows), step):
        few = slice(begin, begin + step)
        kept = vectors.take(np.maximum(rows[few], 0).ravel())
        kept = kept.reshape(*rows[few].shape, queries.shape[1])
        found[few] = apart(queries[few], kept, vectors.metric)
    return found


def nearest_of(near: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """The `k` nearest of candidates: (n, m) distances, infinite where there is none, and rows.

    Equal ones come by row.
    """
    order = np.lexsort((rows, near), axis=1)[:, :k]
    near = np.take_along_axis(near, order, axis=1)
    return near, np.where(np.isinf(near), -1, np.take_along_axis(rows, order, axis=1))


def _trained(plan: Plan, shown: np.ndarray, code: int) -> faiss.Index:
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


def _range(
    index: faiss.Index,
    queries: np.ndarray,
    radius: float,
    metric: Metric,
    rows: Rows,
    chosen: Any = None,
) -> Within:
    chosen = faiss.SearchParameters() if chosen is None else chosen
    if not rows.whole:
        chosen.sel = rows.selector
    parts = []
    for begin in range(0, len(queries), _PAIRWISE):
        few = np.ascontiguousarray(queries[begin : begin + _PAIRWISE])
        parts.append(index.range_search(few, bound(radius, metric), params=chosen))
    sizes = np.concatenate([np.diff(limits.astype(np.int64)) for limits, _, _ in parts])
    values = np.concatenate([values for _, values, _ in parts])
    found = np.concatenate([found for _, _, found in parts])
    return np.concatenate([[0], np.cumsum(sizes)]), distances(values, metric), found
