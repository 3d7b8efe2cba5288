"""What ranks read, by real Petastorm readers."""

import json
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import ConfigError, DataError
from lookalike.model.batches import Batch, Shard, Snapshot, epoch_batches
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


def test_an_item_comes_twice_only_in_small_classes_or_as_counted(uri: str) -> None:
    for rank in range(2):
        batches = epoch(uri, rank, 2)
        seen: dict[str, int] = {}
        for item_id in ids(batches):
            seen[item_id] = seen.get(item_id, 0) + 1
        large = {i: n for i, n in seen.items() if SIZES[int(i.split("/")[0])] >= K}
        extra = sum(n - 1 for n in large.values())
        assert extra <= sum(batch.repeated for batch in batches)


def test_same_seed_and_epoch_same_batches_else_others(uri: str) -> None:
    first = ids(epoch(uri, 0, 2))
    assert first == ids(epoch(uri, 0, 2))
    assert first != ids(epoch(uri, 0, 2, number=1))
    assert first != ids(epoch(uri, 0, 2, seed=6))


def test_every_item_is_reached_over_some_epochs(uri: str) -> None:
    seen = {
        i for number in range(12) for rank in range(2) for i in ids(epoch(uri, rank, 2, number))
    }
    assert seen == {f"{c}/{i}" for c, size in enumerate(SIZES) for i in range(size)}


def test_a_block_that_gives_fewer_images_than_it_holds_is_refused(uri: str) -> None:
    manifest = Path(uri) / "manifest.json"
    raw = json.loads(manifest.read_text())
    raw["meta"]["blocks"]["train"][3]["items"] += 1
    manifest.write_text(json.dumps(raw))
    with pytest.raises(DataError, match=r"rank 0 read 187 of the 188 images"):
        epoch(uri, 0, 1)


def test_more_ranks_than_blocks_is_refused(make_snapshot) -> None:
    uri = make_snapshot([40] * 4, BATCH, blocks=2)
    with pytest.raises(ConfigError, match=r"train.ranks = 3 is more than the 2 blocks"):
        epoch(uri, 0, 3)


def test_a_batch_that_the_classes_cannot_fill_is_refused(make_snapshot) -> None:
    uri = make_snapshot([40] * 3, BATCH, blocks=2)
    with pytest.raises(ConfigError, match="more than the 3 classes"):
        epoch(uri, 0, 1)
