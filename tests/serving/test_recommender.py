"""A release of vectors, row by row, beside brute force."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from lookalike import encoder as encoders
from lookalike.encoder import Encoder, Specification
from lookalike.errors import ArtifactError
from lookalike.index import Plan, build
from lookalike.metrics import Calibration
from lookalike.serving.client import row_of, similar_of
from lookalike.serving.recommender import Recommender
from lookalike.serving.release import Release, assemble

DIM, COUNT = 8, 50
IDS = [f"item/{i:03d}" for i in range(COUNT)]
CALIBRATION = Calibration(-6.0, 3.0)


def vectors() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(COUNT, DIM)).astype("<f4") * 3


def recommender(folder: Path, calibration: Calibration | None) -> Recommender:
    """Of a release of `vectors` with labels 'a' and 'b', the last without one."""
    specification = Specification(None, "cosine", DIM, calibration)
    encoder = Encoder.open(encoders.commit(str(folder / "enc"), None, specification, {}).uri)
    labels = [*("ab"[i % 2] for i in range(COUNT - 1)), None]
    encoded = encoder.encode([vector.tobytes() for vector in vectors()])
    batch = pa.RecordBatch.from_arrays(
        [pa.array(IDS), pa.array(labels), pa.array(list(encoded), pa.list_(pa.float32()))],
        names=["item_id", "label", "vector"],
    )
    made_from = {"encoder": encoder.fingerprint, "items_version": 1}
    version = build(str(folder / "index"), [batch], DIM, Plan("exact"), made_from)
    (uri,) = (str(path) for path in (folder / "enc").iterdir())
    release = assemble(folder / "release", uri, str(folder / "index"), version.name, {})
    opened = Recommender()
    opened.load_context(SimpleNamespace(artifacts={"release": str(release)}))
    return opened


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return recommender(tmp_path_factory.mktemp("calibrated"), CALIBRATION)


def ask(asked: Recommender, *rows: dict[str, Any], k: int = 5) -> list[dict[str, Any]]:
    return asked.predict(None, pd.DataFrame(list(rows)), {"k": k}).to_dict("records")


def brute_force(query: np.ndarray, k: int, without: int | None = None) -> list[tuple[str, float]]:
    lengths = np.linalg.norm(vectors(), axis=1) * np.linalg.norm(query)
    distances = 1 - vectors() @ query / lengths
    order = [int(i) for i in np.argsort(distances) if i != without]
    return [(IDS[i], float(distances[i])) for i in order[:k]]


def test_vectors_and_ids_are_answered_as_brute_force_does(calibrated: Recommender) -> None:
    query = np.random.default_rng(5).normal(size=DIM)
    answers = ask(calibrated, {"vector": query.tolist()}, {"item_id": IDS[7]})
    expected = [brute_force(query, 5), brute_force(vectors()[7], 5, without=7)]
    for number, neighbours in enumerate(expected):
        own = [row for row in answers if row["query"] == number]
        assert [row["item_id"] for row in own] == [item_id for item_id, _ in neighbours]
        assert [row["rank"] for row in own] == [1, 2, 3, 4, 5]
        for row, (_, distance) in zip(own, neighbours, strict=True):
            assert row["distance"] == pytest.approx(distance, abs=1e-6)
            similar = 1 / (1 + np.exp(6 * distance - 3))
            assert row["similarity"] == pytest.approx(similar, abs=1e-5)
            assert row["error"] is None


def test_a_vectors_length_does_not_matter(calibrated: Recommender) -> None:
    query = vectors()[3].astype(float)
    found = [ask(calibrated, {"vector": (query * size).tolist()}) for size in (1, 1e-30, 1e30)]
    for rows in found:
        assert [row["item_id"] for row in rows] == [i for i, _ in brute_force(query, 5)]
        distances = [row["distance"] for row in rows]
        assert distances == pytest.approx([d for _, d in brute_force(query, 5)], abs=1e-6)


def test_bad_rows_are_answered_with_their_errors(calibrated: Recommender) -> None:
    bad = [
        ({"image": b"\x89PNG"}, "made of vectors"),
        ({"image": "aGVsbG8="}, "Allowed: an item_id, or a vector of 8 numbers"),
        ({"vector": [0.0] * DIM}, "no direction"),
        ({"vector": [1.0] * (DIM - 1)}, "shape (7,). Allowed: 8 finite numbers"),
        ({"vector": [[1.0] * DIM]}, "shape (1, 8)"),
        ({"vector": [1.0] * (DIM - 1) + [float("nan")]}, "NaN"),
        ({"vector": "some words"}, "no list of numbers"),
        ({"item_id": "nobody"}, "no item 'nobody'"),
        ({"key": "mine"}, "nothing to look for. Allowed: one of item_id, vector"),
        ({"item_id": IDS[0], "image": "aGVsbG8="}, "image and item_id"),
    ]
    answers = ask(calibrated, {"item_id": IDS[0]}, *(row for row, _ in bad), k=2)
    assert [row["rank"] for row in answers] == [1, 2] + [0] * len(bad)
    for row, (_, said) in zip(answers[2:], bad, strict=True):
        assert said in row["error"]
        assert (row["item_id"], row["distance"], row["similarity"]) == (None, None, None)


def test_without_calibration_there_is_no_similarity(tmp_path: Path) -> None:
    answers = ask(recommender(tmp_path, None), {"item_id": IDS[1]})
    assert [row["similarity"] for row in answers] == [None] * 5
    assert all(row["distance"] > 0 and row["error"] is None for row in answers)
    # The client's reading of it.
    assert [similar.similarity for similar in similar_of(answers)] == [None] * 5


def test_vectors_of_another_length_are_another_encoders(tmp_path: Path) -> None:
    recommender(tmp_path, None)
    own = Release.open(tmp_path / "release")
    longer = Specification(None, "cosine", DIM + 1, None)
    other = encoders.commit(str(tmp_path / "enc"), None, longer, {})
    indexes, version = str(tmp_path / "index"), own.meta["index"]
    with pytest.raises(ArtifactError, match="do not belong together") as raised:
        assemble(tmp_path / "mixed", other.uri, indexes, version, {})
    assert own.encoder.fingerprint[:12] in str(raised.value)
    assert other.meta["fingerprint"][:12] in str(raised.value)


def test_a_row_holds_what_was_given() -> None:
    assert row_of(vector=np.arange(3, dtype=np.float32)) == {"vector": [0.0, 1.0, 2.0]}
    assert row_of(image=b"hello") == {"image": "aGVsbG8="}
    assert row_of(item_id="x") == {"item_id": "x"}


def test_a_release_leaves_behind_what_training_starts_from(tmp_path: Path) -> None:
    recommender(tmp_path, None)
    own = Release.open(tmp_path / "release")
    given = Specification(None, "cosine", DIM, None)
    kept = encoders.commit(str(tmp_path / "enc"), None, given, {}, b"weights")
    assert [entry.path for entry in kept.manifest.files] == [encoders.WEIGHTS]
    indexes, version = str(tmp_path / "index"), own.meta["index"]
    lean = assemble(tmp_path / "lean", kept.uri, indexes, version, {})
    assert [path.name for path in (lean / "encoder").iterdir()] == ["manifest.json"]
    assert Release.open(lean).encoder.fingerprint == own.encoder.fingerprint
    # An encoder without any is laid in to the last byte.
    (plain,) = (p for p in (tmp_path / "enc").iterdir() if str(p) != kept.uri)
    manifests = [
        (folder / "manifest.json").read_bytes() for folder in (plain, tmp_path / "release/encoder")
    ]
    assert manifests[0] == manifests[1]
