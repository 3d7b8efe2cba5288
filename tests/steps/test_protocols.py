"""The protocols, beside loops that follow their words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.index import Index, Plan, build
from lookalike.metrics import unit
from lookalike.steps.protocols import Sample, index_recall, measure

CLASSES, DIM, COUNT = 6, 5, 240


def sample(unseen: tuple[int, ...], seed: int = 0, labelled: bool = True) -> Sample:
    """Classes that overlap; a quarter of the items, and all of the unseen classes, are test."""
    random = np.random.default_rng(seed)
    classes = random.integers(CLASSES, size=COUNT)
    vectors = random.normal(size=(CLASSES, DIM))[classes] + random.normal(size=(COUNT, DIM))
    left_out = np.isin(classes, unseen)
    return Sample(
        item_ids=np.array([f"{i:04d}" for i in range(COUNT)]),
        labels=classes.astype(str) if labelled else np.full(COUNT, ""),
        test=left_out | (random.random(COUNT) < 0.25),
        unseen=left_out,
        vectors=unit(vectors),
        pixels=None,
        labelled=labelled,
    )


def indexed(given: Sample, folder: Path) -> Index:
    labels = given.labels.tolist() if given.labelled else [None] * COUNT
    vectors = pa.array(list(given.vectors), pa.list_(pa.float32()))
    batch = pa.RecordBatch.from_arrays(
        [pa.array(given.item_ids), pa.array(labels, pa.string()), vectors],
        names=["item_id", "label", "vector"],
    )
    made = build(str(folder), [batch], DIM, Plan("exact"), {"encoder": "none"})
    return Index.open(str(folder), made.name)


def naive(given: Sample, queries: np.ndarray, gallery: np.ndarray) -> tuple[float, float, int]:
    """P@1, MAP@R and the number of queries, by loops; the query itself is left out."""
    first, precision = [], []
    for query in queries:
        others = [i for i in gallery if i != query]
        others.sort(key=lambda i: -float(given.vectors[query] @ given.vectors[i]))
        right = [given.labels[i] == given.labels[query] for i in others]
        r = sum(right)
        if r:
            hits = [sum(right[: i + 1]) / (i + 1) for i in range(r) if right[i]]
            first.append(right[0])
            precision.append(sum(hits) / r)
    return float(np.mean(first)), float(np.mean(precision)), len(first)


@pytest.mark.parametrize("unseen", [(), (2,), (0, 5)])
def test_protocols_are_their_words(tmp_path: Path, unseen: tuple[int, ...]) -> None:
    given = sample(unseen)
    test, gallery = np.flatnonzero(given.test), np.flatnonzero(~given.test)
    left_out = np.flatnonzero(given.unseen)
    expected = {
        "A": naive(given, np.setdiff1d(test, left_out), gallery),
        "B": naive(given, test, test),
    }
    if unseen:
        expected["U"] = naive(given, left_out, left_out)
    figures = measure(given, indexed(given, tmp_path))
    assert list(figures) == list(expected)
    for protocol, (p_at_1, map_at_r, queries) in expected.items():
        measured = figures[protocol]
        assert list(measured) == (["encoder", "index"] if protocol == "A" else ["encoder"])
        for scores in measured.values():
            assert scores.p_at_1 == pytest.approx(p_at_1)
            assert scores.map_at_r == pytest.approx(map_at_r)
            assert scores.queries == queries
    assert not set(figures["A"]["encoder"].by_class) & {str(name) for name in unseen}


def test_images_are_measured_beside_their_pixels(tmp_path: Path) -> None:
    given = sample((1,))
    pixels = np.random.default_rng(1).integers(256, size=(COUNT, 12), dtype=np.uint8)
    with_pixels = Sample(**vars(given) | {"pixels": pixels})
    figures = measure(with_pixels, indexed(given, tmp_path))
    assert {protocol: list(measured) for protocol, measured in figures.items()} == {
        "A": ["raw_pixels", "encoder", "index"],
        "B": ["raw_pixels", "encoder"],
        "U": ["raw_pixels", "encoder"],
    }
    raw = Sample(**vars(given) | {"vectors": unit(pixels)})
    test = np.flatnonzero(given.test)
    p_at_1, map_at_r, _ = naive(raw, test, test)
    assert figures["B"]["raw_pixels"].p_at_1 == pytest.approx(p_at_1)
    assert figures["B"]["raw_pixels"].map_at_r == pytest.approx(map_at_r)


def test_what_cannot_be_measured_is_left_out(tmp_path: Path) -> None:
    """Classes that are all test have no right answer in the gallery."""
    given = sample((0, 1, 2))
    apart = Sample(**vars(given) | {"test": given.unseen})
    assert list(measure(apart, indexed(apart, tmp_path))) == ["B", "U"]
    said_by_source = Sample(**vars(apart) | {"unseen": np.zeros(COUNT, bool)})
    assert list(measure(said_by_source, indexed(apart, tmp_path))) == ["B"]


def test_without_labels_there_is_the_indexs_recall(tmp_path: Path) -> None:
    given = sample((), labelled=False)
    index = indexed(given, tmp_path)
    assert measure(given, index) == {}
    assert index_recall(given, index) == 1.0


def test_recall_counts_what_an_index_misses(tmp_path: Path) -> None:
    given = sample((3,))
    index = indexed(given, tmp_path)
    assert index_recall(given, index) == 1.0
    # The index holds other vectors for a part of the gallery: what is missed can be counted.
    moved = given.vectors.copy()
    gallery = np.flatnonzero(~given.test)
    moved[gallery[:30]] *= -1
    known = np.flatnonzero(given.test & ~given.unseen)
    shares = []
    for query in known:
        exact, found = (
            sorted(gallery, key=lambda i, x=x: -float(given.vectors[query] @ x[i]))[:10]
            for x in (given.vectors, moved)
        )
        shares.append(len(set(exact) & set(found)) / 10)
    other = indexed(Sample(**vars(given) | {"vectors": moved}), tmp_path / "other")
    assert index_recall(given, other) == pytest.approx(float(np.mean(shares)))
    assert float(np.mean(shares)) < 0.9


def test_equal_vectors_are_not_told_apart(tmp_path: Path) -> None:
    """More than ten items are as near as the tenth; which of them an index finds is its own."""
    given = sample(())
    few = Sample(**vars(given) | {"vectors": given.vectors[np.arange(COUNT) % 4]})
    backwards = Sample(**{name: value[::-1] if isinstance(value, np.ndarray) else value
                          for name, value in vars(few).items()})  # fmt: skip
    index = indexed(few, tmp_path)
    found = index.search(few.vectors[few.test], 10, index.among(few.item_ids[~few.test].tolist()))
    gallery = backwards.item_ids[~backwards.test]
    nearest = [str(gallery[np.argmax(backwards.vectors[~backwards.test] @ query)])
               for query in few.vectors[few.test]]  # fmt: skip
    assert set(nearest) - set(found.ids)
    assert index_recall(backwards, index) == 1.0
