"""Opening a version: what is cheap is checked, and parts that do not belong together refused."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from lookalike import artifacts
from lookalike.artifacts import Artifact
from lookalike.errors import ArtifactError
from lookalike.index import kinds
from lookalike.index.build import PART, TOMBSTONES_FILE, VERSION, digest
from lookalike.index.delta import Delta
from lookalike.index.items import ITEMS_FILE, UNREADABLE, Items
from lookalike.index.kinds import Built
from lookalike.index.plan import Plan
from lookalike.index.rows import Rows

_AGAIN = "These parts do not belong together: run `lookalike index` again"


@dataclass(frozen=True)
class Opened:
    """A version's parts, opened.

    Attributes:
        version: the version.
        parts: the base, then deltas.
        vectors, items, alive: of the base.
        delta: the items of all deltas, one after the other.
        ends: rows of the delta at which deltas end, after a 0.
    """

    version: Artifact
    parts: list[Artifact]
    vectors: Built
    items: Items
    alive: Rows
    delta: Delta
    ends: list[int]


def opened(root: str, name: str, folder: Path) -> Opened:
    """Open a version.

    Args:
        root: folder or URI of all parts and versions.
        name: of the version.
        folder: where copies of remote parts go.

    Raises:
        ArtifactError: missing, damaged, or parts that do not belong together.
    """
    version = artifacts.open_artifact(artifacts.join(root, "versions", name), VERSION)
    parts = parts_of(root, version)
    for small in (version, *parts[1:]):  # all of them is read anyway
        artifacts.verify(small)
    base, *later = [_part(version, part, artifacts.fetch(part, folder)) for part in parts]
    delta, ends = Delta(version.meta["dim"], version.meta["metric"]), [0]
    for vectors, items in later:
        everyone = np.arange(len(items))
        delta.add(
            items.ids.to_pylist(),
            vectors.take(everyone),
            items.labels.to_pylist(),
            items.attributes(everyone),
        )
        ends.append(len(delta))
    alive = np.ones(len(base[1]), bool)
    dead = _tombstones(version, folder, [len(alive), *np.diff(ends).tolist()])
    for part, row in dead[dead[:, 0] > 0]:
        delta.kill(ends[part - 1] + int(row))
    alive[dead[dead[:, 0] == 0, 1]] = False
    rows = Rows.of(alive)
    if rows.count + len(delta.rows) != version.meta["count"]:
        raise ArtifactError(
            f"the parts of index version {name} have {rows.count + len(delta.rows):,} items; the "
            f"version says {version.meta['count']:,}",
            remedy=_AGAIN,
        )
    return Opened(version, parts, *base, rows, delta, ends)


def parts_of(root: str, version: Artifact) -> list[Artifact]:
    """The parts of a version.

    Args:
        root: folder or URI of all parts and versions.
        version: opened.

    Raises:
        ArtifactError: missing, damaged, or not those that the version was made of.
    """
    meta = version.meta
    parts = [
        artifacts.open_artifact(artifacts.join(root, "parts", part), PART) for part in meta["parts"]
    ]
    for part, known in zip(parts, meta.get("digests", [None] * len(parts)), strict=True):
        if part.meta["encoder"] != meta["encoder"] or part.meta["dim"] != meta["dim"]:
            raise ArtifactError(
                f"index part {part.name} is of encoder {part.meta['encoder'][:12]}, the version is "
                f"of {meta['encoder'][:12]}",
                remedy=_AGAIN,
            )
        # Format 1 has no digests.
        if known is not None and digest(part) != known:
            raise ArtifactError(
                f"index part {part.name} is not the one that version {version.name} was made of",
                remedy=_AGAIN,
            )
    return parts


def _part(version: Artifact, part: Artifact, folder: Path) -> tuple[Built, Items]:
    meta: dict[str, Any] = part.meta
    plan = Plan(**version.meta["plan"])
    if meta.get("kind", plan.kind) != plan.kind:
        plan = Plan("exact")  # a delta
    scale, count = meta.get("scale", 1.0), meta["count"]
    vectors = kinds.read(folder, plan, version.meta["metric"], scale, count)
    items = Items.read(folder, [(begin, end) for begin, end in meta.get("runs", ())])
    if len(items) != count:
        raise ArtifactError(
            f"{ITEMS_FILE} of index part {part.name} has {len(items):,} items, not {count:,}",
            remedy=_AGAIN,
        )
    return vectors, items


def _tombstones(version: Artifact, folder: Path, sizes: list[int]) -> np.ndarray:
    """int64 (n, 2): part and row; `sizes` are the parts'."""
    if TOMBSTONES_FILE not in [entry.path for entry in version.manifest.files]:
        return np.empty((0, 2), np.int64)
    file = artifacts.fetch(version, folder) / TOMBSTONES_FILE
    try:
        table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
        found = np.stack([table["part"].to_numpy(), table["row"].to_numpy()], axis=1)
    except UNREADABLE as error:
        raise ArtifactError(
            f"{file} cannot be read ({str(error).splitlines()[0]})",
            remedy="Run `lookalike index` again",
        ) from error
    # Files of before have no mark.
    mark = (table.schema.metadata or {}).get(b"version", b"").decode()
    if mark and mark != artifacts.fingerprint(version.meta):
        raise ArtifactError(f"{file} is not of index version {version.name}", remedy=_AGAIN)
    parts, rows = found.T
    if ((found < 0).any(axis=1) | (parts >= len(sizes))).any() or (
        rows >= np.array(sizes)[parts]
    ).any():
        raise ArtifactError(f"{file} names rows that no part has", remedy=_AGAIN)
    return found
