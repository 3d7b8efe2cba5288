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


@given(counts, st.integers(1, 200), st.integers(2, 16))
def test_packs_hold_every_item_and_no_class_is_cut_below_k(
    sizes: np.ndarray, blocks: int, images: int
) -> None:
    held = planning.packs(sizes, blocks, images)
    assert held.shape == (blocks, len(sizes))
    assert (held.sum(axis=0) == sizes).all()
    for size, column in zip(sizes, held.T, strict=True):
        found = column[column > 0]
        if size < 2 * images:
            assert len(found) == 1
        else:
            assert found.min() >= images
        if size >= images * blocks:
            assert found.max() - found.min() <= 1
        else:  # one remnant a class
            assert (found % images > 0).sum() <= 1


@given(counts, st.integers(1, 200), st.integers(2, 16))
def test_packs_are_counts_of_places(sizes: np.ndarray, blocks: int, images: int) -> None:
    layout = planning.lay_out(sizes, blocks, images)
    places = [np.bincount(layout.places(c), minlength=blocks) for c in range(len(sizes))]
    assert (planning.packs(sizes, blocks, images) == np.stack(places, axis=1)).all()


@settings(max_examples=15, deadline=None)
@given(
    st.sampled_from([2, 20, 300, 10_000]),
    st.floats(0, 2),
    st.integers(1, 64),
    st.integers(2, 8),
    st.integers(0, 99),
)
def test_long_tails_are_planned_for_all_ranks_or_refused(
    classes: int, tail: float, ranks: int, p: int, seed: int
) -> None:
    """Class sizes by Zipf's law, from even to steep."""
    random = np.random.default_rng(seed)
    sizes = np.maximum(1, (3000 * (1 + random.permutation(classes)) ** -tail).astype(np.int64))
    if classes == 10_000:
        sizes = np.maximum(1, sizes // 50)
    batch = BatchShape(min(p, classes), 4)
    layout = planning.lay_out(sizes, planning.block_count(int(sizes.sum()), 784, batch), 4)
    order = planning.epoch_order(layout.blocks, seed, 0)
    held = planning.packs(sizes, layout.blocks, 4)
    assert held.sum() == sizes.sum()
    distinct = [
        (held[planning.shard(order, rank, ranks)].sum(axis=0) > 0).sum()
        for rank in range(min(ranks, layout.blocks))
    ]
    if ranks > layout.blocks or min(distinct) < batch.classes:
        with pytest.raises(ConfigError, match=r"train\.ranks"):
            planning.check_shards(layout, order, ranks, batch)
    else:
        planning.check_shards(layout, order, ranks, batch)


def test_a_rank_without_p_classes_is_named_before_training() -> None:
    # 24 blocks of 4 images, the first 12 of one class, the others of another.
    layout = planning.lay_out(np.array([48, 48]), 24, 4)
    batch = BatchShape(2, 4)
    planning.check_shards(layout, np.arange(24), 12, batch)  # a rank has blocks n and n + 12
    neighbours = np.arange(24).reshape(12, 2).T.ravel()
    with pytest.raises(ConfigError, match=r"rank 0 of 12 would have images of 1 classes only"):
        planning.check_shards(layout, neighbours, 12, batch)


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
    # A block's share of the images is rounded up.
    assert -(-items // blocks) * item_bytes <= planning.BLOCK_BYTES + item_bytes
    assert blocks <= 12 or 192 % blocks == 0 or blocks % 192 == 0
    assert blocks >= min(192, items // (p * k)) / 2


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64])
def test_the_usual_rank_counts_get_equally_many_blocks(ranks: int) -> None:
    blocks = planning.block_count(60_000, 28 * 28, BatchShape(10, 8))
    assert blocks == 192
    order = planning.epoch_order(blocks, 0, 0)
    assert {len(planning.shard(order, rank, ranks)) for rank in range(ranks)} == {192 // ranks}


def test_impossible_batches_are_refused_with_what_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"4 x 8 x 2 = 64 is more than the 63 images"):
        planning.steps_per_epoch(63, 2, BatchShape(4, 8))
    with pytest.raises(ConfigError, match="more than the 3 classes"):
        planning.check_classes(np.array([5, 5, 5]), BatchShape(4, 2))
    with pytest.raises(ConfigError, match="no class has two images"):
        planning.check_classes(np.array([1, 1, 1]), BatchShape(2, 2))


def test_blocks_are_even_where_every_class_lies_in_all() -> None:
    sizes = np.array([889, 880, 891, 879, 893, 905, 902, 879, 887, 909])
    held = planning.packs(sizes, 48, 8).sum(axis=1)
    assert held.max() - held.min() <= 1


def test_missing_groups_by_hand() -> None:
    # Of 20, 9 and 2 images in one block: 5 groups of K = 4, 2, and 1 by repeating.
    layout = planning.lay_out(np.array([20, 9, 2]), 1, 4)
    batch = BatchShape(2, 4)
    assert planning.missing_groups(layout, np.array([0]), 3, batch) == 0  # 3 + 2 + 1 of 6
    assert planning.missing_groups(layout, np.array([0]), 4, batch) == 1  # 4 + 2 + 1 of 8
