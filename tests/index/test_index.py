"""The index against brute force."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lookalike.errors import ArtifactError, DataError
from lookalike.index import Index, Plan, build
from lookalike.index.search import recall
from lookalike.metrics import unit

ENCODER = "e" * 64
IDS = [f"item {i:04d} é" for i in range(1000)]


def batch_of(vectors: np.ndarray, ids: list[str]) -> pa.RecordBatch:
    labels = [None if i % 7 == 0 else f"class {i % 5}" for i in range(len(ids))]
    column = pa.array(list(vectors), pa.list_(pa.float32()))
    return pa.record_batch(
        [pa.array(ids), pa.array(labels), column], ["item_id", "label", "vector"]
    )


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    found = unit(np.random.default_rng(0).normal(size=(1000, 16)))
    found[501] = found[500]  # an exact twin
    return found


@pytest.fixture(scope="module", params=["exact", "hnsw"])
def index(request, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Index:
    root = str(tmp_path_factory.mktemp("index"))
    batches = (batch_of(vectors[i : i + 300], IDS[i : i + 300]) for i in range(0, 1000, 300))
    plan = Plan(kind=request.param, ef_search=200)
    built = build(root, batches, 16, plan, {"encoder": ENCODER})
    return Index.open(root, built.name)


def test_search_is_brute_force(index: Index, vectors: np.ndarray) -> None:
    queries = unit(np.random.default_rng(1).normal(size=(50, 16)))
    truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]
    _, rows = index.search_rows(queries, 10)
    assert recall(truth, rows) >= (1.0 if index.meta["plan"]["kind"] == "exact" else 0.98)
    found = index.search(queries[:1], 10)[0]
    expected = 1 - queries[0] @ vectors[int(rows[0, 0])]
    assert found[0].item_id == IDS[rows[0, 0]]
    assert found[0].distance == pytest.approx(expected, abs=1e-6)
    assert [n.distance for n in found] == sorted(n.distance for n in found)


def test_search_among_some_rows_finds_only_those(index: Index, vectors: np.ndarray) -> None:
    among = np.random.default_rng(2).random(1000) < 0.3
    queries = unit(np.random.default_rng(3).normal(size=(20, 16)))
    rows = index.search_rows(queries, 10, among)[1]
    assert among[rows[rows >= 0]].all()
    truth = np.flatnonzero(among)[np.argsort(-(queries @ vectors[among].T), axis=1)[:, :10]]
    assert recall(truth, rows) >= 0.98


def test_twins_are_both_found_and_labels_may_be_missing(index: Index, vectors: np.ndarray) -> None:
    found = index.search(vectors[500:501], 2)[0]
    assert {n.item_id for n in found} == {IDS[500], IDS[501]}
    assert index.search(vectors[:1], 1)[0][0].label is None


def test_more_than_there_are_gives_all_once(index: Index, vectors: np.ndarray) -> None:
    found = index.search(vectors[:1], 5000)[0]
    assert len({n.item_id for n in found}) == len(found)
    assert len(found) == 1000 or index.meta["plan"]["kind"] == "hnsw"


def test_vectors_come_back_by_id(index: Index, vectors: np.ndarray) -> None:
    vector = index.vector(IDS[7])
    assert vector is not None
    assert np.abs(vector - vectors[7]).max() <= 1e-7
    assert index.vector("nobody") is None


def test_other_shapes_are_refused(index: Index) -> None:
    with pytest.raises(DataError, match=r"shape \(1, 3\).*\(n, 16\)"):
        index.search(np.ones((1, 3), np.float32), 1)


def test_doubles_and_other_lengths_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"'b' came to the index after 'b'"):
        build(str(tmp_path), [batch_of(vectors[:3], ["a", "b", "b"])], 16, Plan(), {"encoder": "x"})
    with pytest.raises(DataError, match="another length than 8"):
        build(str(tmp_path), [batch_of(vectors[:2], ["a", "b"])], 8, Plan(), {"encoder": "x"})
    with pytest.raises(DataError, match="no vectors"):
        build(str(tmp_path), [], 8, Plan(), {"encoder": "x"})
    assert not list(tmp_path.rglob("manifest.json"))


def test_same_items_same_plan_same_index(tmp_path: Path, vectors: np.ndarray) -> None:
    hashes = []
    for root in ("one", "two"):
        build(str(tmp_path / root), [batch_of(vectors, IDS)], 16, Plan(), {"encoder": ENCODER})
        (file,) = (tmp_path / root).rglob("items.arrow")
        hashes.append((file.read_bytes(), file.with_name("vectors.faiss").read_bytes()))
    assert hashes[0] == hashes[1]


def test_parts_of_two_encoders_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    root = str(tmp_path)
    one = build(root, [batch_of(vectors, IDS)], 16, Plan(), {"encoder": ENCODER})
    other = build(root, [batch_of(vectors, IDS)], 16, Plan(), {"encoder": "f" * 64})
    manifest = tmp_path / "versions" / one.name / "manifest.json"
    manifest.write_text(manifest.read_text().replace(one.meta["parts"][0], other.meta["parts"][0]))
    with pytest.raises(
        ArtifactError, match=r"encoder ffffffffffff, the version is of eeeeeeeeeeee"
    ):
        Index.open(root, one.name)


@pytest.mark.parametrize("name", ["vectors.faiss", "items.arrow"])
def test_cut_files_are_refused_and_named(tmp_path: Path, vectors: np.ndarray, name: str) -> None:
    built = build(str(tmp_path), [batch_of(vectors, IDS)], 16, Plan(), {"encoder": ENCODER})
    (file,) = tmp_path.rglob(name)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match=name):
        Index.open(str(tmp_path), built.name)
