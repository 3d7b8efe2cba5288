"""What is measured of encoder and index on a sample: the protocols of the evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

import numpy as np

from lookalike import metrics
from lookalike.index import Index
from lookalike.metrics import Scores

PROTOCOLS: Final = {
    "A": "queries: test items, those of unseen classes left out; gallery: the other labelled "
    "items; R: the gallery's items of the query's class; both at most as many as `evaluate` says: "
    "queries in pairs of a class, of the gallery the queries' classes first",
    "B": "queries and gallery: test items, the query itself left out; R: the others of its class",
    "U": "queries and gallery: test items of unseen classes, which are kept out of training, the "
    "query itself left out; R: the others of its class",
}
_RECALL_AT = 10
_EQUAL = 1e-6  # of cosines that differ by rounding alone
_CHUNK = 256  # queries searched for at a time: as deep as a class is large


@dataclass(frozen=True)
class Sample:
    """A bounded sample of the catalogue.

    Attributes:
        item_ids: str (n,).
        labels: str (n,); '' where `labelled` is false.
        test: bool (n,).
        unseen: bool (n,), test items whose class is kept out of training.
        vectors: float32 (n, dim).
        pixels: uint8 (n, pixels of one image); None where items are no images.
        labelled: whether items have labels: all of them, or none.
    """

    item_ids: np.ndarray
    labels: np.ndarray
    test: np.ndarray
    unseen: np.ndarray
    vectors: np.ndarray
    pixels: np.ndarray | None
    labelled: bool = True


@dataclass(frozen=True)
class Evaluation:
    """Figures of an encoder and an index.

    Attributes:
        figures: by protocol, then by what was measured: 'raw_pixels' (of images), 'encoder',
            'index'; then by metric. Empty without labels.
        by_class: of protocol A, by what was measured, then by class.
        index_recall: see `index_recall`.
    """

    figures: dict[str, dict[str, dict[str, float]]]
    by_class: dict[str, dict[str, dict[str, float]]]
    index_recall: float

    @classmethod
    def measured(cls, sample: Sample, index: Index) -> Evaluation:
        """Of a sample whose vectors are of the encoder, and an index of its vectors."""
        found = measure(sample, index)
        figures = {
            protocol: {what: _means(scores) for what, scores in each.items()}
            for protocol, each in found.items()
        }
        by_class = {what: scores.by_class for what, scores in found.get("A", {}).items()}
        return cls(figures, by_class, index_recall(sample, index))

    @classmethod
    def of(cls, outputs: dict[str, Any]) -> Evaluation:
        """From what `evaluate` committed."""
        return cls(outputs["figures"], outputs["by_class"], outputs["index_recall"])


def _means(scores: Scores) -> dict[str, float]:
    return {name: value for name, value in asdict(scores).items() if name != "by_class"}


def measure(sample: Sample, index: Index) -> dict[str, dict[str, Scores]]:
    """Figures by protocol, then by what was measured: 'raw_pixels' (of images), 'encoder', 'index'.

    A protocol by which no query has a right answer is left out; without labels all are.
    """
    if not sample.labelled:
        return {}
    spaces = {"encoder": sample.vectors}
    if sample.pixels is not None:
        spaces = {"raw_pixels": sample.pixels.astype(np.float32)} | spaces
    known, gallery = _known(sample), ~sample.test
    figures = {
        "A": {what: _across(x, sample.labels, known, gallery) for what, x in spaces.items()},
        "B": {what: _within(x, sample.labels, sample.test) for what, x in spaces.items()},
        "U": {what: _within(x, sample.labels, sample.unseen) for what, x in spaces.items()},
    }
    if figures["A"]["encoder"].queries:
        figures["A"]["index"] = _through_index(sample, index)
    return {name: found for name, found in figures.items() if found["encoder"].queries}


def index_recall(sample: Sample, index: Index) -> float:
    """Mean share of a query's 10 nearest gallery items that the index finds, as protocol A asks.
    One as near as the tenth is as good as it: items whose vectors are equal are not told apart.

    Items that came after the index was built are not in the gallery here: how new it is, protocol
    A's own figures show. 0 where it has none of the gallery.

    Where all test items are of unseen classes, they are the queries: pessimistic, for an
    approximate index walks through their own classes, which are no part of the gallery.
    """
    own, others = _known(sample), ~sample.test
    own = own if own.any() else sample.test
    gallery_ids, vectors = sample.item_ids[others], sample.vectors[others]
    among = index.among(gallery_ids.tolist())
    if index.count(among) < len(gallery_ids):
        held = np.array([item_id in index for item_id in gallery_ids.tolist()], bool)
        if not held.any():
            return 0.0
        gallery_ids, vectors = gallery_ids[held], vectors[held]
    queries, gallery = metrics.unit(sample.vectors[own]), metrics.unit(vectors)
    row_of = {item_id: row for row, item_id in enumerate(gallery_ids.tolist())}
    shares = []
    for rows, best, distances in metrics.nearest(queries, gallery, _RECALL_AT):
        found = index.search(queries[rows], _RECALL_AT, among).ids
        near = np.array([row_of.get(item_id, -1) for item_id in found]).reshape(len(best), -1)
        similarity = np.einsum("qd,qnd->qn", queries[rows], gallery[near])
        as_near = (near >= 0) & (1 - similarity <= distances[:, -1:] + _EQUAL)
        shares.append(as_near.sum(axis=1) / best.shape[1])
    return float(np.concatenate(shares).mean())


def _known(sample: Sample) -> np.ndarray:
    return sample.test & ~sample.unseen


def _across(x: np.ndarray, labels: np.ndarray, queries: np.ndarray, gallery: np.ndarray) -> Scores:
    return metrics.exact_scores(x[queries], labels[queries], x[gallery], labels[gallery])


def _within(x: np.ndarray, labels: np.ndarray, own: np.ndarray) -> Scores:
    everyone = np.arange(int(own.sum()))
    return metrics.exact_scores(x[own], labels[own], x[own], labels[own], everyone)


def _through_index(sample: Sample, index: Index) -> Scores:
    own, own_labels = sample.vectors[_known(sample)], sample.labels[_known(sample)]
    gallery_labels = sample.labels[~sample.test]
    among = index.among(sample.item_ids[~sample.test].tolist())
    depth = metrics.ranking_depth(own_labels, gallery_labels)
    queries = metrics.unit(own)

    def ranked(depth: int) -> Iterator[np.ndarray]:
        for begin in range(0, len(queries), _CHUNK):
            found = index.search(queries[begin : begin + _CHUNK], depth, among)
            labels = np.array([name or "" for name in found.labels], dtype=str)
            yield labels.reshape(len(found), -1)

    def scores(depth: int) -> Scores:
        return metrics.scores(ranked(depth), own_labels, gallery_labels, self_in_gallery=False)

    # A deeper search looks harder, so what ten neighbours show is measured by asking for ten.
    found, deep = scores(metrics.NEIGHBOURS), scores(depth)
    by_class = {
        name: values | {"map_at_r": deep.by_class[name]["map_at_r"]}
        for name, values in found.by_class.items()
    }
    return replace(found, map_at_r=deep.map_at_r, by_class=by_class)
