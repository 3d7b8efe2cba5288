"""Building, opening, searching and committing versions."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from naive import ENCODER, Item, Naive, batch_of, indexed
from support import write_manifest

from lookalike import artifacts
from lookalike.errors import ArtifactError, ConfigError, DataError
from lookalike.index import Index, Plan, build, items, kinds
from lookalike.index import nearest as searching
from lookalike.index.metric import prepared
from lookalike.index.plan import CODED, KINDS
from lookalike.index.rows import Rows
from lookalike.metrics import unit

DIM, COUNT = 16, 4000
IDS = [f"item {i:04d} é" for i in range(COUNT)]
SMALL = Plan(nlist=40, nprobe=12, pq_bytes=8, rerank=6, ef_search=60)


def plan_of(kind: str) -> Plan:
    return Plan(**vars(SMALL) | {"kind": kind})


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Around 50 centres, so that cells and graphs have something to find."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(50, DIM))[random.integers(50, size=COUNT)]
    found = unit(centres + 0.5 * random.normal(size=(COUNT, DIM)))
    found[501] = found[500]  # an exact twin
    return found


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    random = np.random.default_rng(0)
    return unit(random.normal(size=(50, DIM)) + 0.5 * random.normal(size=(50, DIM)))


def naive_of(vectors: np.ndarray) -> Naive:
    def item(i: int) -> Item:
        label = None if i % 7 == 0 else f"class {i % 5}"
        return Item(vectors[i], label, {"price": str(i)} if i % 2 else None)

    return Naive("cosine", {IDS[i]: item(i) for i in range(len(vectors))})


@pytest.fixture(scope="module", params=KINDS)
def index(request, vectors: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> Index:
    folder = tmp_path_factory.mktemp("index")
    return indexed(naive_of(vectors), folder, plan_of(request.param))


def recall(found: list[list[str]], truth: np.ndarray) -> float:
    names = [{IDS[row] for row in rows} for rows in truth]
    return float(np.mean([len(n & set(f)) / len(n) for n, f in zip(names, found, strict=True)]))


@pytest.mark.parametrize("modulus", [2, 10, 50, 1000])
def test_a_question_has_one_answer_however_often_it_is_asked(
    index: Index, queries: np.ndarray, modulus: int
) -> None:
    few = index.among(IDS[::modulus])
    first = [index.search(query[None], 10, few, effort=2)[0] for query in queries]
    again = [index.search(query[None], 10, few, effort=2)[0] for query in queries]
    assert first == again


def test_a_filter_asked_again_finds_what_was_changed_since(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    index = indexed(naive_of(vectors), tmp_path, plan_of("ivf_flat"))
    query, few = vectors[101][None], "price < 200"
    ask = lambda: [near.item_id for near in index.search(query, 3, few)[0]]  # noqa: E731
    assert ask()[0] == ask()[0] == IDS[101]
    index.change([IDS[101]], -query, None, [{"price": "101"}])
    assert IDS[101] not in ask()
    index.change([IDS[3]], query, None, [{"price": "3"}])
    assert ask()[0] == IDS[3]
    index.delete([IDS[3]])
    assert IDS[3] not in ask()


def test_each_part_keeps_vectors_of_its_own_at_hand(vectors: np.ndarray) -> None:
    rows = Rows.of(np.arange(COUNT) % 9 == 0)
    for kind in ("exact", "ivf_pq"):
        plan = replace(plan_of(kind), rerank=0).settled(COUNT, DIM, "cosine")
        made = kinds.empty(plan, "cosine", vectors)
        made.add(vectors)
        for _ in range(2):
            assert np.array_equal(made.at_hand(rows), made.take(rows.numbers))


def test_equal_ones_come_by_row() -> None:
    vectors = np.tile(np.eye(DIM, dtype=np.float32)[:2], (8, 1))
    made = kinds.empty(Plan("exact"), "cosine", vectors)
    made.add(vectors)
    odd = Rows.of(np.arange(16) % 4 != 0)
    for rows in (odd, Rows.of(np.ones(16, bool))):
        _, found = searching.exact(made, vectors[:1], 16, rows)
        expected = sorted(rows.numbers, key=lambda row: (row % 2, row))
        assert found[0].tolist() == expected


def test_what_float32_cannot_compare_is_refused() -> None:
    with pytest.raises(DataError, match="vector 1 holds NaN, infinity or too large a number"):
        prepared(np.array([[1.0, 2.0], [1e19, 1e19]]), "l2")
    large = prepared(np.array([[3e30, 4e30], [1e-30, 0], [0, 0]]), "cosine")
    assert np.allclose(large, [[0.6, 0.8], [1, 0], [0, 0]])


@pytest.mark.parametrize("share", [1.0, 0.5, 0.05, 0.005, 1 / COUNT])
def test_recall_holds_however_narrow_the_filter(
    index: Index, vectors: np.ndarray, queries: np.ndarray, share: float
) -> None:
    chosen = np.sort(np.random.default_rng(2).permutation(COUNT)[: round(share * COUNT)])
    among = None if share == 1 else index.among([IDS[row] for row in chosen])
    order = np.argsort(-(queries @ vectors[chosen].T), axis=1, kind="stable")[:, :10]
    found = [[n.item_id for n in answer] for answer in index.search(queries, 10, among)]
    assert all(len(answer) == len(set(answer)) == min(10, len(chosen)) for answer in found)
    least = 1.0 if index.plan.kind in ("exact", "kd_tree") else 0.93
    assert recall(found, chosen[order]) >= least


def test_within_finds_nearly_all(index: Index, vectors: np.ndarray, queries: np.ndarray) -> None:
    far = 1 - queries @ vectors.T
    radius = float(np.quantile(far, 0.01))
    found = index.within(queries, radius)
    wanted = [{IDS[row] for row in np.flatnonzero(one <= radius)} for one in far]
    hits = sum(len(w & {n.item_id for n in f}) for w, f in zip(wanted, found, strict=True))
    total = sum(map(len, wanted))
    assert hits / total >= 0.99
    assert len(found.ids) <= 1.01 * total


def test_an_item_lies_on_itself(index: Index, vectors: np.ndarray) -> None:
    """Also where float16 has changed the length of a vector."""
    some = vectors[:200]
    for row, found in enumerate(index.within(some, 1e-6)):
        assert IDS[row] in [near.item_id for near in found]
    nearest = index.search(some, 1, effort=10**6).distances
    assert nearest == pytest.approx(np.zeros(200), abs=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.6, 0.1, 0.002])
@pytest.mark.parametrize("k", [1, 10, 700])
def test_a_search_that_looks_at_little_gives_as_many_as_there_are(
    index: Index, queries: np.ndarray, share: float, k: int
) -> None:
    """By the parts' own search, at the least effort."""
    mask = np.random.default_rng(3).random(COUNT) < share
    near, rows = searching.search(index._vectors, queries, k, Rows.of(mask), 1)
    assert rows.shape == (len(queries), min(k, int(mask.sum())))
    assert mask[rows].all()
    assert all(len(set(row)) == len(row) for row in rows.tolist())
    assert (np.diff(near, axis=1) >= 0).all()


def test_recall_holds_for_many_neighbours(
    index: Index, vectors: np.ndarray, queries: np.ndarray
) -> None:
    for k in (40, 200):
        truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :k]
        found = [[n.item_id for n in answer] for answer in index.search(queries, k)]
        assert recall(found, truth) >= 0.93


def test_a_harder_question_is_looked_into_harder(
    index: Index, vectors: np.ndarray, queries: np.ndarray
) -> None:
    """At an effort that finds most of 10 neighbours among all, but not of more, or among fewer."""
    effort = {"hnsw": 14}.get(index.plan.kind, 2)
    third = np.flatnonzero(np.random.default_rng(4).random(COUNT) < 0.35)

    def found(k: int, rows: np.ndarray) -> float:
        truth = rows[np.argsort(-(queries @ vectors[rows].T), axis=1, kind="stable")[:, :k]]
        among = index.among([IDS[row] for row in rows])
        answers = index.search(queries, k, among, effort)
        return recall([[n.item_id for n in answer] for answer in answers], truth)

    easy = found(10, np.arange(COUNT))
    assert found(10, third) >= easy - 0.02
    assert found(150, np.arange(COUNT)) >= easy - 0.05


def test_more_effort_finds_more(index: Index, vectors: np.ndarray, queries: np.ndarray) -> None:
    truth = np.argsort(-(queries @ vectors.T), axis=1, kind="stable")[:, :10]

    def found(effort: int) -> float:
        answers = index.search(queries, 10, effort=effort)
        return recall([[n.item_id for n in answer] for answer in answers], truth)

    if index.plan.kind in ("exact", "kd_tree"):
        assert found(1) == 1
    else:
        assert found(1) < found(40)


def test_neighbours_are_items(index: Index, vectors: np.ndarray) -> None:
    found = index.search(vectors[500:502], 2)
    assert [len(answer) for answer in found] == [2, 2]
    assert {n.item_id for n in found[0]} == {IDS[500], IDS[501]}
    assert found.ids == [n.item_id for answer in found for n in answer]
    assert found.distances.tolist() == [n.distance for answer in found for n in answer]
    assert found[-1] == found[1]
    assert found[0:2] == [found[0], found[1]]
    assert index.search(vectors[:1], 1)[0][0].label is None
    with pytest.raises(IndexError):
        found[2]


def test_vectors_come_back_by_id(index: Index, vectors: np.ndarray) -> None:
    tolerance = 1e-3 if index.plan.kind in CODED else 1e-7
    for row in (0, 7, COUNT - 1):
        vector = index.vector(IDS[row])
        assert vector is not None
        assert np.abs(vector - vectors[row]).max() <= tolerance
    assert index.vector("nobody") is None
    assert IDS[7] in index
    assert "nobody" not in index


def test_what_cannot_be_searched_for_is_refused(index: Index) -> None:
    for wrong in (np.ones((1, 3)), np.ones(DIM), np.array([["a"] * DIM])):
        with pytest.raises(DataError, match=r"came to the index. Allowed: numbers, \(n, 16\)"):
            index.search(wrong, 1)
    with pytest.raises(DataError, match="vector 1 holds NaN, infinity or"):
        index.search(np.array([np.ones(DIM), np.full(DIM, np.nan)]), 1)
    with pytest.raises(DataError, match="vector 0 holds NaN, infinity or too large a number"):
        index.search(np.full((1, DIM), 1e300), 1)
    with pytest.raises(DataError, match=r"k = 0. Allowed: at least 1"):
        index.search(np.ones((1, DIM)), 0)
    with pytest.raises(DataError, match="radius = nan"):
        index.within(np.ones((1, DIM)), float("nan"))
    assert len(index.search(np.empty((0, DIM)), 3)) == 0
    assert len(index.within(np.empty((0, DIM)), 0.5)) == 0


def test_codes_alone_take_less_and_say_what_they_cannot(
    tmp_path: Path, vectors: np.ndarray
) -> None:
    sizes = {}
    for rerank in (0, 4):
        plan = Plan("ivf_pq", nlist=8, pq_bytes=8, rerank=rerank)
        small = indexed(naive_of(vectors[:1000]), tmp_path / str(rerank), plan)
        sizes[rerank] = sum(f.stat().st_size for f in (tmp_path / str(rerank)).glob("parts/*/*"))
    assert sizes[4] - sizes[0] == pytest.approx(1000 * 2 * DIM, rel=0.1)
    codes = Index.open(str(tmp_path / "0"), next((tmp_path / "0/versions").iterdir()).name)
    assert len(codes.search(vectors[:5], 10)[0]) == 10
    with pytest.raises(ConfigError, match=r"index\.rerank"):
        codes.within(vectors[:1], 0.5)
    with pytest.raises(ConfigError, match="no vectors to build another of"):
        next(codes.batches())
    assert small.within(vectors[:1], 0.5)[0][0].item_id == IDS[0]


def test_items_that_cannot_be_indexed_are_refused(tmp_path: Path, vectors: np.ndarray) -> None:
    def batch(ids: str, values: np.ndarray):
        return batch_of((i, Item(v)) for i, v in zip(ids, values, strict=True))

    made = {"encoder": "x"}
    for order, said in (("abb", "'b' came to the index after 'b'"), ("acb", "'b' .* after 'c'")):
        with pytest.raises(DataError, match=said):
            build(str(tmp_path), [batch(order, vectors[:3])], DIM, Plan(), made)
    both = [batch("b", vectors[:1]), batch("a", vectors[:1])]
    with pytest.raises(DataError, match="'a' came to the index after 'b'"):
        build(str(tmp_path), both, DIM, Plan(), made)
    with pytest.raises(DataError, match="another length than 8"):
        build(str(tmp_path), [batch("ab", vectors[:2])], 8, Plan(), made)
    with pytest.raises(DataError, match="no vectors"):
        build(str(tmp_path), [], 8, Plan(), made)
    with pytest.raises(DataError, match="NaN"):
        build(str(tmp_path), [batch("a", np.full((1, 4), np.nan))], 4, Plan(), made)
    with pytest.raises(ConfigError, match="k-d tree cannot search by dot"):
        build(str(tmp_path), [batch("a", vectors[:1])], DIM, Plan("kd_tree"), made, metric="dot")
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize("kind", KINDS)
def test_same_items_same_plan_same_index(tmp_path: Path, vectors: np.ndarray, kind: str) -> None:
    files = []
    for root in ("one", "two"):
        indexed(naive_of(vectors[:1000]), tmp_path / root, plan_of(kind), threads=2)
        found = sorted(f for f in (tmp_path / root).glob("parts/*/*") if f.suffix != ".json")
        files.append([(f.name, f.read_bytes()) for f in found])
    assert files[0] == files[1]


def test_small_vectors_keep_their_digits_beside_codes(tmp_path: Path, vectors: np.ndarray) -> None:
    tiny = {IDS[i]: Item(v * 1e-6) for i, v in enumerate(vectors[:500])}
    plan = Plan("ivf_sq8", nlist=4, nprobe=4)
    index = indexed(Naive("l2", tiny), tmp_path, plan)
    kept = index.vector(IDS[3])
    assert kept is not None
    assert np.abs(kept - vectors[3] * 1e-6).max() <= 1e-9
    assert index.search(vectors[3:4] * 1e-6, 1)[0][0].item_id == IDS[3]


@pytest.fixture
def built(tmp_path: Path, vectors: np.ndarray) -> tuple[str, str]:
    index = indexed(naive_of(vectors[:300]), tmp_path, plan_of("ivf_sq8"))
    index.delete([IDS[5]])
    index.add(["new"], vectors[:1])
    return str(tmp_path), index.commit().name


def test_opening_refuses_parts_that_do_not_belong_together(
    built: tuple[str, str], vectors: np.ndarray, tmp_path: Path
) -> None:
    root, name = built
    other = indexed(naive_of(vectors[300:600]), tmp_path / "other", plan_of("ivf_sq8"))
    theirs = tmp_path / "other" / "parts" / other.meta["parts"][0]
    mine = Path(root) / "parts" / Index.open(root, name).meta["parts"][0]
    # The whole folder of another part, in place of this one's.
    shutil.rmtree(mine)
    shutil.copytree(theirs, mine)
    with pytest.raises(ArtifactError, match=rf"{mine.name} is not the one that version {name}"):
        Index.open(root, name)
    raw = json.loads((theirs / "manifest.json").read_text())
    raw["meta"]["encoder"] = "f" * 64
    write_manifest(theirs / "manifest.json", raw)
    (version,) = (tmp_path / "other" / "versions").iterdir()
    with pytest.raises(
        ArtifactError, match=rf"encoder ffffffffffff, the version is of {ENCODER[:12]}"
    ):
        Index.open(str(tmp_path / "other"), version.name)


@pytest.mark.parametrize("damage", ["cut", "missing"])
@pytest.mark.parametrize(
    "name", ["vectors.faiss", "items.arrow", "originals.npy", "tombstones.arrow", "manifest.json"]
)
def test_opening_names_files_that_are_cut_or_missing(
    built: tuple[str, str], name: str, damage: str
) -> None:
    root, version = built
    for file in Path(root).rglob(name):
        if damage == "cut":
            file.write_bytes(file.read_bytes()[:-1])
        else:
            file.unlink()
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        Index.open(root, version)


@pytest.mark.parametrize("name", ["vectors.faiss", "items.arrow", "originals.npy"])
def test_opening_refuses_files_of_zeros(built: tuple[str, str], name: str) -> None:
    root, version = built
    for file in Path(root).rglob(name):
        file.write_bytes(bytes(file.stat().st_size))
    with pytest.raises(ArtifactError, match=name.replace(".", r"\.")):
        Index.open(root, version)


_OPENED = """
import resource, sys
from pathlib import Path
from lookalike.errors import ArtifactError
from lookalike.index import Index
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
root, version, file = sys.argv[1], sys.argv[2], Path(sys.argv[3])
whole = file.read_bytes()
for place in map(int, sys.argv[4:]):
    damaged = bytearray(whole)
    damaged[place] ^= 1
    file.write_bytes(damaged)
    try:
        Index.open(root, version)
    except ArtifactError as error:
        print(place, file.name in str(error))
    else:
        print(place, "opened")
"""


@pytest.mark.parametrize(
    ("kind", "name", "places"),
    [
        # Dimension, vectors, whether trained, metric; then sizes of what follows.
        ("exact", "vectors.faiss", (4, 8, 33, 37)),
        ("kd_tree", "vectors.faiss", (4, 8, 33, 37)),
        ("hnsw", "vectors.faiss", (4, 8, 33, 37, 41, 110)),
        ("ivf_flat", "vectors.faiss", (4, 8, 32, 33, 94)),
        ("ivf_sq8", "vectors.faiss", (4, 8, 32, 33, 94)),
        ("ivf_pq", "vectors.faiss", (4, 8)),
        # The header's text; the shape.
        ("ivf_sq8", "originals.npy", (10, 60, 61)),
        # The footer: widths of integers, names.
        ("exact", "items.arrow", (-90, -78)),
    ],
)
def test_opening_names_files_whose_headers_are_damaged(
    vectors: np.ndarray, tmp_path: Path, kind: str, name: str, places: tuple[int, ...]
) -> None:
    """In a process of its own: a damaged size may ask for all the memory there is."""
    index = indexed(naive_of(vectors[:200]), tmp_path, replace(plan_of(kind), nlist=8))
    (file,) = tmp_path.glob(f"parts/*/{name}")
    (version,) = (tmp_path / "versions").iterdir()
    assert len(index) == 200
    command = [sys.executable, "-c", _OPENED, str(tmp_path), version.name, str(file)]
    done = subprocess.run([*command, *map(str, places)], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{place} True" for place in places]


def test_opening_refuses_a_manifest_of_another_version(
    built: tuple[str, str], vectors: np.ndarray
) -> None:
    root, name = built
    index = Index.open(root, name)
    index.change([IDS[6]], vectors[7:8])
    index.add([IDS[5]], vectors[5:6])
    other = index.commit().name
    index.delete(["new"])
    index.add(["newer"], vectors[:1])
    third = index.commit().name
    for one, two in ((name, other), (other, third)):
        files = [Path(root) / "versions" / each / "manifest.json" for each in (one, two)]
        contents = [file.read_bytes() for file in files]
        files[0].write_bytes(contents[1])
        with pytest.raises(ArtifactError, match=r"tombstones\.arrow"):
            Index.open(root, one)
        files[0].write_bytes(contents[0])
        assert len(Index.open(root, one)) == json.loads(contents[0])["meta"]["count"]


@pytest.mark.parametrize("rows", [[[0, 300]], [[2, 0]], [[0, -1]], [[-1, 0]], [[1, 1]]])
def test_opening_refuses_tombstones_of_rows_that_are_not_there(
    built: tuple[str, str], rows: list[list[int]]
) -> None:
    root, name = built
    folder = Path(root) / "versions" / name
    file, manifest = folder / "tombstones.arrow", folder / "manifest.json"
    mark = pa.ipc.open_file(str(file)).schema
    columns = [pa.array(column, pa.int64()) for column in zip(*rows, strict=True)]
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, mark) as written:
        written.write_batch(pa.record_batch(columns, schema=mark))
    raw = json.loads(manifest.read_text())
    raw["files"] = [vars(artifacts.entry_of(folder / e["path"], e["path"])) for e in raw["files"]]
    write_manifest(manifest, raw)
    with pytest.raises(ArtifactError, match=r"tombstones\.arrow names rows that no part has"):
        Index.open(root, name)


@pytest.mark.parametrize("name", ["tombstones.arrow", "items.arrow", "vectors.faiss"])
def test_opening_refuses_a_flipped_bit_in_what_it_reads_whole(
    built: tuple[str, str], name: str
) -> None:
    root, version = built
    _, *deltas = Index.open(root, version).meta["parts"]
    folders = [Path(root, "versions", version), *(Path(root, "parts", part) for part in deltas)]
    (file,) = (folder / name for folder in folders if (folder / name).exists())
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=f"{name} is not the file that was committed"):
        Index.open(root, version)


@pytest.mark.parametrize("metric", ["cosine", "l2", "dot"])
def test_a_radius_beyond_all_vectors_finds_all(tmp_path: Path, metric: str) -> None:
    far = np.eye(3, dtype=np.float32) * 1e18
    index = indexed(Naive(metric, {IDS[i]: Item(far[i]) for i in range(3)}), tmp_path, SMALL)
    for radius in (1e20, 1e200):
        assert len(index.within(far[:1], radius).ids) == 3


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_no_radius_is_negative(vectors: np.ndarray, tmp_path: Path, metric: str) -> None:
    naive = Naive(metric, {IDS[i]: Item(vectors[i]) for i in range(20)})
    index = indexed(naive, tmp_path, Plan("exact"))
    with pytest.raises(DataError, match=rf"radius = -0.1 by {metric}. Allowed: 0 or more"):
        index.within(vectors[:1], -0.1)


def test_many_questions_at_once_are_compared_as_one_is(tmp_path: Path) -> None:
    """Euclidean distances of long vectors that lie side by side."""
    random = np.random.default_rng(0)
    far = 100 * unit(random.normal(size=(1, 64))) + 0.01 * random.normal(size=(60, 64))
    far = far.astype(np.float32)
    naive = Naive("l2", {IDS[i]: Item(far[i], "a" if i < 40 else "b") for i in range(60)})
    index = indexed(naive, tmp_path, Plan("exact"))
    for where in (None, "label == 'a'"):
        found = index.search(np.tile(far[:40], (60, 1)), 5, where)
        for row, vector in enumerate(far[:40]):
            assert found[row][0].item_id == IDS[row]
            assert found[row][0].distance == 0
            near = naive.ranked(vector, lambda _, item, w=where: not w or item.label == "a")[:5]
            assert [one.item_id for one in found[row + 40 * 59]] == [item_id for _, item_id in near]
            assert [one.distance for one in found[row]] == pytest.approx(
                [distance for distance, _ in near], abs=1e-5
            )


def test_texts_longer_than_two_gibibytes_in_all(
    vectors: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(items, "_LARGE", 100)  # so that few are as many
    naive = naive_of(vectors[:300])
    index = indexed(naive, tmp_path, Plan("exact"))
    assert index._items.labels.type == pa.dictionary(pa.int32(), pa.string())
    assert index._items._columns["attribute:price"].type.value_type == pa.large_string()
    found = index.search(vectors[:1], 400, where="price > 100 and label == 'class 1'")[0]
    wanted = [i for i in range(101, 300, 2) if i % 7 and i % 5 == 1]
    assert sorted(one.item_id for one in found) == [IDS[i] for i in wanted]
    assert index.about(IDS[1]) == {"price": "1"}
