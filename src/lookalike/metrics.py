"""Retrieval metrics and calibration, in numpy.

Wherever a metric is reported, say the queries, the gallery, whether the query itself is left out
of it, and what R is. Here R is the number of gallery images of the query's class, itself left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike

from lookalike.errors import DataError

PRECISIONS = (1, 10)
NEIGHBOURS = 10
"""k of the kNN accuracy and of MAP@k."""
FULL_MAP = "full_map"
"""The name of `full_average_precision`, which `Scores` does not hold."""


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


def full_average_precision(
    queries: np.ndarray,
    query_labels: np.ndarray,
    gallery: np.ndarray,
    gallery_labels: np.ndarray,
    self_rows: np.ndarray | None = None,
    chunk: int = 32,
) -> float:
    """`full_map`: mean average precision over the whole gallery, ranked by exact search by cosine.

    A query's is the mean over its R right ones, wherever they rank, of the precision at their rank;
    MAP@R looks at the first R ranks alone. Apart from `Scores`, for it sorts the whole gallery for
    every query: about 12 ms for each on a gallery of 60,000.

    Args:
        queries, query_labels, gallery, gallery_labels, self_rows: as `exact_scores`.
        chunk: queries at a time; memory is a few times chunk x m numbers.

    Returns:
        The mean over queries that have a right answer in the gallery; 0 where none has.
    """
    units, gallery_units = unit(queries), unit(gallery)
    total, counted = 0.0, 0
    for rows, found, _ in nearest(units, gallery_units, len(gallery), chunk):
        others = found if self_rows is None else without_self(found, self_rows[rows])
        right = gallery_labels[others] == query_labels[rows, None]
        right = right[right.any(axis=1)]
        precision = np.cumsum(right, axis=1) / np.arange(1, right.shape[1] + 1)
        total += float(((right * precision).sum(axis=1) / right.sum(axis=1)).sum())
        counted += len(right)
    return total / counted if counted else 0.0


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

    by_class = {
        str(c): means(table[classes == c]) | {"queries": float((classes == c).sum())}
        for c in np.unique(classes)
    }
    return Scores(**means(table), queries=len(table), by_class=by_class)


def _chunk_scores(labels: np.ndarray, own: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    if not labels.shape[1]:  # nothing was found
        return np.zeros((len(own), len(Scores.METRICS)))
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
        x = self.weight * np.asarray(distance, np.float64) + self.bias
        return np.exp(-np.logaddexp(0, -x))  # sigmoid(x), of any x

    def distance(self, similarity: float) -> float:
        """The distance up to which the probability is at least `similarity`, which is in (0, 1).

        -inf or inf where no distance, or every one, is that near: where the weight is not below 0,
        the probability does not fall with the distance.
        """
        logit = float(np.log(similarity) - np.log1p(-similarity))
        if self.weight < 0:
            return (logit - self.bias) / self.weight
        return np.inf if self.bias >= logit else -np.inf


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

    Raises:
        DataError: no two items share a label, or all do.
    """
    from sklearn.linear_model import (
        LogisticRegression,
    )  # 1 s to import, needed once a training

    distance, same = pair_distances(vectors, labels, np.random.default_rng(seed), pairs)
    fitted = LogisticRegression(C=1e6).fit(distance[:, None], same)
    return Calibration(float(fitted.coef_[0, 0]), float(fitted.intercept_[0]))


def has_pairs(labels: np.ndarray) -> bool:
    """Whether some two of the items share a label and some two do not."""
    _, counts = np.unique(labels, return_counts=True)
    return len(counts) > 1 and bool(counts.max() > 1)


def pair_distances(
    vectors: np.ndarray, labels: np.ndarray, random: np.random.Generator, pairs: int
) -> tuple[np.ndarray, np.ndarray]:
    """Cosine distances of random pairs, as many of one class as of two.

    A pair's first item is any for which there is a second one, the second any of those. Few items
    make the same pairs many times.

    Args:
        vectors: float (n, dim).
        labels: (n,) class names; at least two classes, one of them with two items.
        random: what draws.
        pairs: pairs drawn of each sort.

    Returns:
        float32 (2 * pairs,) distances, and bool (2 * pairs,) whether the two share a label.

    Raises:
        DataError: no two items share a label, or all do.
    """
    if not has_pairs(labels):
        raise DataError(
            f"{len(labels):,} items of {len(np.unique(labels)):,} classes make no pairs of one "
            "class and of two",
            allowed="at least two classes, one of them with two items",
        )
    units = unit(vectors)
    order = np.argsort(labels, kind="stable")
    _, first, of, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    first, own = first[of], counts[of]  # by place in `order`, where a class is one stretch
    # The others of the class are the own - 1 places after this one, round the stretch; those of
    # other classes are the places after the stretch, round the whole.
    one = random.choice(np.flatnonzero(own > 1), pairs)
    partner = first[one] + (one - first[one] + random.integers(1, own[one])) % own[one]
    two = random.integers(len(order), size=pairs)
    stranger = first[two] + own[two] + random.integers(len(order) - own[two])
    left = order[np.concatenate([one, two])]
    right = order[np.concatenate([partner, stranger % len(order)])]
    distance = 1 - np.einsum("nd,nd->n", units[left], units[right])
    return distance, np.arange(2 * pairs) < pairs


@dataclass(frozen=True)
class Reliability:
    """What a calibration said of pairs, and how many of them were similar, by bins.

    The bins are equally wide and cover 0 to 1. Of an empty one the means are nan.

    Attributes:
        predicted: mean P(similar) of each bin's pairs.
        observed: share of each bin's pairs that share a label.
        counts: pairs in each bin.
    """

    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    counts: tuple[int, ...]

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1.

        The mean over pairs of their bin's |observed - predicted| (Guo et al. 2017, "On Calibration
        of Modern Neural Networks").
        """
        gaps = np.abs(np.subtract(self.observed, self.predicted))
        return float(np.nansum(gaps * self.counts) / np.sum(self.counts))


def reliability(
    calibration: Calibration,
    vectors: np.ndarray,
    labels: np.ndarray,
    seed: int,
    pairs: int = 20_000,
    bins: int = 10,
) -> Reliability:
    """Compare what a calibration says with what is, on random pairs.

    They are drawn as `calibrate` draws them, as many of one class as of two, but are other pairs
    for the same seed.

    Args:
        calibration: what to judge.
        vectors: float (n, dim); of items that it was not fitted to, if it is to say something of
            new ones.
        labels: (n,) class names; at least two classes, one of them with two items.
        seed: of the draw of pairs.
        pairs: pairs drawn of each sort.
        bins: of P(similar).

    Raises:
        DataError: no two items share a label, or all do.
    """
    random = np.random.default_rng([seed, 1])  # not the pairs of `calibrate`
    distance, same = pair_distances(vectors, labels, random, pairs)
    probability = calibration.similarity(distance)
    bin_of = np.minimum((probability * bins).astype(np.int64), bins - 1)
    counts = np.bincount(bin_of, minlength=bins)

    def means(values: np.ndarray) -> tuple[float, ...]:
        sums = np.bincount(bin_of, weights=values, minlength=bins)
        return tuple(np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).tolist())

    return Reliability(means(probability), means(same), tuple(counts.tolist()))


def held_out_reliability(
    vectors: np.ndarray, labels: np.ndarray, seed: int, pairs: int = 20_000, bins: int = 10
) -> Reliability | None:
    """Reliability on items that the calibration was not fitted to.

    A calibration is fitted to one half of the items and judged on the other. It is not the one that
    `calibrate` fits to all of them, but tells of that one what can be told: there are no other
    items to judge it on.

    Args:
        vectors: float (n, dim).
        labels: (n,) class names.
        seed: of the halves and of the draws of pairs.
        pairs: pairs drawn of each sort.
        bins: of P(similar).

    Returns:
        None where a half has no two items that share a label, or none that do not.
    """
    half = halves(labels, seed)
    if not (has_pairs(labels[half]) and has_pairs(labels[~half])):
        return None
    calibration = calibrate(vectors[half], labels[half], seed, pairs)
    return reliability(calibration, vectors[~half], labels[~half], seed, pairs, bins)


def halves(labels: np.ndarray, seed: int) -> np.ndarray:
    """Which items are one random half: bool (n,); classes are halved as nearly as pairs allow.

    Items of a class are dealt two at a time, so that a small class has a pair in one half at least.
    The first two go to the one half and the other in turn, from the largest class on.

    Args:
        labels: (n,) class names.
        seed: of who goes with whom.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]
    _, first, of, counts = np.unique(
        labels[order], return_index=True, return_inverse=True, return_counts=True
    )
    turn = np.argsort(np.argsort(-counts, kind="stable"))
    place = np.arange(len(labels)) - first[of]
    half = np.empty(len(labels), dtype=bool)
    half[order] = (turn[of] + place // 2) % 2 == 0
    return half
