"""Which kind of index, with which parameters: tried on the user's own vectors.

Every kind that fits the memory is built of a quarter of a random sample and of the whole of it.
Held-out vectors are searched for, harder and harder, until as many of their exact neighbours are
found as were wished for. What that took on the quarter and on the whole says how it grows:
time(n) = time(s) * (n / s) ** p. The one that should take the least time for all vectors is built;
then recall is measured again on all of them, and the query effort set.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import faiss
import numpy as np

from lookalike.errors import ConfigError
from lookalike.index import kinds, nearest
from lookalike.index.kinds import Built
from lookalike.index.metric import ROUNDING, Metric, apart, code_of
from lookalike.index.plan import KINDS, Kind, Plan
from lookalike.index.rows import Rows
from lookalike.index.spool import Spool, using
from lookalike.index.vectors import by_differences

PLAN_FILE: Final = "plan.json"
_FEW: Final = 4096
"""Vectors that are compared with in less time than a search among kinds is worth."""
_SAMPLE: Final = 20_000
_QUARTER: Final = 4
_QUERIES: Final = 500
_ALONE: Final = 100  # queries that are timed one by one
_ROUNDS: Final = 5
_ALIKE: Final = 1.1
_CLOSE: Final = 1e-5
"""Relative difference of distances that are taken for equal."""
_SEED: Final = 23
_EXACT: Final = ("exact", "kd_tree")


@dataclass(frozen=True)
class Wishes:
    """What an index shall do.

    Attributes:
        recall: mean share of the `k` nearest that a search finds, of held-out vectors.
        k: neighbours that recall is measured at.
        memory: bytes that vectors may take, ids apart; None for any number.
        prefer: what takes the least time: one query after another in one thread, or many at once.
        growth: items to come before a rebuild, as a share of those there are.
        deletes: items to go before a rebuild, as a share of those there are.
        kinds: which are tried.
        seconds: for trying, about; what has not been tried then is not chosen.
    """

    recall: float = 0.95
    k: int = 10
    memory: int | None = None
    prefer: Literal["latency", "throughput"] = "latency"
    growth: float = 0.0
    deletes: float = 0.0
    kinds: tuple[Kind, ...] = KINDS
    seconds: float = 120.0

    def held_out(self, count: int) -> int:
        """Of so many vectors, those that are queries and join the index last."""
        return min(_QUERIES, count // 10)

    def bytes_of(self, plan: Plan, count: int, dim: int) -> int:
        """What so many vectors take by a plan, with those to come: whole ones, until a rebuild."""
        return plan.bytes_of(count, dim) + Plan("exact").bytes_of(round(self.growth * count), dim)


@dataclass(frozen=True)
class Point:
    """What a search of some effort does: recall, and seconds a query."""

    effort: int
    recall: float
    seconds: float


@dataclass(frozen=True)
class Trial:
    """A plan, tried on a sample.

    Attributes:
        plan: with the least effort that reached the recall, or the largest tried.
        points: what was measured, by effort.
        bytes: of all vectors and those to come, ids apart.
        recall: on the sample.
        seconds: a query would take on all vectors; those to come add the same to each plan's.
        verdict: 'chosen'; 'slower'; 'built', whose recall on all vectors was less than wished for;
            'recall', whose was on the sample; 'memory' or 'not tried'.
    """

    plan: Plan
    points: tuple[Point, ...]
    bytes: int
    recall: float = 0.0
    seconds: float = float("inf")
    verdict: str = "not tried"


@dataclass
class Choice:
    """What was tried, and what came of it.

    Attributes:
        wishes: what was wished for.
        plans: that do what was wished for on the sample; the cheapest first.
        trials: everything tried.
        sample: vectors that it was tried on.
        count: of all vectors.
        dim: of a vector.
        metric: of the distances.
        measured: what the built index does, by effort.
    """

    wishes: Wishes
    plans: list[Plan]
    trials: list[Trial]
    sample: int
    count: int
    dim: int
    metric: Metric
    measured: dict[str, Any] = field(default_factory=dict)

    def confirm(self, vectors: Built, spool: Spool, known: int) -> bool:
        """Set the effort of a built index by the recall of what is held out.

        Returns:
            Whether recall is what was wished for; where not, the largest effort tried is set.
        """
        if known == len(spool):
            return True
        test = _Test.of(spool.rows(slice(known, None)), spool, known, self.metric, self.wishes)
        points, met = test.climb(vectors)
        best = _best(points, self.wishes.recall)
        built, vectors.plan = vectors.plan, vectors.plan.with_effort(best.effort)
        self._settle(built, "chosen" if met else "built")
        if not met and self.measured.get("recall", 0.0) >= best.recall:
            return False  # the nearest to what was wished for is what a refusal tells
        self.measured = {
            "plan": asdict(vectors.plan),
            "points": [asdict(point) for point in sorted(points, key=lambda p: p.effort)],
            "recall": best.recall,
            "seconds": best.seconds,
            "bytes": self.wishes.bytes_of(vectors.plan, self.count, self.dim),
            "met": met,
        }
        return met

    def _settle(self, plan: Plan, verdict: str) -> None:
        for place, trial in enumerate(self.trials):
            if trial.plan == plan:
                self.trials[place] = replace(trial, verdict=verdict)

    def refusal(self) -> ConfigError:
        """The error of a wish that no kind meets, with the nearest that one does."""
        wishes = self.wishes
        wished = f"recall {wishes.recall:g} at k = {wishes.k}"
        if wishes.memory is not None:
            wished += f" in {wishes.memory:,} bytes"
        near = []
        if self.measured:
            kind, size = self.measured["plan"]["kind"], self.measured["bytes"]
            near.append(f"recall {self.measured['recall']:.3f} by {kind} in {size:,} bytes")
        elif tried := [trial for trial in self.trials if trial.points]:
            best = max(tried, key=lambda trial: trial.recall)
            near.append(f"recall {best.recall:.3f} by {best.plan.kind} in {best.bytes:,} bytes")
        if larger := [trial for trial in self.trials if trial.verdict == "memory"]:
            least = min(larger, key=lambda trial: trial.bytes)
            near.append(f"{least.plan.kind} from {least.bytes:,} bytes on, its recall not tried")
        return ConfigError(
            f"no kind of index gives {wished} for {self.count:,} vectors of {self.dim}",
            allowed="the nearest is " + ", or ".join(near) if near else None,
            remedy="Lower index.recall, or raise index.memory or index.seconds",
        )

    def told(self) -> dict[str, Any]:
        """All of it as JSON values."""
        trials = [asdict(trial) for trial in self.trials]
        for trial in trials:
            trial["seconds"] = None if np.isinf(trial["seconds"]) else trial["seconds"]
        return {
            "wishes": asdict(self.wishes),
            "count": self.count,
            "dim": self.dim,
            "metric": self.metric,
            "sample": self.sample,
            "trials": trials,
            "built": self.measured,
        }

    def write(self, path: Path) -> None:
        """Write plan.json."""
        path.write_text(json.dumps(self.told(), indent=1), encoding="utf-8")


def choose(spool: Spool, metric: Metric, wishes: Wishes) -> Choice:
    """Choose a plan for the vectors of a spool, whose last `wishes.held_out` are the queries.

    Raises:
        ConfigError: no kind does what is wished for; with the nearest that one does.
    """
    count, dim = len(spool), spool.dim
    known = count - wishes.held_out(count)
    choice = Choice(wishes, [], [], min(_SAMPLE, known), count, dim, metric)
    whole = Plan("exact")
    size = wishes.bytes_of(whole, count, dim)
    room = wishes.memory is None or size <= wishes.memory
    if known < _FEW and "exact" in wishes.kinds and room:
        choice.trials.append(Trial(whole, (), size, 1.0, verdict="chosen"))
        choice.plans.append(whole)
        return choice
    if known == count:
        raise ConfigError(
            f"{count} vectors are too few to measure recall by",
            allowed=f"kind exact, which takes {size:,} bytes",
            remedy="Raise index.memory",
        )
    queries = spool.rows(slice(known, None))
    sample = spool.sample(choice.sample, known)
    tests = [
        _Test.of(queries, Spool(some), len(some), metric, wishes)
        for some in (sample[:: _QUARTER if len(sample) >= _FEW else 1], sample)
    ]
    until = time.monotonic() + wishes.seconds
    for plan in candidates(count, dim, metric, wishes):
        size = wishes.bytes_of(plan, count, dim)
        if wishes.memory is not None and size > wishes.memory:
            choice.trials.append(Trial(plan, (), size, verdict="memory"))
        elif time.monotonic() < until:
            choice.trials.append(_tried(plan, tests, count))
        else:
            choice.trials.append(Trial(plan, (), size))
    _decide(choice)
    return choice


def _decide(choice: Choice) -> None:
    good = [t for t in choice.trials if t.verdict == "slower"]
    if not good:
        raise choice.refusal()
    least = min(trial.seconds for trial in good)
    # What differs by less than timings do is the same: then the smaller one.
    good.sort(key=lambda t: (0, t.bytes) if t.seconds <= _ALIKE * least else (1, t.seconds))
    choice.plans += [trial.plan for trial in good]
    place = choice.trials.index(good[0])
    choice.trials[place] = replace(good[0], verdict="chosen")


def candidates(count: int, dim: int, metric: Metric, wishes: Wishes) -> Iterator[Plan]:
    """Plans worth a try, likely ones first."""
    root = np.sqrt(count)
    flat = wishes.bytes_of(Plan("ivf_flat").settled(count, dim, metric), count, dim)
    roomy = wishes.memory is None or flat <= wishes.memory
    known = {
        "exact": [Plan("exact")],
        "hnsw": [Plan("hnsw", m=16), Plan("hnsw", m=32, ef_construction=200)],
        "ivf_flat": [Plan("ivf_flat", nlist=round(root)), Plan("ivf_flat", nlist=round(4 * root))],
        # Codes alone cannot say what is within a radius: only where there is no room for more.
        "ivf_sq8": [
            Plan("ivf_sq8", nlist=round(2 * root), rerank=r) for r in ((1, 3) if roomy else (0, 2))
        ],
        "ivf_pq": [
            Plan("ivf_pq", nlist=round(2 * root), pq_bytes=max(1, dim // per), rerank=r)
            for per, r in ((4, 4), (2, 0), (8, 10), *(() if roomy else ((4, 0), (8, 0))))
        ],
        "kd_tree": [Plan("kd_tree")] if dim <= 12 and metric != "dot" else [],
    }
    # Short codes are slow to learn, and seldom found by faster than vectors that have room.
    spare = roomy and not {"exact", "hnsw", "ivf_flat"}.isdisjoint(wishes.kinds)
    tried = [kind for kind in wishes.kinds if not spare or kind != "ivf_pq"]
    # One of each kind, then the others of each.
    turns = range(max(map(len, known.values())))
    plans = (known[kind][turn] for turn in turns for kind in tried if turn < len(known[kind]))
    # Of few dimensions several are the same.
    yield from dict.fromkeys(plan.settled(count, dim, metric) for plan in plans)


def _tried(plan: Plan, tests: list[_Test], count: int) -> Trial:
    wishes, dim = tests[0].wishes, tests[0].spool.dim
    found: list[tuple[int, Point, list[Point], bool]] = []
    for test in tests:
        size = len(test.spool)
        own = plan
        if plan.nlist:  # cells grow as the root of what is in them, here as there
            own = replace(plan, nlist=max(1, round(plan.nlist * np.sqrt(size / count))))
        own = own.settled(size, dim, test.metric)
        originals = np.empty((size, dim), np.float16) if own.keeps_originals else None
        vectors = kinds.empty(own, test.metric, test.spool.array, originals)
        with using(1 if plan.kind == "hnsw" else None):
            vectors.add(test.spool.array)
        points, met = test.climb(vectors)
        found.append((size, _best(points, wishes.recall), points, met))
    (small, before, _, _), (size, best, points, met) = found
    power = 0.0
    if size > small and before.seconds > 0:
        power = float(np.clip(np.log(best.seconds / before.seconds) / np.log(size / small), 0, 1))
    growing = max(1.0, count / size)
    return Trial(
        plan=plan.with_effort(best.effort),
        points=tuple(sorted(points, key=lambda point: point.effort)),
        bytes=wishes.bytes_of(plan, count, dim),
        recall=best.recall,
        seconds=best.seconds * growing**power,
        verdict="slower" if met else "recall",
    )


def _best(points: list[Point], target: float) -> Point:
    """The least effort that reaches a recall, else the largest recall."""
    good = [point for point in points if point.recall >= target]
    if good:
        return min(good, key=lambda point: point.effort)
    return max(points, key=lambda point: point.recall)


@dataclass
class _Test:
    """Queries with their exact neighbours among some vectors."""

    queries: np.ndarray
    spool: Spool
    known: int
    metric: Metric
    wishes: Wishes
    rows: Rows
    kth: np.ndarray

    @classmethod
    def of(
        cls, queries: np.ndarray, spool: Spool, known: int, metric: Metric, wishes: Wishes
    ) -> _Test:
        alive = np.random.default_rng(_SEED).random(known) >= wishes.deletes
        alive[0] = True
        test = cls(queries, spool, known, metric, wishes, Rows.of(alive), np.empty(0))
        near = np.empty((len(queries), 0), np.float32)
        for begin in range(0, known, 2**16):
            end = min(begin + 2**16, known)
            some = spool.rows(slice(begin, end))[alive[begin:end]]
            if len(some):
                k, code = min(wishes.k, len(some)), code_of(metric)
                search = partial(faiss.knn, xb=some, k=k, metric=code)
                _, rows = by_differences(search, queries, metric)
                near = np.concatenate([near, apart(queries, some[rows], metric)], axis=1)
        near.sort(axis=1)
        test.kth = near[:, : wishes.k][:, -1:]
        return test

    def recall(self, found: np.ndarray) -> float:
        """Share of what was found that is as near as the exact neighbours: equals count."""
        kept = self.spool.rows(found.ravel()).reshape(*found.shape, -1)
        near = apart(self.queries, kept, self.metric)
        slack = _CLOSE * np.abs(self.kth) + (0 if self.metric == "l2" else ROUNDING)
        return float((near <= self.kth + slack).mean())

    def climb(self, vectors: Built) -> tuple[list[Point], bool]:
        """Search harder and harder until recall is what was wished for, then as little as it takes.

        Returns:
            What was measured, and whether it is.
        """
        least = self.wishes.k if vectors.plan.kind == "hnsw" else 1
        most = self._most(vectors)
        points: dict[int, Point] = {}

        def reaches(effort: int) -> bool:
            if effort not in points:
                points[effort] = self._point(vectors, effort)
            return points[effort].recall >= self.wishes.recall

        effort = least
        while not reaches(effort) and effort < most:
            effort = min(2 * effort, most)
        met = points[effort].recall >= self.wishes.recall
        low, high = effort // 2, effort
        while met and high - low > max(1, high // 50) and high > least:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return list(points.values()), met

    def _most(self, vectors: Built) -> int:
        if vectors.plan.kind in _EXACT:
            return 1
        return self.known if vectors.plan.kind == "hnsw" else vectors.plan.nlist

    def _point(self, vectors: Built, effort: int) -> Point:
        def search(queries: np.ndarray) -> np.ndarray:
            return nearest.search(vectors, queries, self.wishes.k, self.rows, effort)[1]

        if vectors.plan.kind in _EXACT:
            found = search(self.queries)
        else:  # one by one: what is compared with all where many ask may not be where one does
            found = np.concatenate([search(query[np.newaxis]) for query in self.queries])
        return Point(effort, self.recall(found), self._seconds(search))

    def _seconds(self, search: Callable[[np.ndarray], np.ndarray]) -> float:
        """A query's, the least of a few rounds."""
        rounds = []
        for _ in range(_ROUNDS):
            begin = time.perf_counter()
            if self.wishes.prefer == "throughput":
                search(self.queries)
                rounds.append((time.perf_counter() - begin) / len(self.queries))
                continue
            few = self.queries[:_ALONE]
            with using(1):
                for row in range(len(few)):
                    search(few[row : row + 1])
            rounds.append((time.perf_counter() - begin) / len(few))
        return min(rounds)
