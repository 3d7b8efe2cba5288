"""The kinds of index: making an empty one, and opening a written one."""

from __future__ import annotations

from pathlib import Path
from tokenize import TokenError

import faiss
import numpy as np

from lookalike.errors import ArtifactError
from lookalike.index.cells import Cells, trained
from lookalike.index.flat import Flat, Graph, Tree
from lookalike.index.metric import Metric, code_of
from lookalike.index.plan import IVF, Plan
from lookalike.index.vectors import ORIGINALS_FILE, VECTORS_FILE

Built = Flat | Cells


def empty(
    plan: Plan,
    metric: Metric,
    sample: np.ndarray,
    originals: np.ndarray | None = None,
) -> Built:
    """No vectors yet, of some kind, trained where it learns.

    Args:
        plan: `settled`.
        metric: of the distances.
        sample: float32 (n, dim), a random sample of the vectors, `prepared`; n at least 1.
        originals: float16 (count, dim) to fill; needed where `plan.keeps_originals`.
    """
    dim, code = sample.shape[1], code_of(metric)
    match plan.kind:
        case "exact" | "kd_tree":
            flat = faiss.IndexFlat(dim, code)
            return (Tree if plan.kind == "kd_tree" else Flat)(plan, metric, flat)
        case "hnsw":
            graph = faiss.IndexHNSWFlat(dim, plan.m, code)
            graph.hnsw.efConstruction = plan.ef_construction
            return Graph(plan, metric, graph)
    # What is learned needs some vectors; of too few, each is shown several times.
    least = max(plan.nlist, 256) if plan.kind == "ivf_pq" else plan.nlist
    shown = sample if len(sample) >= least else np.resize(sample, (least, dim))
    index = trained(plan, np.ascontiguousarray(shown), code)
    scale = float(np.abs(sample).max()) or 1.0
    return Cells(plan, metric, index, originals if plan.keeps_originals else None, scale)


def read(folder: Path, plan: Plan, metric: Metric, scale: float, count: int) -> Built:
    """Map what `Vectors.write` wrote.

    Raises:
        ArtifactError: naming the file that cannot be read.
    """
    # faiss has two ways to map a file. The other one asks the kernel not to read ahead, which suits
    # graphs: cells read for the first time take ten times as long by it.
    flags = faiss.IO_FLAG_MMAP if plan.kind in IVF else faiss.IO_FLAG_MMAP_IFC
    file = folder / VECTORS_FILE
    try:
        index = faiss.read_index(str(file), flags)
        if index.metric_type != code_of(metric) or not index.is_trained:
            raise ValueError(f"it is of another metric than {metric}, or not trained")
        if index.ntotal != count:
            raise ValueError(f"it has {index.ntotal:,} vectors, not {count:,}")
        if plan.kind in IVF:
            originals = None
            if plan.keeps_originals:
                file = folder / ORIGINALS_FILE
                originals = np.load(file, mmap_mode="r")
                if originals.shape != (count, index.d) or originals.dtype != np.float16:
                    raise ValueError(f"it holds {originals.dtype} {originals.shape}")
            return Cells(plan, metric, index, originals, scale)
    # A damaged size asks for more memory than there is; numpy reads a header as Python does.
    except (RuntimeError, ValueError, OSError, MemoryError, TokenError) as error:
        raise ArtifactError(
            f"{file} cannot be read ({str(error).splitlines()[0]})",
            remedy="Run `lookalike index` again",
        ) from error
    return {"hnsw": Graph, "kd_tree": Tree}.get(plan.kind, Flat)(plan, metric, index)
