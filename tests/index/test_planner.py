"""What the planner promises, on vectors small enough to try a few kinds in seconds."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from naive import Item, Naive, indexed

from lookalike import artifacts
from lookalike.errors import ConfigError
from lookalike.index import Index, Wishes, kinds, nearest, planner
from lookalike.index.plan import KINDS, Plan
from lookalike.index.planner import Choice, Trial, candidates
from lookalike.index.rows import Rows
from lookalike.index.spool import Spool
from lookalike.steps import plan_picture

DIM, COUNT = 12, 6000


@pytest.fixture(scope="module")
def naive() -> Naive:
    random = np.random.default_rng(0)
    centres = random.normal(size=(30, DIM))[random.integers(30, size=COUNT)]
    vectors = (centres + 0.4 * random.normal(size=(COUNT, DIM))).astype(np.float32)
    return Naive("cosine", {f"item {i:05d}": Item(v) for i, v in enumerate(vectors)})


def planned(index: Index) -> dict[str, Any]:
    (version,) = Path(index._root, "versions").iterdir()
    artifacts.verify(artifacts.open_artifact(str(version), "index"))
    found: dict[str, Any] = json.loads((version / "plan.json").read_text())
    return found


def recall(index: Index, naive: Naive, seed: int) -> float:
    """Of queries that the index has never seen, beside exact search."""
    random = np.random.default_rng(seed)
    vectors = np.stack([item.vector for item in naive.items.values()])
    ids = np.array(list(naive.items))
    units = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    chosen = random.integers(len(ids), size=300)
    queries = vectors[chosen] + 0.2 * random.normal(size=(300, DIM)).astype(np.float32)
    truth = ids[np.argsort(-(queries @ units.T), axis=1)[:, :10]]
    found = np.array(index.search(queries, 10).ids).reshape(300, 10)
    return float(np.mean([np.isin(t, f).mean() for t, f in zip(truth, found, strict=True)]))


@pytest.mark.parametrize("kind", ["hnsw", "ivf_flat", "ivf_sq8"])
def test_the_effort_is_what_the_recall_takes(tmp_path: Path, naive: Naive, kind: str) -> None:
    for wish in (0.8, 0.98):
        wishes = Wishes(recall=wish, kinds=(kind,), prefer="throughput")
        index = indexed(naive, tmp_path / str(wish), wishes)
        plan = planned(index)
        assert plan["built"]["recall"] >= wish == plan["wishes"]["recall"]
        assert index.plan.kind == kind
        assert index.plan.effort == Plan(**plan["built"]["plan"]).effort
        assert index.meta["recall"] == plan["built"]["recall"]
        # As little above as the steps allow: the next step below misses.
        below = [p for p in plan["built"]["points"] if p["effort"] < index.plan.effort]
        assert all(point["recall"] < wish for point in below)
        assert recall(index, naive, 1) >= wish - 0.03


def test_all_that_was_tried_is_told_and_drawn(tmp_path: Path, naive: Naive) -> None:
    wishes = Wishes(recall=0.9, prefer="throughput", growth=0.5, deletes=0.2)
    index = indexed(naive, tmp_path, wishes, draw=plan_picture.draw)
    plan = planned(index)
    tried = [trial for trial in plan["trials"] if trial["points"]]
    assert {trial["plan"]["kind"] for trial in tried} == set(KINDS) - {"ivf_pq"}
    verdicts = [trial["verdict"] for trial in plan["trials"]]
    assert verdicts.count("chosen") == 1
    chosen = plan["trials"][verdicts.index("chosen")]
    assert chosen["recall"] >= 0.9
    good = [trial["seconds"] for trial in tried if trial["verdict"] in ("chosen", "slower")]
    assert chosen["seconds"] <= 1.1 * min(good)
    assert chosen["plan"]["kind"] == index.plan.kind
    for trial in tried:
        assert [p["effort"] for p in trial["points"]] == sorted(
            {p["effort"] for p in trial["points"]}
        )
        # What comes before a rebuild lies beside the base, as whole vectors.
        assert trial["bytes"] == Plan(**trial["plan"]).bytes_of(COUNT, DIM) + 3000 * 4 * DIM
    (version,) = Path(index._root, "versions").iterdir()
    assert (version / "plan.png").read_bytes().startswith(b"\x89PNG")
    assert "plan.png" in [
        entry.path for entry in artifacts.open_artifact(str(version), "index").manifest.files
    ]


def test_memory_is_a_limit(tmp_path: Path, naive: Naive) -> None:
    whole = Plan("exact").bytes_of(COUNT, DIM)
    index = indexed(naive, tmp_path / "less", Wishes(recall=0.8, memory=whole - 1, seconds=5))
    assert index.plan.kind in ("ivf_sq8", "ivf_pq")
    folder = Path(index._root, "parts", index.meta["parts"][0])
    kept = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".faiss", ".npy"))
    assert kept <= whole
    assert planned(index)["built"]["recall"] >= 0.8
    verdicts = {t["plan"]["kind"]: t["verdict"] for t in planned(index)["trials"]}
    assert verdicts["exact"] == verdicts["hnsw"] == "memory"


def test_short_codes_alone_are_tried_where_no_more_fits() -> None:
    def fitting(wishes: Wishes) -> set[tuple[str, int, int]]:
        plans = candidates(10**6, 128, "cosine", wishes)
        room = wishes.memory or 10**12
        fits = [plan for plan in plans if wishes.bytes_of(plan, 10**6, 128) <= room]
        return {(plan.kind, plan.pq_bytes, plan.rerank) for plan in fits}

    assert fitting(Wishes(memory=30 * 10**6)) == {("ivf_pq", 16, 0)}
    assert fitting(Wishes(memory=45 * 10**6)) == {("ivf_pq", 16, 0), ("ivf_pq", 32, 0)}
    # Where whole vectors have room, not.
    assert ("ivf_pq", 16, 0) not in fitting(Wishes(kinds=("ivf_pq",)))


@pytest.mark.parametrize(("prefer", "sizes"), [("latency", {1}), ("throughput", {60})])
def test_what_is_preferred_is_what_is_timed(
    naive: Naive, monkeypatch: pytest.MonkeyPatch, prefer: Any, sizes: set[int]
) -> None:
    """One query after another, or all at once."""
    searched: list[int] = []

    def search(vectors: Any, queries: np.ndarray, *more: Any) -> Any:
        searched.append(len(queries))
        return nearest.search(vectors, queries, *more)

    monkeypatch.setattr(planner, "nearest", SimpleNamespace(search=search))
    vectors = np.stack([item.vector for item in naive.items.values()])[:600].astype(np.float32)
    wishes = Wishes(prefer=prefer)
    test = planner._Test.of(vectors[540:], Spool(vectors[:540]), 540, "l2", wishes)
    built = kinds.empty(Plan("exact"), "l2", vectors)
    built.add(vectors[:540])
    test.climb(built)
    assert searched[0] == 60
    assert set(searched[1:]) == sizes


def test_recall_is_that_of_one_query_after_another(naive: Naive) -> None:
    """Of many at once all vectors may be compared, where of one they are not."""
    vectors = np.stack([item.vector for item in naive.items.values()]).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = len(vectors) - 200
    plan = Plan("ivf_pq", nlist=60, pq_bytes=1, rerank=4)
    built = kinds.empty(plan, "cosine", vectors, np.empty((known, DIM), np.float16))
    built.add(vectors[:known])
    test = planner._Test.of(vectors[known:], Spool(vectors[:known]), known, "cosine", Wishes())
    points, met = test.climb(built)
    best = max(points, key=lambda point: point.recall)
    everyone = Rows.of(np.ones(known, bool))
    alone = [nearest.search(built, q[None], 10, everyone, best.effort)[1] for q in test.queries]
    assert test.recall(np.concatenate(alone)) == best.recall
    assert not met
    assert test.recall(nearest.search(built, test.queries, 10, everyone, 60)[1]) == 1


@pytest.mark.parametrize("kind", KINDS)
def test_bytes_are_what_files_take(tmp_path: Path, naive: Naive, kind: str) -> None:
    plan = Plan(kind, nlist=60, pq_bytes=6)
    index = indexed(naive, tmp_path, plan)
    folder = Path(index._root, "parts", index.meta["parts"][0])
    kept = sum(f.stat().st_size for f in folder.iterdir() if f.suffix in (".faiss", ".npy"))
    expected = index.plan.bytes_of(COUNT, DIM)
    if kind == "kd_tree":  # the tree is grown in memory
        assert kept < expected
    else:
        assert expected == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        (
            {"memory": 1000},
            r"in 1,000 bytes .* the nearest is ivf_\w+ from [\d,]+ bytes on, its recall not",
        ),
        (
            {"recall": 0.999, "kinds": ("ivf_pq",), "memory": 150_000},
            r"recall 0.999 .* the nearest is recall 0\.\d+ by ivf_pq in [\d,]+ bytes",
        ),
    ],
)
def test_the_impossible_is_refused_with_what_is_possible(
    tmp_path: Path, naive: Naive, wishes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        indexed(naive, tmp_path, Wishes(**wishes))
    assert not list(tmp_path.rglob("manifest.json"))


def test_a_few_vectors_are_compared_with_all(tmp_path: Path, naive: Naive) -> None:
    few = Naive("cosine", dict(list(naive.items.items())[:50]))
    index = indexed(few, tmp_path, Wishes(), draw=plan_picture.draw)
    assert index.plan.kind == "exact"
    assert index.meta["recall"] == 1
    assert [trial["verdict"] for trial in planned(index)["trials"]] == ["chosen"]


def test_a_few_without_room_are_refused(tmp_path: Path, naive: Naive) -> None:
    """Too few to hold any out, and to measure by."""
    few = Naive("cosine", dict(list(naive.items.items())[:9]))
    with pytest.raises(ConfigError, match=r"9 vectors are too few .* kind exact, which takes"):
        indexed(few, tmp_path, Wishes(memory=100))


def test_what_is_held_out_is_in_the_index(tmp_path: Path, naive: Naive) -> None:
    index = indexed(naive, tmp_path, Wishes(kinds=("hnsw",), recall=0.8))
    assert len(index) == COUNT
    for item_id, item in list(naive.items.items())[::40]:
        kept = index.vector(item_id)
        assert kept is not None
        assert kept @ item.vector == pytest.approx(np.linalg.norm(item.vector), rel=1e-4)
    ids = [batch.column("item_id").to_pylist() for batch in index.batches()]
    assert [i for some in ids for i in some] == sorted(naive.items)


def test_the_verdict_is_that_of_all_vectors(naive: Naive) -> None:
    """Of two plans that did on the sample, the first does not on the whole."""
    vectors = np.stack([item.vector for item in naive.items.values()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    known = COUNT - 200
    plans = [Plan("ivf_pq", nlist=20, pq_bytes=2), Plan("ivf_flat", nlist=20)]
    wishes = Wishes(recall=0.95)
    trials = [Trial(plans[0], (), 1, verdict="chosen"), Trial(plans[1], (), 2, verdict="slower")]
    choice = Choice(wishes, plans, trials, 100, COUNT, DIM, "cosine")
    for plan, met in zip(plans, (False, True), strict=True):
        built = kinds.empty(plan, "cosine", vectors)
        built.add(vectors[:known])
        assert choice.confirm(built, Spool(vectors), known) is met
    assert [trial.verdict for trial in choice.trials] == ["built", "chosen"]
    assert choice.told()["built"]["plan"]["kind"] == "ivf_flat"


def test_a_refusal_tells_the_nearest_of_what_was_built(naive: Naive) -> None:
    vectors = np.stack([item.vector for item in naive.items.values()])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    plans = [Plan("ivf_pq", nlist=20, pq_bytes=size) for size in (6, 2)]
    choice = Choice(Wishes(recall=0.999), plans, [], 100, COUNT, DIM, "cosine")
    for plan in plans:
        built = kinds.empty(plan, "cosine", vectors)
        built.add(vectors[:-200])
        assert not choice.confirm(built, Spool(vectors), COUNT - 200)
    assert choice.measured["plan"]["pq_bytes"] == 6
    assert f"recall {choice.measured['recall']:.3f} by ivf_pq" in str(choice.refusal())
