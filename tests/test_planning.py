import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import planning
from lookalike.errors import ConfigError
from lookalike.planning import BatchShape

counts = st.lists(st.integers(1, 400), min_size=2, max_size=60).map(
    lambda sizes: np.array(sizes, dtype=np.int64)
)


@given(counts, st.integers(1, 48), st.integers(2, 16))
def test_every_item_has_a_block_and_no_class_is_cut_below_k(
    sizes: np.ndarray, blocks: int, images: int
) -> None:
    layout = planning.lay_out(sizes, blocks, images)
    for start, width, size in zip(layout.start, layout.width, sizes, strict=True):
        placed = (start + np.arange(size) % width) % blocks
        held = np.bincount(placed, minlength=blocks)
        assert held.sum() == size
        if size < 2 * images:
            assert (held > 0).sum() == 1
        else:
            assert held[held > 0].min() >= images
        assert held[held > 0].max() - held[held > 0].min() <= 1


@given(st.integers(1, 200), st.integers(1, 64), st.integers(0, 5), st.integers(0, 9))
def test_shards_are_disjoint_whole_and_even(blocks: int, ranks: int, seed: int, epoch: int) -> None:
    order = planning.epoch_order(blocks, seed, epoch)
    if ranks > blocks:
        with pytest.raises(ConfigError, match=f"1 to {blocks}"):
            planning.shard(order, 0, ranks)
        return
    shards = [planning.shard(order, rank, ranks) for rank in range(ranks)]
    assert sorted(np.concatenate(shards).tolist()) == list(range(blocks))
    sizes = [len(shard) for shard in shards]
    assert max(sizes) - min(sizes) <= 1


def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = planning.epoch_order(48, 1, 0).tolist()
    assert first == planning.epoch_order(48, 1, 0).tolist()
    assert first != planning.epoch_order(48, 1, 1).tolist()
    assert first != planning.epoch_order(48, 2, 0).tolist()


@settings(max_examples=200)
@given(st.integers(1, 10**7), st.integers(64, 10**6), st.integers(2, 32), st.integers(2, 32))
def test_blocks_are_bounded_in_bytes(items: int, item_bytes: int, p: int, k: int) -> None:
    blocks = planning.block_count(items, item_bytes, BatchShape(p, k))
    assert blocks >= 1
    # Rounded down to a multiple of 12, a block may nearly double.
    assert -(-items // blocks) * item_bytes <= 2 * planning.BLOCK_BYTES + item_bytes


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 16, 24, 48])
def test_the_usual_rank_counts_get_equally_many_blocks(ranks: int) -> None:
    blocks = planning.block_count(60_000, 28 * 28, BatchShape(10, 8))
    assert blocks == 48
    order = planning.epoch_order(blocks, 0, 0)
    assert {len(planning.shard(order, rank, ranks)) for rank in range(ranks)} == {48 // ranks}


def test_impossible_batches_are_refused_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"4 x 8 x 2 = 64 is more than the 63 images"):
        planning.steps_per_epoch(63, 2, BatchShape(4, 8))
    with pytest.raises(ConfigError, match="more than the 3 classes"):
        planning.check_classes(np.array([5, 5, 5]), BatchShape(4, 2))
    with pytest.raises(ConfigError, match="no class has two images"):
        planning.check_classes(np.array([1, 1, 1]), BatchShape(2, 2))


def test_blocks_are_even_where_every_class_lies_in_all() -> None:
    sizes = np.array([889, 880, 891, 879, 893, 905, 902, 879, 887, 909])
    layout = planning.lay_out(sizes, 48, 8)
    held = np.zeros(48, dtype=int)
    for start, width, size in zip(layout.start, layout.width, sizes, strict=True):
        held += np.bincount((start + np.arange(size) % width) % 48, minlength=48)
    assert held.max() - held.min() <= 1
