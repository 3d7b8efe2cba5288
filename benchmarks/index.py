"""Claims: choosing, keeping and guarding cost little beside bare faiss; filters cost no more than
comparing with the matches; tensorflow-similarity's Indexer is left far behind.

    uv run benchmarks/index.py [--json PATH] [--items 60000 1000000] [--rounds 3]

Clustered unit vectors of 128 dimensions, 1,000 more of them as queries, k = 10. Bare faiss is built
and searched in the same process, in turns, at the same parameters and in as many threads; rivals in
processes of their own, at the least effort that reaches recall 0.95 (nmslib within
tensorflow-similarity cannot be told how hard to look; there lookalike looks until it finds as
much). Those that are not installed are left out and named.

- build: from Arrow batches to a committed version, against faiss's train and add in memory, shown
  all vectors as it comes; beside it, shown the sample that lookalike shows it;
- many: batches of queries; lookalike looks up the neighbours' ids and labels, faiss gives rows;
- one: a query's time above faiss's, in one thread;
- where: one query among 50%, 5% and 0.5%, against fetching the matches' vectors, comparing, and
  looking up ids and labels in a list; the filter is one that was asked before, so that its matches
  are known, and where they are few their vectors at hand; what counting them takes the first time
  is beside it;
- bytes: of the vectors' file, against code and 8 bytes; that of codes alone, beside which no
  vectors are kept;
- searching: one query, before changes and after 5,000 that are not committed;
- open: a version; add, change, delete: an item of the open index, found or not found at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import faiss
import numpy as np
import pyarrow as pa
from _figures import Figures, asked, in_process
from _rivals import MODULES
from _vectors import (
    K,
    batches,
    clustered,
    kept,
    loaded,
    one_by_one,
    recall,
    rows_of,
    seconds,
    timed,
    truth,
)

from lookalike.index import Index, Plan, build
from lookalike.index.spool import using

DIM = 128
QUERIES = 1_000
RECALL = 0.95
SHARES = {"50%": 100, "5%": 10, "0.5%": 1}
"""Buckets of 200."""
MADE = {"encoder": "benchmark"}
GOALS = {
    ("build", "x"): 1.05, ("many", "x"): 1.10, ("one", "ms"): 0.10, ("where", "x"): 1.0,
    ("bytes", "x"): 1.10, ("open", "s"): 0.2, ("add", "ms"): 1.0,
    ("change", "ms"): 1.0, ("delete", "ms"): 1.0,
}  # fmt: skip
"""By what is measured, and its unit; the lower the better."""
RATIOS = {
    "build, tensorflow-similarity": 20, "add, tensorflow-similarity": 1000,
    "one, tensorflow-similarity": 2, "many, tensorflow-similarity": 2,
}  # fmt: skip
"""Goals of a rival's time over lookalike's."""


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "measure":
        part, path, rounds, wished = sys.argv[2:6]
        measured = {"own": _own, "lookalike": _alone}[part](path, int(rounds), float(wished))
        print(json.dumps(measured))
        return
    parser = asked(__doc__)
    parser.add_argument("--items", type=int, nargs="+", default=[60_000, 1_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    figures = Figures("index", f"{DIM} dimensions, recall at {K}")
    for count in given.items:
        with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
            path = kept(clustered(count + QUERIES, DIM), Path(folder))
            _measured(figures, count, path, given.rounds, count == min(given.items))
    figures.show(given.json)


def _measured(figures: Figures, count: int, path: str, rounds: int, rivals: bool) -> None:
    def ours(part: str, wished: float) -> dict[str, float]:
        return in_process(__file__, "measure", part, path, str(rounds), str(wished))

    for name, value in ours("own", RECALL).items():
        what, _, unit = name.rpartition("|")
        goal = GOALS.get((what.partition(",")[0], unit))
        better = "higher" if "recall" in what else "lower"
        figures.add(f"{count:,}: {what}", value, unit, goal, better)
    for rival in MODULES if rivals else ():
        found = in_process(str(Path(__file__).with_name("_rivals.py")), rival, path, str(RECALL))
        if not found:
            print(f"{rival} is not installed: left out", file=sys.stderr)
            continue
        own = ours("lookalike", min(found["recall"], 0.999))
        figures.add(f"{count:,}: recall, {rival}", found["recall"], better="higher")
        figures.add(f"{count:,}: recall, beside {rival}", own["recall"], better="higher")
        for what in ("build", "one", "many", "add"):
            if what in found:
                name = f"{what}, {rival}"
                unit = "s" if what in ("build", "add") else "ms"
                figures.add(f"{count:,}: {name}, takes", found[what], unit)
                figures.add(f"{count:,}: {name}, lookalike takes", own[what], unit)
                ratio = found[what] / own[what]
                figures.add(
                    f"{count:,}: {name} / lookalike", ratio, "x", RATIOS.get(name), "higher"
                )


def _plan(kind: str, count: int) -> Plan:
    return Plan(kind, nlist=round(np.sqrt(count)), nprobe=8, rerank=0)  # type: ignore[arg-type]


def _bare(vectors: np.ndarray, plan: Plan, shown: np.ndarray) -> faiss.Index:
    product = faiss.METRIC_INNER_PRODUCT
    if plan.kind == "hnsw":
        graph = faiss.IndexHNSWFlat(DIM, plan.m, product)
        graph.hnsw.efConstruction, graph.hnsw.efSearch = plan.ef_construction, plan.ef_search
        with using(1):  # as lookalike does, for the same graph each time
            graph.add(vectors)
        return graph
    code = {"ivf_flat": "Flat", "ivf_sq8": "SQ8", "ivf_pq": f"PQ{plan.pq_bytes}"}[plan.kind]
    turned = f"OPQ{plan.pq_bytes}," if plan.kind == "ivf_pq" else ""
    cells = faiss.index_factory(DIM, f"{turned}IVF{plan.nlist},{code}", product)
    cells.train(shown)
    cells.add(vectors)
    faiss.extract_index_ivf(cells).nprobe = plan.nprobe
    return cells


def _own(path: str, rounds: int, _: float) -> dict[str, float]:
    """lookalike beside bare faiss, by 'figure|unit'."""
    vectors, queries = loaded(path)
    given = batches(vectors)
    exact = truth(vectors, queries)
    found: dict[str, float] = {}
    kinds = ["ivf_flat", "ivf_sq8", "ivf_pq", *(["hnsw"] if len(vectors) <= 100_000 else [])]
    for kind in kinds:
        plan = _plan(kind, len(vectors))
        with tempfile.TemporaryDirectory() as root:
            bare, built = _built(root, given, vectors, plan, rounds)
            found |= built
            version = max(Path(root, "versions").iterdir()).name
            index = Index.open(root, version)
            found |= _searched(kind, index, bare, queries, exact, rounds)
            if kind == "ivf_flat":
                found |= _filtered(index, vectors, queries[:200], rounds)
                found["open, s|s"] = _opened(root, version)
                found["add, ms an item|ms"] = _added(index, queries[:500])
                found |= _altered(index, queries[500:])
                found |= _changed(Index.open(root, version), queries, rounds)
            (part,) = index.meta["parts"]
            size = Path(root, "parts", part, "vectors.faiss").stat().st_size
            each = size / len(vectors)
            if kind == "hnsw":
                found[f"graph's bytes a vector beyond the vector, {kind}|B"] = each - 4 * DIM
            else:
                code = {"ivf_flat": 4 * DIM, "ivf_sq8": DIM, "ivf_pq": plan.pq_bytes}[kind]
                found[f"bytes, {kind} / code and 8|x"] = each / (code + 8)
    return found


def _built(
    root: str, given: list[pa.RecordBatch], vectors: np.ndarray, plan: Plan, rounds: int
) -> tuple[faiss.Index, dict[str, float]]:
    """faiss's own index, and what building took."""
    made: list[faiss.Index] = []
    works: dict[str, Callable[[], object]] = {
        "lookalike": lambda: build(root, given, DIM, plan, MADE),
        "faiss": lambda: made.append(_bare(vectors, plan, vectors)),
    }
    if plan.kind == "ivf_flat":
        few = np.random.default_rng(0).permutation(len(vectors))[: 64 * plan.nlist]
        works["faiss, shown as few"] = lambda: _bare(vectors, plan, vectors[few])
    rounds = rounds if len(vectors) <= 100_000 else 1
    times = [{name: seconds(work) for name, work in works.items()} for _ in range(rounds)]
    found = {f"building, {plan.kind}, {n}|s": median(t[n] for t in times) for n in works}
    for name in list(works)[1:]:
        head = "build" if name == "faiss" else "building"
        ratio = median(t["lookalike"] / t[name] for t in times)
        found[f"{head}, {plan.kind} / {name}|x"] = ratio
    return made[0], found


def _searched(
    kind: str, index: Index, bare: faiss.Index, queries: np.ndarray, exact: np.ndarray, rounds: int
) -> dict[str, float]:
    found = {}
    for size in (64, 256, 1000):
        parts = [queries[i : i + size] for i in range(0, len(queries), size)]
        ratios = []
        for _ in range(2 * rounds):
            own = seconds(lambda p=parts: [index.search(q, K).ids for q in p])  # type: ignore[misc]
            ratios.append(own / seconds(lambda p=parts: [bare.search(q, K) for q in p]))  # type: ignore[misc]
        found[f"many, {kind}, {size} at once / faiss|x"] = median(ratios)
    few = queries[:200]
    above = [
        one_by_one(lambda q: index.search(q, K)[0], few)
        - one_by_one(lambda q: bare.search(q, K), few)
        for _ in range(2 * rounds)
    ]
    found[f"one, {kind}, above faiss|ms"] = median(above)
    found[f"recall, {kind}|"] = recall(exact, rows_of(index.search(queries, K).ids))
    found[f"recall of faiss, {kind}|"] = recall(exact, bare.search(queries, K)[1])
    return found


def _filtered(
    index: Index, vectors: np.ndarray, queries: np.ndarray, rounds: int
) -> dict[str, float]:
    found: dict[str, float] = {}
    for share, buckets in SHARES.items():
        found |= {
            f"where, {share}{what}": value
            for what, value in _among(index, vectors, queries, rounds, buckets).items()
        }
    return found


def _among(
    index: Index, vectors: np.ndarray, queries: np.ndarray, rounds: int, buckets: int
) -> dict[str, float]:
    where = f"bucket < {buckets}"
    first = 1e3 * seconds(lambda: index.count(where))
    matches = np.flatnonzero(np.arange(len(vectors)) % 200 < buckets)

    names = [(f"item {n:08d}", f"class {n % 100}") for n in range(len(vectors))]

    def brute(query: np.ndarray) -> np.ndarray:
        found: np.ndarray = matches[truth(vectors[matches], query)]
        return found

    def named(query: np.ndarray) -> list[tuple[str, str]]:
        return [names[row] for row in brute(query)[0].tolist()]

    few = queries[:20]
    pairs = [
        (one_by_one(lambda q: index.search(q, K, where)[0], few), one_by_one(named, few))
        for _ in range(rounds)
    ]
    rows = rows_of(index.search(queries, K, where).ids)
    return {
        ", the first time|ms": first,
        ", lookalike|ms": median(own for own, _ in pairs),
        ", the matches|ms": median(raw for _, raw in pairs),
        " / the matches|x": median(own / raw for own, raw in pairs),
        ", recall|": recall(brute(queries), rows),
    }


def _opened(root: str, version: str) -> float:
    return timed(lambda: Index.open(root, version), 5)


def _added(index: Index, queries: np.ndarray) -> float:
    took = [
        seconds(lambda n=n: index.add([f"new {n}"], queries[n : n + 1], ["a"], [{"bucket": "1"}]))  # type: ignore[misc]
        for n in range(500)
    ]
    return 1e3 * median(took)


def _altered(index: Index, queries: np.ndarray) -> dict[str, float]:
    """Items of the base, one by one, each looked for at once."""
    changes, deletes = [], []
    for n, query in enumerate(queries[:200, np.newaxis]):
        item, other = [f"item {n:08d}"], [f"item {200 + n:08d}"]
        own = index.vector(other[0])[np.newaxis]  # type: ignore[index]
        changes.append(seconds(lambda i=item, q=query: index.change(i, q, ["a"])))  # type: ignore[misc]
        deletes.append(seconds(lambda i=other: index.delete(i)))  # type: ignore[misc]
        assert index.search(query, 1).ids == item
        assert index.search(own, 1).ids != other
    return {
        "change, ms an item|ms": 1e3 * median(changes),
        "delete, ms an item|ms": 1e3 * median(deletes),
    }


def _changed(index: Index, queries: np.ndarray, rounds: int) -> dict[str, float]:
    """One query, before and after 5,000 changes: of 4,000 items, so some of the delta is dead."""

    def one() -> float:
        return median(
            one_by_one(lambda q: index.search(q, K)[0], queries[:200]) for _ in range(rounds)
        )

    found = {"searching, before changes|ms": one()}
    items = [f"item {n:08d}" for n in range(4000)]
    for begin in range(0, 5000, 500):
        ids = [items[n % len(items)] for n in range(begin, begin + 500)]
        index.change(ids, queries[:500], ["a"] * 500)
    return found | {"searching, after 5,000 changes|ms": one()}


def _alone(path: str, rounds: int, wished: float) -> dict[str, float]:
    """What rivals are compared with: the effort that finds as much."""
    vectors, queries = loaded(path)
    given = batches(vectors)
    exact = truth(vectors, queries)
    plan = _plan("ivf_flat", len(vectors))
    with tempfile.TemporaryDirectory() as root:
        took = timed(lambda: build(root, given, DIM, plan, MADE), rounds)
        index = Index.open(root, max(Path(root, "versions").iterdir()).name)
        for effort in range(1, plan.nlist + 1):
            reached = recall(exact, rows_of(index.search(queries, K, effort=effort).ids))
            if reached >= wished:
                break

        def search(some: np.ndarray) -> list[str]:
            return index.search(some, K, effort=effort).ids

        return {
            "build": took,
            "recall": reached,
            "one": median(one_by_one(search, queries[:200]) for _ in range(rounds)),
            "many": timed(lambda: search(queries), rounds) / len(queries) * 1e3,
            "add": _added(index, queries) / 1e3,
        }


if __name__ == "__main__":
    main()
