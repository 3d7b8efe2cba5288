"""Bad sources, kills, and gates that refuse: nothing half-written, nothing lost."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from pyspark.sql import SparkSession
from support import (
    KILL,
    QUICK,
    Way,
    command,
    idx_files,
    killed,
    read_idx,
    write_catalogue,
    write_idx,
    write_recipe,
)

from lookalike.config import IdxData
from lookalike.errors import DataError
from lookalike.lake import ingest
from lookalike.lake.sources.idx import IdxSource
from lookalike.lake.tables import Tables
from lookalike.steps.context import Context

RULES = ingest.Rules(max_reject_share=0.05)


IN_MERGE = """
import pathlib, psutil, threading, time
from lookalike.lake.tables import Tables
upsert = Tables.upsert

def kill_when_written(folder):
    before = set(folder.glob("*.parquet"))
    while set(folder.glob("*.parquet")) == before:
        time.sleep(0.001)
    driver = psutil.Process()
    for process in (*driver.children(), driver):  # Spark's own first
        process.kill()

def watched(self, table, *rest):
    if table == "items":
        folder = pathlib.Path(self.location) / table
        threading.Thread(target=kill_when_written, args=(folder,), daemon=True).start()
    upsert(self, table, *rest)

Tables.upsert = watched
"""
"""Code that kills driver and Spark when a MERGE has written files that its commit would name."""


@pytest.fixture
def source(spark: SparkSession, tmp_path: Path) -> IdxSource:
    """A source of its own, to be damaged."""
    write_catalogue(tmp_path, train=4, test=2)
    names = [str(i) for i in range(10)]
    data = IdxData.model_validate({"source": "idx", "label_names": names, **idx_files(tmp_path)})
    return IdxSource(spark, data)


def counts(tables: Tables) -> dict[str, int]:
    return {t: tables.read(t).count() for t in ("items", "contents", "rejects")}


def test_load_again_with_a_change_touches_what_changed(fresh: Tables, source: IdxSource) -> None:
    first = ingest.load(fresh, source, RULES)
    assert (first.seen, first.read, first.changed) == (60, 60, 60)
    again = ingest.load(fresh, source, RULES)
    assert (again.seen, again.used, again.read, again.changed) == (60, 60, 0, 0)
    version = fresh.version("items")
    assert version == 1  # the first load's one write; the second wrote nothing
    labels, images = Path(source.data.test.labels), Path(source.data.test.images)
    names, pixels = read_idx(labels).copy(), read_idx(images).copy()
    names[0] = (names[0] + 1) % 10
    pixels[1] = 255 - pixels[1]
    write_idx(labels, names)
    write_idx(images, pixels)
    second = ingest.load(fresh, source, RULES)
    # A new label is no new content: one of the two is read.
    assert (second.seen, second.used, second.read, second.changed) == (60, 60, 1, 2)
    feed = fresh.spark.sql(
        f"SELECT * FROM table_changes_by_path('{fresh.location}/items', {version + 1})"
    )
    updated = feed.where("_change_type = 'update_postimage'").collect()
    assert {r["item_id"] for r in updated} == {"test-000000", "test-000001"}
    assert counts(fresh) == {"items": 60, "contents": 61, "rejects": 0}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "there is no .*train-images"),
        ("wrong magic", "is no IDX file"),
        ("cut gzip", "breaks off"),
        ("labels for images", "is an IDX label file"),
        ("other count", "40 images and .* has 7 labels"),
        ("unknown labels", "40 of 60 items cannot be used.*unknown_label.*label 99"),
    ],
)
def test_a_bad_source_commits_nothing(
    fresh: Tables, source: IdxSource, damage: str, said: str
) -> None:
    images, labels = Path(source.data.train.images), Path(source.data.train.labels)
    match damage:
        case "missing":
            images.unlink()
        case "wrong magic":
            images.write_bytes(b"GIF89a......")
        case "cut gzip":
            images.write_bytes(images.read_bytes()[:-500])
        case "labels for images":
            images.write_bytes(labels.read_bytes())
        case "other count":
            write_idx(labels, np.zeros(7, np.uint8))
        case "unknown labels":
            write_idx(labels, np.full(40, 99, np.uint8))
    with pytest.raises(DataError, match=said) as raised:
        ingest.load(fresh, source, RULES)
    assert "\n" not in str(raised.value)
    assert counts(fresh) == {"items": 0, "contents": 0, "rejects": 0}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["ingest", "--set", "data.train.images=/no/such/file"], 3, "DataError: /no/such/file"),
        (["ingest", "--set", "data.train.images=README.md"], 3, "is no IDX file"),
        (["run", "--set", "train.images_per_class=90"], 2, "train.images_per_class"),
        (["train", "--set", "train.ranks=9"], 2, "train.ranks = 9"),
        (["ingest", "--set", "warehouse.files=README.md/x"], 2, "cannot be written to"),
        (["ingest", "--set", "warehouse.tables=README.md/x"], 2, "cannot be made a folder"),
        (["nonsense"], 2, "No such command"),
        (["query", "--set", "name=nobody"], 3, "has no champion yet"),
    ],
)
def test_exit_codes_and_words(way: Way, arguments: list[str], code: int, said: str) -> None:
    done = way.command(*arguments)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr


def test_a_missing_step_is_named(tmp_path: Path) -> None:
    conf = write_recipe(tmp_path, train=5, test=2)
    done = command("snapshot", "--conf", str(conf), *QUICK)
    assert done.returncode == 3
    assert "has no committed duplicates. Run `lookalike duplicates` first" in done.stderr


def test_java_comes_along_where_the_machine_has_none_that_fits(tmp_path: Path) -> None:
    conf = write_recipe(tmp_path, train=5, test=2)
    java = tmp_path / "java" / "bin" / "java"
    java.parent.mkdir(parents=True)
    java.write_text("#!/bin/sh\necho 'openjdk version \"23.0.1\" 2024-10-15' >&2\n")
    java.chmod(0o755)
    before = f"import os; os.environ['JAVA_HOME'] = {str(tmp_path / 'java')!r}"
    done = command("ingest", "--conf", str(conf), *QUICK, before=before)
    assert done.returncode == 0, done.stderr
    assert "70 in = 69 out + 1 rejected" in " ".join(done.stderr.split())


def test_tables_of_a_catalogue_may_have_any_name(spark: SparkSession) -> None:
    assert Tables(spark, "my-catalog.shop_1").name("items") == "`my-catalog`.`shop_1`.items"
    assert Tables(spark, "wh/my.tables").name("items").startswith("delta.`file:///")


def test_a_recipes_packages_come_beside_deltas() -> None:
    own = f"io.delta:delta-storage:{importlib.metadata.version('delta-spark')}"
    code = f"""
from lookalike.config import Spark
from lookalike.lake.session import open_session
spark = open_session(Spark(master="local[1]", conf={{"spark.jars.packages": "{own}"}}), "packages")
print(spark.conf.get("spark.jars.packages"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "io.delta:delta-spark_" in done.stdout
    assert own in done.stdout


@pytest.mark.parametrize(
    "where",
    [
        killed("lookalike.lake.ingest._add_contents"),  # all is decoded, nothing is written
        IN_MERGE,  # contents and rejects are in, items are half-written
        killed("lookalike.lake.ledger:Ledger.commit"),  # all is in, the ledger does not know
    ],
    ids=["decoded", "in merge", "before the ledger"],
)
def test_a_killed_ingest_is_finished_by_the_next(
    spark: SparkSession, tmp_path: Path, where: str
) -> None:
    """Invariant 7."""
    conf = write_recipe(tmp_path, train=6, test=2)
    dead = command("ingest", "--conf", str(conf), *QUICK, before=where)
    assert dead.returncode == -9
    done = command("ingest", "--json", "--conf", str(conf), *QUICK)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["items"] == 79
    tables = tmp_path / "wh" / "tables"
    found = counts(Tables(spark, str(tables)))
    assert found == {"items": 79, "contents": 79, "rejects": 1}
    feed = spark.sql(f"SELECT * FROM table_changes_by_path('{tables}/items', 1)")
    assert feed.count() == 79  # each came once


def test_a_killed_index_leaves_the_one_before(way: Way) -> None:
    """Invariant 7: killed as the version's manifest would be written, then run again."""
    versions = way.warehouse / "index" / "versions"
    before = sorted(versions.iterdir())
    change = ("--set", "index.recall=0.99")
    code = (
        f"{KILL}import lookalike.artifacts as a\nseal = a.seal\n"
        "def sealed(uri, kind, *rest):\n"
        "    return kill() if kind == 'index' else seal(uri, kind, *rest)\n"
        "a.seal = sealed"
    )
    dead = way.command("index", *change, before=code)
    assert dead.returncode == -9
    assert sorted(p for p in versions.iterdir() if (p / "manifest.json").exists()) == before
    image = str(next((way.warehouse / "reports").glob("*/queries/*.png")))
    assert way.command("query", image).returncode == 0
    done = way.command("index", *change, "--json")
    assert done.returncode == 0, done.stderr
    assert (versions / json.loads(done.stdout)["version"] / "manifest.json").exists()
    # The way's own recipe again, so that later tests find what they know.
    assert json.loads(way.command("index", "--json").stdout)["version"] == before[0].name


def champion(context: Context) -> int:
    client = MlflowClient(context.tracking.uri)
    return int(client.get_model_version_by_alias("small", "champion").version)


def test_a_worse_encoder_is_refused_and_the_champion_stays(way: Way, context: Context) -> None:
    before = champion(context)
    worse = (
        "tune.trials=0",
        "train.epochs=1",
        "train.learning_rate=0.000001",
        "gate.max_drop=0.05",
    )
    settings = [word for setting in worse for word in ("--set", setting)]
    refused = way.command("run", *settings)
    assert refused.returncode == 4, refused.stderr
    assert "the gate refused this candidate" in refused.stderr
    assert "The release gate" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "raw pixels" in refused.stdout  # its figures are shown all the same
    assert champion(context) == before
