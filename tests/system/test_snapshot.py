"""Snapshots of files, and of classes in groups, by real Spark."""

import numpy as np
import pytest
from support import ROOT

from lookalike import config, planning
from lookalike.errors import ConfigError, DataError
from lookalike.images import Preprocessing, content_hash, decode, encode_png
from lookalike.lake import snapshot
from lookalike.lake.tables import Tables
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape
from lookalike.steps.context import Context
from lookalike.steps.snapshot import newest_matching

BATCH = BatchShape(3, 4)
CLASSES = {"boots": 30, "coats": 9, "hats": 21, "rings": 2}
KINDS = {"boots": "shoe", "coats": "wear", "hats": "wear"}


@pytest.fixture
def filled(fresh: Tables) -> tuple[Tables, dict[str, int], dict[str, bytes]]:
    """A small catalogue, its versions, and the file of each item."""
    random = np.random.default_rng(0)
    files, items, splits, contents = {}, [], [], []
    for label, count in CLASSES.items():
        for number in range(count + 2):
            item_id = f"{label} é {number}"
            data = encode_png(random.integers(256, size=(20, 20), dtype=np.uint8))
            files[item_id] = data
            split = "train" if number < count else "validation"
            # Two boots are of another kind than most; as many hats have no kind at all.
            kind = "wear" if (label, number) in (("boots", 0), ("boots", 1)) else KINDS.get(label)
            attributes = {"colour": "red"} | ({"kind": kind} if kind and number != 5 else {})
            items.append((item_id, content_hash(data), label, attributes))
            splits.append((item_id, split))
            contents.append((content_hash(data), data))
    for table, rows, columns, key in (
        ("items", items, "item_id string, sha256 string, label string, "
         "attributes map<string,string>", "item_id"),
        ("splits", splits, "item_id string, split string", "item_id"),
        ("contents", contents, "sha256 string, bytes binary", "sha256"),
    ):  # fmt: skip
        frame = fresh.spark.createDataFrame(rows, columns)
        for field in fresh.read(table).schema.fields:
            if field.name not in frame.columns:
                missing = "''" if field.dataType.simpleString() == "string" else "NULL"
                frame = frame.selectExpr("*", f"CAST({missing} AS {field.dataType.simpleString()}) "
                                              f"AS {field.name}")  # fmt: skip
        fresh.insert_new(table, frame.select(*fresh.read(table).columns), (key,))
    versions = {table: fresh.version(table) for table in ("items", "splits")}
    return fresh, versions, files


def recipe(**changes) -> snapshot.Recipe:
    return snapshot.Recipe(Preprocessing(16, 1), BATCH, 100, 7, **changes)


def test_files_and_groups(filled, tmp_path) -> None:
    tables, versions, files = filled
    told: list[snapshot.Sizes] = []
    made = recipe(format="encoded", group_by="kind")
    encoded, again = (
        Snapshot.open(snapshot.write(tables, versions, made, str(tmp_path), told.append).uri)
        for _ in range(2)
    )
    raw = Snapshot.open(snapshot.write(tables, versions, recipe(), str(tmp_path)).uri)
    # Told beforehand, to the byte where it is to be files.
    assert told[0].raw == len(files) * 256
    assert told[0].encoded == pytest.approx(sum(map(len, files.values())), rel=0.01)
    assert encoded.artifact.meta["groups"] == ["shoe", "wear", "wear", None]
    assert len(set(encoded.groups.tolist())) == 3
    assert raw.groups is None

    # Each block as planned; the same again; the same images whichever way they are kept.
    layout = planning.lay_out(np.array(list(CLASSES.values())), encoded.layout.blocks, 4)
    assert encoded.layout.blocks > 1
    for one, other in ((encoded.layout, layout), (raw.layout, layout)):
        assert (one.start == other.start).all()
        assert (one.width == other.width).all()
    shard = Shard(0, 1, BATCH, 3, 10**6, with_ids=True)
    for taken in zip(*(epoch_batches(s, shard, 0) for s in (encoded, again, raw)), strict=True):
        for batch in taken:
            assert batch.item_ids == taken[0].item_ids
            for item_id, pixels in zip(batch.item_ids, batch.pixels, strict=True):
                assert (pixels == decode(files[item_id], Preprocessing(16, 1))).all()
    for one, other in zip(encoded.validation(), raw.validation(), strict=True):
        assert (one == other).all()

    with pytest.raises(ConfigError, match=r"train.group_by = 'kin' .*Allowed: colour, kind"):
        snapshot.write(tables, versions, recipe(group_by="kin"), str(tmp_path))


def test_validation_of_classes_that_are_not_trained_on_is_none(filled, tmp_path) -> None:
    tables, versions, files = filled
    rows = [(i, "train" if i < "d" else "validation", "") for i in files]  # boots, coats; the rest
    tables.replace(
        "splits",
        tables.spark.createDataFrame(rows, "item_id string, split string, decided_by string"),
    )
    versions = versions | {"splits": tables.version("splits")}
    made = snapshot.Recipe(Preprocessing(16, 1), BatchShape(2, 4), 100, 7)
    with pytest.raises(DataError, match="has 0 labelled items of 0 classes that are trained on"):
        snapshot.write(tables, versions, made, str(tmp_path))


def test_a_snapshot_of_older_tables_is_taken_and_said(fresh: Tables, make_snapshot) -> None:
    said: list[str] = []
    recipe = config.load(ROOT / "conf" / "demo.yaml", ("images.size=16", "images.channels=1"))
    context = Context(recipe, say=said.append)
    context.__dict__["tables"] = fresh
    uri = make_snapshot([24] * 5, BatchShape(4, 4), blocks=6)  # of items 3 and splits 1
    context.ledger.commit("snapshot", {}, {"uri": uri}, {})
    for items in (None, 3, 5):
        if items is not None:
            decided = {"items_version": items, "splits_version": 1}
            context.ledger.commit("duplicates", {}, decided, {})
        assert newest_matching(context) == {"uri": uri}
    (words,) = said
    assert "is of items version 3 and splits version 1, the newest tables are items ver" in words
    assert "items version 5 and splits version 1: run `lookalike snapshot`" in words
