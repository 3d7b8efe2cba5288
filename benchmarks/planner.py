"""Claim: the planner's index finds what was wished for, in little more time than the best there is.

    uv run benchmarks/planner.py [--json PATH] [--items 200000] [--only NAME ...]
        [--embeddings FILE.npy] [--prefer latency] [--recall 0.95]

Fashion-MNIST's raw pixels (or the sample's), their embeddings (by the recipe's network, trained
here on 10,000 of them for a few minutes, or what a file holds), clustered and unclustered vectors
of 128 dimensions. Of each 1,000 are kept from the index and asked for: their recall, less the wish,
and the time a query takes, against the best of a sweep of the same kinds: each with graphs, cells
and codes from too few to too many, built of all vectors, with the least effort that reaches the
wish. The sweep knows nothing of the planner's candidates. A quarter of an hour for each data.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from _figures import Figures, asked, in_process
from _snapshots import clothes, write_snapshot
from _vectors import (
    QUERIES,
    K,
    batches,
    clustered,
    one_by_one,
    recall,
    rows_of,
    timed,
    truth,
    unclustered,
)
from rich.console import Console
from rich.table import Table

from lookalike import config
from lookalike.images import Preprocessing
from lookalike.index import Index, Plan, Wishes, build
from lookalike.index.metric import prepared

RECIPE = Path(__file__).parents[1] / "conf" / "fashion_mnist.yaml"
ALONE = 200
MADE = {"encoder": "benchmark"}
NAMES = ("raw_pixels", "embeddings", "clustered", "unclustered")


def main() -> None:
    if len(sys.argv) > 1 and sys.argv[1] == "embed":
        _embed(Path(sys.argv[2]))
        return
    parser = asked(__doc__)
    parser.add_argument("--items", type=int, default=200_000, help="of the synthetic ones")
    parser.add_argument("--embeddings", type=Path, help="float32 (n, dim), .npy; else trained")
    parser.add_argument("--prefer", default="latency", choices=["latency", "throughput"])
    parser.add_argument("--recall", type=float, default=0.95)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    given = parser.parse_args()
    wishes = Wishes(recall=given.recall, prefer=given.prefer)
    figures = Figures("planner", f"recall {wishes.recall} at {K}, {wishes.prefer}")
    for name in given.only:
        _measured(name, _data(name, given.items, given.embeddings), wishes, figures)
    figures.show(given.json)


def _data(name: str, count: int, embeddings: Path | None) -> np.ndarray:
    """float32 (n, dim)."""
    match name:
        case "raw_pixels":
            pixels, _ = clothes(None)
            return pixels.reshape(len(pixels), -1).astype(np.float32)
        case "clustered":
            return clustered(count + QUERIES, 128)
        case "unclustered":
            return unclustered(count + QUERIES, 128)
    if embeddings is not None:
        given: np.ndarray = np.load(embeddings).astype(np.float32)
        return given
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        made = Path(folder) / "embeddings.npy"
        in_process(__file__, "embed", str(made))  # whose threads end with it
        trained: np.ndarray = np.load(made)
        return trained


def _embed(to: Path) -> None:
    """Train on some images and write the vectors of all."""
    from lookalike.model import fit, process
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    train = config.load(RECIPE).train.model_copy(update={"ranks": 1, "epochs": 6})
    pixels, labels = clothes(None)
    files = [image.tobytes() for image in pixels[:10_000]]
    process.set_up(train)
    folder = to.with_name("snapshot")
    write_snapshot(folder, files, labels[:10_000], Preprocessing(28, 1), train.batch, "raw", 500)
    fitted = fit.fit(Snapshot.open(str(folder)), train, 0, Ranks())
    np.save(to, fitted.network.predict(pixels[..., np.newaxis], batch_size=500, verbose=0))
    print(f'{{"map_at_r": {fitted.scores.map_at_r}}}')


def _sweep(count: int, dim: int) -> Iterator[Plan]:
    """Plans of all kinds, from too little to too much."""
    cells = [round(factor * np.sqrt(count)) for factor in (0.5, 1, 2, 4, 8)]
    yield Plan("exact")
    if dim <= 12:
        yield Plan("kd_tree")
    for m in (8, 16, 32):
        for ef_construction in (100, 200):
            yield Plan("hnsw", m=m, ef_construction=ef_construction)
    for nlist in cells:
        yield Plan("ivf_flat", nlist=nlist)
        for rerank in (1, 3):
            yield Plan("ivf_sq8", nlist=nlist, rerank=rerank)
    for a_byte, rerank in ((2, 2), (4, 4), (8, 10)):  # whose codes take a minute each to learn
        yield Plan("ivf_pq", nlist=cells[2], pq_bytes=max(1, dim // a_byte), rerank=rerank)


def _measured(name: str, vectors: np.ndarray, wishes: Wishes, figures: Figures) -> None:
    vectors = prepared(vectors, "cosine")
    vectors = vectors[np.random.default_rng(1).permutation(len(vectors))]
    known, queries = np.ascontiguousarray(vectors[:-QUERIES]), vectors[-QUERIES:]
    given, exact = batches(known), truth(known, queries)
    dim = known.shape[1]
    table = Table("plan", "effort", "recall", "ms a query", title=f"{name}, {len(known):,} x {dim}")
    with ExitStack() as kept:

        def built(wanted: Plan | Wishes) -> tuple[Index, ExitStack]:
            with ExitStack() as folder:
                root = folder.enter_context(tempfile.TemporaryDirectory(prefix="lookalike-bench-"))
                made = build(root, given, dim, wanted, MADE)
                return Index.open(root, made.name), folder.pop_all()

        begin = time.perf_counter()
        index, folder = built(wishes)
        took = time.perf_counter() - begin
        kept.enter_context(folder)
        found = _recall(index, queries, exact, index.plan.effort)
        planned = best = (index, index.plan.effort)
        least = _ms(*planned, queries, wishes)
        table.add_row(f"{_named(index.plan)} (planned)", *_shown(planned[1], found, least))
        for plan in _sweep(len(known), dim):
            other, folder = built(plan)
            effort, reached = _least(other, queries, exact, wishes)
            ms = _ms(other, effort, queries, wishes)
            table.add_row(_named(plan), *_shown(effort, reached, ms))
            if reached >= wishes.recall and ms < least:
                best, least = (other, effort), ms
                kept.enter_context(folder)
            else:
                folder.close()
        # Once more and in turns, for hours may lie between the first and the best.
        pairs = [[_ms(*one, queries, wishes) for one in (planned, best)] for _ in range(3)]
    own, other_ms = (min(each) for each in zip(*pairs, strict=True))
    Console(width=120).print(table)
    figures.add(f"{name}: recall above the wish", found - wishes.recall, better="higher",
                goal=-0.01)  # fmt: skip
    figures.add(f"{name}: a query", own, "ms")
    figures.add(f"{name}: time / the best of the sweep", own / other_ms, "x", goal=1.3)
    figures.add(f"{name}: planning and building", took, "s")


def _named(plan: Plan) -> str:
    code = f" of {plan.pq_bytes} bytes"
    words = {
        "exact": "",
        "kd_tree": "",
        "hnsw": f" m {plan.m}, {plan.ef_construction}",
        "ivf_flat": f" {plan.nlist}",
        "ivf_sq8": f" {plan.nlist}, re-ranked {plan.rerank}",
        "ivf_pq": f" {plan.nlist}{code}, re-ranked {plan.rerank}",
    }
    return f"{plan.kind}{words[plan.kind]}"


def _shown(effort: int, found: float, ms: float) -> tuple[str, str, str]:
    return str(effort), f"{found:.4f}", f"{ms:.4f}"


def _recall(index: Index, queries: np.ndarray, exact: np.ndarray, effort: int) -> float:
    return recall(exact, rows_of(index.search(queries, K, effort=effort).ids))


def _least(
    index: Index, queries: np.ndarray, exact: np.ndarray, wishes: Wishes
) -> tuple[int, float]:
    """The least effort that reaches the wish, by halving, and its recall."""

    def reached(effort: int) -> bool:
        return _recall(index, queries, exact, effort) >= wishes.recall

    high = 1
    while not reached(high) and high < len(index):
        high *= 2
    low = high // 2
    while high - low > max(1, high // 50):
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high, _recall(index, queries, exact, high)


def _ms(index: Index, effort: int, queries: np.ndarray, wishes: Wishes) -> float:
    """A query's, the least of a few rounds."""
    if wishes.prefer == "latency":
        few = queries[:ALONE]
        return min(one_by_one(lambda q: index.search(q, K, effort=effort), few) for _ in range(5))
    return timed(lambda: index.search(queries, K, effort=effort), 5) / len(queries) * 1e3


if __name__ == "__main__":
    main()
