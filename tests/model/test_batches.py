"""What ranks read, by real Petastorm readers."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from support import write_manifest

from lookalike.config import Augment
from lookalike.errors import ArtifactError, ConfigError, DataError, LookalikeError
from lookalike.model.batches import Batch, Shard, epoch_batches, repeats
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape

P, K = 4, 3
BATCH = BatchShape(P, K)
SIZES = [60, 41, 25, 24, 13, 9, 7, 5, 2, 1]


def epoch(uri: str, rank: int, ranks: int, number: int = 0, seed: int = 5, buffer: int = 10**6):
    shard = Shard(rank, ranks, BATCH, seed, buffer, with_ids=True)
    return list(epoch_batches(Snapshot.open(uri), shard, number))


def ids(batches: list[Batch]) -> list[str]:
    return [item_id for batch in batches for item_id in batch.item_ids]


@pytest.fixture
def uri(make_snapshot) -> str:
    return make_snapshot(SIZES, BATCH, blocks=12)


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
@pytest.mark.parametrize("buffer", [1, 40, 10**6])
def test_ranks_take_equal_steps_and_share_no_item(uri: str, ranks: int, buffer: int) -> None:
    by_rank = [epoch(uri, rank, ranks, buffer=buffer) for rank in range(ranks)]
    assert {len(batches) for batches in by_rank} == {sum(SIZES) // (ranks * BATCH.size)}
    sets = [set(ids(batches)) for batches in by_rank]
    assert sum(len(s) for s in sets) == len(set().union(*sets))


@pytest.mark.parametrize("ranks", [1, 3])
def test_a_batch_is_p_distinct_classes_of_k_images(uri: str, ranks: int) -> None:
    for rank in range(ranks):
        for batch in epoch(uri, rank, ranks):
            classes = batch.classes.reshape(P, K)
            assert (classes == classes[:, :1]).all()
            assert len(np.unique(classes)) == P
            assert batch.pixels.shape == (P * K, 16, 16, 1)
            for item_id, class_id, pixels in zip(
                batch.item_ids, batch.classes, batch.pixels, strict=True
            ):
                assert item_id.split("/")[0] == str(class_id)
                assert pixels[class_id % 16].min() >= 150  # its own pixels, not another's


@pytest.mark.parametrize("buffer", [1, 10**6])
def test_what_comes_again_is_counted(uri: str, buffer: int) -> None:
    for rank in range(2):
        batches = epoch(uri, rank, 2, buffer=buffer)
        counted = sum(batch.repeated for batch in batches)
        assert counted == len(ids(batches)) - len(set(ids(batches)))
        shard = Shard(rank, 2, BATCH, 5, buffer)
        assert repeats(Snapshot.open(uri), shard, 0) == counted


@pytest.mark.parametrize("kind", ["raw", "encoded"])
@pytest.mark.parametrize("buffer", [1, 10**6])
def test_what_is_left_out_at_the_beginning_changes_nothing_after_it(
    make_snapshot, kind: str, buffer: int
) -> None:
    snapshot = Snapshot.open(make_snapshot(SIZES, BATCH, blocks=12, kind=kind))
    shard = Shard(0, 1, BATCH, 5, buffer, with_ids=True)
    whole = list(epoch_batches(snapshot, shard, 0))
    for start in (1, 7, len(whole) - 1, len(whole)):
        rest = list(epoch_batches(snapshot, shard, 0, start))
        assert len(rest) == len(whole) - start
        for found, expected in zip(rest, whole[start:], strict=True):
            assert found.item_ids == expected.item_ids
            assert found.repeated == expected.repeated
            assert (found.pixels == expected.pixels).all()
            assert (found.classes == expected.classes).all()


@pytest.mark.parametrize("threads", [1, 3])
def test_files_are_decoded_to_what_raw_packs_hold(make_snapshot, threads: int) -> None:
    raw = Snapshot.open(make_snapshot(SIZES, BATCH, blocks=12))
    encoded = Snapshot.open(make_snapshot(SIZES, BATCH, blocks=12, kind="encoded"))
    shard = Shard(1, 2, BATCH, 5, 60, with_ids=True, threads=threads)
    for one, other in zip(
        epoch_batches(raw, shard, 3), epoch_batches(encoded, shard, 3), strict=True
    ):
        assert one.item_ids == other.item_ids
        assert (one.pixels == other.pixels).all()
    for one, other in zip(raw.validation(), encoded.validation(), strict=True):
        assert (one == other).all()
    assert encoded.item_bytes != raw.item_bytes == 256


def test_a_batch_comes_from_one_group(make_snapshot) -> None:
    names = ["shoes", "shoes", "shirts", "shirts", "shoes", None, "shirts", "shoes", "shirts"]
    uri = make_snapshot([30] * 9, BATCH, blocks=6, groups=names)
    shard = Shard(0, 1, BATCH, 5, 10**6, grouped=True)
    batches = list(epoch_batches(Snapshot.open(uri), shard, 0))
    kinds = [{names[c] for c in batch.classes} for batch in batches]
    assert sum(len(kind) == 1 for kind in kinds) > len(kinds) / 2
    uri = make_snapshot([30] * 9, BATCH, blocks=6)
    with pytest.raises(ConfigError, match=r"no groups of classes.*train\.group_by"):
        next(epoch_batches(Snapshot.open(uri), shard, 0))


def test_a_cache_serves_the_next_epoch_and_stays_bounded(make_snapshot, tmp_path: Path) -> None:
    uri = make_snapshot([400] * 6, BATCH, blocks=40, size=64)  # 10 MB
    snapshot = Snapshot.open(uri)
    plain = Shard(0, 1, BATCH, 5, 10**6)
    folder, limit = tmp_path / "cache", 64 * 2**20
    cached = replace(plain, cache=folder, cache_bytes=limit)
    before = [list(epoch_batches(snapshot, plain, number)) for number in range(2)]
    for one, other in zip(epoch_batches(snapshot, cached, 0), before[0], strict=True):
        assert (one.pixels == other.pixels).all()
    for path in Path(uri).glob("train/*.parquet"):
        path.unlink()
    for one, other in zip(epoch_batches(snapshot, cached, 1), before[1], strict=True):
        assert (one.pixels == other.pixels).all()

    least = 30 * snapshot.block_bytes
    many = Snapshot.open(make_snapshot([1000] * 6, BATCH, blocks=96, size=128))  # 94 MiB
    small = replace(cached, cache=tmp_path / "small", cache_bytes=30 * many.block_bytes)
    assert sum(1 for _ in epoch_batches(many, small, 0)) == 500
    files = [path for path in small.cache.rglob("*") if path.is_file()]
    kept = sum(path.stat().st_size for path in files if path.suffix == ".val")
    assert 0 < kept <= small.cache_bytes < many.train_items * many.item_bytes / 2
    assert sum(path.stat().st_size for path in files) < small.cache_bytes + 32 * 2**20
    with pytest.raises(ConfigError, match=r"train\.cache_mb is \d+, and the blocks"):
        next(epoch_batches(snapshot, replace(cached, cache_bytes=least - 1), 0))


@pytest.mark.parametrize("cached", [False, True])
def test_a_remote_snapshot_is_read_as_a_local_one(uri: str, tmp_path: Path, cached: bool) -> None:
    remote = "memory:///snapshot"
    files = fsspec.filesystem("memory")
    for path in Path(uri).rglob("*"):
        if path.is_file():
            files.pipe_file(f"/snapshot/{path.relative_to(uri).as_posix()}", path.read_bytes())
    snapshot = Snapshot.open(remote)
    assert snapshot.remote
    shard = Shard(0, 1, BATCH, 5, 10**6, with_ids=True)
    if cached:
        shard = replace(shard, cache=tmp_path / "cache", cache_bytes=2**26)
    found = list(epoch_batches(snapshot, shard, 0))
    local = list(epoch_batches(Snapshot.open(uri), replace(shard, cache=None), 0))
    assert ids(found) == ids(local)
    for one, other in zip(found, local, strict=True):
        assert (one.pixels == other.pixels).all()
    assert (snapshot.validation()[0] == Snapshot.open(uri).validation()[0]).all()


PEAK = """
import re, sys
from pathlib import Path
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.snapshot import Snapshot

def memory(what):  # of this process alone: ru_maxrss counts the one it was forked from too
    found = re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) // 1024

snapshot = Snapshot.open(sys.argv[1])
shard = Shard(0, 1, snapshot.batch, 1, 64 * 2**20 // snapshot.item_bytes)
if sys.argv[2:]:
    from itertools import islice
    import numpy as np
    import tensorflow as tf
    from lookalike.config import Augment
    from lookalike.model import feed
    tf.zeros(1).numpy()
    before = memory("VmRSS")
    batches = feed.stream(snapshot, shard, Augment(flip=True, shift=2, erase=0.3), 0, 0)
    steps = snapshot.train_items // snapshot.batch.size
    classes = np.concatenate([classes for _, classes, _ in islice(batches, steps)])
    assert set(classes.tolist()) == set(range(8))
    images = len(classes)
    next(batches)  # of the next epoch
    batches.close()
else:
    before = 0
    images = sum(len(batch.pixels) for batch in epoch_batches(snapshot, shard, 0))
    assert "tensorflow" not in sys.modules
print(images, memory("VmHWM") - before)
"""


@pytest.mark.parametrize(
    ("fed", "images_per_class", "most"),
    [((), 8, 400), (("to TensorFlow",), 2, 500)],
    ids=["read", "fed to TensorFlow"],
)
def test_a_snapshot_larger_than_memory_is_read_in_bounded_memory(
    make_snapshot, fed: tuple[str, ...], images_per_class: int, most: int
) -> None:
    batch = BatchShape(4, images_per_class)
    uri = make_snapshot([300] * 8, batch, blocks=48, size=512, validated=False)
    size = sum(path.stat().st_size for path in Path(uri).glob("train/*"))
    assert size > 600 * 2**20
    command = [sys.executable, "-c", PEAK, uri, *fed]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    images, peak = map(int, done.stdout.split())
    assert images == 2400
    assert peak < most


@pytest.mark.parametrize("together", [1, 2**17], ids=["one by one", "some at once"])
def test_tensorflow_is_fed_the_batches_of_one_epoch_after_another(
    uri: str, together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.model import feed

    monkeypatch.setattr(feed, "_TOGETHER", together)
    snapshot, shard = Snapshot.open(uri), Shard(1, 2, BATCH, 5, 40)
    expected = [b for number in (3, 4, 5) for b in epoch_batches(snapshot, shard, number)][2:]
    stream = feed.stream(snapshot, shard, Augment(), 3, 2)
    fed = itertools.islice(stream, len(expected))
    for batch, (pixels, classes, repeated) in zip(expected, fed, strict=True):
        assert np.array_equal(pixels, batch.pixels)
        assert np.array_equal(classes, batch.classes)
        assert int(repeated) == batch.repeated
    stream.close()


def test_same_seed_and_epoch_same_batches_else_others(uri: str) -> None:
    first = ids(epoch(uri, 0, 2))
    assert first == ids(epoch(uri, 0, 2))
    assert first != ids(epoch(uri, 0, 2, number=1))
    assert first != ids(epoch(uri, 0, 2, seed=6))


def test_every_item_is_reached_over_some_epochs(uri: str) -> None:
    seen = {
        i for number in range(20) for rank in range(2) for i in ids(epoch(uri, rank, 2, number))
    }
    assert seen == {f"{c}/{i}" for c, size in enumerate(SIZES) for i in range(size)}


def test_a_block_that_gives_fewer_images_than_it_holds_is_refused(uri: str) -> None:
    block = sorted(Path(uri).glob("train/*.parquet"))[3]
    table = pq.read_table(block)
    pq.write_table(table.slice(1), block)
    _note_size(uri, block)
    with pytest.raises(DataError, match=r"rank 0 read \d+ of the \d+ images of .*block-00003"):
        epoch(uri, 0, 1)


def test_blocks_laid_out_by_another_version_are_refused(uri: str) -> None:
    manifest = Path(uri) / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["meta"]["blocks"]["train"][3]["items"] += 1
    write_manifest(manifest, raw)
    with pytest.raises(ArtifactError, match=r"another version of lookalike.*lookalike snapshot"):
        epoch(uri, 0, 1)


def test_blocks_that_cannot_be_read_are_named(uri: str) -> None:
    snapshot = Snapshot.open(uri)
    block = sorted(Path(uri).glob("train/*.parquet"))[3]
    block.write_bytes(bytes(block.stat().st_size))
    with pytest.raises(ArtifactError, match=r"block-00003\.parquet is not the file that was"):
        list(epoch_batches(snapshot, Shard(0, 1, BATCH, 5, 1), 0))
    block.unlink()
    with pytest.raises(ArtifactError, match=r"block-00003\.parquet is missing"):
        list(epoch_batches(snapshot, Shard(0, 1, BATCH, 5, 1), 0))
    for path in Path(uri).glob("validation/*"):
        path.write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"validation/.* is not the file that was committed"):
        snapshot.validation()


def test_a_cache_that_cannot_be_used_is_named(uri: str, tmp_path: Path) -> None:
    from lookalike.model import feed

    (tmp_path / "cache" / "000").mkdir(parents=True)
    (tmp_path / "cache" / "000" / "cache.db").write_bytes(b"no database" * 100)
    shard = Shard(0, 1, BATCH, 5, 10**6, cache=tmp_path / "cache", cache_bytes=2**26)
    with pytest.raises(LookalikeError, match=r"the cache .*/cache cannot be used \(.*TMPDIR"):
        next(feed.stream(Snapshot.open(uri), shard, Augment(), 0, 0))


@pytest.mark.parametrize("kind", ["raw", "encoded"])
def test_validation_images_are_those_of_its_blocks(make_snapshot, kind: str) -> None:
    uri = make_snapshot(SIZES, BATCH, blocks=7, kind=kind)
    shard = Shard(0, 1, BATCH, 5, 10**6)
    pixels, classes = Snapshot.open(uri).validation()
    assert np.bincount(classes).tolist() == SIZES
    drawn = epoch_batches(Snapshot.open(uri), shard, 0)  # they are those of training here
    known = {(c, image.tobytes()) for c, image in zip(classes.tolist(), pixels, strict=True)}
    for batch in drawn:
        for c, image in zip(batch.classes.tolist(), batch.pixels, strict=True):
            assert (c, image.tobytes()) in known


def test_a_block_that_is_whole_but_out_of_reach_is_not_called_damaged(uri: str) -> None:
    snapshot = Snapshot.open(uri)
    block = snapshot.files("train")[0]
    with pytest.raises(ConnectionError, match="reset"), snapshot.readable([block]):
        raise ConnectionError("reset by peer")  # what an object store's hiccup ends as


def test_another_batch_than_the_blocks_are_laid_out_for_is_refused(uri: str) -> None:
    shard = Shard(0, 1, BatchShape(4, 5), 5, 1)
    with pytest.raises(ConfigError, match=r"images_per_class = 5, but .* is laid out for 4 x 3"):
        next(epoch_batches(Snapshot.open(uri), shard, 0))


def test_other_formats_are_refused(uri: str) -> None:
    manifest = Path(uri) / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["meta"]["recipe"]["format"] = "squeezed"
    write_manifest(manifest, raw)
    with pytest.raises(ArtifactError, match=r"'squeezed'. Allowed: 'raw' or 'encoded'"):
        Snapshot.open(uri)
    manifest.write_text(json.dumps(raw | {"format": 3}))
    with pytest.raises(ArtifactError, match=r"has format 3. Allowed: format 1 or 2"):
        Snapshot.open(uri)


def test_a_training_is_checked_before_it_starts(make_snapshot) -> None:
    snapshot = Snapshot.open(make_snapshot([12] * 5, BATCH, blocks=20))  # a class a block
    snapshot.check(BATCH, 1, 5, epochs=20)
    with pytest.raises(ConfigError, match=r"rank \d of 5 would have images of [123] classes"):
        snapshot.check(BATCH, 5, 5, epochs=20)


def _note_size(uri: str, file: Path) -> None:
    manifest = Path(uri) / "manifest.json"
    raw = json.loads(manifest.read_text())
    for entry in raw["files"]:
        if entry["path"].endswith(file.name) and entry["path"].startswith("train"):
            entry["size"] = file.stat().st_size
    write_manifest(manifest, raw)


def test_more_ranks_than_blocks_is_refused(make_snapshot) -> None:
    uri = make_snapshot([40] * 4, BATCH, blocks=2)
    with pytest.raises(ConfigError, match=r"train.ranks = 3 is more than the 2 blocks"):
        epoch(uri, 0, 3)


def test_a_batch_that_the_classes_cannot_fill_is_refused(make_snapshot) -> None:
    uri = make_snapshot([40] * 3, BATCH, blocks=2)
    with pytest.raises(ConfigError, match="more than the 3 classes"):
        epoch(uri, 0, 1)


@pytest.mark.parametrize("more", [1, -1])
def test_validation_images_that_are_not_those_of_the_manifest_are_refused(
    make_snapshot: Callable[..., str], more: int
) -> None:
    snapshot = Snapshot.open(make_snapshot([24] * 5, BatchShape(4, 4), blocks=4))
    snapshot.artifact.meta["items"]["validation"] += more
    with pytest.raises(ArtifactError, match=r"other validation images than the \d+ of its"):
        snapshot.validation()
