"""Retrieval metrics and calibration, in numpy.

Wherever a metric is reported, say the queries, the gallery, whether the query itself is left out
of it, and what R is. Here R is the number of gallery images of the query's class, itself left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

PRECISIONS = (1, 10)
NEIGHBOURS = 10
"""k of the kNN accuracy and of MAP@k."""


@dataclass(frozen=True)
class Scores:
    """Means over queries, each between 0 and 1.

    Attributes:
        p_at_1, p_at_10: precision among the first 1 and 10 neighbours.
        knn_accuracy: share of queries whose 10 nearest neighbours vote for their class.
        map_at_10: mean average precision at 10; normaliser min(R, 10).
        map_at_r: MAP@R as in Musgrave et al. 2020, "A Metric Learning Reality Check": the mean
            over the first R ranks of precision at that rank where the rank is right, else 0.
        queries: number of queries that had at least one right answer in the gallery.
    """

    p_at_1: float
    p_at_10: float
    knn_accuracy: float
    map_at_10: float
    map_at_r: float
    queries: int
    by_class: dict[str, dict[str, float]] = field(default_factory=dict)

    METRICS = ("p_at_1", "p_at_10", "knn_accuracy", "map_at_10", "map_at_r")


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows scaled to L2 norm 1 as float32; a zero row stays zero."""
    vectors = np.asarray(vectors, dtype=np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.maximum(norms, np.finfo(np.float32).tiny)


def nearest(
    queries: np.ndarray, gallery: np.ndarray, depth: int, chunk: int = 256
) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Exact nearest neighbours by cosine, a chunk of queries at a time.

    Args:
        queries: float32 (n, dim), unit rows.
        gallery: float32 (m, dim), unit rows.
        depth: neighbours a query; at most m are given.
        chunk: queries at a time; memory is chunk x m floats.

    Yields:
        The chunk's rows, int64 (rows, depth) gallery rows nearest first, and float32 (rows,
        depth) their cosine distances.
    """
    depth = min(depth, len(gallery))
    for begin in range(0, len(queries), chunk):
        rows = slice(begin, min(begin + chunk, len(queries)))
        similarity = queries[rows] @ gallery.T
        if depth < len(gallery):
            best = np.argpartition(-similarity, depth - 1, axis=1)[:, :depth]
        else:
            best = np.broadcast_to(np.arange(len(gallery)), similarity.shape)
        values = np.take_along_axis(similarity, best, axis=1)
        # By similarity, then by row: equal neighbours come in one order everywhere.
        order = np.lexsort((best, -values), axis=1)
        yield (
            rows,
            np.take_along_axis(best, order, axis=1),
            1 - np.take_along_axis(values, order, axis=1),
        )


def exact_scores(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    self_rows: np.ndarray | None = None,
) -> Scores:
    """Scores of exact search by cosine.

    Args:
        queries: (n, dim) float vectors, of any length.
        query_labels: (n,) class names.
        gallery: (m, dim) float vectors.
        gallery_labels: (m,) class names.
        self_rows: int (n,), the gallery row that is the query itself and is left out; None where
            queries and gallery are apart.
    """
    units, gallery_units = unit(queries), unit(gallery)
    depth = ranking_depth(query_labels, gallery_labels) + (self_rows is not None)

    def ranked() -> Iterator[np.ndarray]:
        for rows, found, _ in nearest(units, gallery_units, depth):
            others = found if self_rows is None else without_self(found, self_rows[rows])
            yield gallery_labels[others]

    return scores(ranked(), query_labels, gallery_labels, self_in_gallery=self_rows is not None)


def ranking_depth(query_labels: np.ndarray, gallery_labels: np.ndarray) -> int:
    """Neighbours a query that the scores look at: the largest R, and at least 10."""
    names, counts = np.unique(gallery_labels, return_counts=True)
    largest = counts[np.isin(names, query_labels)].max(initial=1)
    return int(max(largest, NEIGHBOURS))


def without_self(neighbours: np.ndarray, self_rows: np.ndarray) -> np.ndarray:
    """Drop from each row its own number, or the last where it is not there: (n, d) to (n, d-1)."""
    keep = neighbours != self_rows[:, None]
    keep[keep.all(axis=1), -1] = False
    return neighbours[keep].reshape(len(neighbours), -1)


def scores(
    ranked: Iterator[np.ndarray],
    query_labels: np.ndarray,
    gallery_labels: np.ndarray,
    self_in_gallery: bool,
) -> Scores:
    """Scores of any search.

    Args:
        ranked: chunks of (rows, depth) labels of each query's neighbours, nearest first, self left
            out; depth at least `ranking_depth`, or as many as there are.
        query_labels: (n,) class names, in the order of `ranked`.
        gallery_labels: (m,) class names; what R is counted from.
        self_in_gallery: whether the query itself is in the gallery, and so not counted in R.
    """
    names, counts = np.unique(gallery_labels, return_counts=True)
    found = np.searchsorted(names, query_labels).clip(max=len(names) - 1)
    relevant = np.where(names[found] == query_labels, counts[found], 0) - int(self_in_gallery)
    rows = [np.empty((0, len(Scores.METRICS)))]
    begin = 0
    for labels in ranked:
        end = begin + len(labels)
        rows.append(_chunk_scores(labels, query_labels[begin:end], relevant[begin:end]))
        begin = end
    table = np.concatenate(rows)[relevant > 0]
    classes = query_labels[relevant > 0]

    def means(part: np.ndarray) -> dict[str, float]:
        values = part.mean(axis=0) if len(part) else np.zeros(len(Scores.METRICS))
        return {name: float(v) for name, v in zip(Scores.METRICS, values, strict=True)}

    by_class = {str(c): means(table[classes == c]) for c in np.unique(classes)}
    return Scores(**means(table), queries=len(table), by_class=by_class)


def _chunk_scores(labels: np.ndarray, own: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    right = labels == own[:, None]
    ranks = np.arange(1, right.shape[1] + 1)
    gain = right * (np.cumsum(right, axis=1) / ranks)
    r = np.maximum(relevant, 1)
    top = np.minimum(r, NEIGHBOURS)
    return np.stack(
        [
            *(right[:, :k].sum(axis=1) / k for k in PRECISIONS),
            _vote(labels[:, :NEIGHBOURS]) == own,
            (gain * (ranks <= top[:, None])).sum(axis=1) / top,
            (gain * (ranks <= r[:, None])).sum(axis=1) / r,
        ],
        axis=1,
    ).astype(np.float64)


def _vote(labels: np.ndarray) -> np.ndarray:
    # The commonest label of each row; of equally common ones the one that comes first.
    votes = (labels[:, :, None] == labels[:, None, :]).sum(axis=2)
    return labels[np.arange(len(labels)), votes.argmax(axis=1)]


@dataclass(frozen=True)
class Calibration:
    """P(similar) = sigmoid(weight * distance + bias)."""

    weight: float
    bias: float

    def similarity(self, distance: ArrayLike) -> np.ndarray:
        return 1 / (1 + np.exp(-(self.weight * np.asarray(distance, np.float64) + self.bias)))


def calibrate(
    vectors: np.ndarray, labels: np.ndarray, seed: int, pairs: int = 20_000
) -> Calibration:
    """Fit the probability that two items share a label to their cosine distance.

    Logistic regression (Platt 1999) on random pairs, as many of one class as of two.

    Args:
        vectors: float (n, dim).
        labels: (n,) class names; at least two classes, one of them with two items.
        seed: of the draw of pairs.
        pairs: pairs drawn of each sort.
    """
    from sklearn.linear_model import (
        LogisticRegression,
    )  # 1 s to import, needed once a training

    rng = np.random.default_rng(seed)
    units = unit(vectors)
    left = rng.integers(len(units), size=pairs * 8)
    # The partner of the same class: another row of the label's stretch in sorted order.
    order = np.argsort(labels, kind="stable")
    names, first, counts = np.unique(labels[order], return_index=True, return_counts=True)
    of = np.searchsorted(names, labels[left])
    partner = order[first[of] + rng.integers(2**62, size=len(left)) % counts[of]]
    same = partner != left
    other = rng.integers(len(units), size=len(left))
    apart = labels[other] != labels[left]
    one, two = (
        (left[same][:pairs], partner[same][:pairs]),
        (left[apart][:pairs], other[apart][:pairs]),
    )

    def distances(pair: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        return 1 - np.einsum("nd,nd->n", units[pair[0]], units[pair[1]])

    x = np.concatenate([distances(one), distances(two)])[:, None]
    y = np.concatenate([np.ones(len(one[0])), np.zeros(len(two[0]))])
    fitted = LogisticRegression(C=1e6).fit(x, y)
    return Calibration(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))
