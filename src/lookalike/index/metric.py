"""How far apart two vectors are: one meaning a metric, the smaller the nearer.

| metric | distance of x and y | between |
|---|---|---|
| cosine | 1 - x.y / (|x| |y|); 1 where either is zero, for zero has no direction | 0 and 2 |
| l2 | |x - y|, the Euclidean distance, not its square | 0 and infinity |
| dot | -x.y | any numbers |
"""

from __future__ import annotations

from typing import Final, Literal

import faiss
import numpy as np

from lookalike.errors import DataError

Metric = Literal["cosine", "l2", "dot"]
METRICS: Final[tuple[Metric, ...]] = ("cosine", "l2", "dot")
ROUNDING = 1e-6
"""What float32's rounding does to the cosine of a vector with itself."""
_CHUNK = 2**16
_ZERO, _ONE = np.float32(0), np.float32(1)
_LARGEST = float(np.finfo(np.float32).max) / 4
"""Squared length of vectors whose distances float32 holds."""


def code_of(metric: Metric) -> int:
    """faiss's number of a metric; cosine is the inner product of `prepared` vectors."""
    return int(faiss.METRIC_L2 if metric == "l2" else faiss.METRIC_INNER_PRODUCT)


def prepared(vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Vectors as they are kept and searched for: float32 (n, dim), of L2 norm 1 for cosine.

    Rows that have that norm already, and zeros, stay as they are.

    Raises:
        DataError: NaN or infinity among them, or what float32 cannot hold or compare.
    """
    if vectors.dtype == np.float64:
        with np.errstate(over="ignore"):  # what becomes infinite is told below
            vectors = vectors.astype(np.float32)
    vectors = np.ascontiguousarray(vectors, dtype=np.float32)
    one = metric == "cosine" and len(vectors) == 1
    if one and abs(float(np.vdot(vectors, vectors)) - 1) <= ROUNDING:
        return vectors  # of one query each operation on arrays is felt
    squares = np.einsum("ij,ij->i", vectors, vectors)
    if metric != "cosine":
        _bounded(squares < _LARGEST)
        return vectors
    unit = np.abs(squares - 1) <= ROUNDING
    if not unit.all():
        off = np.flatnonzero(~unit)
        # In doubles, where no square of a float32 overflows or vanishes.
        wide = vectors[off].astype(np.float64)
        norms = np.linalg.norm(wide, axis=1, keepdims=True)
        unit[off] = np.isfinite(norms[:, 0])
        _bounded(unit)
        vectors = vectors.copy()
        vectors[off] = wide / np.where(norms == 0, 1, norms)
    return vectors


def _bounded(bounded: np.ndarray) -> None:
    if not bounded.all():
        raise DataError(
            f"vector {np.argmin(bounded)} holds NaN, infinity or too large a number",
            allowed="finite numbers that float32 holds; by l2 and dot, in vectors no longer than "
            f"{_LARGEST**0.5:.0e}",
        )


def distances(values: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of what faiss gives: similarities, or squared Euclidean distances."""
    match metric:
        case "cosine":  # rounding takes the similarity of a vector with itself beyond 1
            found = np.subtract(_ONE, values)
            return np.maximum(found, _ZERO, out=found)
        case "l2":
            return np.sqrt(np.maximum(values, 0))
        case "dot":
            return -values


def bound(radius: float, metric: Metric) -> float:
    """What faiss compares with, so that what lies at `radius` itself is within it."""
    infinite = np.float32(np.inf)
    with np.errstate(over="ignore"):  # beyond float32 is beyond all vectors
        match metric:
            case "cosine":
                return 1 - min(radius, 2) - ROUNDING
            case "l2":
                square = np.float32(np.float64(radius) ** 2 * (1 + ROUNDING))
                return float(np.nextafter(square, infinite))
            case "dot":
                return float(np.nextafter(np.float32(-radius), -infinite))


def apart(queries: np.ndarray, vectors: np.ndarray, metric: Metric) -> np.ndarray:
    """Distances of each query to vectors of its own: (n, dim), (n, k, dim) to float32 (n, k).

    Euclidean ones by differences: the usual expansion of the square loses small ones.
    """
    found = np.empty(vectors.shape[:2], np.float32)
    step = max(1, _CHUNK // max(1, vectors.shape[1]))
    for begin in range(0, len(queries), step):
        few = slice(begin, begin + step)
        if metric == "l2":
            found[few] = np.linalg.norm(vectors[few] - queries[few, None], axis=2)
        else:
            products = np.einsum("nd,nkd->nk", queries[few], vectors[few])
            found[few] = distances(products, metric)
    return found
