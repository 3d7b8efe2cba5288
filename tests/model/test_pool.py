"""Which images make which batch, replayed by a naive keeper of slots."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lookalike import planning
from lookalike.model.pool import Draw, Fill, Pool
from lookalike.planning import BatchShape

P, K = 4, 3
BATCH = BatchShape(P, K)


def pool(sizes, blocks, mine, capacity, seed=0, groups=None) -> Pool:
    layout = planning.lay_out(np.array(sizes), blocks, K)
    return Pool(layout, np.array(mine), BATCH, capacity, np.random.default_rng(seed), groups)


def replay(made: Pool, layout: planning.Layout, steps: int) -> list[Draw]:
    """All draws, after a look at every move: what is in a slot, by block and image."""
    slots: dict[int, tuple[int, int]] = {}
    seen: set[tuple[int, int]] = set()
    draws = []
    for move in made.moves(steps):
        if isinstance(move, Fill):
            held = layout.block(int(made.blocks[move.place]))
            assert len(set(move.images.tolist())) == len(move.images)
            assert move.images.max(initial=0) < max(1, held.sum())
            for image, slot in zip(move.images.tolist(), move.slots.tolist(), strict=True):
                assert 0 <= slot < made.capacity
                slots[slot] = (int(made.blocks[move.place]), image)
            continue
        repeated = 0
        drawn = [slots[slot] for slot in move.slots.tolist()]
        assert len(drawn) == P * K
        assert len(set(move.classes.tolist())) == P
        for number, (block, image) in enumerate(drawn):
            class_id = int(np.searchsorted(np.cumsum(layout.block(block)), image, side="right"))
            assert class_id == move.classes[number // K]
            repeated += (block, image) in seen
            seen.add((block, image))
        for start in range(0, P * K, K):
            few = int(layout.counts[move.classes[start // K]])
            assert len(set(drawn[start : start + K])) == min(few, K)
        assert move.repeated == repeated
        draws.append(move)
    return draws


@settings(max_examples=60, deadline=None)
@given(
    st.integers(P, 40),
    st.floats(0, 2),
    st.integers(1, 64),
    st.sampled_from([0, 50, 10**6]),
    st.integers(0, 99),
)
def test_every_rank_takes_all_steps_whatever_the_tail(
    classes: int, tail: float, ranks: int, capacity: int, seed: int
) -> None:
    random = np.random.default_rng(seed)
    sizes = np.maximum(1, (300 * (1 + random.permutation(classes)) ** -tail).astype(np.int64))
    if sizes.sum() < ranks * BATCH.size:
        return
    steps = planning.steps_per_epoch(int(sizes.sum()), ranks, BATCH)
    layout = planning.lay_out(sizes, max(ranks, min(48, sizes.sum() // BATCH.size)), K)
    order = planning.epoch_order(layout.blocks, seed, 0)
    for rank in {0, ranks // 2, ranks - 1}:
        mine = planning.shard(order, rank, ranks)
        held = np.sum([layout.block(block) for block in mine], axis=0)
        if (held > 0).sum() < P:
            continue  # refused before
        made = Pool(layout, mine, BATCH, capacity, np.random.default_rng(seed))
        largest = max(int(layout.block(block).sum()) for block in mine)
        assert made.capacity <= max(capacity, largest, 2 * BATCH.size)
        draws = replay(made, layout, steps)
        assert len(draws) == steps
        if capacity == 10**6:  # no more comes again than has to
            small = (held > 0) & (sizes < K)
            lacking = planning.missing_groups(layout, mine, steps, BATCH)
            padding = int((K - sizes[small]).sum())
            assert sum(draw.repeated for draw in draws) <= K * lacking + padding


def test_all_is_used_once_where_it_can_be() -> None:
    layout = planning.lay_out(np.full(8, 30), 10, K)
    draws = replay(pool(np.full(8, 30), 10, np.arange(10), 10**6), layout, 20)
    assert sum(draw.repeated for draw in draws) == 0
    assert np.bincount(np.concatenate([draw.classes for draw in draws])).tolist() == [10] * 8


def test_a_long_tails_head_holds_no_more_than_its_share_and_is_reached_over_epochs() -> None:
    sizes = np.array([900, 30, 30, 30, 20, 10])
    layout = planning.lay_out(sizes, 20, K)
    reached: set[tuple[int, int]] = set()
    for seed in range(60):
        made = pool(sizes, 20, np.random.default_rng(seed).permutation(20), 120, seed)
        slots: dict[int, tuple[int, int, int]] = {}
        for move in made.moves(85):
            if isinstance(move, Draw):
                reached |= {slots.pop(slot)[:2] for slot in move.slots.tolist()}
                continue
            block = int(made.blocks[move.place])
            ends = np.cumsum(layout.block(block))
            for image, slot in zip(move.images.tolist(), move.slots.tolist(), strict=True):
                slots[slot] = (block, image, int(np.searchsorted(ends, image, side="right")))
            assert sum(class_id == 0 for _, _, class_id in slots.values()) <= 120 // P
    head = {(block, image) for block, image in reached if image < layout.block(block)[0]}
    assert len(head) == 900
    assert len(reached) == sizes.sum()


def test_blocks_are_read_again_for_what_has_run_out_alone() -> None:
    # Three small classes must come again and again beside a large one.
    sizes = np.array([300, 6, 6, 6])
    layout = planning.lay_out(sizes, 5, K)
    made = pool(sizes, 5, np.arange(5), 10**6)
    draws = replay(made, layout, 26)
    assert len(draws) == 26
    # 26 batches need 26 groups of each; each small class has two.
    assert sum(draw.repeated for draw in draws) == 3 * (26 - 2) * K
    places, _, slots = made.holdings()
    assert len(slots) == len(set(slots.tolist())) <= 318
    assert len(places) == len(slots)


def test_a_batch_comes_from_one_group_where_it_can() -> None:
    sizes = np.full(12, 30)
    groups = np.repeat([0, 1, 2], [6, 4, 2])  # the last has fewer than P classes
    layout = planning.lay_out(sizes, 10, K)
    draws = replay(pool(sizes, 10, np.arange(10), 10**6, groups=groups), layout, 30)
    together = [len(set(groups[draw.classes].tolist())) for draw in draws]
    apart = [
        len(set(groups[draw.classes].tolist()))
        for draw in replay(pool(sizes, 10, np.arange(10), 10**6), layout, 30)
    ]
    assert np.mean([n == 1 for n in together]) > 0.5
    assert np.mean([n == 1 for n in apart]) < 0.2
    # Of the smallest group both classes, filled up from others.
    first = np.bincount(groups[draws[0].classes], minlength=3)
    assert P in first or first[2] == 2


@pytest.mark.parametrize("capacity", [0, 10**6])
def test_the_same_seed_makes_the_same_draws(capacity: int) -> None:
    def slots(seed: int) -> list[list[int]]:
        made = pool([60, 41, 25, 24, 13, 9, 7], 12, range(12), capacity, seed)
        return [move.slots.tolist() for move in made.moves(14)]

    assert slots(1) == slots(1)
    assert slots(1) != slots(2)
