"""Whatever the kind, the filter and what has been changed: what a search promises."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from naive import Item, Naive, indexed

from lookalike.index import Index, Plan
from lookalike.index.flat import Flat, Graph, Tree
from lookalike.index.metric import METRICS
from lookalike.index.plan import CODED, KINDS
from lookalike.index.rows import Rows

PAIRS = [(k, m) for k in KINDS for m in METRICS if (k, m) != ("kd_tree", "dot")]
# Of so few neighbours that a graph is walked among some hundreds of items.
QUICK = Plan(m=2, ef_construction=40, ef_search=2, nlist=6, nprobe=1, pq_bytes=4, rerank=6)
FILTERS = {
    None: lambda *_: True,
    "label == 'a'": lambda _, item: item.label == "a",
    "not label in ('a', 'b')": lambda _, item: item.label not in ("a", "b"),
    "size < 2": lambda _, item: (item.attributes or {}).get("size", "9") in ("0", "1"),
    "item_id == 'item 3'": lambda item_id, _: item_id == "item 3",
    "label == 'nobody'": lambda *_: False,
}


@dataclass(frozen=True)
class Case:
    """A catalogue, what is done to it, and what is looked for."""

    seed: int
    count: int
    dim: int
    twins: float
    zeros: float
    changes: tuple[tuple[str, int], ...]
    where: str | None
    k: int
    reopened: bool


CASES = st.builds(
    Case,
    seed=st.integers(0, 2**16),
    count=st.one_of(st.integers(1, 120), st.integers(300, 400)),
    dim=st.integers(1, 9),
    twins=st.sampled_from([0.0, 0.5, 1.0]),
    zeros=st.sampled_from([0.0, 0.1]),
    changes=st.lists(
        st.tuples(st.sampled_from(["add", "change", "delete"]), st.integers(0, 119)), max_size=12
    ).map(tuple),
    where=st.sampled_from(list(FILTERS)),
    k=st.sampled_from([1, 3, 10, 500]),
    reopened=st.booleans(),
)


def item_of(case: Case, random: np.random.Generator) -> Item:
    # Of a few values: so that distances tie.
    vector = random.integers(-3, 4, size=case.dim) + 0.0
    if random.random() < case.twins:
        vector = np.ones(case.dim)
    if random.random() < case.zeros:
        vector = np.zeros(case.dim)
    label = random.choice(["a", "b", "c", "d"]) if random.random() < 0.9 else None
    attributes = {"size": str(random.integers(5))} if random.random() < 0.8 else None
    return Item(vector, None if label is None else str(label), attributes)


def changed(case: Case, index: Index, naive: Naive, random: np.random.Generator) -> None:
    for what, number in case.changes:
        item_id, item = f"item {number}", item_of(case, random)
        content: Any = ([item_id], item.vector[None], [item.label], [item.attributes])
        if what == "add" and item_id not in naive.items:
            index.add(*content)
            naive.items[item_id] = item
        elif what == "change" and item_id in naive.items:
            index.change(*content)
            naive.items[item_id] = item
        elif what == "delete" and item_id in naive.items and len(naive.items) > 1:
            index.delete([item_id])
            del naive.items[item_id]


def known(index: Index, where: str | None) -> bool:
    return where is None or "size" not in where or "size" in index.keys


@pytest.mark.parametrize(("kind", "metric"), PAIRS)
@settings(
    max_examples=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(case=CASES)
def test_exactly_the_matches_that_there_are(kind: str, metric: str, case: Case) -> None:
    exactly_the_matches(kind, metric, case)


@pytest.mark.parametrize("where", [None, "not label in ('a', 'b')"])
@pytest.mark.parametrize(("kind", "own"), [("hnsw", Graph), ("kd_tree", Tree)])
def test_they_are_found_by_the_kinds_own_search(
    kind: str, own: type[Flat], where: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Among so many that comparing with each would cost more."""
    walked: list[bool] = []
    search = own.search

    def spied(vectors: Any, queries: np.ndarray, k: int, rows: Rows, effort: int) -> Any:
        walked.append(rows.whole)
        return search(vectors, queries, k, rows, effort)

    monkeypatch.setattr(own, "search", spied)
    exactly_the_matches(kind, "l2", Case(0, 400, 5, 0.5, 0.1, (), where, 1, False))
    assert walked
    assert all(whole == (where is None) for whole in walked)


def exactly_the_matches(kind: str, metric: str, case: Case) -> None:
    random = np.random.default_rng(case.seed)
    naive = Naive(metric, {f"item {i}": item_of(case, random) for i in range(case.count)})
    with tempfile.TemporaryDirectory() as folder:
        index = indexed(naive, Path(folder), Plan(**vars(QUICK) | {"kind": kind}))
        changed(case, index, naive, random)
        if case.reopened:
            index = Index.open(folder, index.commit().name, threads=1)
        assert len(index) == len(naive.items)
        queries = np.stack([item_of(case, random).vector for _ in range(3)])
        if not known(index, case.where):
            return
        matches = FILTERS[case.where]
        found = index.search(queries, case.k, case.where)
        assert len(found) == len(queries)
        for query, answer in zip(queries, found, strict=True):
            ranked = naive.ranked(query, matches)
            ids = [n.item_id for n in answer]
            assert len(ids) == min(case.k, len(ranked)) == len(set(ids))
            true = {item_id: far for far, item_id in ranked}
            assert set(ids) <= set(true)
            assert [n.label for n in answer] == [naive.items[i].label for i in ids]
            distances = [n.distance for n in answer]
            assert distances == sorted(distances)
            # Codes and float16 are near, the others right; all of so few are compared.
            tolerance = 0.05 if kind in CODED else 1e-4
            assert distances == pytest.approx([true[i] for i in ids], abs=tolerance)
            if kind not in CODED and (case.k >= len(ranked) or kind in ("exact", "kd_tree")):
                best = [far for far, _ in ranked[: case.k]]
                assert distances == pytest.approx(best, abs=1e-4)
        within_is_brute_force(index, naive, queries, case)


def within_is_brute_force(index: Index, naive: Naive, queries: np.ndarray, case: Case) -> None:
    matches = FILTERS[case.where]
    ranked = [naive.ranked(query, matches) for query in queries]
    middle = [r[len(r) // 2][0] for r in ranked if r]
    radius = float(np.median(middle)) + 0.01 if middle else 1.0
    slack = 0.05 if index.plan.kind in CODED else 1e-4
    for far, answer in zip(ranked, index.within(queries, radius, case.where), strict=True):
        ids = [n.item_id for n in answer]
        assert len(ids) == len(set(ids))
        assert {i for d, i in far if d <= radius - slack} <= set(ids)
        assert set(ids) <= {i for d, i in far if d <= radius + slack}
        assert [n.distance for n in answer] == sorted(n.distance for n in answer)
