"""Adding, changing, deleting, committing, folding."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive import Item, Naive, indexed

from lookalike.errors import DataError
from lookalike.index import Index, Plan, build
from lookalike.index import search as search_module
from lookalike.index.plan import KINDS

DIM = 6
PLAN = Plan("ivf_sq8", nlist=5, nprobe=5)


def catalogue(count: int, seed: int = 0) -> Naive:
    random = np.random.default_rng(seed)
    vectors = random.normal(size=(count, DIM))
    items = {
        f"item {i:03d}": Item(vectors[i], "ab"[i % 2], {"size": str(i % 4)}) for i in range(count)
    }
    return Naive("l2", items)


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return indexed(catalogue(60), tmp_path, PLAN)


def first(index: Index, vector: np.ndarray, where: str | None = None) -> str:
    return index.search(vector[None], 1, where)[0][0].item_id


def test_changes_are_found_at_once_and_by_filters(index: Index) -> None:
    far = np.full(DIM, 50.0)
    assert first(index, far, "size == 1") != "new"
    index.add(["new"], far[None], ["c"], [{"size": "1", "colour": "red"}])
    assert first(index, far) == first(index, far, "colour == 'red'") == "new"
    assert first(index, far, "size == 1 and label == 'c'") == "new"
    assert first(index, far, "size == 2") != "new"
    index.change(["new"], -far[None], ["d"], [{"size": "2"}])
    assert first(index, far) != "new"
    assert first(index, -far, "size == 2") == "new"
    assert index.count("label == 'c'") == 0
    vector = index.vector("new")
    assert vector is not None
    assert (vector == -50).all()
    index.change(["item 007"], far[None])
    assert first(index, far) == "item 007"
    assert index.search(far[None], 1)[0][0].label is None
    assert len(index) == 61
    index.delete(["new", "item 007"])
    assert len(index) == 59
    assert "item 007" not in index
    assert index.vector("item 007") is None
    assert {"new", "item 007"}.isdisjoint(index.search(far[None], 100).ids)
    index.add(["item 007"], far[None])
    assert first(index, far) == "item 007"


def test_live_vectors_of_a_delta_are_gathered_once_a_change(
    index: Index, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[object] = []
    take = index._delta.vectors.take
    monkeypatch.setattr(index._delta.vectors, "take", lambda r: taken.append(r) or take(r))
    far = np.full((3, DIM), 50.0)
    far[1:] += [[1], [2]]
    index.add(["new", "newer", "newest"], far, ["a", "a", "b"])
    for gone, left in (("new", "newer"), ("newer", "newest")):
        index.delete([gone])
        for where in (None, "label in ('a', 'b')"):
            taken.clear()
            assert [first(index, far[0], where) for _ in range(3)] == [left] * 3
            assert len(taken) == 1


def test_a_selection_is_of_those_that_were_there(index: Index) -> None:
    selection = index.among(["item 001", "item 002", "later", "nobody"])
    index.add(["later"], np.zeros((1, DIM)))
    index.delete(["item 001"])
    assert index.search(np.zeros((1, DIM)), 10, selection).ids == ["item 002"]
    assert index.count(index.among(["later"])) == 1


def test_attributes_are_as_they_were_given(index: Index) -> None:
    one: dict[str, str] = {}
    index.add(["free"], np.zeros((1, DIM)), None, [one])
    for price in ("1", "2"):
        one["price"] = price
        index.add([f"for {price}"], np.zeros((1, DIM)), None, [one])
    assert index.about("free") is None
    assert [index.count(f"price == {price}") for price in (1, 2)] == [1, 1]
    index.change(["for 1"], np.zeros((1, DIM)), None, [{"size": "1", "price": None}])  # type: ignore[dict-item]
    assert index.about("for 1") == {"size": "1"}


def test_a_commit_lets_searches_through(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long it takes to write."""
    searched: list[bool] = []
    written = search_module.commit_delta

    def commit_delta(*given: Any) -> Any:
        one = threading.Thread(target=index.search, args=(np.zeros((1, DIM)), 3, "size == 1"))
        one.daemon = True
        one.start()
        one.join(20)
        searched.append(not one.is_alive())
        return written(*given)

    monkeypatch.setattr(search_module, "commit_delta", commit_delta)
    index.add(["new"], np.zeros((1, DIM)))
    index.commit()
    assert searched == [True]


def test_what_does_not_fit_changes_nothing(index: Index, tmp_path: Path) -> None:
    two = np.zeros((2, DIM))
    refused = [
        (lambda: index.add(["new", "item 003"], two), "'item 003' is in the index already"),
        (lambda: index.add(["new", "new"], two), "'new' came to the index twice"),
        (lambda: index.add(["new"], two), "1 ids, 2 vectors, 1 labels and 1 attributes"),
        (lambda: index.add(["a", "b"], two, ["x"]), "2 ids, 2 vectors, 1 labels"),
        (lambda: index.add(["a"], two[:1, :3]), r"Allowed: numbers, \(n, 6\)"),
        (lambda: index.add(["a"], two[:1] + np.inf), "vector 0 holds NaN, infinity or"),
        (lambda: index.add(["a"], two[:1], [3]), "is no text"),
        (lambda: index.add(["a"], two[:1], None, [{"size": 3}]), "is no text"),
        (lambda: index.change(["item 001", "nobody"], two), "no item 'nobody'"),
        (lambda: index.change(["item 001", "item 001"], two), "twice"),
        (lambda: index.delete(["item 001", "nobody"]), "no item 'nobody'"),
        (lambda: index.count("weight < 3"), "names weight, which no item has. Allowed: item_id"),
        (lambda: index.commit({"encoder": "f" * 64}), "of encoder eeeeeeeeeeee"),
    ]
    for change, said in refused:
        with pytest.raises(DataError, match=said):
            change()
    other = indexed(catalogue(5), tmp_path / "other", Plan("exact"))
    with pytest.raises(DataError, match="of another index"):
        index.count(other.among(["item 001"]))
    assert len(index) == 60
    assert index.vector("item 001") is not None
    assert "new" not in index


def test_versions_stay_what_they_were(tmp_path: Path) -> None:
    index = indexed(catalogue(60), tmp_path, PLAN)
    known = {}
    random = np.random.default_rng(1)
    query = random.normal(size=(1, DIM))
    for turn in range(4):
        index.add([f"new {turn}"], random.normal(size=(1, DIM)), ["c"], [{"turn": str(turn)}])
        if turn:
            index.change([f"new {turn - 1}"], random.normal(size=(1, DIM)), ["d"])
        index.change([f"item {turn:03d}"], random.normal(size=(1, DIM)))
        index.delete([f"item {turn + 10:03d}"])
        made = index.commit({"items_version": turn})
        known[made.name] = (turn, index.search(query, 100)[0])
    index.delete(["new 3"])
    deleted = index.commit()
    assert len(deleted.meta["parts"]) == 5
    for name, (turn, found) in known.items():
        opened = Index.open(str(tmp_path), name)
        assert opened.meta["items_version"] == turn
        assert opened.search(query, 100)[0] == found
        assert len(opened) == len(found) == 60
    assert len(Index.open(str(tmp_path), deleted.name)) == 59
    # Each part was written once, and a version that only deletes writes none.
    assert len(list((tmp_path / "parts").iterdir())) == 5


@pytest.mark.parametrize("kind", KINDS)
def test_folding_is_building_of_what_there_is(tmp_path: Path, kind: str) -> None:
    naive = catalogue(300)
    index = indexed(naive, tmp_path, Plan(kind, nlist=5, nprobe=5, pq_bytes=3))
    late = Item(np.ones(DIM), "c", {"colour": "red"})
    index.add(["item 100 b"], late.vector[None], [late.label], [late.attributes])
    index.change(["item 050"], late.vector[None], [late.label], [late.attributes])
    index.delete(["item 000", "item 299"])
    naive.items |= {"item 100 b": late, "item 050": late}
    del naive.items["item 000"], naive.items["item 299"]
    made = build(
        str(tmp_path), index.batches(), DIM, index.plan, {"encoder": "e" * 64}, metric="l2"
    )
    folded = Index.open(str(tmp_path), made.name)
    assert len(made.meta["parts"]) == 1
    assert made.meta["tombstones"] == 0
    assert len(folded) == len(naive.items)
    found = folded.search(late.vector[None], 1000)[0]
    assert {n.item_id: n.label for n in found} == {i: x.label for i, x in naive.items.items()}
    for item_id, item in naive.items.items():
        vector = folded.vector(item_id)
        assert vector is not None
        assert np.abs(vector - item.vector).max() < 0.01
    assert folded.count("colour == 'red'") == 2
    assert folded.count("size == 3") == sum(
        (item.attributes or {}).get("size") == "3" for item in naive.items.values()
    )


def test_an_index_that_lost_all_is_not_committed(tmp_path: Path) -> None:
    index = indexed(catalogue(3), tmp_path, Plan("exact"))
    index.delete(["item 000", "item 001", "item 002"])
    assert len(index.search(np.zeros((2, DIM)), 5).ids) == 0
    assert len(index.within(np.zeros((2, DIM)), 1e9).ids) == 0
    with pytest.raises(DataError, match="every item of the index was deleted"):
        index.commit()


def test_searches_beside_changes_see_each_item_once(index: Index) -> None:
    """An item that is moved to and fro is found in every search, and never twice."""
    stop, wrong = threading.Event(), []
    query = np.zeros((1, DIM))

    def search() -> None:
        while not stop.is_set():
            ids = index.search(query, 100, "label != 'zzz'").ids
            if len(ids) != 60 or len(set(ids)) != 60:
                wrong.append(len(ids))

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(150):
        index.change([f"item {turn % 5:03d}"], np.full((1, DIM), turn % 7), ["a"])
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_names_are_those_of_the_filter_language(index: Index) -> None:
    index.add(["new"], np.zeros((1, DIM)), None, [{"heel height": "3"}])
    assert index.keys == ["heel height", "size"]
    with pytest.raises(DataError, match=re.escape("Allowed: item_id, label, heel height, size")):
        index.count("nothing == 1")
    assert index.count("attributes['heel height'] < 4") == 1
