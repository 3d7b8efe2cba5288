"""A catalogue that brings its own vectors, by the command line; and one of texts, refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from support import Way, command

from lookalike import artifacts, config
from lookalike.errors import DataError
from lookalike.images import encode_png
from lookalike.serving.release import load_champion
from lookalike.steps import STEPS, query
from lookalike.steps.context import Context

COUNT, CLASSES, DIM = 400, 5, 16
IDS = [f"item {i:03d}" for i in range(COUNT)]
LABELS = [f"class {i % CLASSES}" for i in range(COUNT)]
TEST = [i % 10 == 3 for i in range(COUNT)]
NAN, SHORT, ZERO, NONE = "of NaN", "too short", "zero", "none"


def vectors() -> np.ndarray:
    """Five clouds of points, no two alike: float32 (COUNT, DIM)."""
    random = np.random.default_rng(8)
    centres = random.normal(size=(CLASSES, DIM))
    places = centres[np.arange(COUNT) % CLASSES] + 0.8 * random.normal(size=(COUNT, DIM))
    return (places * random.uniform(0.1, 10, size=(COUNT, 1))).astype(np.float32)


def write(folder: Path, data: dict[str, object]) -> Path:
    """A recipe of nothing but what must be said."""
    recipe = {
        "name": "vectors",
        "warehouse": {"tables": str(folder / "wh" / "tables"), "files": str(folder / "wh")},
        "spark": {"master": "local[2]"},
        "data": data,
    }
    conf = folder / "vectors.yaml"
    conf.write_text(yaml.safe_dump(recipe))
    return conf


@pytest.fixture(scope="module")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    folder = tmp_path_factory.mktemp("vectors")
    bad = {NAN: [float("nan")] * DIM, SHORT: [1.0] * (DIM - 1), ZERO: [0.0] * DIM, NONE: None}
    table = pa.table(
        {
            "item_id": [*IDS, *bad],
            "label": [*LABELS, *["class 0"] * len(bad)],
            "split": [*("test" if test else "train" for test in TEST), *["train"] * len(bad)],
            "price": [float(i) for i in range(COUNT + len(bad))],
            "vector": pa.array([*vectors().tolist(), *bad.values()], pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, folder / "items.parquet", row_group_size=100)
    data = {"source": "vectors", "table": str(folder / "items.parquet"), "dim": DIM}
    conf = write(folder, data)
    done = command(
        *("run", "--json", "--conf", str(conf)),
        after="assert not {'tensorflow', 'hyperopt', 'horovod'} & set(sys.modules)",
    )
    assert done.returncode == 0, done.stderr
    return Way(conf, folder / "wh", json.loads(done.stdout))


def neighbours(query: np.ndarray, k: int, without: str | None = None) -> list[tuple[str, float]]:
    """Ids and cosine distances by numpy alone, nearest first."""
    own = vectors().astype(np.float64)
    similar = own @ query / np.linalg.norm(own, axis=1) / np.linalg.norm(query)
    order = [i for i in np.argsort(-similar) if IDS[i] != without]
    return [(IDS[i], 1 - float(similar[i])) for i in order[:k]]


def test_nothing_is_lost(way: Way) -> None:
    assert list(way.report["steps"]) == list(STEPS)
    ingested = way.step("ingest")
    assert (ingested["seen"], ingested["used"], ingested["rejected"]) == (COUNT + 4, COUNT, 4)
    embedded, indexed = way.step("embed"), way.step("index")
    assert (embedded["seen"], embedded["embedded"], embedded["rejected"]) == (COUNT, COUNT, 0)
    assert (indexed["seen"], indexed["count"], indexed["left_out"]) == (COUNT, COUNT, 0)


def test_steps_without_work_say_so(way: Way) -> None:
    for step in ("snapshot", "tune"):
        assert way.step(step)["why"].endswith("the catalogue brings its own vectors")
    trained = way.step("train")
    assert (trained["steps"], trained["validation"]) == (0, {})
    assert trained["calibrated_on"] > 10
    encoder = artifacts.open_artifact(trained["uri"], "encoder")
    assert (encoder.manifest.files, encoder.meta["input"], encoder.meta["dim"]) == (
        (), "vector", DIM,
    )  # fmt: skip
    assert not (way.warehouse / "snapshots").exists()


def test_how_far_similarity_can_be_trusted_is_in_mlflow(way: Way) -> None:
    trained = way.step("train")
    made_from = artifacts.open_artifact(trained["uri"], "encoder").meta["made_from"]
    with Context(config.load(way.conf)) as context:
        client = context.tracking.client
        run = client.get_run(trained["run_id"])
        logged = {file.path for file in client.list_artifacts(trained["run_id"])}
    # The clouds overlap: some of it is wrong.
    assert 0 < trained["calibration_error"] == run.data.metrics["calibration_error"] < 0.3
    assert {"made_from.json", "reliability.png"} <= logged
    assert set(made_from["versions"]) == {"items", "splits"}
    for table, version in made_from["versions"].items():
        assert run.data.tags[f"{table}_version"] == str(version)


def test_there_are_figures_but_no_pixels(way: Way) -> None:
    evaluated = way.step("evaluate")
    assert (evaluated["queries"], evaluated["gallery"]) == (sum(TEST), COUNT - sum(TEST))
    assert {p: set(measured) for p, measured in evaluated["figures"].items()} == {
        "A": {"encoder", "index"},
        "B": {"encoder"},
    }
    assert evaluated["index_recall"] > 0.95
    # P@1 of protocol A, by loops.
    gallery = {IDS[i] for i in range(COUNT) if not TEST[i]}
    label = dict(zip(IDS, LABELS, strict=True))
    right = []
    for i in np.flatnonzero(TEST):
        found = next(item for item, _ in neighbours(vectors()[i], COUNT) if item in gallery)
        right.append(label[found] == LABELS[i])
    assert evaluated["figures"]["A"]["encoder"]["p_at_1"] == pytest.approx(np.mean(right))
    assert evaluated["picture"] is None
    assert not list(Path(evaluated["report"]).glob("*.png"))


def test_the_release_answers_as_brute_force_does(way: Way) -> None:
    with Context(config.load(way.conf)) as context:
        model = load_champion(context.tracking, "vectors")
    asked = np.random.default_rng(9).normal(size=DIM)
    rows = [
        {"vector": asked.tolist()},
        {"item_id": IDS[42]},
        {"image": "aGVsbG8="},
        {"vector": [0.0] * DIM},
        {"item_id": ZERO},
    ]
    found = model.predict(pd.DataFrame(rows), params={"k": 6}).to_dict("records")
    expected = [neighbours(asked, 6), neighbours(vectors()[42], 6, without=IDS[42])]
    for number, near in enumerate(expected):
        own = [row for row in found if row["query"] == number]
        assert [row["item_id"] for row in own] == [item_id for item_id, _ in near]
        distances = [row["distance"] for row in own]
        assert distances == pytest.approx([distance for _, distance in near], abs=1e-5)
        similarities = [row["similarity"] for row in own]
        assert sorted(similarities, reverse=True) == similarities
        assert all(0 <= similarity <= 1 for similarity in similarities)
        assert all(row["label"] == LABELS[IDS.index(row["item_id"])] for row in own)
    image, zero, rejected = (row for row in found if row["rank"] == 0)
    assert f"an item_id, or a vector of {DIM} numbers" in image["error"]["message"]
    assert "no direction" in zero["error"]["message"]
    assert "no item 'zero'" in rejected["error"]["message"]


def test_query_by_files(way: Way, tmp_path: Path) -> None:
    """The samples that `evaluate` kept; a vector in .npy and in .json; what is none."""
    answered = way.step("query")["answers"]
    assert len(answered) == 10
    for name, found in answered.items():
        item_id = Path(name).stem.replace("_", " ")
        near = neighbours(vectors()[IDS.index(item_id)], 10)
        assert [f["item_id"] for f in found] == [other for other, _ in near]
    own = vectors()[42]
    array, text = tmp_path / "own.npy", tmp_path / "own.json"
    np.save(array, own)
    text.write_text(json.dumps(own.tolist()))
    done = command("query", str(array), str(text), "--conf", str(way.conf), "--json", "--k", "3")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)["answers"]
    expected = [other for other, _ in neighbours(own, 3)]
    for path in (array, text):
        assert [f["item_id"] for f in answers[str(path)]] == expected
    short, words, pickled = (tmp_path / n for n in ("short.json", "words.json", "pickled.npy"))
    short.write_text("[1.0, 2.0]")
    words.write_text('["a", "b"]')
    np.save(pickled, np.array([{}]), allow_pickle=True)
    picture = tmp_path / "picture.png"
    picture.write_bytes(encode_png(np.zeros((8, 8), np.uint8)))
    with Context(config.load(way.conf)) as context:
        for path, said in (
            (short, f"Allowed: {DIM} finite numbers"),
            (words, "Allowed: one vector: a list of numbers in .json"),
            (pickled, "holds no vector"),
            (picture, "made of vectors"),
        ):
            with pytest.raises(DataError, match=said):
                query.run(context, [path])


def test_run_again_changes_nothing(way: Way) -> None:
    before = sorted(way.warehouse.rglob("manifest.json"))
    again = way.command("run")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("the catalogue brings its own vectors") == 2
    assert sorted(way.warehouse.rglob("manifest.json")) == before
    # What a person sees at the end: no column and no picture that there is not.
    assert "lookalike's index" in again.stdout
    assert "raw pixels" not in again.stdout
    assert "neighbours.png" not in again.stdout


def test_texts_are_refused_where_a_network_would_be_needed(tmp_path: Path) -> None:
    data = {"source": "text", "table": str(tmp_path / "titles.csv")}
    refused = command("snapshot", "--conf", str(write(tmp_path, data)), "--set", "tune.trials=0")
    assert refused.returncode == 3
    said = " ".join(refused.stderr.split())
    assert "the catalogue holds texts (contents of media 'text/plain')" in said
    assert "Allowed: images, or vectors" in said
    assert "data.source = vectors" in said
