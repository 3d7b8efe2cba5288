"""Other libraries' nearest neighbours, each in a process of its own: they crash one another.

    python benchmarks/_rivals.py NAME VECTORS.npy RECALL

prints as JSON the seconds to build and the milliseconds a query takes, one by one and many at once,
at the least effort that reaches the recall; {} where the library is not installed.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import numpy as np
from _vectors import K, loaded, one_by_one, recall, seconds, timed, truth

MODULES = {
    "hnswlib": "hnswlib",
    "annoy": "annoy",
    "nmslib": "nmslib",
    "scikit-learn": "sklearn",
    "tensorflow-similarity": "tensorflow_similarity",
}
ALONE = 200
EFFORTS = [10, 14, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640, 1280, 2560, 5120]
Search = Callable[[np.ndarray], np.ndarray]


def main() -> None:
    name, path, wished = sys.argv[1:4]
    if importlib.util.find_spec(MODULES[name]) is None:
        print(json.dumps({}))
        return
    vectors, queries = loaded(path)
    exact = truth(vectors, queries)
    built: dict[str, Any] = {}
    tries = globals()[f"_{name.replace('-', '_')}"](vectors, built)
    found: dict[str, float] = {}
    for search in tries:
        reached = recall(exact, search(queries))
        found = {"build": built["seconds"], "recall": reached}
        if reached >= float(wished):
            break
    single = built.get("single", search)
    found["one"] = median(one_by_one(single, queries[:ALONE]) for _ in range(3))
    found["many"] = timed(lambda: search(queries)) / len(queries) * 1e3
    if "add" in built:
        found["add"] = timed(built["add"], 1)
    print(json.dumps(found))


def _hnswlib(vectors: np.ndarray, built: dict[str, Any]) -> Iterator[Search]:
    import hnswlib  # type: ignore[import-not-found,import-untyped,unused-ignore]

    index = hnswlib.Index(space="ip", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), ef_construction=100, M=16)
    built["seconds"] = seconds(lambda: index.add_items(vectors))
    for effort in EFFORTS:
        index.set_ef(effort)
        yield lambda q: index.knn_query(q, k=K)[0]


def _annoy(vectors: np.ndarray, built: dict[str, Any]) -> Iterator[Search]:
    from annoy import AnnoyIndex  # type: ignore[import-not-found,unused-ignore]

    index = AnnoyIndex(vectors.shape[1], "angular")

    def build() -> None:
        for row, vector in enumerate(vectors):
            index.add_item(row, vector)
        index.build(50)

    built["seconds"] = seconds(build)
    for effort in EFFORTS:
        nodes = effort * 50
        yield (
            lambda q, n=nodes: np.array(  # type: ignore[misc]
                [(index.get_nns_by_vector(one, K, n) + [-1] * K)[:K] for one in q]
            )
        )


def _nmslib(vectors: np.ndarray, built: dict[str, Any]) -> Iterator[Search]:
    import nmslib  # type: ignore[import-not-found,unused-ignore]

    index = nmslib.init(method="hnsw", space="negdotprod")
    index.addDataPointBatch(vectors)
    built["seconds"] = seconds(
        lambda: index.createIndex({"M": 16, "efConstruction": 100, "post": 0})
    )
    for effort in EFFORTS:
        index.setQueryTimeParams({"efSearch": effort})
        yield lambda q: np.stack([np.resize(rows, K) for rows, _ in index.knnQueryBatch(q, k=K)])


def _scikit_learn(vectors: np.ndarray, built: dict[str, Any]) -> Iterator[Search]:
    from sklearn.neighbors import NearestNeighbors

    index = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine")
    built["seconds"] = seconds(lambda: index.fit(vectors))
    yield lambda q: index.kneighbors(q, return_distance=False)


def _tensorflow_similarity(vectors: np.ndarray, built: dict[str, Any]) -> Iterator[Search]:
    from types import ModuleType

    # Nothing of its pictures is needed, and they take most of the import.
    name = "tensorflow_similarity.visualization"
    sys.modules[name] = ModuleType(name)
    from tensorflow_similarity.indexer import Indexer

    index = Indexer(embedding_size=vectors.shape[1], distance="cosine")
    labels = list(range(len(vectors)))
    built["seconds"] = seconds(lambda: index.batch_add(vectors, labels, verbose=0))

    def rows(found: list[Any]) -> np.ndarray:
        numbers = [[near.label for near in one] for one in found]
        return np.array([(one + [-1] * K)[:K] for one in numbers])

    built["single"] = lambda q: index.single_lookup(q, k=K)
    built["add"] = lambda: index.add(vectors[:1], label=0, verbose=0)
    yield lambda q: rows(index.batch_lookup(q, k=K, verbose=0))


if __name__ == "__main__":
    main()
