"""Metrics against the formulas, written out as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import metrics


def naive(queries, query_labels, gallery, gallery_labels, self_rows=None):
    """P@1, P@10, kNN accuracy, MAP@10, MAP@R by loops over sorted lists."""
    totals = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(gallery)) if self_rows is None or j != self_rows[i]]
        similarity = {
            j: float(query @ gallery[j] / np.linalg.norm(query) / np.linalg.norm(gallery[j]))
            for j in others
        }
        ranked = sorted(others, key=lambda j: -similarity[j])
        right = [gallery_labels[j] == query_labels[i] for j in ranked]
        r = sum(right)
        if r == 0:
            continue
        votes: dict[str, int] = {}
        for j in ranked[:10]:
            votes[gallery_labels[j]] = votes.get(gallery_labels[j], 0) + 1
        winner = max(votes, key=lambda label: votes[label])

        def average_precision(depth, right=right):
            hits, total = 0, 0.0
            for rank, hit in enumerate(right[:depth], start=1):
                hits += hit
                total += hit * hits / rank
            return total / depth

        totals.append(
            [
                right[0],
                sum(right[:10]) / 10,
                winner == query_labels[i],
                average_precision(min(r, 10)),
                average_precision(r),
            ]
        )
    return np.mean(totals, axis=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 6), st.booleans())
def test_scores_are_the_formulas(seed: int, classes: int, within: bool) -> None:
    random = np.random.default_rng(seed)
    gallery = random.normal(size=(40, 5)).astype(np.float32)
    gallery_labels = random.integers(classes, size=40).astype(str)
    if within:
        queries, labels, own = gallery, gallery_labels, np.arange(40)
    else:
        queries = random.normal(size=(15, 5)).astype(np.float32)
        labels, own = random.integers(classes, size=15).astype(str), None
    found = metrics.exact_scores(queries, labels, gallery, gallery_labels, own)
    expected = naive(queries, labels, gallery, gallery_labels, own)
    values = [getattr(found, name) for name in found.METRICS]
    assert values == pytest.approx(expected, abs=1e-6)


def test_by_class_means_weigh_up_to_the_whole() -> None:
    random = np.random.default_rng(0)
    vectors, labels = random.normal(size=(60, 4)), random.integers(3, size=60).astype(str)
    found = metrics.exact_scores(vectors, labels, vectors, labels, np.arange(60))
    weights = [np.mean(labels == name) for name in found.by_class]
    by_class = [scores["map_at_r"] for scores in found.by_class.values()]
    assert np.average(by_class, weights=weights) == pytest.approx(found.map_at_r)


def test_chunks_do_not_show() -> None:
    random = np.random.default_rng(1)
    queries, gallery = metrics.unit(random.normal(size=(33, 6))), random.normal(size=(50, 6))
    gallery = metrics.unit(gallery)
    whole = [part[1] for part in metrics.nearest(queries, gallery, 7, chunk=100)]
    parts = [part[1] for part in metrics.nearest(queries, gallery, 7, chunk=4)]
    assert np.concatenate(whole).tolist() == np.concatenate(parts).tolist()


def test_queries_without_a_right_answer_do_not_count() -> None:
    scores = metrics.exact_scores(np.eye(2), np.array(["a", "x"]), np.eye(2), np.array(["a", "b"]))
    assert scores.queries == 1
    assert scores.p_at_1 == 1.0


def test_no_query_has_no_scores() -> None:
    none, labels = np.empty((0, 2)), np.empty(0, str)
    for gallery in (np.eye(2), none):
        scores = metrics.exact_scores(none, labels, gallery, np.array(["a", "b"])[: len(gallery)])
        assert (scores.queries, scores.p_at_1, scores.by_class) == (0, 0.0, {})


def test_calibration_recovers_the_share_of_similar_pairs() -> None:
    random = np.random.default_rng(2)
    labels = np.repeat(np.arange(20), 50)
    centres = random.normal(size=(20, 8))
    vectors = centres[labels] + random.normal(size=(1000, 8))
    fitted = metrics.calibrate(vectors, labels.astype(str), seed=3)
    units = metrics.unit(vectors)
    left, right = np.triu_indices(1000, k=1)
    distance = 1 - np.einsum("nd,nd->n", units[left], units[right])
    same = labels[left] == labels[right]
    probability = fitted.similarity(distance)
    # Weighted to as many of one class as of two, what it says of a band is what happens there.
    weight = np.where(same, 1 / same.sum(), 1 / (~same).sum())
    for low in (0.2, 0.4, 0.6):
        band = (probability > low) & (probability <= low + 0.2)
        share = np.average(same[band], weights=weight[band])
        assert share == pytest.approx(low + 0.1, abs=0.12)
    assert fitted.weight < 0
