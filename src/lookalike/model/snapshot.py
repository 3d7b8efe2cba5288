"""A committed snapshot, as training reads it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, LENGTHS, PIXELS, TRAIN, VALIDATION
from lookalike.errors import ArtifactError, ConfigError
from lookalike.images import Preprocessing, decode_all
from lookalike.planning import BatchShape, Layout

SNAPSHOT = "snapshot"


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot, as training reads it."""

    artifact: artifacts.Artifact

    @classmethod
    def open(cls, uri: str) -> Snapshot:
        """Open a snapshot.

        Raises:
            ArtifactError: missing or damaged, or of a format that this version does not read.
        """
        snapshot = cls(artifacts.open_artifact(uri, SNAPSHOT))
        if snapshot.format not in ("raw", "encoded"):
            raise ArtifactError(
                f"the snapshot {uri} keeps its images as {snapshot.format!r}",
                allowed="'raw' or 'encoded'",
                remedy="Open it with the version of lookalike that wrote it",
            )
        return snapshot

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(**self.artifact.meta["recipe"]["preprocessing"])

    @property
    def format(self) -> str:
        """'raw': images are decoded; 'encoded': they are the files that came."""
        return str(self.artifact.meta["recipe"].get("format", "raw"))

    @property
    def batch(self) -> BatchShape:
        """P x K that the blocks are laid out for."""
        return BatchShape(**self.artifact.meta["recipe"]["batch"])

    @property
    def classes(self) -> list[str]:
        """Class names by number."""
        return list(self.artifact.meta["classes"])

    @property
    def counts(self) -> np.ndarray:
        """Training images of each class, int64 (classes,)."""
        return np.array(self.artifact.meta["counts"], dtype=np.int64)

    @property
    def groups(self) -> np.ndarray | None:
        """The group of each class, int64 (classes,), or None where the snapshot has no groups."""
        if (values := self.artifact.meta.get("groups")) is None:
            return None
        # Classes without a value are a group of their own.
        _, numbers = np.unique([json.dumps(value) for value in values], return_inverse=True)
        return numbers.astype(np.int64)

    @property
    def train_items(self) -> int:
        return int(self.artifact.meta["items"][TRAIN])

    @property
    def item_bytes(self) -> int:
        """Bytes that an image takes in memory until it is drawn; of files, on average."""
        if self.format == "raw":
            return self.preprocessing.item_bytes
        return max(1, sum(self._block_sizes) // self.train_items)

    @property
    def block_bytes(self) -> int:
        """Bytes of the largest block of training images."""
        return max(self._block_sizes)

    @property
    def _block_sizes(self) -> list[int]:
        sizes = {entry.path: entry.size for entry in self.artifact.manifest.files}
        return [sizes[block["path"]] for block in self.artifact.meta["blocks"][TRAIN]]

    @property
    def remote(self) -> bool:
        """Whether it lies elsewhere than on a file system of this machine."""
        return artifacts.local_path(self.artifact.uri) is None

    @cached_property
    def layout(self) -> Layout:
        """Which block holds which images.

        Raises:
            ArtifactError: the blocks are not what this version of lookalike lays out.
        """
        blocks = self.artifact.meta["blocks"][TRAIN]
        layout = planning.lay_out(self.counts, len(blocks), self.batch.images)
        for number, block in enumerate(blocks):
            planned = int(layout.block(number).sum())
            if planned != block["items"]:
                raise ArtifactError(
                    f"{block['path']} of the snapshot {self.artifact.uri} holds "
                    f"{block['items']:,} images, not the {planned:,} of the plan: another version "
                    "of lookalike wrote it",
                    remedy="Run `lookalike snapshot` again",
                )
        return layout

    def check(self, batch: BatchShape, ranks: int, seed: int, epochs: int) -> None:
        """Refuse a training that the blocks cannot serve, before it starts; alike on every rank.

        Args:
            batch: P x K.
            ranks: how many train together.
            seed: of the order of blocks.
            epochs: how many there will be.

        Raises:
            ConfigError: more images of a class in a batch than the snapshot is laid out for, more
                ranks than blocks, images that do not fill a batch on each rank, or a rank that
                would not have images of P classes in one of the epochs.
        """
        if batch.images > self.batch.images:
            raise ConfigError(
                f"train.images_per_class = {batch.images}, but the snapshot {self.artifact.uri} is "
                f"laid out for {self.batch}",
                allowed=f"2 to {self.batch.images}",
                remedy="Run `lookalike snapshot` again",
            )
        planning.check_classes(self.counts, batch)
        planning.steps_per_epoch(self.train_items, ranks, batch)
        for epoch in range(epochs):
            order = planning.epoch_order(self.layout.blocks, seed, epoch)
            planning.check_shards(self.layout, order, ranks, batch)

    def files(self, split: str, blocks: np.ndarray | None = None) -> list[str]:
        """URIs of a split's blocks, all or some, in the order given."""
        paths = [block["path"] for block in self.artifact.meta["blocks"][split]]
        chosen = range(len(paths)) if blocks is None else blocks
        return [artifacts.join(self.artifact.uri, paths[i]) for i in chosen]

    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        """All validation images and their class numbers: as many as the recipe asked for.

        Returns:
            uint8 (n, size, size, channels) and int32 (n,).

        Raises:
            ArtifactError: a block that cannot be read, or others than the manifest has.
        """
        total = int(self.artifact.meta["items"][VALIDATION])
        # Allocated once: parts and their concatenation would take twice the memory.
        pixels = np.empty((total, *self.preprocessing.shape), np.uint8)
        classes = np.empty(total, np.int32)
        end = 0
        for uri in self.files(VALIDATION):
            inner, path = artifacts.filesystem(uri)
            with self.readable([uri]):
                packs = pq.read_table(path, filesystem=inner).to_pylist()
            for pack in packs:
                images = self.images(pack[PIXELS], pack.get(LENGTHS, b""))
                begin, end = end, end + pack[COUNT]
                if end > total:
                    break
                pixels[begin:end] = images if self.format == "raw" else self.decoded(images)
                classes[begin:end] = pack[CLASS_ID]
        if end != total:
            raise ArtifactError(
                f"the snapshot {self.artifact.uri} holds other validation images than the "
                f"{total:,} of its manifest",
                remedy="Run `lookalike snapshot` again",
            )
        return pixels, classes

    def images(self, pixels: bytes, lengths: bytes = b"") -> Any:
        """Images that lie side by side: uint8 (n, size, size, channels), or n files.

        Args:
            pixels: what `columns.PIXELS` holds, of one pack or several.
            lengths: of files, as `columns.LENGTHS` holds them.
        """
        if self.format == "raw":
            return np.frombuffer(pixels, np.uint8).reshape(-1, *self.preprocessing.shape)
        ends = np.cumsum(np.frombuffer(lengths, "<u4"), dtype=np.int64).tolist()
        return [pixels[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]

    def decoded(self, files: list[bytes]) -> np.ndarray:
        """Image files, decoded: uint8 (n, size, size, channels).

        Raises:
            ImageError: a file that cannot be decoded.
        """
        return decode_all(files, self.preprocessing)

    @contextmanager
    def readable(self, uris: Collection[str]) -> Iterator[None]:
        """Tell blocks that are damaged from those that could not be read this time.

        Args:
            uris: of the blocks that are read within.

        Raises:
            ArtifactError: one is missing, or not what was committed.
            OSError, pyarrow.ArrowException: what reading raised, where all are whole.
        """
        try:
            yield
        except (OSError, pa.ArrowException):
            artifacts.verify(self.artifact, uris)
            raise
