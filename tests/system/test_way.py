"""What must hold after the whole way: Way, each by another road than the one that made it."""

from __future__ import annotations

import base64
import io
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from mlflow import MlflowClient
from PIL import Image
from support import SECRET, Way, free_port, read_idx, wait_for, write_manifest

from lookalike import artifacts
from lookalike import encoder as encoders
from lookalike.encoder import Encoder
from lookalike.errors import ArtifactError
from lookalike.images import encode_png
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape
from lookalike.serving.client import Endpoint
from lookalike.serving.release import Release, load_champion
from lookalike.steps import STEPS
from lookalike.steps.context import Context


def test_nothing_is_lost(way: Way) -> None:
    """In = out + rejected, at each step and against the source itself (invariant 8)."""
    ingested = way.step("ingest")
    assert (ingested["seen"], ingested["rejected"], ingested["items"]) == (620, 1, 619)
    snapshot = way.step("snapshot")
    assert snapshot["train"] + snapshot["validation"] + snapshot["left_out"] == 499
    embedded, indexed = way.step("embed"), way.step("index")
    assert embedded["seen"] == embedded["embedded"] + embedded["known"] + embedded["rejected"]
    assert (indexed["count"], indexed["left_out"]) == (619, 0)
    assert list(way.report["steps"]) == list(STEPS)
    assert json.loads((way.warehouse / "report.json").read_text()) == way.report


def test_the_reject_is_a_row_with_its_reason(context: Context) -> None:
    (row,) = context.tables.read("rejects").collect()
    assert (row["item_id"], row["reason"]) == ("train-000005", "unknown_label")
    assert "77" in row["detail"]


def test_tables_hold_what_the_source_holds(context: Context) -> None:
    tables = context.tables
    items = {r["item_id"]: r for r in tables.read("items").collect()}
    assert len(items) == 619
    assert all(isinstance(item_id, str) for item_id in items)
    contents = {r["sha256"]: r for r in tables.read("contents").collect()}
    assert {r["sha256"] for r in items.values()} == set(contents)
    assert all(r["media"] == "image/png" and r["phash"] for r in contents.values())
    splits = {r["item_id"]: r for r in tables.read("splits").collect()}
    for item_id, row in splits.items():
        from_source = item_id.startswith("test")
        assert (row["split"] == "test") == from_source
        assert row["decided_by"] in (("source",) if from_source else ("hash", "family"))
    assert 20 <= sum(r["split"] == "validation" for r in splits.values()) <= 80


def test_run_again_changes_nothing(way: Way, context: Context) -> None:
    before = {t: context.tables.version(t) for t in ("items", "contents", "splits", "rejects")}
    files = sorted(p for p in way.warehouse.rglob("manifest.json"))
    again = way.command("run", "--json")
    assert again.returncode == 0, again.stderr
    steps = json.loads(again.stdout)["steps"]
    assert [s for s in STEPS[:-1] if not steps[s]["unchanged"]] == []
    assert {t: context.tables.version(t) for t in before} == before
    assert sorted(p for p in way.warehouse.rglob("manifest.json")) == files


def test_the_best_values_go_into_training(way: Way, context: Context) -> None:
    """From MLflow's trials to the encoder's manifest, past our own ledger."""
    client = MlflowClient(context.tracking.uri)
    (experiment,) = [e for e in client.search_experiments() if e.name == "small"]
    parent = way.step("tune")["run_id"]
    trials = client.search_runs(
        [experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'"
    )
    assert len(trials) == 2
    assert {run.info.status for run in trials} == {"FINISHED"}
    best = max(trials, key=lambda run: run.data.metrics["validation_map_at_r"])
    encoder = artifacts.open_artifact(way.step("train")["uri"], "encoder")
    trained = encoder.meta["made_from"]["train"]
    assert trained["learning_rate"] == float(best.data.params["learning_rate"])
    assert 0.004 <= trained["learning_rate"] <= 0.006  # not the recipe's 0.003
    assert trained["embedding_size"] == int(best.data.params["embedding_size"])
    assert trained["embedding_size"] in (24, 40)  # the option, not its number
    assert encoder.meta["dim"] == trained["embedding_size"]


def test_training_and_evaluation_are_in_one_mlflow_run(way: Way, context: Context) -> None:
    client = MlflowClient(context.tracking.uri)
    run = client.get_run(way.step("train")["run_id"])
    assert run.info.status == "FINISHED"
    for name in ("loss", "validation_map_at_r", "images_per_second", "waiting"):
        told = client.get_metric_history(run.info.run_id, name)
        assert [metric.step for metric in told] == list(range(1, 7)), name
    assert all(metric.value > 0 for metric in told)
    assert 0 <= run.data.metrics["calibration_error"] <= 1
    trained, snapshot = way.step("train"), way.step("snapshot")
    assert run.data.metrics["calibration_error"] == trained["calibration_error"]
    assert run.data.metrics["encoder_p_at_1"] == trained["validation"]["p_at_1"]
    assert run.data.tags["encoder"] == trained["fingerprint"]
    assert run.data.tags["snapshot"] == snapshot["uri"]
    meta = artifacts.open_artifact(snapshot["uri"], "snapshot").meta
    for table in ("items", "splits"):
        assert run.data.tags[f"{table}_version"] == str(meta["versions"][table])
    assert run.data.params["train.loss.name"] == "multi_similarity"
    assert run.data.params["train.precision"] == "auto"
    encoder = artifacts.open_artifact(trained["uri"], "encoder")
    assert encoder.meta["made_from"]["train"]["precision"] == run.data.tags["precision"]
    assert run.data.tags["precision"] in ("float32", "mixed_float16", "mixed_bfloat16")
    assert {f.path for f in client.list_artifacts(run.info.run_id)} == {
        "made_from.json",
        "learning_curves.png",
        "embedding.png",
        "neighbours_before_and_after.png",
        "reliability.png",
        f"train-{run.info.run_id}.log",
        "gate.json",
        "evaluate",
    }
    assert not any((way.warehouse / "checkpoints").glob("*"))  # they have done their work
    figures = way.step("evaluate")["figures"]
    assert run.data.metrics["test_A/encoder/p_at_1"] == figures["A"]["encoder"]["p_at_1"]
    assert {f.path for f in client.list_artifacts(run.info.run_id, "evaluate")} == {
        "evaluate/neighbours.png",
        "evaluate/figures.json",
    }


def test_ranks_share_no_item(way: Way) -> None:
    """Invariant 5 on the snapshot that Spark wrote."""
    snapshot = Snapshot.open(way.step("snapshot")["uri"])
    batch = BatchShape(5, 4)
    for epoch in range(2):
        by_rank = [
            list(epoch_batches(snapshot, Shard(rank, 2, batch, 17, 10**6, True), epoch))
            for rank in range(2)
        ]
        assert len(by_rank[0]) == len(by_rank[1]) == snapshot.train_items // 40
        ids = [{i for b in batches for i in b.item_ids} for batches in by_rank]
        assert not ids[0] & ids[1]
    steps = way.step("train")["steps"]
    assert steps == 6 * (snapshot.train_items // 40)


def test_a_snapshots_pixels_are_the_sources(way: Way, context: Context) -> None:
    snapshot = Snapshot.open(way.step("snapshot")["uri"])
    labels = {r["item_id"]: r["label"] for r in context.tables.read("items").collect()}
    splits = {r["item_id"]: r["split"] for r in context.tables.read("splits").collect()}
    source = read_idx(Path(context.config.data.train.images))
    seen = 0
    for batch in epoch_batches(snapshot, Shard(0, 1, BatchShape(5, 4), 1, 10**6, True), 0):
        for item_id, pixels, number in zip(
            batch.item_ids, batch.pixels, batch.classes, strict=True
        ):
            assert (pixels[:, :, 0] == source[int(item_id.removeprefix("train-"))]).all()
            assert snapshot.classes[number] == labels[item_id]
            assert splits[item_id] == "train"
            seen += 1
    assert seen > 300


def test_executors_embed_without_tensorflow(way: Way, context: Context) -> None:
    uri = way.step("train")["uri"]

    def look(batches):
        import sys

        import pyarrow as pa

        from lookalike.lake.embed import _encoded

        for _ in batches:
            image = encode_png(np.zeros((28, 28), np.uint8))
            (row,) = _encoded(
                [pa.RecordBatch.from_pylist([{"sha256": "", "bytes": image}])], uri, "x"
            )
            assert row.column("vector")[0].as_py()
            yield pa.RecordBatch.from_pylist([{"found": "tensorflow" in sys.modules}])

    rows = context.spark.range(2).repartition(2).mapInArrow(look, "found boolean").collect()
    assert rows
    assert not any(row["found"] for row in rows)


@pytest.fixture(scope="module")
def endpoint(way: Way) -> Iterator[str]:
    """`lookalike serve`: MLflow's real scoring server on a free port."""
    port = free_port()
    log = (way.warehouse / "serve.log").open("w")
    arguments = ["serve", "--conf", str(way.conf), "--port", str(port)]
    server = subprocess.Popen(
        [sys.executable, "-m", "lookalike.cli", *arguments],
        stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(server, f"{url}/ping", Path(log.name))
        yield url
    finally:
        server.terminate()
        server.wait(timeout=30)
        deadline = time.monotonic() + 30
        while _listens(port):  # nobody is left behind on the port
            assert time.monotonic() < deadline
            time.sleep(0.2)
        log.close()


def _listens(port: int) -> bool:
    with socket.socket() as asking:
        return asking.connect_ex(("127.0.0.1", port)) == 0


@pytest.fixture(scope="module")
def originals(context: Context) -> dict[str, bytes]:
    rows = context.tables.read("items").join(context.tables.read("contents"), "sha256")
    return {r["item_id"]: bytes(r["bytes"]) for r in rows.select("item_id", "bytes").collect()}


def test_the_endpoint_answers_as_the_model_does_in_process(
    context: Context, endpoint: str, originals: dict[str, bytes]
) -> None:
    import pandas as pd

    ids = sorted(originals)[::40]
    images = [base64.b64encode(originals[i]).decode() for i in ids]
    body = {
        "dataframe_records": [{"image": image} for image in images],
        "params": {"k": 7, "collapse": False},
    }
    answer = requests.post(f"{endpoint}/invocations", json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    rows = answer.json()["predictions"]
    here = load_champion(context.tracking, "small").predict(
        pd.DataFrame({"image": images}), params=body["params"]
    )
    assert [r["item_id"] for r in rows] == here["item_id"].tolist()
    assert np.allclose([r["distance"] for r in rows], here["distance"].tolist(), atol=1e-6)
    assert len(rows) == 7 * len(ids)
    for number, item_id in enumerate(ids):
        own = [r for r in rows if r["query"] == number]
        assert [r["rank"] for r in own] == list(range(1, 8))
        assert own[0]["distance"] <= 1e-6
        assert item_id in {r["item_id"] for r in own if r["distance"] <= 1e-6}


def test_one_decode(way: Way, context: Context, endpoint: str, originals: dict[str, bytes]) -> None:
    """Invariant 1: the table's vector, by Spark, is the endpoint's, of the same bytes."""
    table = context.tables.read("items").join(context.tables.read("embeddings"), "sha256")
    vectors = {r["item_id"]: np.array(r["vector"], np.float32) for r in table.collect()}
    assert len(vectors) == 619
    ids = sorted(originals)[::50]
    encoder = Encoder.open(way.step("train")["uri"])
    served = encoder.encode([originals[i] for i in ids])
    for item_id, vector in zip(ids, served, strict=True):
        assert np.abs(vectors[item_id] - vector).max() <= 1e-6
    asked = Endpoint(endpoint)
    for item_id in ids[:4]:
        by_image = asked.similar(originals[item_id], k=5)
        by_vector = asked.similar(vector=vectors[item_id].tolist(), k=5)
        assert [s.item_id for s in by_image] == [s.item_id for s in by_vector]
        distances = [[s.distance for s in found] for found in (by_image, by_vector)]
        assert np.allclose(*distances, atol=1e-6)


def test_the_endpoints_neighbours_are_brute_forces(
    context: Context, endpoint: str, originals: dict[str, bytes]
) -> None:
    """Ids, labels and distances from the tables by numpy alone (invariant 2)."""
    table = context.tables.read("items").join(context.tables.read("embeddings"), "sha256")
    rows = {r["item_id"]: r for r in table.collect()}
    for item_id in sorted(originals)[::100]:
        own = np.array(rows[item_id]["vector"])
        expected = {
            other: 1 - float(own @ np.array(row["vector"]))
            for other, row in rows.items()
            if other != item_id
        }
        found = Endpoint(endpoint).similar(item_id=item_id, k=5, collapse=False)
        nearest = sorted(expected.values())[:5]
        assert np.allclose([s.distance for s in found], nearest, atol=1e-5)
        for similar in found:
            assert isinstance(similar.item_id, str)
            assert similar.distance == pytest.approx(expected[similar.item_id], abs=1e-5)
            assert similar.label == rows[similar.item_id]["label"]
            assert 0 <= similar.similarity <= 1


def test_a_bad_row_is_answered_with_its_error_and_the_others_with_theirs(endpoint: str) -> None:
    records = [
        {"item_id": "train-000001"},
        {"image": "this is no base64!"},
        {"image": base64.b64encode(b"some text").decode(), "key": "mine"},
        {"vector": [1.0, 2.0]},
        {"item_id": "nobody"},
        {"item_id": "train-000001", "vector": [1.0]},
    ]
    body = {"dataframe_records": records, "params": {"k": 2}}
    rows = requests.post(f"{endpoint}/invocations", json=body, timeout=60).json()["predictions"]
    assert [r["rank"] for r in rows] == [1, 2, 0, 0, 0, 0, 0]
    said = [r["error"] for r in rows if r["rank"] == 0]
    for error, words in zip(
        said, ("not base64", "not an image", "finite numbers", "no item", "item_id and vector"),
        strict=True,
    ):  # fmt: skip
        assert words in error["message"]
    assert rows[3]["query"] == "mine"
    # What is missing is null: NaN is no JSON.
    assert rows[3]["distance"] is None
    refused = requests.post(
        f"{endpoint}/invocations", json={**body, "params": {"k": 0}}, timeout=60
    )
    assert refused.status_code == 400
    assert "k = 0. Allowed: 1 to 1,000" in refused.text


def test_photos_of_one_product_and_thumbnails(
    context: Context, endpoint: str, originals: dict[str, bytes]
) -> None:
    """Copies that `duplicates` found are given once, and each item with its picture."""
    table = context.tables.read("duplicates").select("item_id", "cluster_id").collect()
    clusters = {row["item_id"]: row["cluster_id"] for row in table}
    asked = Endpoint(endpoint)
    for item_id in sorted(clusters)[:5] or sorted(originals)[:1]:
        found = asked.similar(item_id=item_id, k=20, thumbnails=True, attributes=True)
        given = [clusters[s.item_id] for s in found if s.item_id in clusters]
        assert len(given) == len(set(given))
        assert clusters.get(item_id) not in given
        for similar in found:
            assert similar.thumbnail is not None
            with Image.open(io.BytesIO(similar.thumbnail)) as picture:
                assert picture.size == (16, 16)
            assert not any(key.startswith("lookalike") for key in similar.attributes or ())
    assert asked.about()["items"] == 619


def test_query_by_the_command_line(way: Way, endpoint: str, tmp_path: Path) -> None:
    (report,) = (way.warehouse / "reports").glob("*/queries")
    image = str(sorted(report.glob("*.png"))[0])
    here = way.command("query", image, "--k", "3", "--json")
    assert here.returncode == 0, here.stderr
    there = way.command("query", image, "--k", "3", "--json", "--url", endpoint)
    assert json.loads(here.stdout)["answers"] == json.loads(there.stdout)["answers"]
    shown = way.command("query", image)
    assert shown.returncode == 0
    assert Path(image).stem in shown.stdout
    text = tmp_path / "text.png"
    text.write_text("no image")
    empty, bomb = tmp_path / "empty.png", tmp_path / "bomb.png"
    empty.touch()
    Image.new("1", (40_000, 40_000)).save(bomb)
    for arguments, said in (
        ((str(text),), "are not an image"),
        ((str(empty),), "0 bytes"),
        ((str(bomb),), "at most 64,000,000 pixels"),
        ((str(tmp_path / "nowhere.png"),), "cannot be read"),
        ((str(text), "--url", endpoint), "are not an image"),
    ):
        refused = way.command("query", *arguments)
        assert refused.returncode == 3
        assert said in refused.stderr
        assert "Traceback" not in refused.stderr
    nobody = way.command("query", image, "--url", "http://127.0.0.1:9")
    assert nobody.returncode == 1
    assert "does not answer" in nobody.stderr


def test_parts_that_do_not_belong_together_are_refused(way: Way, tmp_path: Path) -> None:
    """Invariant 3: another encoder in a release, both named."""
    release = way.release
    shutil.copytree(release, tmp_path / "release")
    opened = Release.open(tmp_path / "release")
    own = opened.encoder.fingerprint
    specification = opened.encoder.specification
    graph = _another_graph(release / "encoder" / "encoder.onnx")
    other = encoders.commit(str(tmp_path / "others"), graph, specification, {})
    shutil.rmtree(tmp_path / "release" / "encoder")
    shutil.copytree(other.uri, tmp_path / "release" / "encoder")
    manifest = tmp_path / "release" / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["files"] = [
        vars(e) for e in artifacts.describe(tmp_path / "release") if e.path != "manifest.json"
    ]
    write_manifest(manifest, raw)
    with pytest.raises(ArtifactError) as raised:
        Release.open(tmp_path / "release")
    assert own[:12] in str(raised.value)
    assert other.meta["fingerprint"][:12] in str(raised.value)


def _another_graph(path: Path) -> bytes:
    import onnx

    model = onnx.load(path)
    model.doc_string = "another"
    graph: bytes = model.SerializeToString()
    return graph


def test_everything_names_what_it_was_made_from(way: Way, context: Context) -> None:
    """Invariant 3: from the release back to the Delta versions."""
    folder = way.release
    release = artifacts.open_artifact(str(folder), "release")
    artifacts.verify(release)
    encoder = artifacts.open_artifact(str(folder / "encoder"), "encoder")
    assert release.meta["encoder"] == encoder.meta["fingerprint"]
    snapshot = artifacts.open_artifact(encoder.meta["made_from"]["snapshot"], "snapshot")
    assert snapshot.meta["versions"] == {
        "items": way.step("ingest")["items_version"],
        "splits": way.step("duplicates")["splits_version"],
    }
    assert release.meta["made_from"]["config"]["name"] == "small"
    assert {"pillow", "onnxruntime"} <= set(encoder.meta["versions"])
    ledger = context.tables.read("ledger").collect()
    assert {row["step"] for row in ledger} == set(STEPS) - {"query"}
    for manifest in way.warehouse.rglob("manifest.json"):
        assert json.loads(manifest.read_text())["format"] == artifacts.FORMAT


def test_no_pickles_and_no_secrets(way: Way) -> None:
    """Invariant 9: in no file of the warehouse, MLflow's and the logs included."""
    for path in way.warehouse.rglob("*"):
        if path.is_file():
            data = path.read_bytes()
            assert SECRET.encode() not in data, path
            assert path.suffix not in {".pkl", ".pickle", ".joblib", ".dill"}, path
            assert data[:2] not in (b"\x80\x03", b"\x80\x04", b"\x80\x05"), path


def test_the_model_asks_for_little(way: Way) -> None:
    requirements = way.release.parents[1] / "requirements.txt"
    named = {line.split("==")[0] for line in requirements.read_text().split()}
    images = {"pillow", "simplejpeg"}
    assert named == {"mlflow", "onnxruntime", "faiss-cpu", "pyarrow", "numpy"} | images
    assert all("==" in line for line in requirements.read_text().split())
    code = requirements.parent / "code" / "lookalike"
    assert not (code / "model").exists()
    assert not (code / "lake").exists()
