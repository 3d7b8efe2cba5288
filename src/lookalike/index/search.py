"""Searching an index version."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike import artifacts
from lookalike.columns import ITEM_ID, LABEL
from lookalike.errors import ArtifactError, DataError
from lookalike.index.build import ITEMS_FILE, PART, VECTORS_FILE, VERSION


@dataclass(frozen=True)
class Neighbour:
    """An item found: its id, its label, its cosine distance (0 same direction, 2 opposite)."""

    item_id: str
    label: str | None
    distance: float


class Index:
    """An index version, opened. Files are mapped into memory and never changed."""

    def __init__(self, meta: dict[str, Any], folder: Path, part: dict[str, Any]):
        self.meta = meta
        self._fetched: tempfile.TemporaryDirectory[str] | None = None
        if part["encoder"] != meta["encoder"] or part["dim"] != meta["dim"]:
            raise ArtifactError(
                f"index part {folder.name} is of encoder {part['encoder'][:12]}, the version is of "
                f"{meta['encoder'][:12]}",
                remedy="These parts do not belong together: run `lookalike index` again",
            )
        try:
            self._vectors = faiss.read_index(str(folder / VECTORS_FILE), faiss.IO_FLAG_MMAP_IFC)
            self._items = pa.ipc.open_file(pa.memory_map(str(folder / ITEMS_FILE))).read_all()
        except (RuntimeError, pa.ArrowInvalid) as error:
            raise ArtifactError(
                f"the index part {folder} cannot be read ({str(error).splitlines()[0]})",
                remedy="Run `lookalike index` again",
            ) from error
        if not self._vectors.ntotal == self._items.num_rows == meta["count"]:
            raise ArtifactError(
                f"index part {folder.name} has {self._vectors.ntotal:,} vectors and "
                f"{self._items.num_rows:,} items; the version says {meta['count']:,}",
                remedy="These parts do not belong together: run `lookalike index` again",
            )

    @classmethod
    def open(cls, root: str, version: str) -> Index:
        """Open a committed version.

        Args:
            root: folder or URI of all parts and versions.
            version: name of the version.

        Raises:
            ArtifactError: missing, damaged, or parts that do not belong together.
        """
        meta = artifacts.open_artifact(artifacts.join(root, "versions", version), VERSION).meta
        (name,) = meta["parts"]
        part = artifacts.open_artifact(artifacts.join(root, "parts", name), PART)
        fetched = tempfile.TemporaryDirectory(prefix="lookalike-index-")
        index = cls(meta, artifacts.fetch(part, Path(fetched.name)), part.meta)
        index._fetched = fetched  # a remote part's files stay as long as they are mapped
        return index

    def __len__(self) -> int:
        return int(self._vectors.ntotal)

    @property
    def dim(self) -> int:
        return int(self.meta["dim"])

    @property
    def encoder(self) -> str:
        """Fingerprint of the encoder whose vectors are kept."""
        return str(self.meta["encoder"])

    def search(self, vectors: np.ndarray, k: int) -> list[list[Neighbour]]:
        """The `k` nearest items of each vector, nearest first; all where there are fewer.

        Args:
            vectors: float32 (n, dim), L2 norm 1.
            k: at least 1.

        Raises:
            DataError: vectors of another shape.
        """
        distances, rows = self.search_rows(vectors, k)
        return [
            self._neighbours(rows[i][rows[i] >= 0], distances[i][rows[i] >= 0])
            for i in range(len(rows))
        ]

    def search_rows(
        self, vectors: np.ndarray, k: int, among: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `search`, in rows.

        Args:
            vectors: as `search`.
            k: as `search`.
            among: bool (items,), the rows that may be found; None for all.

        Returns:
            float32 (n, k) distances and int64 (n, k) rows, -1 where there is none.
        """
        vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise DataError(
                f"vectors of shape {vectors.shape} were searched for",
                allowed=f"(n, {self.dim})",
            )
        k = min(k, len(self))
        allowed = None
        if among is not None:
            bits = np.packbits(among, bitorder="little")
            allowed = faiss.IDSelectorBitmap(len(among), faiss.swig_ptr(bits))
        if self.meta["plan"]["kind"] == "hnsw":
            effort = max(self.meta["plan"]["ef_search"], k)
            parameters = faiss.SearchParametersHNSW(efSearch=effort, sel=allowed)
        else:
            parameters = faiss.SearchParameters(sel=allowed)
        similarity, rows = self._vectors.search(vectors, k, params=parameters)
        # Rounding takes the similarity of a vector with itself to 1 + 1e-7.
        return np.maximum(1 - similarity, 0), rows

    def vector(self, item_id: str) -> np.ndarray | None:
        """The vector of an item, float32 (dim,), or None where it is not in the index."""
        row = pc.index(self._items[ITEM_ID], item_id).as_py()
        return None if row < 0 else self._vectors.reconstruct(row)

    @property
    def item_ids(self) -> pa.ChunkedArray:
        """All ids, by row."""
        return self._items[ITEM_ID]

    @property
    def labels(self) -> pa.ChunkedArray:
        """All labels, by row."""
        return self._items[LABEL]

    def _neighbours(self, rows: np.ndarray, distances: np.ndarray) -> list[Neighbour]:
        found = self._items.take(pa.array(rows))
        return [
            Neighbour(item_id, label, float(distance))
            for item_id, label, distance in zip(
                found[ITEM_ID].to_pylist(),
                found[LABEL].to_pylist(),
                distances,
                strict=True,
            )
        ]


def set_threads(threads: int) -> None:
    """Threads that searching and building take in this process."""
    faiss.omp_set_num_threads(threads)


def recall(exact: np.ndarray, found: np.ndarray) -> float:
    """Mean share of each query's exact neighbours that were found; rows of int (n, k)."""
    shares = [np.isin(e, f).mean() for e, f in zip(exact, found, strict=True)]
    return float(np.mean(shares))
