"""`lookalike clean` on a copy of the way's warehouse that has seen more work."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from support import QUICK, ROOT, Way, write_manifest

from lookalike import artifacts, config
from lookalike import encoder as encoders
from lookalike.columns import ITEM_ID, LABEL, VECTOR
from lookalike.encoder import Encoder
from lookalike.index import Plan, build
from lookalike.lake import retention
from lookalike.lake.embed import embed
from lookalike.lake.tables import SCHEMAS, Tables
from lookalike.serving import registry
from lookalike.steps import check, evaluate, index, release
from lookalike.steps import clean as step
from lookalike.steps import embed as embed_step
from lookalike.steps.context import Context

OLD = "20200101T000000-00000000"
DAY = 24 * 3600


@pytest.fixture(scope="module")
def copy(way: Way, context: Context, tmp_path_factory: pytest.TempPathFactory) -> Way:
    """A copy of the way's warehouse that names itself wherever the way's is named."""
    folder = tmp_path_factory.mktemp("a copy é")
    warehouse = folder / "wh"
    shutil.copytree(way.warehouse, warehouse)
    before, after = str(way.warehouse), str(warehouse)
    conf = folder / "small.yaml"
    conf.write_text(json.dumps(_renamed(_yaml(way.conf), before, after)))
    # As JSON has it, where it is not ASCII.
    in_json = [json.dumps(path)[1:-1] for path in (before, after)]
    for manifest in warehouse.glob("[!m]*/**/manifest.json"):
        write_manifest(manifest, _renamed(json.loads(manifest.read_text()), before, after))
    with closing(sqlite3.connect(warehouse / "mlflow" / "mlflow.db")) as database, database:
        for (table,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'"):
            for _, column, kind, *_ in database.execute(f"PRAGMA table_info({table})").fetchall():
                if "CHAR" in kind or "TEXT" in kind:
                    database.execute(
                        f"UPDATE {table} SET {column} = replace({column}, ?, ?)", (before, after)
                    )
    made = Way(conf, warehouse, way.report)
    own = opened(made, context)
    uris = [artifacts.fingerprint(c.tracking.uri) for c in (context, own)]
    for column in ("inputs", "outputs"):
        for old, new in (in_json, uris):
            context.spark.sql(
                f"UPDATE {own.tables.name('ledger')} SET {column} = replace({column}, :old, :new)",
                args={"old": old, "new": new},
            )
    return made


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def _renamed(value: Any, before: str, after: str) -> Any:
    return json.loads(json.dumps(value).replace(json.dumps(before)[1:-1], json.dumps(after)[1:-1]))


def opened(way: Way, context: Context, *settings: str) -> Context:
    """Steps on a warehouse, in the session's Spark. Never closed: it is not theirs."""
    own = Context(config.load(way.conf, settings))
    own.__dict__["spark"] = context.spark
    return own


def clean(way: Way, *arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    no_terminal = "import os, sys; sys.stdin = open(os.devnull)\n"
    return way.command(
        *("clean", "--keep", "1", *arguments), before=no_terminal + more.get("before", "")
    )


def another_encoder(own: Context, trained: dict[str, Any], name: str) -> artifacts.Artifact:
    """An encoder that gives the same vectors and has another fingerprint."""
    import onnx

    model = onnx.load(Path(trained["uri"]) / encoders.GRAPH)
    model.doc_string = name
    made = artifacts.open_artifact(trained["uri"], encoders.KIND)
    specification = Encoder.open(trained["uri"]).specification
    graph: bytes = model.SerializeToString()
    return encoders.commit(own.encoders, graph, specification, made.meta["made_from"])


def another_index(own: Context, fingerprint: str) -> artifacts.Artifact:
    batch = pa.RecordBatch.from_pydict({ITEM_ID: ["a"], LABEL: ["x"], VECTOR: [[1.0, 0.0]]})
    made_from = {"encoder": fingerprint, "items_version": 0}
    return build(own.indexes, [batch], 2, Plan("exact"), made_from)


@dataclass(frozen=True)
class Seen:
    """What was there before anything was removed, and what of it nothing live needs."""

    items: dict[str, str | None]
    items_version: int
    first: dict[str, Any]
    model: Path
    spare: str
    stays: tuple[artifacts.Artifact, ...]
    going: set[tuple[str, str]]


@pytest.fixture(scope="module")
def seen(copy: Way, context: Context) -> Seen:
    """The copy after more work, and after steps that were killed."""
    own = opened(copy, context)
    tables = own.tables
    first = {s: own.ledger.need(s).outputs for s in ("train", "index", "evaluate", "release")}
    version, pinned = first["index"]["version"], first["index"]["items_version"]
    items = {row["item_id"]: row["label"] for row in tables.read("items", pinned).collect()}

    # Another release, and no alias on the first; two more encoders, which nobody names.
    later = opened(copy, context, "index.recall=0.9")
    for made_by in (index, evaluate, release):
        made_by.run(later)
    own.tracking.client.set_registered_model_alias("small", "previous", "2")
    spare = another_encoder(own, first["train"], "second")
    fingerprint = spare.meta["fingerprint"]
    spare_index = another_index(own, fingerprint)
    assert embed(tables, spare.uri, fingerprint, pinned).embedded > 600
    newest = another_encoder(own, first["train"], "third")
    newest_index = another_index(own, newest.meta["fingerprint"])
    # Items have changed since; what is pinned is an older version.
    context.spark.sql(f"UPDATE {tables.name('items')} SET label = 'changed'")

    # What killed steps left behind, long ago and just now.
    for root in ("encoders", "staging", "index/parts"):
        for name in (OLD, artifacts.new_name()):
            left = copy.warehouse / root / name / "left.bin"
            left.parent.mkdir(parents=True)
            left.write_bytes(b"123")
            if name == OLD:
                os.utime(left, (0, 0))

    released = {v.number: v for v in registry.versions(own.tracking, "small")}
    (source,) = released[1].sources
    parts = artifacts.open_artifact(f"{own.indexes}/versions/{version}", "index").meta["parts"]
    going = {
        ("release", "small/1"),
        ("model", source),
        ("report", Path(first["evaluate"]["report"]).name),
        ("index", version),
        ("index", spare_index.name),
        ("index-part", parts[0]),
        ("index-part", spare_index.meta["parts"][0]),
        ("embeddings", fingerprint),
        ("encoder", spare.name),
        *(("leftover", f"{folder}/{OLD}") for folder in ("encoders", "staging", "parts")),
    }
    model = copy.warehouse / "mlflow" / "artifacts" / "models" / source
    return Seen(items, pinned, first, model, fingerprint, (newest, newest_index), going)


def test_a_lost_manifest_is_damage_and_what_a_killed_step_left_is_none(
    copy: Way, context: Context
) -> None:
    own = opened(copy, context)
    before = check.run(own)
    assert before.damaged == ()
    left = Path(own.encoders, artifacts.new_name())
    left.mkdir()
    made = [Path(own.ledger.need(step).outputs["uri"]) for step in ("snapshot", "train")]
    made.append(Path(own.indexes, "versions", own.ledger.need("index").outputs["version"]))
    for folder in made:
        hidden = (folder / artifacts.MANIFEST).rename(folder / "hidden")
        found = check.run(own)
        hidden.rename(folder / artifacts.MANIFEST)
        assert {*found.unfinished} == {*before.unfinished, str(left)}
        lost = f"the artefact {folder} is damaged: manifest.json is missing"
        assert any(said.startswith(lost) for said in found.damaged)
    # What the ledger does not name: a part, which its version does, and a trial.
    (part, *_) = Path(own.indexes, "parts").iterdir()
    (trial, *_) = Path(own.searches).glob("*/*/trials/*")
    for folder, said in ((part, [part.name]), (trial, [])):
        hidden = (folder / artifacts.MANIFEST).rename(folder / "hidden")
        found = check.run(own)
        hidden.rename(folder / artifacts.MANIFEST)
        assert {*found.unfinished} == {*before.unfinished, str(left), str(folder)}
        assert [name for name in said if not any(name in words for words in found.damaged)] == []
        assert bool(found.damaged) == bool(said)
    left.rmdir()
    assert check.run(own) == before


def test_without_a_terminal_it_says_what_would_go(copy: Way, seen: Seen) -> None:
    before = files(copy)
    done = clean(copy, "--json")
    assert done.returncode == 2
    assert "no terminal to ask at. Look at the list and give --yes" in done.stderr
    said = json.loads(done.stdout)
    assert {(one["kind"], one["name"]) for one in said["planned"]} == seen.going
    assert said["removed"] == []
    assert {"kind", "name", "at", "size", "reasons"} == set(said["kept"][0])
    assert said["retained_hours"]["items"] >= 7 * 24
    assert files(copy) == before


def test_what_nothing_live_needs_goes(copy: Way, context: Context, seen: Seen) -> None:
    """Killed at the first folder, its manifest removed; asked for the rest at a terminal."""
    own, report = opened(copy, context), Path(seen.first["evaluate"]["report"])
    assert (seen.model / "artifacts" / "MLmodel").exists()
    dying = (
        "import os, signal, pathlib, lookalike.artifacts as a\n"
        "def remove(uri):\n"
        "    (pathlib.Path(uri) / 'manifest.json').unlink()\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "a.remove = remove"
    )
    assert clean(copy, "--yes", before=dying).returncode == -9
    assert report.exists()
    assert not artifacts.exists(str(report), "report")
    assert not list(seen.model.rglob("*.*"))

    done = ask(copy, "y\n")
    assert done.returncode == 0, done.stdout
    # The release, its model and its report were gone already; a step might be writing the latter.
    for kind, name in seen.going:
        if kind not in {"release", "model", "report"}:
            assert f"{kind} {name[:12]}" in done.stdout
    assert f"leftover reports/{report.name}" in done.stdout
    assert "alias champion" in done.stdout
    assert f"Remove these {len(seen.going) - 3} and vacuum?" in done.stdout
    assert f"{len(seen.going) - 3} removed" in done.stdout
    query = copy.command("query", "--json")
    assert query.returncode == 0, query.stderr
    assert len(json.loads(query.stdout)["answers"]) == 10
    released = registry.versions(own.tracking, "small")
    assert {v.number: v.aliases for v in released} == {2: ("champion", "previous")}
    assert own.tracking.client.get_run(seen.first["train"]["run_id"]).data.metrics
    rows = own.tables.read("embeddings").groupBy("encoder").count().collect()
    assert {row["encoder"] for row in rows} == {seen.first["train"]["fingerprint"]}
    old = own.tables.read("items", seen.items_version).collect()
    assert {row["item_id"]: row["label"] for row in old} == seen.items
    for made in seen.stays:
        assert artifacts.exists(made.uri, made.manifest.kind)
    # Nobody who looks for a newer version finds one in which nothing changed.
    for table in SCHEMAS:
        history = context.spark.sql(f"DESCRIBE HISTORY {own.tables.name(table)}")
        assert history.where("operation LIKE 'VACUUM%'").count() == 0
    assert step.plan(own, 1).decided.going == ()


def files(way: Way) -> list[str]:
    return sorted(str(p) for p in way.warehouse.rglob("*") if "logs" not in p.parts)


def ask(way: Way, answer: str) -> subprocess.CompletedProcess[str]:
    """Run `clean` at a terminal, and answer what it asks."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "lookalike.cli", "clean", "--keep", "1"]
    running = subprocess.Popen(
        [*command, "--conf", str(way.conf), *QUICK],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=ROOT,
        env=os.environ | {"COLUMNS": "200"},
    )  # fmt: skip
    os.close(theirs)
    os.write(ours, answer.encode())
    said = b""
    try:
        while more := os.read(ours, 4096):
            said += more
    except OSError:  # how a terminal's end is told
        pass
    finally:
        os.close(ours)
    return subprocess.CompletedProcess(command, running.wait(timeout=60), said.decode())


def test_what_was_removed_is_made_again(copy: Way, context: Context, seen: Seen) -> None:
    """An index version, a part of one, and an encoder's vectors."""
    own = opened(copy, context)
    version = seen.first["index"]["version"]
    artifacts.remove(artifacts.join(own.indexes, "versions", version))
    made = index.run(own)
    assert made.version != version
    assert not made.unchanged
    assert index.run(own) == made.model_copy(update={"unchanged": True})
    found = artifacts.open_artifact(f"{own.indexes}/versions/{made.version}", "index")
    artifacts.remove(f"{own.indexes}/parts/{found.meta['parts'][0]}")
    made = index.run(own)
    assert made.version != found.name
    assert not made.unchanged
    assert embed_step.run(own).unchanged
    retention.forget(own.tables, made.encoder)
    embedded = embed_step.run(own)
    assert not embedded.unchanged
    assert (embedded.known, embedded.embedded) == (0, embedded.seen)
    assert embed_step.run(own).unchanged
    assert index.run(own).version == made.version


def aged(tables: Tables, days: int, target: Path) -> Tables:
    """A copy of tables, all of whose doings are so many days older."""
    shutil.copytree(tables.location, target)
    milliseconds = days * DAY * 1000
    for log in target.glob("*/_delta_log/*.json"):
        log.write_text(
            re.sub(
                r'("(?:timestamp|modificationTime|deletionTimestamp)":)(\d+)',
                lambda found: f"{found[1]}{int(found[2]) - milliseconds}",
                log.read_text(),
            )
        )
    for crc in target.rglob("*.crc"):
        crc.unlink()  # checksums of the logs as they were
    for path in target.rglob("*"):
        written = path.stat().st_mtime - days * DAY
        os.utime(path, (written, written))
    return Tables(tables.spark, str(target))


def test_a_vacuum_leaves_what_a_pinned_version_needs(context: Context, tmp_path: Path) -> None:
    made = Tables(context.spark, str(tmp_path / "new"))
    made.ensure()
    now = datetime.now(UTC)
    row = {"sha256": "0", "label": "x", "source": "s", "source_version": "1", "updated_at": now}
    rows = [row | {"item_id": str(number)} for number in range(10)]
    frame = context.spark.createDataFrame(rows, SCHEMAS["items"])
    made.insert_new("items", frame, ("item_id",))
    pinned = made.version("items")
    made.delete("items", frame.where("item_id < '5'").select("item_id"), "item_id")
    assert retention.retained_hours(made, {"items": pinned})["items"] == 7 * 24

    kept, lost = (aged(made, 20, tmp_path / name) for name in ("kept", "lost"))
    hours = retention.retained_hours(kept, {"items": pinned})
    assert 20 * 24 < hours["items"] <= 22 * 24
    assert {hours[table] for table in SCHEMAS if table != "items"} == {7 * 24}
    newest = retention.retained_hours(kept, {"items": made.version("items")})
    assert set(newest.values()) == {7 * 24}
    retention.vacuum(kept, {"items": hours["items"]})
    retention.vacuum(lost, {"items": newest["items"]})
    for tables in (kept, lost):
        assert tables.read("items").count() == 5
        assert tables.version("items") == made.version("items")
    assert kept.read("items", pinned).count() == 10
    with pytest.raises(Exception, match=r"FILE_NOT_EXIST|does not exist|FileNotFound"):
        lost.read("items", pinned).select("label").collect()
