"""An index version, opened: searched, filtered, changed, and committed as the next version."""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from lookalike import artifacts
from lookalike.artifacts import Artifact
from lookalike.columns import ATTRIBUTES, ITEM_ID, LABEL, VECTOR
from lookalike.errors import ConfigError, DataError
from lookalike.index import nearest
from lookalike.index.build import OF_VERSION, Version, commit_delta
from lookalike.index.delta import Delta
from lookalike.index.filters import Filters, Matching
from lookalike.index.items import Attributes, Items
from lookalike.index.metric import Metric, prepared
from lookalike.index.neighbours import Neighbours
from lookalike.index.plan import CODED, Plan
from lookalike.index.reading import Opened, opened
from lookalike.index.rows import Rows
from lookalike.index.spool import using
from lookalike.index.vectors import Vectors, joined

_CHUNK = 2**14
T = TypeVar("T")


class Selection:
    """Items of an open index, by their ids: those that it had when it was asked."""

    def __init__(self, index: Index, matching: Matching):
        self.index = index
        self.matching = matching


class Index:
    """An index version, opened. Files are mapped into memory and never changed.

    Searches may run side by side, with one another and with a change; changes come one by one. A
    change is found by every search that begins after it.
    """

    def __init__(self, root: str, found: Opened, threads: int | None):
        self.meta: dict[str, Any] = found.version.meta
        self._root = root
        self._parts = found.parts
        self._vectors: Vectors = found.vectors
        self._items: Items = found.items
        self._alive: Rows = found.alive
        self._delta: Delta = found.delta
        self._ends = found.ends
        self._threads = threads
        self._filters = Filters(found.items, found.delta)
        self._changing = threading.RLock()  # as long as a change takes
        self._lock = threading.Lock()  # for the moment of it
        self._fetched: tempfile.TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, root: str, version: str, threads: int | None = None) -> Index:
        """Open a committed version.

        Args:
            root: folder or URI of all parts and versions.
            version: name of the version.
            threads: that a search takes; None for as many as faiss takes.

        Raises:
            ArtifactError: missing, damaged, or parts that do not belong together.
        """
        fetched = tempfile.TemporaryDirectory(prefix="lookalike-index-")
        index = cls(root, opened(root, version, Path(fetched.name)), threads)
        index._fetched = fetched  # a remote part's files stay as long as they are mapped
        return index

    def __len__(self) -> int:
        """Items that are found."""
        return self._alive.count + len(self._delta.rows)

    def __contains__(self, item_id: str) -> bool:
        return self._place(item_id) is not None

    @property
    def dim(self) -> int:
        return int(self.meta["dim"])

    @property
    def metric(self) -> Metric:
        metric: Metric = self.meta["metric"]
        return metric

    @property
    def plan(self) -> Plan:
        """How the base is kept, and how hard is looked where a search does not say."""
        return self._vectors.plan

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder whose vectors are kept."""
        return str(self.meta["encoder"])

    @property
    def keys(self) -> list[str]:
        """Keys that attributes have: the names of filters."""
        return sorted(self._filters.keys)

    def search(
        self,
        vectors: np.ndarray,
        k: int,
        where: str | Selection | None = None,
        effort: int | None = None,
    ) -> Neighbours:
        """The `k` nearest items of each vector, nearest first; all that match where they are fewer.

        Args:
            vectors: (n, dim) numbers, of any length where the metric is cosine.
            k: at least 1.
            where: which items may be found: a filter (see `lookalike.index.where`), or those that
                `among` gave.
            effort: see `Plan.effort`, for 10 neighbours among all items: for more, and among
                fewer, a search looks harder. None for the plan's.

        Raises:
            DataError: vectors of another shape, k below 1, or a filter that is none or names what
                no item has.
        """
        if k < 1:
            raise DataError(f"k = {k}", allowed="at least 1")
        queries = self._queries(vectors)
        effort = self.plan.effort if effort is None else max(1, effort)
        with using(self._threads):
            base, delta = self._chosen(where)
            near, rows = nearest.search(self._vectors, queries, k, base, effort)
            if delta.count:
                more = nearest.search(self._delta.vectors, queries, k, delta, effort)
                near = np.concatenate([near, more[0]], axis=1)
                rows = np.concatenate([rows, more[1] + len(self._items)], axis=1)
                order = np.argsort(near, axis=1, kind="stable")[:, :k]
                near = np.take_along_axis(near, order, axis=1)
                rows = np.take_along_axis(rows, order, axis=1)
        limits = np.arange(len(queries) + 1) * near.shape[1]
        return self._neighbours(limits, near.ravel(), rows.ravel())

    def within(
        self, vectors: np.ndarray, radius: float, where: str | Selection | None = None
    ) -> Neighbours:
        """All items at most `radius` away from each vector, nearest first: an exact pass.

        Args:
            vectors: as `search`.
            radius: a distance of the index's metric; float32's rounding is granted.
            where: as `search`.

        Raises:
            DataError: as `search`, or a radius that is no number, or below 0 by cosine or l2.
            ConfigError: an index that keeps codes alone.
        """
        if not np.isfinite(radius) or (radius < 0 and self.metric != "dot"):
            allowed = "a finite number" if self.metric == "dot" else "0 or more, and finite"
            raise DataError(f"radius = {radius} by {self.metric}", allowed=allowed)
        queries = self._queries(vectors)
        with using(self._threads):
            base, delta = self._chosen(where)
            parts = [nearest.within(self._vectors, queries, radius, base)]
            if delta.count:
                owners, near, rows = nearest.within(self._delta.vectors, queries, radius, delta)
                parts.append((owners, near, rows + len(self._items)))
        owners, near, rows = joined(parts)
        order = np.lexsort((rows, near, owners))
        limits = np.searchsorted(owners[order], np.arange(len(queries) + 1))
        return self._neighbours(limits, near[order], rows[order])

    def count(self, where: str | Selection | None = None) -> int:
        """How many items match."""
        return sum(rows.count for rows in self._chosen(where))

    def among(self, item_ids: Sequence[str] | pa.Array) -> Selection:
        """Those items that have one of these ids, for `where`."""
        ids = pa.array(item_ids, pa.string()) if not isinstance(item_ids, pa.Array) else item_ids
        with self._lock:
            later = self._delta.ids.copy()
        wanted = set(ids.to_pylist()) if later else set()
        delta = np.array([item_id in wanted for item_id in later], bool)
        return Selection(self, Matching(Rows.of(self._items.among(ids)), delta))

    def vector(self, item_id: str) -> np.ndarray | None:
        """The vector of an item, float32 (dim,), or None where it is not in the index.

        As it is kept: of kinds of codes, as near as float16 or the code is.
        """
        place = self._place(item_id)
        if place is None:
            return None
        of, row = place
        return (self._vectors, self._delta.vectors)[of].take(np.array([row]))[0].copy()

    def about(self, item_id: str) -> dict[str, str] | None:
        """The attributes of an item; None where it has none, or is not in the index."""
        place = self._place(item_id)
        if place is None:
            return None
        of, row = place
        return self._attributes(np.array([row + of * len(self._items)]))[0]

    def add(
        self,
        item_ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None] | None = None,
        attributes: Sequence[Attributes] | None = None,
    ) -> None:
        """Add items; none where one of them cannot be. They are found at once.

        Args:
            item_ids: n new ids.
            vectors: (n, dim) numbers.
            labels: n, or None for none.
            attributes: n, or None for none.

        Raises:
            DataError: an id that is in the index or twice among these, or values that do not fit.
        """
        with self._changing:
            for item_id in item_ids:
                if item_id in self:
                    raise DataError(
                        f"item {item_id!r} is in the index already",
                        remedy="Use `change` for items that are there",
                    )
            self._replace([], item_ids, vectors, labels, attributes)

    def change(
        self,
        item_ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None] | None = None,
        attributes: Sequence[Attributes] | None = None,
    ) -> None:
        """Give items that are there new vectors, labels and attributes: all three, as `add`.

        Raises:
            DataError: an id that is not in the index or twice among these, or values that do not
                fit.
        """
        with self._changing:
            self._replace(self._places(item_ids), item_ids, vectors, labels, attributes)

    def delete(self, item_ids: Sequence[str]) -> None:
        """Delete items; none where one of them is not there.

        Raises:
            DataError: an id that is not in the index, or twice among these.
        """
        with self._changing:
            gone = self._places(item_ids)
            with self._lock:
                self._kill(gone)

    def commit(self, made_from: dict[str, Any] | None = None) -> Artifact:
        """Commit the index as it is now: what is new as a delta part, what is gone as tombstones.

        Args:
            made_from: versions of tables that are other than the opened version's; JSON values.

        Raises:
            DataError: nothing is left in it, so that there is nothing to search.
        """
        with self._changing:
            if not len(self):
                raise DataError("every item of the index was deleted", remedy="Build a new one")
            source = {k: v for k, v in self.meta.items() if k not in OF_VERSION} | (made_from or {})
            if source["encoder"] != self.encoder:
                raise DataError(
                    f"the index is of encoder {self.encoder[:12]}, its change of encoder "
                    f"{source['encoder'][:12]}",
                    remedy="Build a new index of the new encoder's vectors",
                )
            if len(self._delta) > self._ends[-1]:
                self._parts.append(self._new_part(source))
                self._ends.append(len(self._delta))
            recall = self.meta.get("recall")
            version = Version(self._parts, self.plan, self.metric, self.dim, source, recall)
            with artifacts.workbench() as folder:
                made = version.commit(self._root, folder, self._tombstones())
            self.meta = made.meta
            return made

    def batches(self) -> Iterator[pa.RecordBatch]:
        """All items with their vectors, by ascending id: what `build` takes, to fold the parts.

        Raises:
            ConfigError: an index that keeps codes alone.
        """
        plan = self.plan
        if plan.kind in CODED and not plan.keeps_originals:
            raise ConfigError(
                f"an index of kind {plan.kind!r} that keeps codes alone has no vectors to build "
                "another of",
                remedy="Run `lookalike index`, which takes them from the tables",
            )
        with self._lock:
            base, delta = self._alive.numbers, np.flatnonzero(self._delta.alive)
        rows = np.concatenate([base, delta + len(self._items)])
        rows = rows[np.argsort(np.array(self._ids(rows), dtype=object), kind="stable")]
        for begin in range(0, len(rows), _CHUNK):
            yield self._batch(rows[begin : begin + _CHUNK])

    def _queries(self, vectors: np.ndarray) -> np.ndarray:
        vectors = np.asarray(vectors)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim or vectors.dtype.kind not in "fiu":
            raise DataError(
                f"vectors of shape {vectors.shape} and {vectors.dtype} came to the index",
                allowed=f"numbers, (n, {self.dim})",
            )
        return prepared(vectors, self.metric)

    def _chosen(self, where: str | Selection | None) -> tuple[Rows, Rows]:
        """Rows of the base and of the delta that may be found."""
        with self._lock:
            if where is None:
                return self._alive, self._delta.found
            if isinstance(where, str):
                return self._filters.matching(where).among(self._alive, self._delta.found)
            if where.index is not self:
                raise DataError("the selection is of another index", remedy="Call `among` of this")
            return where.matching.among(self._alive, self._delta.found)

    def _place(self, item_id: str) -> tuple[int, int] | None:
        """Where an item is: 0 for the base or 1 for the delta, and its row."""
        alive = self._alive  # first: what a change takes out of it after this, the delta has
        row = self._delta.rows.get(item_id)
        if row is not None:
            return 1, row
        row = self._items.find(item_id)
        return (0, row) if row is not None and row in alive else None

    def _places(self, item_ids: Sequence[str]) -> list[tuple[int, int]]:
        _once(item_ids)
        found = []
        for item_id in item_ids:
            place = self._place(item_id)
            if place is None:
                raise DataError(f"there is no item {item_id[:100]!r} in the index")
            found.append(place)
        return found

    def _replace(
        self,
        before: list[tuple[int, int]],
        item_ids: Sequence[str],
        vectors: np.ndarray,
        labels: Sequence[str | None] | None,
        attributes: Sequence[Attributes] | None,
    ) -> None:
        _once(item_ids)
        kept = self._queries(vectors)
        labels = [None] * len(item_ids) if labels is None else labels
        attributes = [None] * len(item_ids) if attributes is None else attributes
        if not len(item_ids) == len(kept) == len(labels) == len(attributes):
            raise DataError(
                f"{len(item_ids)} ids, {len(kept)} vectors, {len(labels)} labels and "
                f"{len(attributes)} attributes came to the index",
                allowed="as many of each",
            )
        try:
            # Copies: whoever gave them may go on to change them.
            own = [a if a is None else {k: v for k, v in a.items() if v is not None}
                   for a in attributes]  # fmt: skip
            Items.of(item_ids, labels, own)
        except (pa.ArrowInvalid, TypeError, AttributeError) as error:
            raise DataError(
                f"an id, a label or an attribute is no text ({error})",
                allowed="ids: text; labels: text or None; attributes: texts by their keys, or None",
            ) from None
        with self._lock:
            self._delta.add(list(item_ids), kept, list(labels), own)
            self._kill(before)

    def _kill(self, places: list[tuple[int, int]]) -> None:
        gone = np.array([row for of, row in places if of == 0], np.int64)
        if len(gone):
            self._alive = self._alive.without(gone)
        for of, row in places:
            if of == 1:
                self._delta.kill(row)

    def _tombstones(self) -> np.ndarray:
        """int64 (n, 2): part and row of what is not found any more."""
        base = np.flatnonzero(~self._alive.mask)
        found = [np.stack([np.zeros_like(base), base], axis=1)]
        for part, (begin, end) in enumerate(zip(self._ends, self._ends[1:], strict=False), start=1):
            rows = np.flatnonzero(~self._delta.alive[begin:end])
            found.append(np.stack([np.full_like(rows, part), rows], axis=1))
        return np.concatenate(found)

    def _new_part(self, made_from: dict[str, Any]) -> Artifact:
        begin, end = self._ends[-1], len(self._delta)
        return commit_delta(
            self._root,
            self._delta.items(begin, end),
            self._delta.vectors.take(slice(begin, end)),
            self.metric,
            made_from,
        )

    def _neighbours(self, limits: np.ndarray, near: np.ndarray, rows: np.ndarray) -> Neighbours:
        return Neighbours(self._ids, self._labels, self._attribute, limits, near, rows)

    def _ids(self, rows: np.ndarray) -> list[str]:
        return self._values(rows, self._items.ids_of, self._delta.ids.__getitem__)

    def _labels(self, rows: np.ndarray) -> list[str | None]:
        return self._values(rows, self._items.labels_of, self._delta.labels.__getitem__)

    def _attribute(self, rows: np.ndarray, key: str) -> list[str | None]:
        return self._values(
            rows,
            lambda early: self._items.attribute(early, key),
            lambda row: (self._delta.attributes[row] or {}).get(key),
        )

    def _values(
        self, rows: np.ndarray, early: Callable[[np.ndarray], list[T]], late: Callable[[int], T]
    ) -> list[T]:
        """Values of rows; those of the delta are counted on from the base's."""
        if not len(self._delta):
            return early(rows)
        base = len(self._items)
        places = np.flatnonzero(rows >= base)
        found = early(np.where(rows < base, rows, 0) if len(places) else rows)
        for place in places.tolist():
            found[place] = late(rows[place] - base)
        return found

    def _attributes(self, rows: np.ndarray) -> list[dict[str, str] | None]:
        """Attributes of rows, numbered as for `_values`."""
        base = len(self._items)
        own, late = rows < base, rows >= base
        found = np.empty(len(rows), object)
        found[own] = self._items.attributes(rows[own])
        found[late] = [dict(a) if (a := self._delta.attributes[row - base]) else None
                       for row in rows[late]]  # fmt: skip
        return found.tolist()

    def _batch(self, rows: np.ndarray) -> pa.RecordBatch:
        base = len(self._items)
        own, late = rows < base, rows >= base
        vectors = np.empty((len(rows), self.dim), np.float32)
        vectors[own] = self._vectors.take(rows[own])
        vectors[late] = self._delta.vectors.take(rows[late] - base)
        maps = [None if a is None else list(a.items()) for a in self._attributes(rows)]
        flat = pa.array(vectors.ravel())
        return pa.record_batch(
            [
                pa.array(self._ids(rows), pa.string()),
                pa.array(self._labels(rows), pa.string()),
                pa.array(maps, pa.map_(pa.string(), pa.string())),
                pa.FixedSizeListArray.from_arrays(flat, self.dim).cast(pa.list_(pa.float32())),
            ],
            [ITEM_ID, LABEL, ATTRIBUTES, VECTOR],
        )


def _once(item_ids: Sequence[str]) -> None:
    if len(set(item_ids)) < len(item_ids):
        twice = next(i for n, i in enumerate(item_ids) if i in item_ids[:n])
        raise DataError(f"item {twice!r} came to the index twice", allowed="each id once")
