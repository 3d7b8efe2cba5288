"""P x K batches from a rank's shard of a snapshot, read by Petastorm, in bounded memory."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, PIXELS, TRAIN, VALIDATION
from lookalike.errors import ConfigError, DataError
from lookalike.images import Preprocessing
from lookalike.planning import BatchShape

SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Batch:
    """Images of P classes, K of each, class by class.

    Attributes:
        pixels: uint8 (P * K, size, size, channels).
        classes: int32 (P * K,) class numbers.
        item_ids: P * K ids where they were asked for, else empty.
        repeated: images that the rank had already used in this epoch.
    """

    pixels: np.ndarray
    classes: np.ndarray
    item_ids: tuple[str, ...]
    repeated: int


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot, as training reads it."""

    artifact: artifacts.Artifact

    @classmethod
    def open(cls, uri: str) -> Snapshot:
        """Open a snapshot.

        Raises:
            ArtifactError: missing or damaged.
        """
        return cls(artifacts.open_artifact(uri, SNAPSHOT))

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.artifact.meta["recipe"]["preprocessing"])

    @property
    def classes(self) -> list[str]:
        """Class names by number."""
        return list(self.artifact.meta["classes"])

    @property
    def counts(self) -> np.ndarray:
        """Training images of each class, int64 (classes,)."""
        return np.array(self.artifact.meta["counts"], dtype=np.int64)

    @property
    def train_items(self) -> int:
        return int(self.artifact.meta["items"][TRAIN])

    def items(self, blocks: np.ndarray) -> int:
        """Training images in some blocks."""
        held = self.artifact.meta["blocks"][TRAIN]
        return sum(int(held[i]["items"]) for i in blocks)

    def files(self, split: str, blocks: np.ndarray | None = None) -> list[str]:
        """URIs of a split's blocks, all or some, in the order given."""
        paths = [block["path"] for block in self.artifact.meta["blocks"][split]]
        chosen = range(len(paths)) if blocks is None else blocks
        return [artifacts.join(self.artifact.uri, paths[i]) for i in chosen]

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """All validation images and their class numbers.

        Returns:
            uint8 (n, size, size, channels) and int32 (n,).
        """
        pixels, classes = [], []
        for uri in self.files(VALIDATION):
            inner, path = artifacts.filesystem(uri)
            for pack in pq.read_table(path, filesystem=inner).to_pylist():
                pixels.append(_images(pack[PIXELS], self.preprocessing))
                classes.append(np.full(pack[COUNT], pack[CLASS_ID], np.int32))
        if not pixels:
            return np.empty((0, *self.preprocessing.shape), np.uint8), np.empty(0, np.int32)
        return np.concatenate(pixels), np.concatenate(classes)


@dataclass(frozen=True)
class Shard:
    """Which part of the training images a rank draws from.

    Attributes:
        rank, ranks: this one, and how many there are.
        batch: P x K.
        seed: of the order of blocks and the draws.
        buffer_items: images held to draw from.
        with_ids: whether batches name their items.
    """

    rank: int
    ranks: int
    batch: BatchShape
    seed: int
    buffer_items: int
    with_ids: bool = False


def epoch_batches(snapshot: Snapshot, shard: Shard, epoch: int) -> Iterator[Batch]:
    """A rank's batches of one epoch, just as many on every rank.

    Each batch has exactly P distinct classes and K images of each. Images are drawn without
    replacement from the rank's blocks, which no other rank reads in this epoch; an image comes
    again only where a class has fewer than K in all, or where the blocks run out before the steps
    do, which `Batch.repeated` counts. The same seed and epoch give the same batches.

    Raises:
        ConfigError: more ranks than blocks, or a batch that the data cannot fill.
        DataError: the blocks gave another number of images than they hold.
    """
    planning.check_classes(snapshot.counts, shard.batch)
    steps = planning.steps_per_epoch(snapshot.train_items, shard.ranks, shard.batch)
    blocks = len(snapshot.artifact.meta["blocks"][TRAIN])
    order = planning.epoch_order(blocks, shard.seed, epoch)
    mine = planning.shard(order, shard.rank, shard.ranks)
    pool = _Pool(snapshot, shard, epoch)
    expected = snapshot.items(mine)
    taken, repeating = 0, False
    while taken < steps:
        before, read = taken, 0
        for pack in _packs(snapshot.files(TRAIN, mine), shard.with_ids):
            pool.add(pack, repeating)
            read += int(pack[COUNT])
            while taken < steps and pool.items > shard.buffer_items and pool.can_draw():
                yield pool.draw()
                taken += 1
            if taken == steps:
                return
        if read != expected:
            raise DataError(
                f"rank {shard.rank} read {read:,} of the {expected:,} images of its blocks in "
                f"{snapshot.artifact.uri}",
                remedy="Run `lookalike snapshot` again",
            )
        while taken < steps and pool.can_draw():
            yield pool.draw()
            taken += 1
        if taken == before and repeating:
            raise ConfigError(
                f"rank {shard.rank} of {shard.ranks} has images of {int((pool.left() > 0).sum())} "
                f"classes; train.classes_per_batch is {shard.batch.classes}",
                remedy="Lower train.classes_per_batch or train.ranks: classes too small to split "
                "lie on one rank",
            )
        repeating = True


class _Pool:
    """Images read and not yet used, by class."""

    def __init__(self, snapshot: Snapshot, shard: Shard, epoch: int):
        self._preprocessing = snapshot.preprocessing
        self._batch = shard.batch
        self._random = np.random.default_rng([shard.seed, epoch, shard.rank])
        classes = len(snapshot.classes)
        # (pixels, id, repeated) of each image; a view each, the pixels stay where they were read.
        self._images: list[list[tuple[np.ndarray, str, bool]]] = [[] for _ in range(classes)]
        self._small = snapshot.counts < shard.batch.images
        self.items = 0

    def add(self, pack: dict[str, Any], repeating: bool) -> None:
        pixels = _images(pack[PIXELS], self._preprocessing)
        ids = json.loads(pack[ITEM_IDS]) if ITEM_IDS in pack else [""] * len(pixels)
        self._images[pack[CLASS_ID]].extend(
            (image, item_id, repeating) for image, item_id in zip(pixels, ids, strict=True)
        )
        self.items += len(pixels)

    def left(self) -> np.ndarray:
        """Groups of K left of each class; a class that has fewer than K in all counts as one."""
        sizes = np.array([len(images) for images in self._images], dtype=np.int64)
        return np.where(self._small, sizes > 0, sizes // self._batch.images).astype(np.int64)

    def can_draw(self) -> bool:
        return int((self.left() > 0).sum()) >= self._batch.classes

    def draw(self) -> Batch:
        groups = self.left()
        # Classes with more left come more often (Gumbel's way to draw without replacement), so
        # that all run out together.
        with np.errstate(divide="ignore"):
            weight = np.log(groups) + self._random.gumbel(size=len(groups))
        chosen = np.argsort(-weight, kind="stable")[: self._batch.classes]
        drawn = [image for c in chosen for image in self._take(int(c))]
        return Batch(
            pixels=np.stack([image for image, _, _ in drawn]),
            classes=np.repeat(chosen.astype(np.int32), self._batch.images),
            item_ids=tuple(item_id for _, item_id, _ in drawn if item_id),
            repeated=sum(again for _, _, again in drawn),
        )

    def _take(self, class_id: int) -> list[tuple[np.ndarray, str, bool]]:
        images, k = self._images[class_id], self._batch.images
        if len(images) < k:  # a small class: all it has, then the same again
            taken = [images[i % len(images)] for i in self._random.permutation(k)]
            self.items -= len(images)
            images.clear()
            return taken
        taken = []
        for share in self._random.random(k):
            place = int(share * len(images))
            images[place], images[-1] = images[-1], images[place]
            taken.append(images.pop())
        self.items -= k
        return taken


def _packs(uris: list[str], with_ids: bool) -> Iterator[dict[str, Any]]:
    with warnings.catch_warnings():
        # Petastorm 0.13 calls what pyarrow 14 has deprecated.
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", DeprecationWarning)
        from petastorm import make_batch_reader

        columns = [CLASS_ID, COUNT, PIXELS, *([ITEM_IDS] if with_ids else [])]
        # No shuffling of its own: the order is the plan's, epoch after epoch. A reader an epoch,
        # for one that spans several lets them run into each other. And no pool of threads: that
        # one ends too early on a busy machine: 13 of 60 passes fell short of items, here none.
        with make_batch_reader(
            [artifacts.plain_uri(uri) for uri in uris],
            schema_fields=columns,
            reader_pool_type="dummy",
            shuffle_row_groups=False,
            num_epochs=1,
        ) as reader:
            for rows in reader:
                for values in zip(*(getattr(rows, name) for name in columns), strict=True):
                    yield dict(zip(columns, values, strict=True))


def _images(pixels: bytes, preprocessing: Preprocessing) -> np.ndarray:
    return np.frombuffer(pixels, np.uint8).reshape(-1, *preprocessing.shape)
