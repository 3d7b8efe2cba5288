"""What `inspect` says of a catalogue, against counts by loops; and by the command line."""

from __future__ import annotations

import csv
import io
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import SparkSession
from support import ROOT, Way

from lookalike import artifacts, config
from lookalike.columns import TEXT_MEDIA, VECTOR_MEDIA
from lookalike.errors import DataError
from lookalike.images import encode_png
from lookalike.lake import inspection, specimens
from lookalike.lake.ledger import Ledger
from lookalike.lake.tables import SCHEMAS, Tables
from lookalike.steps import inspect as step
from lookalike.steps.context import Context

SPLITS = ("train", "validation", "test")
ODD = ("new\nline", 'a "quoted", one', "日本語 é", "$x$ [red]")


@dataclass(frozen=True)
class Item:
    item_id: str
    sha256: str
    label: str | None
    given: str | None
    split: str | None
    group_id: str | None


@dataclass(frozen=True)
class Content:
    media: str | None
    width: int | None
    height: int | None
    size: int


@dataclass(frozen=True)
class Catalogue:
    """Rows as they were put into tables, with the versions of these."""

    tables: Tables
    versions: dict[str, int]
    items: list[Item]
    contents: dict[str, Content]
    rejects: list[tuple[str, str, str]]
    duplicates: list[tuple[str, str, str]]

    def without(self, *names: str) -> dict[str, int]:
        return {name: version for name, version in self.versions.items() if name not in names}


def put(tables: Tables, table: str, rows: Iterable[tuple[Any, ...]]) -> int:
    tables.replace(table, tables.spark.createDataFrame(list(rows), SCHEMAS[table]))
    return tables.version(table)


@pytest.fixture(scope="module")
def catalogue(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Catalogue:
    """400 items of 40 labels, in splits, groups and clusters by chance; rows of other versions."""
    random = np.random.default_rng(3)
    tables = Tables(spark, str(tmp_path_factory.mktemp("inspect") / "tables"))
    tables.ensure()
    media = ("image/png", "image/jpeg", None, TEXT_MEDIA)
    contents = {
        f"sha {i:03d}": Content(
            media[min(3, i % 9)],
            *((None, None) if i % 9 > 2 else random.integers(1, 300, 2).tolist()),
            size=int(random.integers(0, 2000)),
        )
        for i in range(180)
    }

    def some(options: tuple[str | None, ...]) -> str | None:
        return options[int(random.integers(len(options)))]

    items = [
        Item(
            item_id=f"{ODD[i % 4]} {i}" if i % 50 < 4 else f"item {i:03d}",
            sha256=f"sha {int(random.integers(150)):03d}",  # 150 and up are of no item
            label=None if i % 17 == 0 else f"label {int(40 * random.random() ** 2):02d}",
            given=some((*SPLITS, None)),
            split=some((*SPLITS, "train", None)),
            group_id=some((None, None, *(f"group {n}" for n in range(60)))),
        )
        for i in range(400)
    ]
    # Sizes about the powers of two, and two that are equally large; one item is gone by now.
    sizes, members = (2, 2, 3, 4, 5, 8, 9, 16, 17, 33, 33), [i.item_id for i in items[:131]]
    duplicates: list[tuple[str, str, str]] = []
    for number, size in enumerate(sizes):
        own = ["gone" if number == 0 and j == 0 else members.pop() for j in range(size)]
        kinds = [("exact", "near")[number % 2 if number % 3 else j % 2] for j in range(size)]
        duplicates += [(name, min(own), kind) for name, kind in zip(own, kinds, strict=True)]
    reasons = [None, *["damaged"] * 40, *["empty"] * 7, *[f"http_{n}" for n in range(400, 415)]]
    rejects = [
        (f"{ODD[i % 4]} bad {i}", reason, None if i % 5 == 0 else f"what was wrong with {i}" * 90)
        for i, reason in enumerate(reasons)
    ]
    versions = {
        "items": put(tables, "items", ((i.item_id, i.group_id, i.sha256, i.label, None, i.given,
                                        "test", "1", None) for i in items)),
        "rejects": put(tables, "rejects", ((name, "test", "1", reason, detail, None)
                                           for name, reason, detail in rejects)),
        "duplicates": put(tables, "duplicates", ((*row, 0) for row in duplicates)),
        "splits": put(tables, "splits", ((i.item_id, i.split, "hash") for i in items if i.split)),
    }  # fmt: skip
    put(tables, "contents", ((sha256, c.media, bytes(c.size), c.width, c.height, None)
                             for sha256, c in contents.items()))  # fmt: skip
    # None of what comes later counts.
    for table in ("items", "rejects", "duplicates", "splits"):
        tables.replace(table, tables.read(table).limit(3))
    said = [(name, reason or "unknown", (detail or "")[:500]) for name, reason, detail in rejects]
    return Catalogue(tables, versions, items, contents, said, duplicates)


def count(label: str | None, splits: list[str | None]) -> dict[str, Any]:
    return {
        "label": label,
        "items": len(splits),
        **{split: splits.count(split) for split in SPLITS},
        "without_split": splits.count(None),
    }


@pytest.mark.parametrize("decided", [True, False])
def test_labels(catalogue: Catalogue, decided: bool) -> None:
    versions = catalogue.versions if decided else catalogue.without("splits", "duplicates")
    by_label: dict[str | None, list[str | None]] = defaultdict(list)
    for item in catalogue.items:
        by_label[item.label].append(item.split if decided else item.given)
    unlabelled = by_label.pop(None)
    ordered = sorted(by_label, key=lambda label: (-len(by_label[label]), label or ""))
    assert len(ordered) > inspection.LARGEST + inspection.SMALLEST

    found = asdict(inspection.labels(catalogue.tables, versions))

    every = [split for splits in (*by_label.values(), unlabelled) for split in splits]
    assert found == {
        "number": len(ordered),
        "total": count(None, every),
        "unlabelled": count(None, unlabelled),
        "largest": tuple(count(label, by_label[label]) for label in ordered[:20]),
        "smallest": tuple(count(label, by_label[label]) for label in ordered[-10:]),
        "left_out": len(ordered) - 30,
    }


def test_few_labels_are_all_listed(catalogue: Catalogue) -> None:
    rows = [(f"{i}", None, "s", f"{i % 30:02d}", None, None, "", "", None) for i in range(45)]
    versions = {"items": put(catalogue.tables, "items", rows)}
    found = inspection.labels(catalogue.tables, versions)
    assert [one.label for one in found.largest] == [f"{i:02d}" for i in range(30)]
    assert (found.smallest, found.left_out, found.unlabelled.items) == ((), 0, 0)
    assert found.total == inspection.LabelCount(None, 45, 0, 0, 0, 45)


def quantiles(values: Iterable[int]) -> dict[str, int]:
    ordered = sorted(values)
    shares = {"least": 0, "p5": 5, "p25": 25, "median": 50, "p75": 75, "p95": 95, "most": 100}
    return {
        name: ordered[max(0, math.ceil(len(ordered) * share / 100) - 1)]
        for name, share in shares.items()
    }


def test_sizes(catalogue: Catalogue) -> None:
    firsts: dict[str, str] = {}
    for item in catalogue.items:
        firsts[item.sha256] = min(item.item_id, firsts.get(item.sha256, item.item_id))
    used = {sha256: catalogue.contents[sha256] for sha256 in firsts}
    measured = [c for c in used.values() if c.width is not None]

    def order(sha256: str) -> tuple[int, int, str]:
        c = used[sha256]
        pixels = c.size if c.width is None or c.height is None else c.width * c.height
        return pixels, c.size, firsts[sha256]

    def extreme(sha256: str) -> dict[str, Any]:
        c = used[sha256]
        return {"item_id": firsts[sha256], "media": c.media, "width": c.width, "height": c.height,
                "bytes": c.size}  # fmt: skip

    found = asdict(inspection.sizes(catalogue.tables, catalogue.versions["items"]))

    assert found == {
        "contents": len(used),
        "measured": len(measured),
        "width": quantiles(c.width or 0 for c in measured),
        "height": quantiles(c.height or 0 for c in measured),
        "bytes": quantiles(c.size for c in used.values()),
        "media": Counter(c.media or "unknown" for c in used.values()),
        "smallest": extreme(min(used, key=order)),
        "largest": extreme(max(used, key=order)),
    }
    assert list(found["media"].values()) == sorted(found["media"].values(), reverse=True)


def test_rejects(catalogue: Catalogue) -> None:
    by_reason: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item_id, reason, detail in catalogue.rejects:
        by_reason[reason].append((item_id, detail))
    ordered = sorted(by_reason, key=lambda reason: (-len(by_reason[reason]), reason))

    found = inspection.rejects(catalogue.tables, catalogue.versions["rejects"])

    assert found.number == len(catalogue.rejects)
    assert [(r.reason, r.count, (r.item_id, r.detail)) for r in found.reasons] == [
        (reason, len(by_reason[reason]), min(by_reason[reason])) for reason in ordered
    ]
    for most in (12, 30):
        places = [(n, ordered.index(reason), reason)
                  for reason, own in by_reason.items() for n in range(len(own))]  # fmt: skip
        chosen = sorted((number, n, reason) for n, number, reason in sorted(places)[:most])
        worst = specimens.worst_rejects(catalogue.tables, catalogue.versions["rejects"], most)
        assert [(r.reason, r.item_id, r.detail) for r in worst] == [
            (reason, *sorted(by_reason[reason])[n]) for _, n, reason in chosen
        ]


def test_clusters(catalogue: Catalogue) -> None:
    items = {item.item_id: item for item in catalogue.items}
    clusters: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for item_id, cluster_id, kind in catalogue.duplicates:
        clusters[cluster_id].append((item_id, kind))

    def kind_of(cluster_id: str) -> str:
        kinds = {kind for _, kind in clusters[cluster_id]}
        return kinds.pop() if len(kinds) == 1 else "both"

    def described(cluster_id: str) -> dict[str, Any]:
        own = [item_id for item_id, _ in clusters[cluster_id]]
        splits = [items[item_id].split for item_id in own if item_id in items]
        seen: Counter[str] = Counter()
        ranked = []
        for item_id in sorted(own):
            sha256 = items[item_id].sha256 if item_id in items else ""
            seen[sha256] += 1
            ranked.append((seen[sha256], item_id))
        return {
            "cluster_id": cluster_id,
            "kind": kind_of(cluster_id),
            "items": len(own),
            **{split: splits.count(split) for split in SPLITS},
            "members": tuple(item_id for _, item_id in sorted(ranked)[:8]),
        }

    found = inspection.clusters(catalogue.tables, catalogue.versions)

    assert found.number == len(clusters)
    assert found.items == sum(map(len, clusters.values()))
    assert found.kinds == {"exact": 0, "near": 0, "both": 0} | Counter(map(kind_of, clusters))
    bounds = [(2, 2), (3, 4), (5, 8), (9, 16), (17, 32), (33, 64)]
    assert [(s.least, s.most, s.clusters) for s in found.sizes] == [
        (low, high, sum(low <= len(own) <= high for own in clusters.values()))
        for low, high in bounds
    ]
    largest = sorted(clusters, key=lambda name: (-len(clusters[name]), name))[:10]
    assert [asdict(cluster) for cluster in found.largest] == list(map(described, largest))


def test_a_catalogue_without_anything(fresh: Tables, tmp_path: Path) -> None:
    versions = {t: fresh.version(t) for t in ("items", "rejects", "duplicates", "splits")}
    labels = inspection.labels(fresh, versions)
    assert (labels.number, labels.total.items, labels.largest) == (0, 0, ())
    sizes = inspection.sizes(fresh, versions["items"])
    assert (sizes.contents, sizes.width, sizes.smallest, sizes.media) == (0, None, None, {})
    assert inspection.rejects(fresh, versions["rejects"]) == inspection.Rejects(0, ())
    clusters = inspection.clusters(fresh, versions)
    assert (clusters.number, clusters.sizes, clusters.largest) == (0, (), ())

    context = context_of(fresh, tmp_path)
    with pytest.raises(DataError, match="Run `lookalike ingest` first"):
        step.run(context)
    Ledger(fresh).commit("ingest", {}, {"items_version": versions["items"]}, {})
    Ledger(fresh).commit("duplicates", {}, {f"{t}_version": v for t, v in versions.items()}, {})
    result = step.run(context)
    assert result.leaks == step.Leaks(clusters=0, groups=0, test=0, validation=0, first=[])
    assert leaks_in(result) == []


def test_random_items_stay_and_differ_by_seed(catalogue: Catalogue) -> None:
    known = {item.item_id for item in catalogue.items}
    found = [
        specimens.random_ids(catalogue.tables, catalogue.versions["items"], seed, 24)
        for seed in (1, 1, 2)
    ]
    assert found[0] == found[1] != found[2]
    assert all(len(set(ids)) == 24 and set(ids) <= known for ids in found)


def test_specimens_are_small_whatever_they_are(catalogue: Catalogue) -> None:
    tables = catalogue.tables
    photo, large = io.BytesIO(), np.random.default_rng(1).integers(256, size=(900, 600, 3))
    Image.fromarray(large.astype(np.uint8)).save(photo, "JPEG")
    small = encode_png(np.full((20, 30), 7, np.uint8))
    contents = {
        "photo": ("image/jpeg", photo.getvalue()),
        "small": ("image/png", small),
        "bad": ("image/png", b"no image"),
        "none": (None, None),
        "text": (TEXT_MEDIA, b"running shoe"),
        "vector": (VECTOR_MEDIA, bytes(4 * 16)),
    }
    rows = [(k, media, data, None, None, None) for k, (media, data) in contents.items()]
    frame = tables.spark.createDataFrame(rows, SCHEMAS["contents"])
    tables.insert_new("contents", frame, ("sha256",))
    names = [*contents, "lost"]
    items = [(f"of {n}", None, n, None, None, "train", "", "", None) for n in names]
    versions = {"items": put(tables, "items", items)}
    kept = tables.spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch")

    asked = [*(f"of {name}" for name in names), "nobody"]
    found = specimens.look_at(tables, versions, asked)

    assert tables.spark.conf.get("spark.sql.execution.arrow.maxRecordsPerBatch") == kept
    assert set(found) == {f"of {name}" for name in names}
    assert {f.split for f in found.values()} == {"train"}
    tiles = {name: found[f"of {name}"].tile for name in names}
    with Image.open(io.BytesIO(tiles["photo"].png or b"")) as seen:
        assert seen.size == (64, 96)
    with Image.open(io.BytesIO(tiles["small"].png or b"")) as seen:
        assert (np.asarray(seen) == np.full((20, 30), 7)).all()
    assert {name: t.words for name, t in tiles.items()} == {
        "photo": None,
        "small": None,
        "bad": "cannot be decoded (not_an_image)",
        "none": "cannot be decoded (empty)",
        "text": "running shoe",
        "vector": "vector of 16 numbers",
        "lost": "its content is gone",
    }


def context_of(tables: Tables, files: Path) -> Context:
    where = [f"warehouse.tables={tables.location}", f"warehouse.files={files}"]
    return Context(config.load(ROOT / "conf" / "demo.yaml", ["spark.master=null", *where]))


def leaks_in(result: step.Inspected) -> list[dict[str, str]]:
    with (Path(result.uri) / step.LEAKS).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def naive_leaks(catalogue: Catalogue) -> dict[tuple[str, str], dict[str, list[str]]]:
    split = {item.item_id: item.split for item in catalogue.items if item.split}
    joined = [("group", item.group_id, item.item_id) for item in catalogue.items if item.group_id]
    joined += [("cluster", cluster, item_id) for item_id, cluster, _ in catalogue.duplicates]
    found: dict[tuple[str, str], dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for kind, name, item_id in joined:
        if item_id in split:
            found[kind, name][split[item_id]].append(item_id)
    return {key: by_split for key, by_split in found.items() if len(by_split) > 1}


def test_the_step(catalogue: Catalogue, tmp_path: Path) -> None:
    """After `ingest` alone, then after `duplicates`: all in one artefact, tables untouched."""
    tables = catalogue.tables
    context = context_of(tables, tmp_path)
    of_rejects = tables.version("rejects")  # the newest: later steps reject, too
    Ledger(tables).commit("ingest", {}, {"items_version": catalogue.versions["items"]}, {})
    before = {table: tables.version(table) for table in SCHEMAS}

    first = step.run(context)

    assert first.versions == {"items": catalogue.versions["items"], "rejects": of_rejects}
    assert (first.duplicates_of, first.clusters, first.leaks) == (None, None, None)
    assert "run `lookalike duplicates`" in first.words
    assert set(first.files.values()) == {
        str(path) for path in Path(first.uri).iterdir() if path.name != artifacts.MANIFEST
    }
    assert first.labels == inspection.labels(tables, first.versions)

    outputs = {f"{t}_version": catalogue.versions[t] for t in ("items", "duplicates", "splits")}
    Ledger(tables).commit("duplicates", {}, outputs, {})
    before["ledger"] = tables.version("ledger")

    second = step.run(context)

    assert {table: tables.version(table) for table in SCHEMAS} == before
    assert first.uri != second.uri
    for result in (first, second):
        committed = artifacts.open_artifact(result.uri, step.KIND)
        artifacts.verify(committed)
        assert committed.meta == {"versions": result.versions}
        written = json.loads((Path(result.uri) / step.FIGURES).read_text(encoding="utf-8"))
        assert written == result.model_dump(mode="json", exclude={"unchanged", "uri"})
        with Image.open(Path(result.uri) / step.SHEET) as sheet:
            assert sheet.format == "PNG"
            assert sheet.height > 600
    assert not (tmp_path / "staging").exists() or not list((tmp_path / "staging").iterdir())
    assert second.versions == catalogue.versions | {"rejects": of_rejects}
    assert second.clusters == inspection.clusters(tables, catalogue.versions)

    expected = naive_leaks(catalogue)
    rows = {(row["kind"], row["id"]): row for row in leaks_in(second)}
    assert set(rows) == set(expected)
    assert len(expected) > 25
    for key, row in rows.items():
        for split in SPLITS:
            assert int(row[split]) == len(expected[key].get(split, ()))
            assert json.loads(row[f"{split}_ids"]) == sorted(expected[key].get(split, ()))[:10]
        assert row["between"] == ("test" if "test" in expected[key] else "validation")
    kinds = Counter(kind for kind, _ in expected)
    tested = sum("test" in by_split for by_split in expected.values())
    assert second.leaks is not None
    assert (second.leaks.clusters, second.leaks.groups) == (kinds["cluster"], kinds["group"])
    assert (second.leaks.test, second.leaks.validation) == (tested, len(expected) - tested)

    def size(key: tuple[str, str]) -> tuple[bool, int, str, str]:
        return "test" not in expected[key], -sum(map(len, expected[key].values())), *key

    assert [(leak.kind, leak.id) for leak in second.leaks.first] == sorted(expected, key=size)[:20]
    older = second.model_copy(update={"duplicates_of": 0})
    assert older.words == f"{second.words}, of an older version of the items: run " \
        "`lookalike duplicates` again"  # fmt: skip
    # As a person sees them: one line each, nothing that a terminal would take for its own.
    cells = [
        cell for _, heads, rows in step.shown(second) for row in (heads, *rows) for cell in row
    ]
    assert all(cell.isprintable() for cell in cells)
    titles = [title for title, _, _ in step.shown(second)]
    assert titles[0].endswith("by split")
    assert next(title for title, _, _ in step.shown(first)).endswith("as the source gives them")


def test_by_the_command_line(way: Way) -> None:
    done = way.command("inspect", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    ingested, decided = way.step("ingest"), way.step("duplicates")
    assert found["labels"]["total"]["items"] == ingested["items"]
    assert found["rejects"]["number"] == ingested["rejected"]
    assert found["rejects"]["reasons"][0]["reason"] == "unknown_label"
    for split in SPLITS:
        assert found["labels"]["total"][split] == decided[split]
    assert found["labels"]["total"]["without_split"] == 0
    assert found["clusters"]["number"] == decided["clusters"]
    assert (found["leaks"]["test"], found["leaks"]["validation"]) == (
        decided["leaks"], decided["mixed"],
    )  # fmt: skip
    assert found["sizes"]["media"] == {"image/png": found["sizes"]["contents"]}
    assert set(found["sizes"]["width"].values()) == {28}
    folder = Path(found["uri"])
    assert folder.parent == way.warehouse / "inspections"
    with Image.open(folder / step.SHEET) as sheet:
        assert sheet.format == "PNG"

    shown = way.command("inspect")
    assert shown.returncode == 0, shown.stderr
    assert "10 labels, by split" in shown.stdout
    assert "unknown_label" in shown.stdout
    assert f"Contact sheet: {way.warehouse}" in shown.stdout
