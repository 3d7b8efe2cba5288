"""A release of vectors, row by row, beside naive code."""

from __future__ import annotations

import base64
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import encoder as encoders
from lookalike.columns import FAMILY
from lookalike.encoder import Encoder, Specification
from lookalike.errors import ArtifactError, DataError
from lookalike.index import Plan, build
from lookalike.metrics import Calibration
from lookalike.serving.client import Query, Similar, similar_of
from lookalike.serving.contract import Limits, Refused
from lookalike.serving.queries import Query as Query_
from lookalike.serving.recommender import Recommender
from lookalike.serving.release import Release, assemble

DIM, COUNT = 8, 50
IDS = [f"item/{i:03d}" for i in range(COUNT)]
CALIBRATION = Calibration(-6.0, 3.0)
LABELS = [*("ab"[i % 2] for i in range(COUNT - 1)), None]
BRANDS = [None if i % 7 == 0 else f"brand {i % 3}" for i in range(COUNT)]
FAMILIES = [str(i // 4) if i < 40 else None for i in range(COUNT)]
LIMITS = Limits(rows=30, k=20, image_bytes=100)


def vectors() -> np.ndarray:
    return np.random.default_rng(4).normal(size=(COUNT, DIM)).astype("<f4") * 3


def recommender(folder: Path, calibration: Calibration | None) -> Recommender:
    """Of a release of `vectors` with `LABELS`, `BRANDS` and `FAMILIES`."""
    specification = Specification(None, "cosine", DIM, calibration)
    encoder = Encoder.open(encoders.commit(str(folder / "enc"), None, specification, {}).uri)
    attributes = [
        [(k, v) for k, v in (("brand", brand), (FAMILY, family)) if v is not None]
        for brand, family in zip(BRANDS, FAMILIES, strict=True)
    ]
    encoded = encoder.encode([vector.tobytes() for vector in vectors()])
    batch = pa.RecordBatch.from_arrays(
        [
            pa.array(IDS),
            pa.array(LABELS),
            pa.array(list(encoded), pa.list_(pa.float32())),
            pa.array(attributes, pa.map_(pa.string(), pa.string())),
        ],
        names=["item_id", "label", "vector", "attributes"],
    )
    made_from = {"encoder": encoder.fingerprint, "items_version": 1}
    version = build(str(folder / "index"), [batch], DIM, Plan("exact"), made_from)
    (uri,) = (str(path) for path in (folder / "enc").iterdir())
    pictures = pa.record_batch(
        [pa.array(IDS[:-1]), pa.array([b"jpeg of " + i.encode() for i in IDS[:-1]])],
        ["item_id", "thumbnail"],
    )
    release = assemble(
        folder / "release",
        uri,
        str(folder / "index"),
        version.name,
        {},
        LIMITS,
        [pictures[:20], pictures[20:]],
    )
    opened = Recommender()
    opened.load_context(SimpleNamespace(artifacts={"release": str(release)}))
    return opened


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> Recommender:
    return recommender(tmp_path_factory.mktemp("calibrated"), CALIBRATION)


def ask(
    asked: Recommender, *rows: dict[str, Any], k: int = 5, collapse: bool = False, **params: Any
) -> list[dict[str, Any]]:
    given = {"k": k, "collapse": collapse, **params}
    return asked.predict(None, pd.DataFrame(list(rows)), given).to_dict("records")


def brute_force(query: np.ndarray, k: int, without: int | None = None) -> list[tuple[str, float]]:
    return [(IDS[i], d) for i, d in nearest(query) if i != without][:k]


def nearest(query: np.ndarray) -> list[tuple[int, float]]:
    lengths = np.linalg.norm(vectors(), axis=1) * np.linalg.norm(query)
    distances = 1 - vectors() @ query / lengths
    return [(int(i), float(distances[i])) for i in np.argsort(distances)]


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
        assert said in row["error"]["message"]
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
    assert Query(vector=np.arange(3, dtype=np.float32)).row == {"vector": [0.0, 1.0, 2.0]}
    assert Query(image=b"hello").row == {"image": "aGVsbG8="}
    assert Query(item_id="x").row == {"item_id": "x"}
    assert Query(text="red boots").row == {"text": "red boots"}


MATCHES: dict[str | None, Any] = {
    None: lambda _: True,
    "label == 'a'": lambda i: LABELS[i] == "a",
    "brand != 'brand 1'": lambda i: BRANDS[i] != "brand 1",
    "brand == 'brand 2'": lambda i: BRANDS[i] == "brand 2",
}


@given(
    own=st.integers(0, COUNT - 1),
    k=st.integers(1, 20),
    within=st.none() | st.floats(0, 2),
    min_similarity=st.none() | st.floats(0.01, 0.99),
    where=st.sampled_from(list(MATCHES)),
    exclude_self=st.booleans(),
    collapse=st.booleans(),
    most=st.dictionaries(st.sampled_from(["brand", "label"]), st.integers(1, 4)),
)
@settings(max_examples=300, deadline=None)
def test_what_is_given_is_what_naive_code_picks(
    calibrated: Recommender,
    own: int,
    k: int,
    within: float | None,
    min_similarity: float | None,
    where: str | None,
    exclude_self: bool,
    collapse: bool,
    most: dict[str, int],
) -> None:
    expected: list[str] = []
    counts: Counter[tuple[str, str]] = Counter()
    families = {FAMILIES[own]} if exclude_self and collapse else set()
    for i, distance in nearest(vectors()[own]):
        values = {"brand": BRANDS[i], "label": LABELS[i]}
        if (
            (exclude_self and i == own)
            or not MATCHES[where](i)
            or (within is not None and distance > within + 1e-6)
            or (min_similarity is not None and CALIBRATION.similarity(distance) < min_similarity)
            or (collapse and FAMILIES[i] is not None and FAMILIES[i] in families)
            or any(values[key] and counts[key, values[key]] == n for key, n in most.items())
        ):
            continue
        expected.append(IDS[i])
        families.add(FAMILIES[i])
        counts.update((key, values[key]) for key in most if values[key])
    found = ask(
        calibrated,
        {"item_id": IDS[own]},
        k=k,
        collapse=collapse,
        within=within,
        min_similarity=min_similarity,
        where=where,
        exclude_self=exclude_self,
        max_per=", ".join(f"{key}: {n}" for key, n in most.items()),
    )
    assert [row["item_id"] for row in found] == expected[:k]
    assert [row["rank"] for row in found] == list(range(1, len(found) + 1))


def test_a_search_without_end_is_cut_off(
    calibrated: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three brands, and more wanted than one of each: what is looked through is bounded."""
    monkeypatch.setattr("lookalike.serving.choice._DEEPEST", 30)
    monkeypatch.setattr("lookalike.serving.choice._TOGETHER", 40)
    depths: list[tuple[int, int]] = []
    search = calibrated._release.index.search

    def watched(vectors: np.ndarray, k: int, *rest: Any) -> Any:
        depths.append((len(vectors), k))
        return search(vectors, k, *rest)

    monkeypatch.setattr(calibrated._release.index, "search", watched)
    where = "brand != None"
    found = ask(
        calibrated, *({"item_id": i} for i in IDS[:20]), k=4, max_per="brand: 1", where=where
    )
    assert len(found) == 20 * 3
    assert max(k for _, k in depths) == 30
    assert all(count * k <= 40 or count == 1 for count, k in depths)
    alone = [
        ask(calibrated, {"item_id": i}, k=3, max_per="brand: 1", where=where) for i in IDS[:20]
    ]
    assert [row["item_id"] for row in found] == [row["item_id"] for rows in alone for row in rows]


def test_an_encoder_that_gives_no_numbers_is_our_fault(
    calibrated: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def diverged(_: object) -> None:
        raise DataError("encoder gave NaN or infinity")

    monkeypatch.setattr(calibrated._release.encoder, "encode", diverged)
    monkeypatch.setattr(
        "lookalike.serving.queries.read", lambda *_: Query_(image=b"a file", vector=None)
    )
    with pytest.raises(Refused) as raised:
        ask(calibrated, {"image": "aGVsbG8="})
    assert raised.value.get_http_status_code() == 500


def test_columns_come_when_they_are_asked_for(calibrated: Recommender) -> None:
    plain = ask(calibrated, {"item_id": IDS[3]})[0]
    columns = ["query", "rank", "item_id", "label", "distance", "similarity", "error"]
    assert list(plain) == columns
    rows = ask(
        calibrated, {"item_id": IDS[3]}, {}, k=20, thumbnails=True, attributes=True, about=True
    )
    assert list(rows[0]) == [*columns, "thumbnail", "attributes", "about"]
    for row in rows[:-1]:
        number = IDS.index(row["item_id"])
        brand = BRANDS[number]
        assert row["attributes"] == ({"brand": brand} if brand else {})
        if number == COUNT - 1:
            assert row["thumbnail"] is None
        else:
            file = base64.b64decode(row["thumbnail"].removeprefix("data:image/jpeg;base64,"))
            assert file == b"jpeg of " + IDS[number].encode()
    # A row that cannot be answered still says of what release.
    assert rows[-1]["error"]["code"] == "no_query"
    assert rows[-1]["about"] == rows[0]["about"]
    assert rows[0]["about"]["items"] == COUNT
    assert len(rows[0]["about"]["encoder"]) == 64


def test_a_key_comes_back(calibrated: Recommender) -> None:
    rows = ask(calibrated, {"item_id": IDS[0], "key": "mine"}, {"item_id": "?"}, k=1)
    assert [row["query"] for row in rows] == ["mine", 1]


@pytest.mark.parametrize(
    ("params", "said"),
    [
        ({"k": 0}, "k = 0. Allowed: 1 to 20"),
        ({"k": 21}, "serving.max_k"),
        ({"within": float("nan")}, "within = nan"),
        ({"min_similarity": 1.5}, "min_similarity = 1.5"),
        ({"effort": 0}, "effort = 0"),
        ({"where": "label = 'a'"}, "Allowed: names, strings, numbers"),
        ({"where": "colour == 'red'"}, "brand"),
        ({"where": "__import__('os').system('x')"}, "Allowed: names, strings, numbers"),
        ({"max_per": "brand"}, "'brand: 2, label: 5'"),
        ({"max_per": "brand: 0"}, "'brand: 2, label: 5'"),
        ({"max_per": "colour: 2"}, "which no item has. Allowed: label, brand"),
    ],
)
def test_a_bad_request_is_refused_as_a_whole(
    calibrated: Recommender, params: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refused) as raised:
        ask(calibrated, {"item_id": IDS[0]}, **params)
    # What MLflow's server does with the errors of models.
    raised.value.message = f"Failed to predict data '{IDS[0]}'. {raised.value.message}"
    assert said in raised.value.message
    assert IDS[0] not in raised.value.serialize_as_json()
    assert raised.value.get_http_status_code() == 400


def test_too_many_rows_are_refused(calibrated: Recommender) -> None:
    with pytest.raises(Refused, match=r"rows are 31. Allowed: at most 30 \(serving.max_rows"):
        ask(calibrated, *[{"item_id": IDS[0]}] * 31)
    assert len(ask(calibrated, *[{"item_id": IDS[0]}] * 30, k=1)) == 30


def test_without_calibration_there_is_no_least_similarity(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no calibration"):
        ask(recommender(tmp_path, None), {"item_id": IDS[0]}, min_similarity=0.5)


def test_a_fault_of_ours_tells_nothing_of_the_request(
    calibrated: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ValueError(f"broken at {IDS[0]}")

    monkeypatch.setattr(calibrated._release.index, "search", broken)
    with pytest.raises(Refused) as raised:
        ask(calibrated, {"item_id": IDS[0]})
    assert raised.value.get_http_status_code() == 500
    assert IDS[0] not in raised.value.serialize_as_json()


def test_the_clients_reading_of_an_answer(calibrated: Recommender) -> None:
    rows = ask(calibrated, {"item_id": IDS[3]}, k=1, thumbnails=True, attributes=True)
    (found,) = similar_of(rows)
    assert isinstance(found, Similar)
    assert found.thumbnail == b"jpeg of " + found.item_id.encode()
    assert found.attributes == rows[0]["attributes"]
    with pytest.raises(DataError, match=r"no item 'nobody' in the index \(no_such_item\)"):
        similar_of(ask(calibrated, {"item_id": "nobody"}))


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
