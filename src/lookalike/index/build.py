"""Building an index version: immutable parts, and a manifest that lists them.

ROOT/parts/NAME/     vectors.faiss, items.arrow    kind 'index-part'
ROOT/versions/NAME/  a manifest alone              kind 'index'
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Literal

import faiss
import numpy as np
import pyarrow as pa

from lookalike import artifacts
from lookalike.columns import ITEM_ID, LABEL, VECTOR
from lookalike.errors import DataError

PART, VERSION = "index-part", "index"
VECTORS_FILE, ITEMS_FILE = "vectors.faiss", "items.arrow"
ITEMS_SCHEMA = pa.schema([pa.field(ITEM_ID, pa.string(), nullable=False), (LABEL, pa.string())])


@dataclass(frozen=True)
class Plan:
    """How vectors are kept.

    Attributes:
        kind: 'exact' compares with every vector; 'hnsw' walks a graph (Malkov and Yashunin 2016).
        m: neighbours a node of the graph.
        ef_construction: candidates while building the graph.
        ef_search: candidates while searching it; at least k are taken.
    """

    kind: Literal["exact", "hnsw"] = "hnsw"
    m: int = 16
    ef_construction: int = 100
    ef_search: int = 64


def build(
    root: str,
    batches: Iterable[pa.RecordBatch],
    dim: int,
    plan: Plan,
    made_from: dict[str, Any],
) -> artifacts.Artifact:
    """Build and commit an index version of one base part.

    Args:
        root: folder or URI of all parts and versions.
        batches: columns item_id, label, vector (list of `dim` float32, L2 norm 1), by ascending
            item_id: so the same items are the same index, and a double shows.
        dim: length of a vector.
        plan: how to keep them.
        made_from: `encoder` (fingerprint) and versions of tables; JSON values.

    Returns:
        The version; `meta["count"]` items.

    Raises:
        DataError: no items, a vector of another length, or an item twice.
    """
    vectors = _empty(dim, plan)
    # Threads would add to the graph in another order each time.
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        return _build(root, batches, vectors, plan, made_from)
    finally:
        faiss.omp_set_num_threads(threads)


def _build(
    root: str,
    batches: Iterable[pa.RecordBatch],
    vectors: faiss.Index,
    plan: Plan,
    made_from: dict[str, Any],
) -> artifacts.Artifact:
    dim = vectors.d
    last = ""
    with artifacts.workbench() as folder:
        file = folder / ITEMS_FILE
        with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, ITEMS_SCHEMA) as items:
            for batch in batches:
                vectors.add(_matrix(batch, dim))
                last = _ascending(last, batch.column(ITEM_ID).to_pylist())
                columns = [batch.column(name).cast(pa.string()) for name in (ITEM_ID, LABEL)]
                items.write_batch(pa.RecordBatch.from_arrays(columns, schema=ITEMS_SCHEMA))
        if vectors.ntotal == 0:
            raise DataError("there are no vectors to index", remedy="Run `lookalike embed` first")
        faiss.write_index(vectors, str(folder / VECTORS_FILE))
        count = int(vectors.ntotal)
        part = artifacts.commit(
            artifacts.join(root, "parts"),
            PART,
            folder,
            {"count": count, "dim": dim, "encoder": made_from["encoder"]},
        )
    with artifacts.workbench() as empty:
        meta = {
            "parts": [part.name],
            "count": count,
            "dim": dim,
            "metric": "cosine",
            "plan": asdict(plan),
            "versions": {
                "faiss-cpu": version("faiss-cpu"),
                "pyarrow": version("pyarrow"),
            },
            **made_from,
        }
        return artifacts.commit(artifacts.join(root, "versions"), VERSION, empty, meta)


def _empty(dim: int, plan: Plan) -> faiss.Index:
    if plan.kind == "exact":
        return faiss.IndexFlat(dim, faiss.METRIC_INNER_PRODUCT)
    graph = faiss.IndexHNSWFlat(dim, plan.m, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = plan.ef_construction
    graph.hnsw.efSearch = plan.ef_search
    return graph


def _matrix(batch: pa.RecordBatch, dim: int) -> np.ndarray:
    column = batch.column(VECTOR)
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    if len(values) != len(column) * dim:
        raise DataError(
            f"vectors of another length than {dim} came to the index",
            remedy="Embed the catalogue with one encoder: run `lookalike embed` again",
        )
    return np.ascontiguousarray(values.reshape(len(column), dim))


def _ascending(last: str, ids: list[str]) -> str:
    for item_id in ids:
        if item_id <= last:
            raise DataError(
                f"item {item_id!r} came to the index after {last!r}: twice, or out of order",
                remedy="Run `lookalike ingest` and `lookalike index` again",
            )
        last = item_id
    return last
