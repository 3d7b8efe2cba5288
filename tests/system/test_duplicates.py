"""Duplicates and splits on Spark: against naive loops, whatever comes, whenever it comes."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from support import ROOT

from lookalike import config
from lookalike.columns import TEST, TRAIN, VALIDATION
from lookalike.errors import ConfigError
from lookalike.images import content_hash, encode_png, examine
from lookalike.lake import duplicates, hamming, splits
from lookalike.lake.ledger import Ledger
from lookalike.lake.splits import Rules
from lookalike.lake.tables import SCHEMAS, Tables
from lookalike.steps import duplicates as step
from lookalike.steps.context import Context

RULES = Rules(validation_share=0.3, test_share=0.25, unseen_classes=("boots",), seed=17)


@dataclass(frozen=True)
class Item:
    item_id: str
    sha256: str
    group_id: str | None = None
    label: str | None = None
    given_split: str | None = None


@pytest.fixture(scope="module")
def tables(spark: SparkSession, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    made = Tables(spark, str(tmp_path_factory.mktemp("duplicates") / "tables"))
    made.ensure()
    return made


def put_items(tables: Tables, items: Iterable[Item]) -> int:
    rows = [
        (i.item_id, i.group_id, i.sha256, i.label, None, i.given_split, "test", "1", None)
        for i in items
    ]
    tables.replace("items", tables.spark.createDataFrame(rows, SCHEMAS["items"]))
    return tables.version("items")


def put(tables: Tables, table: str, rows: list[tuple[Any, ...]]) -> int:
    tables.replace(table, tables.spark.createDataFrame(rows, SCHEMAS[table]))
    return tables.version(table)


def by_id(rows: DataFrame) -> dict[str, tuple[Any, ...]]:
    return {row[0]: tuple(row[1:]) for row in rows.collect()}


def naive_components(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, set[Any]]:
    """Of each member, all of its component."""
    component: dict[Any, set[Any]] = {}
    for a, b in pairs:
        joined = component.setdefault(a, {a}) | component.setdefault(b, {b})
        for member in joined:
            component[member] = joined
    return component


def test_near_hashes_are_those_that_comparing_all_finds(spark: SparkSession) -> None:
    random = np.random.default_rng(5)
    centres = random.integers(2**63, size=220).tolist()
    planted = [
        h ^ sum(1 << int(b) for b in random.choice(64, distance, replace=False))
        for distance in range(9)
        for h in random.choice(centres, 20, replace=False).tolist()
    ]
    hashes = np.array(centres + planted, np.uint64)
    nodes = list(zip(range(len(hashes)), hashes.view(np.int64).tolist(), strict=True))
    points = spark.createDataFrame(nodes, "node long, hash long")
    apart = hamming.popcount((hashes[:, None] ^ hashes[None]).ravel()).reshape(len(hashes), -1)
    for distance, parts in ((3, 5), (8, 1)):
        close = (apart <= distance) & ~np.eye(len(hashes), dtype=bool)
        together = naive_components(np.argwhere(close).tolist())
        expected = {
            i: (min(together[i]), int(apart[i][close[i]].min()))
            for i in np.flatnonzero(close.any(1))
        }
        found = by_id(duplicates.near(points.repartition(parts, F.rand()), distance))
        assert found == expected


def photo(seed: int) -> Image.Image:
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (12, 12, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((120, 90), Image.Resampling.BICUBIC)


def saved(image: Image.Image, form: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def put_contents(tables: Tables, files: dict[str, bytes], unhashed: tuple[str, ...] = ()) -> int:
    """An item a file, and its content; of some without a perceptual hash. Items' version."""
    contents = {}
    for item_id, data in files.items():
        phash = None if item_id in unhashed else examine(data, True).phash
        contents[content_hash(data)] = (content_hash(data), "image/png", data, 1, 1, phash)
    put(tables, "contents", list(contents.values()))
    return put_items(tables, [Item(i, content_hash(data)) for i, data in files.items()])


@pytest.fixture(scope="module")
def pictures() -> dict[str, bytes]:
    """Two photos in many copies, and what must not be taken for copies."""
    one, two = photo(1), photo(2)
    red_and_blue = [Image.merge("RGB", [one.split()[i] for i in order])
                    for order in ((0, 1, 2), (2, 1, 0))]  # fmt: skip
    grey = np.asarray(photo(3).convert("L"))
    return {
        "one/png": saved(one),
        "one/again": saved(one),
        "one/jpeg": saved(one, "JPEG", quality=60),
        "one/small": saved(one.resize((80, 60)), "JPEG", quality=90),
        "one/mirrored": saved(one.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "one/recoloured": saved(red_and_blue[1]),
        "two/webp": saved(two, "WEBP", quality=80),
        "two/jpeg": saved(two, "JPEG", quality=90),
        "unhashed/a": encode_png(grey),
        "unhashed/b": encode_png(grey) + b"a byte more",
        "unhashed/c": encode_png(grey),
        "flat/red": saved(Image.new("RGB", (40, 40), "red")),
        "flat/red again": saved(Image.new("RGB", (40, 40), "red")),
        "flat/blue": saved(Image.new("RGB", (40, 40), "blue")),
        "flat/large red": saved(Image.new("RGB", (90, 40), "red")),
    }


@pytest.fixture(scope="module")
def found(tables: Tables, pictures: dict[str, bytes]) -> dict[str, tuple[Any, ...]]:
    unhashed = tuple(name for name in pictures if name.startswith("unhashed"))
    version = put_contents(tables, pictures, unhashed)
    counts = duplicates.write(tables, version, 4)
    rows = by_id(tables.read("duplicates", counts.version))
    kinds = Counter(kind for _, kind, _ in rows.values())
    sizes = Counter(cluster for cluster, _, _ in rows.values())
    assert (counts.exact, counts.near) == (kinds["exact"], kinds["near"])
    assert (counts.clusters, counts.largest) == (len(sizes), max(sizes.values()))
    return rows


def test_clusters_are_copies_of_a_picture(found: dict[str, tuple[Any, ...]]) -> None:
    clusters = defaultdict(set)
    for item_id, (cluster, _, _) in found.items():
        clusters[cluster].add(item_id)
    assert dict(clusters) == {
        "one/again": {"one/png", "one/again", "one/jpeg", "one/small"},
        "two/jpeg": {"two/webp", "two/jpeg"},
        "unhashed/a": {"unhashed/a", "unhashed/c"},
        "flat/red": {"flat/red", "flat/red again"},
    }


def test_kind_and_distance_are_those_to_the_nearest_member(
    found: dict[str, tuple[Any, ...]], pictures: dict[str, bytes]
) -> None:
    for item_id, (cluster, kind, distance) in found.items():
        data = pictures[item_id]
        others = [pictures[i] for i, (c, *_) in found.items() if c == cluster and i != item_id]
        hashes = [int(str(examine(d, True).phash), 16) for d in (data, *others)]
        assert kind == ("exact" if data in others else "near")
        assert distance == min((hashes[0] ^ h).bit_count() for h in hashes[1:])


def test_without_hashes_only_equal_bytes_are_duplicates(
    tables: Tables, pictures: dict[str, bytes], found: dict[str, tuple[Any, ...]]
) -> None:
    duplicates.write(tables, tables.version("items"), None)
    rows = by_id(tables.read("duplicates"))
    exact = {i for i, (_, kind, _) in found.items() if kind == "exact"}
    assert rows.keys() == exact
    assert {pictures[i] for i in rows} == {pictures[cluster] for cluster, _, _ in rows.values()}
    assert {row[1:] for row in rows.values()} == {("exact", 0)}


def fractions(spark: SparkSession, keys: set[str], seed: int) -> dict[str, float]:
    rows = spark.createDataFrame([(key,) for key in keys], "key string")
    part = F.pmod(F.xxhash64("key", F.lit(seed)), F.lit(10_000)) / 10_000
    return {row[0]: row[1] for row in rows.select("key", part).collect()}


class Oracle:
    """The rules of `splits.assign`, an item at a time."""

    def __init__(self, items: list[Item], clusters: dict[str, str], known: dict[str, str]):
        self.items, self.known = items, known
        named = [(i.item_id, ("group", i.group_id)) for i in items if i.group_id is not None]
        named += [(item_id, ("cluster", cluster)) for item_id, cluster in clusters.items()]
        joined = naive_components(named)
        self.family = {
            i.item_id: {m for m in joined.get(i.item_id, {i.item_id}) if isinstance(m, str)}
            for i in items
        }
        self.by_id = {i.item_id: i for i in items}
        self.gives = {i.given_split for i in items}

    def key(self, item: Item) -> str:
        members = [self.by_id[i] for i in self.family[item.item_id]]
        return min(m.group_id if m.group_id is not None else m.sha256 for m in members)

    def direct(self, item: Item) -> tuple[str, str] | None:
        if item.label == "boots":
            return TEST, "unseen_class"
        if item.given_split in (TEST, VALIDATION):
            return item.given_split, "source"
        if item.given_split == TRAIN and VALIDATION in self.gives:
            return TRAIN, "source"
        return None

    def decide(self, item: Item, part: float) -> tuple[str, str]:
        if (found := self.direct(item)) is not None:
            return found
        members = [self.by_id[i] for i in self.family[item.item_id]]
        held = {self.known.get(m.item_id) or (self.direct(m) or (None,))[0] for m in members}
        for split in (TEST, VALIDATION, TRAIN):
            if split in held and not (split == TEST and item.given_split == TRAIN):
                return split, "family"
        undecided = [m for m in members if m.item_id not in self.known and not self.direct(m)]
        if TEST not in self.gives and all(m.given_split is None for m in undecided):
            if part < RULES.test_share:
                return TEST, "hash"
            part = (part - RULES.test_share) / (1 - RULES.test_share)
        share = 0 if VALIDATION in self.gives else RULES.validation_share
        return (VALIDATION if part < share else TRAIN), "hash"


def catalogue(seed: int, given: tuple[str | None, ...], count: int = 250) -> list[Item]:
    random = np.random.default_rng(seed)
    return [
        Item(
            item_id=f"{seed}-{i:03d}",
            sha256=f"{random.integers(2**60):064x}",
            group_id=f"g{random.integers(60)}" if random.random() < 0.5 else None,
            label=str(random.choice(["boots", *["bag", "coat", "shirt"] * 8])),
            given_split=given[int(random.integers(len(given)))],
        )
        for i in range(count)
    ]


def clustered(items: list[Item], seed: int) -> dict[str, str]:
    random = np.random.default_rng(seed)
    members = [i.item_id for i in items if random.random() < 0.3]
    return {item_id: members[int(random.integers(25))] for item_id in members}


@pytest.mark.parametrize(
    "given",
    [(None, None, TRAIN), (None, TRAIN, TEST), (None, TRAIN, VALIDATION, TEST)],
    ids=lambda given: "-".join(map(str, given)),
)
def test_splits_follow_the_rules(tables: Tables, given: tuple[str | None, ...]) -> None:
    items = catalogue(len(given), given)
    clusters = clustered(items, 1)
    known = {i.item_id: split for i, split in zip(items[::6], (TRAIN, TEST, VALIDATION) * 20,
                                                  strict=False)}  # fmt: skip
    gone = {"gone": TEST}  # an item that is in the catalogue no more
    put(tables, "splits", [(i, split, "before") for i, split in (known | gone).items()])
    versions = {
        "items": put_items(tables, items),
        "duplicates": put(tables, "duplicates", [(i, c, "near", 2) for i, c in clusters.items()]),
    }
    splits.assign(tables, versions, RULES)

    oracle = Oracle(items, clusters, known)
    parts = fractions(tables.spark, {oracle.key(i) for i in items}, RULES.seed)
    expected = {
        i.item_id: (known[i.item_id], "before")
        if i.item_id in known
        else oracle.decide(i, parts[oracle.key(i)])
        for i in items
    }
    assert by_id(tables.read("splits")) == expected | {"gone": (TEST, "before")}
    decided = {by for _, by in expected.values()}
    assert decided == {"before", "unseen_class", "family", "hash"} | ({"source"} if TEST in given
                                                                      else set())  # fmt: skip


def test_who_came_first_stays_and_who_comes_later_joins(tables: Tables) -> None:
    rules = replace(RULES, unseen_classes=())
    put(tables, "splits", [])
    put(tables, "duplicates", [])
    first = [Item(f"a{i:02d}", f"{i:064x}", group_id=f"g{i % 30}") for i in range(60)]
    versions = {"items": put_items(tables, first), "duplicates": tables.version("duplicates")}
    splits.assign(tables, versions, rules)
    before = by_id(tables.read("splits"))
    assert {before[f"a{i:02d}"] == before[f"a{i + 30:02d}"] for i in range(30)} == {True}

    # By a group, by a cluster, and by a cluster with an item that is in a group.
    second = [
        Item("b-group", "b0", group_id="g7"),
        Item("b-cluster", "b1"),
        Item("b-both", "b2", group_id="new"),
        Item("b-joined", "b3", group_id="new"),
    ]
    clusters = [("a11", "a11"), ("b-cluster", "a11"), ("a12", "a12"), ("b-both", "a12")]
    versions = {
        "items": put_items(tables, [*first, *second]),
        "duplicates": put(tables, "duplicates", [(i, c, "near", 2) for i, c in clusters]),
    }
    splits.assign(tables, versions, replace(rules, seed=99, validation_share=0.9))
    after = by_id(tables.read("splits"))
    assert {i: after[i] for i in before} == before
    joined = {"b-group": "a07", "b-cluster": "a11", "b-both": "a12", "b-joined": "a12"}
    assert {i: after[i] for i in joined} == {i: (before[a][0], "family") for i, a in joined.items()}


def test_leaks_are_what_lies_on_both_sides(tables: Tables) -> None:
    held = {
        "g/torn": [TRAIN] * 12 + [TEST] * 2,
        "g/whole": [TEST] * 3,
        "g/mixed": [TRAIN, VALIDATION],
        "c/torn": [VALIDATION, TEST, TEST],
    }
    items, rows, clusters = [], [], []
    for name, members in held.items():
        for number, split in enumerate(members):
            item_id = f"{name}/{number:02d}"
            kind = name[0]
            items.append(Item(item_id, item_id, group_id=name if kind == "g" else None))
            rows.append((item_id, split, "source"))
            if kind == "c":
                clusters.append((item_id, f"{name}/00", "near", 0))
    versions = {
        "items": put_items(tables, items),
        "splits": put(tables, "splits", rows),
        "duplicates": put(tables, "duplicates", clusters),
    }
    found = {
        (row["kind"], row["id"]): row.asDict() for row in splits.leaks(tables, versions).collect()
    }
    assert {key: (row["between"], row[TRAIN], row[VALIDATION], row[TEST])
            for key, row in found.items()} == {
        ("group", "g/torn"): (TEST, 12, 0, 2),
        ("group", "g/mixed"): (VALIDATION, 1, 1, 0),
        ("cluster", "c/torn/00"): (TEST, 0, 1, 2),
    }  # fmt: skip
    torn = found["group", "g/torn"]
    assert torn["train_ids"] == [f"g/torn/{i:02d}" for i in range(10)]
    assert (torn["validation_ids"], torn["test_ids"]) == ([], ["g/torn/12", "g/torn/13"])


def test_a_share_of_classes_is_kept_out_of_training(tables: Tables) -> None:
    items = [Item(f"{c}-{i}", f"{c}{i}", label=f"class {c}") for c in range(40) for i in range(3)]
    put(tables, "splits", [])
    versions = {
        "items": put_items(tables, [*items, Item("none", "none")]),
        "duplicates": put(tables, "duplicates", []),
    }
    splits.assign(tables, versions, Rules(0.2, 0.0, 0.25, 3))
    versions["splits"] = tables.version("splits")
    after = by_id(tables.read("splits"))
    unseen = {i.label for i in items if after[i.item_id][1] == "unseen_class"}
    assert 3 <= len(unseen) <= 18
    assert all((after[i.item_id] == (TEST, "unseen_class")) == (i.label in unseen) for i in items)
    assert after["none"][1] == "hash"
    counts = splits.count(tables, versions, Rules(0.2, 0.0, 0.25, 3))
    assert counts.unseen_classes == len(unseen)
    assert counts.items[TEST] == 3 * len(unseen)
    assert sum(counts.items.values()) == len(items) + 1

    with pytest.raises(ConfigError, match=r"names 'class 41'.*'class \d+'"):
        splits.assign(tables, versions, replace(RULES, unseen_classes=("class 4", "class 41")))


@pytest.fixture
def context(tables: Tables, tmp_path: Path) -> Iterator[Context]:
    """A recipe on the module's tables, after an `ingest` of texts, each of which comes twice."""
    texts = {f"{number}/{copy}": str(number).encode() for number in range(6) for copy in "ab"}
    put(tables, "splits", [])
    version = put_contents(tables, texts, unhashed=tuple(texts))
    Ledger(tables).commit("ingest", {"n": version}, {"items_version": version}, {})
    recipe = config.load(
        ROOT / "conf" / "demo.yaml",
        [
            "spark.master=null",
            f"warehouse.tables={tables.location}",
            f"warehouse.files={tmp_path}",
        ],
    )
    yield Context(recipe)
    put(tables, "ledger", [])


def test_the_step_killed_before_it_commits_is_finished_by_the_next(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = context.tables
    with monkeypatch.context() as killed:
        killed.setattr(Ledger, "commit", lambda *_: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            step.run(context)
    assert context.ledger.last("duplicates") is None
    left = tables.version("splits")

    done = step.run(context)
    assert not done.unchanged
    assert done.splits_version == left  # nothing left to decide, nothing written
    assert (done.items, done.clusters, done.near, done.exact) == (12, 6, 0, 12)
    assert done.train + done.validation + done.test == 12
    assert "12 of 12 items in 6 clusters (12 exact, 0 near, not among 6 loaded" in done.words
    assert "data.phash is off" in done.model_copy(update={"phash": False}).words

    again = step.run(context)
    assert again == done.model_copy(update={"unchanged": True})
    assert tables.version("duplicates") == done.duplicates_version
    assert tables.version("splits") == done.splits_version

    # The table holds one commit's duplicates; where it was another's, they are found anew.
    put(tables, "duplicates", [])
    anew = step.run(context)
    assert not anew.unchanged
    assert (anew.clusters, anew.splits_version) == (6, done.splits_version)
    assert tables.version("duplicates") == anew.duplicates_version
