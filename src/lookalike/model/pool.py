"""Which images make which batch: decided from the plan alone, without an image.

A pool has a fixed number of *slots*. Blocks are read one after another and their images put into
free slots; a draw takes images out of slots. `Pool.moves` says what happens in which order; whoever
keeps the images does as it says, or skips what has been trained on already.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lookalike.planning import BatchShape, Layout


@dataclass(frozen=True)
class Fill:
    """Put images of a block into slots.

    Attributes:
        place: the block, by its number in the rank's order.
        images: int64 (n,), which of the block's images.
        slots: int64 (n,), where each goes.
    """

    place: int
    images: np.ndarray
    slots: np.ndarray


@dataclass(frozen=True)
class Draw:
    """Take the images of a batch.

    Attributes:
        classes: int32 (P,), distinct.
        slots: int64 (P * K,), class by class.
        repeated: how many of the images the epoch had drawn before, this draw included.
    """

    classes: np.ndarray
    slots: np.ndarray
    repeated: int


class Pool:
    """Slots, and what is in them.

    Args:
        layout: of all blocks.
        blocks: int64 (n,), those of this rank, in the order that they are read in.
        batch: P x K.
        capacity: number of slots; raised to what the largest block and two batches take.
        random: makes all choices.
        groups: int64 (classes,), the group of each class: a batch's classes come from one group
            where it has P of them.
    """

    def __init__(
        self,
        layout: Layout,
        blocks: np.ndarray,
        batch: BatchShape,
        capacity: int,
        random: np.random.Generator,
        groups: np.ndarray | None = None,
    ):
        self._layout, self._batch = layout, batch
        self.blocks = blocks
        self._random, self._groups = random, groups
        sizes, unread = [], np.zeros(len(layout.counts), dtype=np.int64)
        for block in blocks:
            held = layout.block(block)
            unread += held
            sizes.append(int(held.sum()))
        self._first = np.cumsum([0, *sizes])
        """Number of each block's first image among all of the shard's."""
        capacity = max(capacity, *sizes, 2 * batch.size)
        self.capacity = min(capacity, sum(sizes))
        # With a P-th of the slots at most, no class keeps P from being held together.
        self._limit = capacity // batch.classes
        self._free = list(range(self.capacity))
        self._slots: list[list[int]] = [[] for _ in layout.counts]
        self._held = np.zeros(len(layout.counts), dtype=np.int64)
        self._ready = np.zeros(len(layout.counts), dtype=bool)
        self._unread = unread
        self._stale = np.zeros(len(layout.counts), dtype=bool)
        self._image = np.zeros(self.capacity, dtype=np.int64)
        self._used = np.zeros(sum(sizes), dtype=bool)

    def moves(self, steps: int) -> Iterator[Fill | Draw]:
        """What to do for `steps` batches: blocks are read as there is room for them.

        Where the images run out before the steps do, the blocks are read again, and of the classes
        that have run out images come again.
        """
        left, again = steps, False
        while left:
            for place, block in enumerate(self.blocks):
                held = self._layout.block(block)
                while left and self._wanted(held, again).sum() > len(self._free) and self._enough():
                    yield self._draw(left)
                    left -= 1
                if not left:
                    return
                yield self._fill(place, held, again)
            while left and self._enough():
                yield self._draw(left)
                left -= 1
            again = True

    def holdings(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What is in the slots now: places, images and slots, int64 (n,) each, as in `Fill`."""
        slots = np.array([slot for held in self._slots for slot in held], dtype=np.int64)
        numbers = self._image[slots]
        places = np.searchsorted(self._first, numbers, side="right") - 1
        return places, numbers - self._first[places], slots

    def _enough(self) -> bool:
        return np.count_nonzero(self._ready) >= self._batch.classes

    def _wanted(self, held: np.ndarray, again: bool) -> np.ndarray:
        wanted = np.minimum(held, self._limit - self._held)
        return np.where(self._ready, 0, wanted) if again else wanted

    def _fill(self, place: int, held: np.ndarray, again: bool) -> Fill:
        if again:  # whose last few images would come again beside themselves
            self._drop(np.flatnonzero((held > 0) & ~self._ready))
        else:
            self._unread -= held
        wanted = self._wanted(held, again)
        if wanted.sum() > len(self._free):  # of what is too little for a batch, nothing is kept
            self._drop(np.flatnonzero(~self._ready))
            wanted = self._wanted(held, again)
        classes = np.flatnonzero(wanted)
        if wanted.sum() > len(self._free):  # whole packs, any of them, as far as there is room
            classes = self._random.permutation(classes)
            classes = np.sort(classes[np.cumsum(wanted[classes]) <= len(self._free)])
        first = self._first[place]
        begin = first + np.cumsum(held) - held
        images = [self._some(begin[c], held[c], wanted[c]) - first for c in classes]
        chosen = np.concatenate(images) if images else np.empty(0, np.int64)
        rest = len(self._free) - len(chosen)
        taken = self._free[rest:]
        del self._free[rest:]
        ends = np.cumsum(wanted[classes]).tolist()
        for c, begins, end in zip(classes.tolist(), [0, *ends], ends, strict=False):
            self._slots[c].extend(taken[begins:end])
        slots = np.array(taken, dtype=np.int64)
        self._image[slots] = first + chosen
        self._held[classes] += wanted[classes]
        self._stale[classes] |= again
        self._note(classes)
        return Fill(place, chosen, slots)

    def _some(self, begin: int, held: int, wanted: int) -> np.ndarray:
        """Numbers of a pack's images: all, or some at random, those not used yet before others."""
        if wanted == held:
            return np.arange(begin, begin + held)
        numbers = begin + self._random.permutation(held)
        return np.sort(numbers[np.argsort(self._used[numbers], kind="stable")[:wanted]])

    def _drop(self, classes: np.ndarray) -> None:
        for c in classes[self._held[classes] > 0]:
            self._free.extend(self._slots[c])
            self._slots[c].clear()
            self._held[c] = 0

    def _note(self, classes: np.ndarray) -> None:
        held, k = self._held[classes], self._batch.images
        self._ready[classes] = (held >= k) | ((held > 0) & (self._layout.counts[classes] < k))

    def _draw(self, left: int) -> Draw:
        ready = np.flatnonzero(self._ready)
        k = self._batch.images
        serves = np.maximum((self._held[ready] + self._unread[ready]) // k, 1)
        # Classes with more left come more often, so that all run out together: the smallest of
        # exponential times at these rates are a draw without replacement.
        times = self._random.standard_exponential(len(ready)) / np.minimum(serves, left)
        # What a class has for all batches to come is used up only if it is in each of them.
        times[serves >= left] -= _FIRST
        times[self._stale[ready]] += 2 * _FIRST
        if self._groups is not None:
            group = self._groups[ready]
            weight = np.bincount(group, serves)
            times[group == self._random.choice(len(weight), p=weight / weight.sum())] -= 4 * _FIRST
        nearest = np.argpartition(times, self._batch.classes - 1)[: self._batch.classes]
        classes = ready[nearest]
        taken: list[int] = []
        shares = self._random.random((len(classes), k)).tolist()
        for c, share in zip(classes.tolist(), shares, strict=True):
            held = self._slots[c]
            if (size := len(held)) < k:  # a small class: all it has, then the same again
                taken += [held[i % size] for i in self._random.permutation(k)]
                self._free += held
                held.clear()
                continue
            for part in share:
                place, size = int(part * size), size - 1
                held[place], held[size] = held[size], held[place]
            taken += held[size:]
            self._free += held[size:]
            del held[size:]
        slots = np.array(taken)
        self._held[classes] -= np.minimum(self._held[classes], k)
        self._note(classes)
        images = self._image[slots]
        again = np.count_nonzero(self._used[images])
        if (self._layout.counts[classes] < k).any():
            distinct = np.unique(images)
            again = len(images) - len(distinct) + np.count_nonzero(self._used[distinct])
        self._used[images] = True
        return Draw(classes.astype(np.int32), slots, int(again))


_FIRST = 100.0
"""More than exponential times come to."""
