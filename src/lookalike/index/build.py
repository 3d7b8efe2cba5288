"""Building an index version: immutable parts, and a version that lists them.

ROOT/parts/NAME/     vectors.faiss, items.arrow, of some kinds originals.npy    kind 'index-part'
ROOT/versions/NAME/  tombstones.arrow, plan.json where a planner chose          kind 'index'

A version's first part is its base, the others are deltas. Its `tombstones` are rows that are not
found any more: those of items that were changed or deleted after the part was written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa

from lookalike import artifacts
from lookalike.artifacts import Artifact
from lookalike.columns import ATTRIBUTES, ITEM_ID, LABEL, VECTOR
from lookalike.errors import DataError
from lookalike.index import kinds, planner
from lookalike.index.items import Items, ascending
from lookalike.index.kinds import Built
from lookalike.index.metric import Metric, prepared
from lookalike.index.plan import Plan
from lookalike.index.planner import PLAN_FILE, Wishes
from lookalike.index.spool import Spool, extend, filled, using

PART: Final = "index-part"
VERSION: Final = "index"
TOMBSTONES_FILE: Final = "tombstones.arrow"
OF_VERSION: Final = (
    "parts", "digests", "tombstones", "count", "dim", "metric", "plan", "recall", "versions"
)  # fmt: skip
"""What a version's meta says of itself; the rest is what it was made from."""
_SEED = 17

Draw = Callable[[dict[str, Any], Path], None]
"""Draws what a planner tried, the content of plan.json, into a folder."""


def build(
    root: str,
    batches: Iterable[pa.RecordBatch],
    dim: int,
    plan: Plan | Wishes,
    made_from: dict[str, Any],
    *,
    metric: Metric = "cosine",
    threads: int | None = None,
    draw: Draw | None = None,
) -> Artifact:
    """Build and commit an index version of one base part.

    Vectors are spooled to the local disk and read from there. The same items, plan and number of
    threads give the same index: a graph is always built by one.

    Args:
        root: folder or URI of all parts and versions.
        batches: columns item_id, label, vector (list of `dim` float32) and, where there are any,
            attributes (map<string, string>); by ascending item_id: so the same items are the same
            index, and a double shows.
        dim: length of a vector.
        plan: how to keep them; or what is wished for, from which a plan is made.
        made_from: `encoder` (fingerprint) and versions of tables; JSON values.
        metric: of the distances.
        threads: to build by; None for as many as faiss takes.
        draw: adds a picture of what a planner tried.

    Returns:
        The version; `meta["count"]` items.

    Raises:
        DataError: no items, a vector of another length or not finite, or an item twice.
        ConfigError: wishes that cannot be met, with what can.
    """
    with artifacts.workbench() as bench, using(threads):
        items, spool = _collected(batches, dim, metric, bench)
        folder = bench / "part"
        folder.mkdir()
        chosen = None
        if isinstance(plan, Wishes):
            held_out = plan.held_out(len(items))
            order, runs = _apart(len(items), held_out)
            items = items.reordered(order, runs) if held_out else items
            spool = Spool(spool.array, order)
            chosen = planner.choose(spool, metric, plan)
            vectors = _fitted(spool, metric, chosen, folder)
            plan = vectors.plan
        else:
            runs = [(0, len(items))]
            plan = plan.settled(len(items), dim, metric)
            vectors = filled(spool, plan, metric, folder, len(items))
        items.write(folder)
        vectors.write(folder)
        part = commit_part(root, folder, vectors, dim, runs, made_from)
        with artifacts.workbench() as empty:
            if chosen is not None:
                chosen.write(empty / PLAN_FILE)
                if draw is not None:
                    draw(chosen.told(), empty)
            recall = chosen.measured.get("recall") if chosen is not None else None
            made = Version([part], plan, metric, dim, made_from, recall)
            return made.commit(root, empty, np.empty((0, 2), np.int64))


@dataclass(frozen=True)
class Version:
    """What a version lists.

    Attributes:
        parts: the base, then deltas.
        plan: of the base.
        metric: of the distances.
        dim: length of a vector.
        made_from: `encoder` (fingerprint) and versions of tables; JSON values.
        recall: of held-out vectors, when the base was built; None where it was not measured.
    """

    parts: Sequence[Artifact]
    plan: Plan
    metric: Metric
    dim: int
    made_from: dict[str, Any]
    recall: float | None = None

    def commit(self, root: str, folder: Path, dead: np.ndarray) -> Artifact:
        """Commit the version with the files of a folder.

        Args:
            root: as `build`.
            folder: of further files of the version.
            dead: int64 (n, 2), part and row of each tombstone.
        """
        count = sum(part.meta["count"] for part in self.parts) - len(dead)
        meta = {
            **self.made_from,
            "parts": [part.name for part in self.parts],
            "digests": [digest(part) for part in self.parts],
            "tombstones": len(dead),
            "count": count,
            "dim": self.dim,
            "metric": self.metric,
            "plan": asdict(self.plan),
            "recall": self.recall,
            "versions": {p: version(p) for p in ("faiss-cpu", "pyarrow")},
        }
        # The file knows its version: two that changed places, or their manifests, are found out.
        mark = {"version": artifacts.fingerprint(meta)}
        columns = [pa.array(dead[:, 0]), pa.array(dead[:, 1])]
        schema = pa.schema([("part", pa.int64()), ("row", pa.int64())], metadata=mark)
        with (
            pa.OSFile(str(folder / TOMBSTONES_FILE), "wb") as sink,
            pa.ipc.new_file(sink, schema) as file,
        ):
            file.write_batch(pa.record_batch(columns, schema=schema))
        return artifacts.commit(artifacts.join(root, "versions"), VERSION, folder, meta)


def commit_part(
    root: str,
    folder: Path,
    vectors: Built,
    dim: int,
    runs: Sequence[tuple[int, int]],
    made_from: dict[str, Any],
) -> Artifact:
    """Commit what `Flat.write` and `Items.write` left in a folder.

    Args:
        root, dim, made_from: as `build`.
        folder: of the files.
        vectors: those that were written.
        runs: see `Items`.
    """
    meta = {
        "count": vectors.count,
        "dim": dim,
        "encoder": made_from["encoder"],
        "metric": vectors.metric,
        "kind": vectors.plan.kind,
        "scale": getattr(vectors, "scale", 1.0),
        "runs": [list(run) for run in runs],
    }
    return artifacts.commit(artifacts.join(root, "parts"), PART, folder, meta)


def digest(part: Artifact) -> str:
    """What a version knows its parts by: a sha256 over their files' and meta."""
    files = [asdict(entry) for entry in part.manifest.files]
    return artifacts.fingerprint({"files": files, "meta": part.meta})


def commit_delta(
    root: str, items: Items, vectors: np.ndarray, metric: Metric, made_from: dict[str, Any]
) -> Artifact:
    """Commit a delta part: items with float32 (n, dim) vectors, `prepared`."""
    held = kinds.empty(Plan("exact"), metric, vectors)
    held.add(vectors)
    with artifacts.workbench() as folder:
        items.write(folder)
        held.write(folder)
        return commit_part(root, folder, held, vectors.shape[1], [], made_from)


def _collected(
    batches: Iterable[pa.RecordBatch], dim: int, metric: Metric, bench: Path
) -> tuple[Items, Spool]:
    known: list[pa.RecordBatch] = []
    last, count = "", 0
    path = bench / "spool.f32"
    with path.open("wb") as file:
        for batch in batches:
            if not batch.num_rows:
                continue
            prepared(_matrix(batch, dim), metric).tofile(file)
            last = ascending(last, batch.column(ITEM_ID).cast(pa.large_string()))
            names = [n for n in (ITEM_ID, LABEL, ATTRIBUTES) if n in batch.schema.names]
            known.append(pa.record_batch([batch.column(name) for name in names], names))
            count += batch.num_rows
    if not count:
        raise DataError("there are no vectors to index", remedy="Run `lookalike embed` first")
    return Items.gathered(known), Spool(np.memmap(path, np.float32, "r", shape=(count, dim)))


def _apart(count: int, held_out: int) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """An order in which a random few come last, and the runs of it that ascend."""
    last = np.sort(np.random.default_rng(_SEED).choice(count, held_out, replace=False))
    first = np.delete(np.arange(count), last)
    runs = [(0, len(first)), (len(first), count)]
    return np.concatenate([first, last]), [run for run in runs if run[0] < run[1]]


def _fitted(spool: Spool, metric: Metric, chosen: planner.Choice, folder: Path) -> Built:
    """All of a spool, kept by the first of the planned that does what was wished for.

    What is held out joins when recall has been measured without it.

    Raises:
        ConfigError: on all vectors none of them does.
    """
    known = len(spool) - chosen.wishes.held_out(len(spool))
    for plan in chosen.plans:
        for file in folder.iterdir():  # of the plan before
            file.unlink()
        vectors = filled(spool, plan, metric, folder, known)
        if chosen.confirm(vectors, spool, known):
            extend(vectors, spool, len(spool))
            return vectors
    raise chosen.refusal()


def _matrix(batch: pa.RecordBatch, dim: int) -> np.ndarray:
    column = batch.column(VECTOR)
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if len(values) != len(column) * dim:
        raise DataError(
            f"vectors of another length than {dim} came to the index",
            remedy="Embed the catalogue with one encoder: run `lookalike embed` again",
        )
    return np.ascontiguousarray(values.reshape(len(column), dim))
