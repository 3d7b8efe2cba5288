"""Real catalogues, messy and growing, into the tables: each kind of source."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from PIL import Image
from pydantic import TypeAdapter
from pyspark.sql import SparkSession
from support import QUICK, ROOT, command, served

from lookalike import config
from lookalike.errors import ConfigError, DataError
from lookalike.images import content_hash
from lookalike.lake import ingest
from lookalike.lake.ingest import Loaded
from lookalike.lake.sources import Source, open_source
from lookalike.lake.tables import Tables
from lookalike.steps import ingest as step
from lookalike.steps.context import Context


def picture(seed: int, kind: str = "JPEG", size: int = 24) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def data_of(**data: object) -> config.Data:
    found: config.Data = TypeAdapter(config.Data).validate_python(data)
    return found


def load(tables: Tables, data: config.Data, prune: bool = False) -> Loaded:
    return ingest.load(tables, open_source(tables.spark, data), ingest.Rules.of(data), prune)


def rows(tables: Tables, table: str) -> dict[str, dict]:
    return {row["item_id"]: row.asDict() for row in tables.read(table).collect()}


def reasons(tables: Tables) -> dict[str, str]:
    return {item_id: row["reason"] for item_id, row in rows(tables, "rejects").items()}


def bomb() -> bytes:
    """A PNG whose header promises 100,000 x 100,000 pixels."""
    data = bytearray(picture(0, "PNG"))
    data[16:24] = (100_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def test_a_folder_as_people_have_them(fresh: Tables, tmp_path: Path) -> None:
    root = tmp_path / "photos [1]{a}*?"
    good = ["x y.jpg", "é/ü.PNG", "new\nline.jpg", "100%25.gif", "a#b.webp", "[z]/q?.bmp"]
    kinds = dict(zip(good, ("JPEG", "PNG", "JPEG", "GIF", "WEBP", "BMP"), strict=True))
    bad = {
        "zero.jpg": (b"", "empty"),
        "text.jpg": (b"hello, this is text", "not_an_image"),
        "cut.jpg": (picture(1, size=200)[:-9000], "damaged"),
        "bomb.png": (bomb(), "too_large"),
        "_DSC1.jpg": (picture(2), "hidden_name"),
        "large.jpg": (picture(3, "BMP", size=300), "too_many_bytes"),
    }
    contents = {name: picture(i, kinds[name]) for i, name in enumerate(good)}
    contents["copy.jpg"] = contents["x y.jpg"]
    for name, file in (contents | {k: v[0] for k, v in bad.items()}).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(file)
    (root / "notes.txt").write_text("not an image, and not named like one")
    (root / ".thumb.jpg").write_bytes(picture(9))
    spelled = f"{tmp_path}/nowhere/..//{root.name}/"
    strict = data_of(source="folder", root=spelled, max_bytes=80_000)

    with pytest.raises(DataError, match=r"6 of 13 items cannot be used.*max_reject_share"):
        load(fresh, strict)
    assert [fresh.version(t) for t in ("items", "contents", "rejects")] == [0, 0, 0]

    data = strict.model_copy(update={"max_reject_share": 0.5})
    assert load(fresh, data) == Loaded(
        seen=13, used=7, rejected=6, read=10, changed=7, taken=0, pruned=0
    )
    assert reasons(fresh) == {name: reason for name, (_, reason) in bad.items()}
    items = rows(fresh, "items")
    assert {k: v["sha256"] for k, v in items.items()} == {
        name: content_hash(file) for name, file in contents.items()
    }
    kept = {r["sha256"]: r for r in fresh.read("contents").collect()}
    assert {k: bytes(v["bytes"]) for k, v in kept.items()} == {
        content_hash(file): file for file in contents.values()
    }
    assert all((r["width"], r["height"]) == (24, 24) for r in kept.values())
    media = {k: kept[v["sha256"]]["media"] for k, v in items.items()}
    assert media == {k: f"image/{kinds.get(k, 'JPEG').lower()}" for k in items}
    assert open_source(fresh.spark, data).passed_over() == {".txt": 1}

    # As it was: nothing is read, nothing written, not even of what is bad.
    versions = [fresh.version(t) for t in ("items", "contents", "rejects")]
    assert load(fresh, data) == Loaded(
        seen=13, used=7, rejected=6, read=0, changed=0, taken=0, pruned=0
    )
    assert [fresh.version(t) for t in ("items", "contents", "rejects")] == versions

    # One mended, one gone: gone it stays in the tables until it is pruned.
    (root / "zero.jpg").write_bytes(picture(77))
    (root / "copy.jpg").unlink()
    assert load(fresh, data) == Loaded(
        seen=12, used=7, rejected=5, read=1, changed=1, taken=0, pruned=0
    )
    assert "zero.jpg" not in reasons(fresh)
    assert {"zero.jpg", "copy.jpg"} < set(rows(fresh, "items"))

    # Written anew as it was: its content is read, and is there already.
    contents_version = fresh.version("contents")
    os.utime(root / good[0], (1, 1))
    assert load(fresh, data) == Loaded(
        seen=12, used=7, rejected=5, read=1, changed=1, taken=0, pruned=0
    )
    assert fresh.version("contents") == contents_version

    assert load(fresh, data, prune=True).pruned == 1
    assert set(rows(fresh, "items")) == {*good, "zero.jpg"}


def test_a_reject_that_is_again_what_it_was_is_counted_once(fresh: Tables, tmp_path: Path) -> None:
    """Its row in `items` has never gone; another item changes in the same load."""
    root = tmp_path / "photos"
    root.mkdir()
    names = [f"{letter}.jpg" for letter in "abcd"]
    for number, name in enumerate(names):
        (root / name).write_bytes(picture(number))
    data = data_of(source="folder", root=str(root), max_reject_share=0.5)
    assert load(fresh, data) == Loaded(seen=4, used=4, rejected=0, read=4, changed=4)
    first, times = root / names[0], (root / names[0]).stat()
    first.write_bytes(b"no picture")
    assert load(fresh, data) == Loaded(seen=4, used=3, rejected=1, read=1, changed=0)
    first.write_bytes(picture(0))
    os.utime(first, ns=(times.st_atime_ns, times.st_mtime_ns))
    (root / names[1]).write_bytes(picture(9))
    assert load(fresh, data) == Loaded(seen=4, used=4, rejected=0, read=1, changed=1)
    assert reasons(fresh) == {}
    assert load(fresh, data) == Loaded(seen=4, used=4, rejected=0, read=0, changed=0)


@pytest.mark.parametrize(
    ("folder", "said"), [("empty", "no items in .*1 .txt"), ("no", "there is no")]
)
def test_an_empty_or_missing_folder(fresh: Tables, tmp_path: Path, folder: str, said: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "readme.txt").write_text("nothing here")
    with pytest.raises(DataError, match=said):
        load(fresh, data_of(source="folder", root=str(tmp_path / folder)))


def write_csv(path: Path, table: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(table)


def test_a_manifest_of_paths(fresh: Tables, tmp_path: Path) -> None:
    (tmp_path / "pics").mkdir()
    for i in range(6):
        (tmp_path / "pics" / f"p {i}.jpg").write_bytes(picture(i))
    long = "é" * 200
    table = [
        ["sku", "file", "label", "split", "price", "odd name.x"],
        ["0001", "pics/p 0.jpg", "", "train", "1.50", "a\nb"],
        ["s1", f"{tmp_path}/pics/p 1.jpg", "7", "val", "", "c"],
        ["s2", f"file://{tmp_path}/pics/p 2.jpg", long, "TEST", "3", "d,e"],
        ["s3", "./pics/p 3.jpg", "boot", "", "4", 'say "x"'],
        ["gone", "pics/none.jpg", "l", "", "1", ""],
        ["nowhere", "", "l", "", "1", ""],
        ["odd", "pics/p 4.jpg", "l", "holdout", "1", ""],
        ["", "pics/p 1.jpg", "l", "", "1", ""],
        ["few", "pics/p 1.jpg"],
    ]
    write_csv(tmp_path / "feed.csv", table)
    data = data_of(
        source="manifest", table=str(tmp_path / "feed.csv"), item_id="sku", path="file",
        max_reject_share=0.9,
    )  # fmt: skip
    first = load(fresh, data)
    assert (first.seen, first.used, first.rejected) == (9, 4, 5)
    items = rows(fresh, "items")
    assert {k: v["label"] for k, v in items.items()} == {
        "0001": None, "s1": "7", "s2": long, "s3": "boot"
    }  # fmt: skip
    splits = {k: v["given_split"] for k, v in items.items()}
    assert splits == {"0001": "train", "s1": "validation", "s2": "test", "s3": None}
    assert items["0001"]["attributes"] == {"price": "1.50", "odd name.x": "a\nb"}
    assert items["s1"]["attributes"] == {"odd name.x": "c"}
    assert items["s3"]["attributes"]["odd name.x"] == 'say "x"'
    found = reasons(fresh)
    assert {k: v for k, v in found.items() if not k.startswith("row")} == {
        "gone": "missing_file", "nowhere": "no_content", "odd": "unknown_split"
    }  # fmt: skip
    assert sorted(v for k, v in found.items() if k.startswith("row")) == [
        "broken_row",
        "no_item_id",
    ]

    # A price and a new column are no content: no image is read.
    (tmp_path / "pics" / "p 3.jpg").write_bytes(picture(33, size=30))
    table[2][4] = "2.75"
    for row in table[1:9]:
        row.append("blue" if row[0] == "s2" else "")
    table[0].append("colour")
    write_csv(tmp_path / "feed.csv", table)
    second = load(fresh, data)
    assert (second.read, second.changed) == (1, 3)  # s3's photo, s1's price, s2's colour
    items = rows(fresh, "items")
    assert items["s1"]["attributes"]["price"] == "2.75"
    assert items["s2"]["attributes"]["colour"] == "blue"
    assert items["s3"]["sha256"] == content_hash(picture(33, size=30))

    # What was rejected for the recipe is used under a better one.
    better = data.model_copy(update={"split_names": {**data.split_names, "holdout": "test"}})
    assert load(fresh, better).changed == 1
    assert rows(fresh, "items")["odd"]["given_split"] == "test"
    assert "odd" not in reasons(fresh)

    # The root, too, may say of which file system it is.
    assert load(fresh, better.model_copy(update={"root": f"file://{tmp_path}"})).changed == 0
    assert {"s1", "s2"}.isdisjoint(reasons(fresh))

    with pytest.raises(ConfigError, match=r"has no column 'id'.*Allowed: sku, file"):
        load(fresh, data.model_copy(update={"item_id": "id"}))


def test_a_link_that_leads_nowhere_is_a_reject(fresh: Tables, tmp_path: Path) -> None:
    (tmp_path / "good.jpg").write_bytes(picture(1))
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "good.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    done = load(fresh, data_of(source="folder", root=str(tmp_path), max_reject_share=0.5))
    assert (done.seen, done.used, done.rejected) == (3, 2, 1)
    assert reasons(fresh) == {"gone.jpg": "broken_link"}


def test_a_delta_table_with_image_files_in_it(fresh: Tables, tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "sku": ["a", "b", "c"],
            "image": [picture(1), picture(2), b"none"],
            "product": ["boot", "boot", None],
            "price": [2, 3, 4],
        }
    )
    fresh.spark.createDataFrame(table).write.format("delta").save(str(tmp_path / "feed"))
    data = data_of(
        source="manifest",
        table=str(tmp_path / "feed"),
        item_id="sku",
        bytes="image",
        group_id="product",
        max_reject_share=0.5,
    )
    assert load(fresh, data).used == 2
    items = rows(fresh, "items")
    assert {k: v["group_id"] for k, v in items.items()} == {"a": "boot", "b": "boot"}
    assert items["b"]["sha256"] == content_hash(picture(2))
    assert items["b"]["attributes"] == {"price": "3"}
    assert reasons(fresh) == {"c": "not_an_image"}


def test_paths_below_a_table_known_by_its_name_need_a_root(fresh: Tables) -> None:
    data = data_of(source="manifest", table="shop.feed", path="image", format="delta")
    with pytest.raises(ConfigError, match=r"known by its name.*Set data\.root"):
        _ = open_source(fresh.spark, data)._files


def test_a_table_with_images_in_it_and_repeated_ids(fresh: Tables, tmp_path: Path) -> None:
    lines = [
        {"item_id": 7, "image": base64.b64encode(picture(7)).decode(), "label": 3, "tags": ["a"]},
        {"item_id": 8, "image": "%%%", "label": None, "tags": []},
        {"item_id": 9, "image": base64.b64encode(picture(9)).decode(), "label": 4, "tags": None},
        {"item_id": 9, "image": base64.b64encode(picture(10)).decode(), "label": 5, "tags": None},
    ]
    file = tmp_path / "feed.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)) + "\n{broken\n")
    data = data_of(source="manifest", table=str(file), bytes="image", max_reject_share=0.6)
    with pytest.raises(DataError, match=r"item_id more than once: 9 \(2 times\).*repeated_ids"):
        load(fresh, data)
    for rule, label, seed in (("first", "4", 9), ("last", "5", 10)):
        done = load(fresh, data.model_copy(update={"repeated_ids": rule}))
        assert (done.seen, done.used, done.rejected) == (4, 2, 2)
        items = rows(fresh, "items")
        assert (items["9"]["label"], items["9"]["sha256"]) == (label, content_hash(picture(seed)))
    assert items["7"]["attributes"] == {"tags": '["a"]'}
    assert reasons(fresh)["8"] == "not_base64"


def test_texts_and_vectors(fresh: Tables, tmp_path: Path) -> None:
    texts = pd.DataFrame(
        {"item_id": ["a", "b", "c"], "text": ["Shoe é", "", None], "label": [1.0, 2.0, None]}
    )
    texts.to_parquet(tmp_path / "texts.parquet")
    data = data_of(source="text", table=str(tmp_path / "texts.parquet"), max_reject_share=0.9)
    assert load(fresh, data).used == 1
    (content,) = fresh.read("contents").collect()
    assert (bytes(content["bytes"]).decode(), content["media"]) == ("Shoe é", "text/plain")
    assert reasons(fresh) == {"b": "empty", "c": "no_content"}

    vectors = [[3.0, 4.0], [0.0, 0.0], [1.0], [float("nan"), 1.0], [0.5, 0.25]]
    table = pd.DataFrame({"item_id": [f"v{i}" for i in range(5)], "vector": vectors})
    fresh.spark.createDataFrame(table).write.format("delta").save(str(tmp_path / "vectors"))
    data = data_of(source="vectors", table=str(tmp_path / "vectors"), dim=2, max_reject_share=0.9)
    assert load(fresh, data).used == 2
    found = {k: v for k, v in reasons(fresh).items() if k.startswith("v")}
    assert found == {"v1": "zero_vector", "v2": "wrong_length", "v3": "not_finite"}
    (tmp_path / "more.csv").write_text('item_id,vector\nv8,"[1, 2]"\nv9,hello\n')
    data = data_of(source="vectors", table=f"{tmp_path}/more.csv", dim=2, max_reject_share=0.9)
    assert load(fresh, data).used == 1
    assert reasons(fresh)["v9"] == "not_a_vector"
    media = fresh.read("contents").where("media = 'application/x-float32'").collect()
    kept = {bytes(row["bytes"]) for row in media}
    wanted = [vectors[0], vectors[4], [1.0, 2.0]]
    assert kept == {np.array(vector, "<f4").tobytes() for vector in wanted}


@contextmanager
def shop() -> Iterator[tuple[str, list[str]]]:
    """A server of images, by number; some are dead, one comes at the second try."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            number = int(self.path.strip("/"))
            flaky = number == 3 and asked.count(self.path) == 1
            self.send_response(500 if flaky else 404 if number == 4 else 200)
            body = picture(number, size=400 if number == 5 else 24)
            self.send_header("Content-Type", "text/html" if number == 6 else "image/jpeg")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with served(Handler) as url:
        yield url, asked


def test_a_feed_of_urls_with_dead_links(fresh: Tables, tmp_path: Path) -> None:
    with shop() as (url, asked):
        table = [["item_id", "url"], *([f"u{i:02d}", f"{url}/{i % 10}"] for i in range(20))]
        table.append(["ftp", "ftp://example.com/x.jpg"])
        write_csv(tmp_path / "feed.csv", table)
        data = data_of(
            source="manifest", table=str(tmp_path / "feed.csv"), url="url",
            max_reject_share=0.5, max_bytes=50_000, fetch={"backoff": 0.01, "connections": 4},
        )  # fmt: skip
        first = load(fresh, data)
        assert (first.seen, first.used, first.rejected) == (21, 14, 7)
        assert reasons(fresh) == {
            "u04": "http_404", "u14": "http_404", "u05": "too_many_bytes", "u15": "too_many_bytes",
            "u06": "wrong_type", "u16": "wrong_type", "ftp": "bad_url",
        }  # fmt: skip
        # Each address once, though two items share it, and once more where the first try failed.
        assert sorted(asked) == sorted([*(f"/{i}" for i in range(10)), "/3"])
        asked.clear()
        again = load(fresh, data)
        assert sorted(asked) == ["/4", "/5", "/6"]  # what is dead today may answer tomorrow
        assert (again.used, again.rejected, again.changed) == (14, 7, 0)


def test_maintenance_makes_no_version_and_an_older_table_grows(
    fresh: Tables, tmp_path: Path
) -> None:
    (tmp_path / "feed.csv").write_text("item_id,text\na,boot\n")
    data = data_of(source="text", table=str(tmp_path / "feed.csv"))
    name = fresh.name("items")
    fresh.spark.sql(f"ALTER TABLE {name} SET TBLPROPERTIES ('delta.columnMapping.mode' = 'name')")
    fresh.spark.sql(f"ALTER TABLE {name} DROP COLUMN given_split")
    fresh.ensure()
    assert load(fresh, data).used == 1
    version = fresh.version("items")
    (tmp_path / "feed.csv").write_text("item_id,text\na,boot\nb,shoe\n")
    load(fresh, data)
    later = fresh.version("items")
    fresh.spark.sql(f"OPTIMIZE {name}")
    newest = fresh.spark.sql(f"DESCRIBE HISTORY {name} LIMIT 1").first()["version"]
    assert newest > later == fresh.version("items") > version
    fresh.spark.conf.set("spark.databricks.delta.retentionDurationCheck.enabled", "false")
    fresh.spark.sql(f"VACUUM {name} RETAIN 0 HOURS")
    # Files of that version are gone; what maintenance made of it holds the same rows.
    assert fresh.read("items", later).count() == 2
    assert load(fresh, data).changed == 0


def recipe(folder: Path, name: str, **data: object) -> Path:
    path = folder / f"{name}.yaml"
    made = {
        "name": name,
        "warehouse": {"tables": str(folder / "wh" / "tables"), "files": str(folder / "wh")},
        "data": data,
        "tune": {"trials": 0},
    }
    path.write_text(yaml.safe_dump(made))
    return path


def test_a_column_that_changes_its_type_is_refused(spark: SparkSession, tmp_path: Path) -> None:
    file = tmp_path / "feed.jsonl"
    conf = recipe(tmp_path, "typed", source="text", table=str(file))
    loading = Context(config.load(conf, ["spark.master=null"]))
    line = {"item_id": "a", "text": "boot", "price": 3}
    file.write_text(json.dumps(line))
    assert step.run(loading).changed == 1
    assert step.run(loading).unchanged
    file.write_text(json.dumps(line | {"price": "three", "colour": "red"}))
    with pytest.raises(DataError, match=r"'price' of .* holds string, and held bigint"):
        step.run(loading)
    file.write_text(json.dumps(line | {"colour": "red"}))
    assert step.run(loading).changed == 1
    assert rows(loading.tables, "items")["a"]["attributes"] == {"price": "3", "colour": "red"}
    for parts in ([{"cm": 1}], [{"of": "sole"}]):  # one field more, and one that is not there
        file.write_text(json.dumps(line | {"parts": parts}))
        assert step.run(loading).changed == 1
        found = rows(loading.tables, "items")["a"]["attributes"]["parts"]
        assert json.loads(found) == parts
    file.write_text(json.dumps(line | {"parts": [{"cm": "one"}]}))
    with pytest.raises(DataError, match=r"'parts\[\]\.cm' of .* holds string, and held bigint"):
        step.run(loading)
    file.write_text(json.dumps(line | {"parts": "one"}))
    with pytest.raises(DataError, match=r"'parts' of .* holds string, and held array"):
        step.run(loading)
    assert spark is loading.spark


def test_nested_types_that_an_earlier_version_noted_are_noted_anew(
    spark: SparkSession, tmp_path: Path
) -> None:
    file = tmp_path / "feed.jsonl"
    conf = recipe(tmp_path, "noted", source="text", table=str(file))
    loading = Context(config.load(conf, ["spark.master=null"]))
    line = {"item_id": "a", "text": "boot", "parts": [{"cm": 1}]}
    file.write_text(json.dumps(line))
    step.run(loading)
    last = loading.ledger.need("ingest")
    (source,) = last.inputs["sources"].values()
    assert source["types"]["parts[].cm"] == "bigint"
    source["types"] = {"item_id": "string", "text": "string", "parts": "array<struct<cm:bigint>>"}
    loading.ledger.commit("ingest", last.inputs, last.outputs, loading.config.recorded())
    file.write_text(json.dumps(line | {"text": "shoe"}))
    assert step.run(loading).changed == 1
    file.write_text(json.dumps(line | {"parts": [{"cm": "one"}]}))
    with pytest.raises(DataError, match=r"'parts\[\]\.cm' of .* holds string, and held bigint"):
        step.run(loading)
    assert spark is loading.spark


def test_types_tell_names_with_dots_from_fields(spark: SparkSession, tmp_path: Path) -> None:
    given = spark.sql("SELECT 'a' AS item_id, array(1.0f) AS `m.v`, named_struct('v', 'x') AS m, "
                      "map('k', named_struct('cm', 1)) AS sizes")  # fmt: skip
    given.write.parquet(str(tmp_path / "feed.parquet"))

    def source(vector: str) -> Source:
        place = str(tmp_path / "feed.parquet")
        data = {"source": "vectors", "table": place, "vector": vector, "dim": 1}
        return open_source(spark, TypeAdapter(config.Data).validate_python(data))

    assert source("m.v").listing().count() == 1
    assert source("m.v").types() == {
        "item_id": "string",
        "`m.v`": "array",
        "`m.v`[]": "float",
        "m": "struct",
        "m.v": "string",
        "sizes": "map",
        "sizes{key}": "string",
        "sizes{}": "struct",
        "sizes{}.cm": "int",
    }
    with pytest.raises(DataError, match=r"the column 'sizes' of .* holds map"):
        source("sizes").listing()


def test_two_loads_at_once(spark: SparkSession, tmp_path: Path) -> None:
    """Into one new warehouse, one of them twice: nothing is lost, nothing doubled, nobody fails."""
    confs = []
    for name in ("one", "two"):
        for i in range(30):  # two thirds of the pictures are in both
            path = tmp_path / name / "label" / f"{name}-{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(i + (10 if name == "two" else 0), "PNG"))
        confs.append(recipe(tmp_path, name, source="folder", root=str(tmp_path / name)))
    with ThreadPoolExecutor(3) as pool:
        loads = (*confs, confs[0])
        asked = [pool.submit(command, "ingest", "--conf", str(c), *QUICK) for c in loads]
        for done in (each.result() for each in asked):
            assert done.returncode == 0, done.stderr
    tables = Tables(spark, str(tmp_path / "wh" / "tables"))
    assert len(rows(tables, "items")) == tables.read("items").count() == 60
    hashes = [row["sha256"] for row in tables.read("contents").select("sha256").collect()]
    assert len(hashes) == len(set(hashes)) == 40


def test_the_shipped_recipe_for_folders_loads() -> None:
    found = config.load(ROOT / "conf" / "folder.yaml")
    assert isinstance(found.data, config.FolderData)
