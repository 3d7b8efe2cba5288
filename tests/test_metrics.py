"""Metrics against the formulas, written out as loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import metrics
from lookalike.errors import DataError
from lookalike.metrics import Calibration


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


def naive_full(queries, query_labels, gallery, gallery_labels, self_rows=None):
    """Mean average precision over the whole gallery by loops; vectors of whole numbers."""
    totals = []
    for i, query in enumerate(queries):
        others = [j for j in range(len(gallery)) if self_rows is None or j != self_rows[i]]
        ranked = sorted(others, key=lambda j: (-float(query @ gallery[j]), j))
        precisions = []
        for rank, j in enumerate(ranked, start=1):
            if gallery_labels[j] == query_labels[i]:
                precisions.append((len(precisions) + 1) / rank)
        if precisions:
            totals.append(sum(precisions) / len(precisions))
    return sum(totals) / len(totals) if totals else 0.0


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 30), st.booleans(), st.integers(1, 50))
def test_full_average_precision_is_the_formula(
    seed: int, classes: int, within: bool, chunk: int
) -> None:
    # Unit vectors along axes: most similarities are equal, and products are exact. Of up to 30
    # classes of 40 items some have one item, which within the gallery has no partner.
    random = np.random.default_rng(seed)
    gallery = np.eye(5, dtype=np.float32)[random.integers(5, size=40)]
    gallery *= random.choice([-1, 1], size=(40, 1))
    gallery_labels = random.integers(classes, size=40).astype(str)
    if within:
        queries, labels, own = gallery, gallery_labels, np.arange(40)
    else:
        queries = np.eye(5, dtype=np.float32)[random.integers(5, size=15)]
        labels, own = random.integers(classes, size=15).astype(str), None
    found = metrics.full_average_precision(queries, labels, gallery, gallery_labels, own, chunk)
    assert found == pytest.approx(naive_full(queries, labels, gallery, gallery_labels, own))


def test_full_average_precision_without_queries_is_nothing() -> None:
    none, no_labels, labels = np.empty((0, 2)), np.empty(0, str), np.array(["a", "b"])
    assert metrics.full_average_precision(none, no_labels, np.eye(2), labels) == 0.0
    assert metrics.full_average_precision(np.eye(2), labels, none, no_labels) == 0.0
    own = np.arange(2)
    assert metrics.full_average_precision(np.eye(2), labels, np.eye(2), labels, own) == 0.0


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


def blobs(classes: int, items: int, seed: int, spread: float = 1.0):
    """Vectors around a centre for each class, and their labels."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), items)
    centres = random.normal(size=(classes, 8))
    return centres[labels] + spread * random.normal(size=(len(labels), 8)), labels.astype(str)


def test_every_pair_is_drawn_as_often_as_it_should_be() -> None:
    labels = np.array(list("abacaab"))
    # At these angles no two pairs are equally far apart, so that a distance names its pair.
    angles = np.array([0, 1, 3, 7, 12, 20, 30]) / 15
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1) * np.arange(1, 8)[:, None]
    expected: dict[tuple[bool, float], float] = {}
    for same in (True, False):
        seconds = [
            [j for j in range(7) if j != i and (labels[i] == labels[j]) == same] for i in range(7)
        ]
        firsts = [i for i in range(7) if seconds[i]]
        for i in firsts:
            for j in seconds[i]:
                key = (same, round(1 - np.cos(angles[i] - angles[j]), 5))
                share = 1 / len(firsts) / len(seconds[i])
                expected[key] = expected.get(key, 0) + share
    assert len(expected) == 7 * 6 // 2

    distance, same = metrics.pair_distances(vectors, labels, np.random.default_rng(0), 50_000)
    assert same.sum() == (~same).sum() == 50_000
    found: dict[tuple[bool, float], float] = {}
    for key in zip(same.tolist(), distance.astype(float).round(5).tolist(), strict=True):
        found[key] = found.get(key, 0) + 1 / 50_000
    assert found == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "a"], ["a", "b", "c"]])
def test_no_pairs_are_refused(labels: list[str]) -> None:
    vectors, names = np.ones((len(labels), 2)), np.array(labels, dtype=str)
    assert not metrics.has_pairs(names)
    with pytest.raises(DataError, match="Allowed: at least two classes"):
        metrics.calibrate(vectors, names, seed=0)
    with pytest.raises(DataError, match=f"{len(labels)} items"):
        metrics.reliability(Calibration(-1, 0), vectors, names, seed=0)
    assert metrics.held_out_reliability(vectors, names, seed=0) is None


@pytest.mark.parametrize("bins", [1, 7, 10])
def test_reliability_is_what_loops_find(bins: int) -> None:
    vectors, labels = blobs(5, 8, seed=4)
    calibration = Calibration(-5.0, 3.0)
    found = metrics.reliability(calibration, vectors, labels, seed=1, pairs=500, bins=bins)
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    distance, same = metrics.pair_distances(units, labels, np.random.default_rng([1, 1]), 500)
    members: list[list[tuple[float, bool]]] = [[] for _ in range(bins)]
    for d, s in zip(distance, same, strict=True):
        p = 1 / (1 + np.exp(5.0 * float(d) - 3.0))
        members[min(int(p * bins), bins - 1)].append((p, s))
    error = 0.0
    for i, pairs in enumerate(members):
        assert found.counts[i] == len(pairs)
        if not pairs:
            assert np.isnan(found.predicted[i])
            assert np.isnan(found.observed[i])
            continue
        predicted, observed = (sum(values) / len(pairs) for values in zip(*pairs, strict=True))
        assert (found.predicted[i], found.observed[i]) == pytest.approx((predicted, observed))
        error += len(pairs) / 1000 * abs(predicted - observed)
    assert found.error == pytest.approx(error)


def test_reliability_of_certain_and_empty_bins() -> None:
    vectors, labels = np.eye(2)[[0, 0, 1, 1]], np.array(list("aabb"))
    right = metrics.reliability(Calibration(-100, 50), vectors, labels, seed=0, pairs=50)
    assert right.counts == (50, 0, 0, 0, 0, 0, 0, 0, 0, 50)
    assert right.error == pytest.approx(0, abs=1e-12)
    wrong = metrics.reliability(Calibration(100, -50), vectors, labels, seed=0, pairs=50)
    assert wrong.error == pytest.approx(1)
    unsure = metrics.reliability(Calibration(0, 0), vectors, labels, seed=0, pairs=50)
    assert unsure.counts[5] == 100
    assert unsure.error == pytest.approx(0)


def test_reliability_draws_other_pairs_than_the_fit() -> None:
    vectors, labels = blobs(4, 30, seed=5)
    fit, _ = metrics.pair_distances(vectors, labels, np.random.default_rng(6), 100)
    constant = Calibration(-1, 0)
    found = metrics.reliability(constant, vectors, labels, seed=6, pairs=100, bins=1)
    assert found.predicted[0] != pytest.approx(constant.similarity(fit).mean(), abs=1e-9)


def test_probabilities_of_steep_calibrations_are_numbers() -> None:
    with np.errstate(all="raise", under="ignore"):
        found = Calibration(-4000.0, 2000.0).similarity([0, 0.5, 1])
    assert found.tolist() == [1.0, 0.5, 0.0]


def test_held_out_reliability_of_labels_that_mean_something_and_of_ones_that_do_not() -> None:
    vectors, labels = blobs(20, 60, seed=7)
    told = metrics.held_out_reliability(vectors, labels, seed=8)
    assert told is not None
    assert told.error < 0.06
    assert sum(told.counts[4:6]) < 0.5 * sum(told.counts)
    # Where nothing can be told, it says one half of every pair.
    shuffled = np.random.default_rng(9).permutation(labels)
    nothing = metrics.held_out_reliability(vectors, shuffled, seed=8)
    assert nothing is not None
    assert nothing.error < 0.06
    assert sum(nothing.counts[4:6]) == sum(nothing.counts)


def test_held_out_reliability_is_of_items_that_the_fit_has_not_seen() -> None:
    labels = np.repeat(np.arange(40), 2)
    half = metrics.halves(labels, seed=11)
    random = np.random.default_rng(10)
    # In the half that is fitted to, items of a class lie on one spot; in the other anywhere.
    vectors = random.normal(size=(40, 3))[labels]
    vectors[~half] = random.normal(size=(40, 3))
    fitted = metrics.calibrate(vectors[half], labels[half], seed=11)
    own = metrics.reliability(fitted, vectors[half], labels[half], seed=11)
    held_out = metrics.held_out_reliability(vectors, labels, seed=11)
    assert held_out is not None
    assert own.error < 0.1
    assert held_out.error > 0.3


@pytest.mark.parametrize("labels", [list("aabb"), list("aaabb"), list("aaaab"), list("aabcd")])
def test_halves_without_pairs_have_no_reliability(labels: list[str]) -> None:
    vectors = np.random.default_rng(12).normal(size=(len(labels), 3))
    assert metrics.has_pairs(np.array(labels))
    assert metrics.held_out_reliability(vectors, np.array(labels), seed=0) is None


@given(
    sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_halves_share_every_class(sizes: list[int], seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    half = metrics.halves(labels, seed)
    for name, size in enumerate(sizes):
        own = int(half[labels == name].sum())
        # Dealt in twos, a class of four has two in each half, one of two or three a pair in one.
        assert abs(own - (size - own)) <= 2
        assert max(own, size - own) >= min(2, size)
        if size >= 4:
            assert min(own, size - own) >= 2 or size == 5
    if sum(size >= 4 for size in sizes) >= 2 and 5 not in sizes:
        assert metrics.has_pairs(labels[half])
        assert metrics.has_pairs(labels[~half])


def test_halves_differ_by_seed() -> None:
    labels = np.repeat(np.arange(4), 10)
    one, same, other = (metrics.halves(labels, seed) for seed in (1, 1, 2))
    assert one.tolist() == same.tolist()
    assert one.tolist() != other.tolist()
    assert one.sum() == 20
