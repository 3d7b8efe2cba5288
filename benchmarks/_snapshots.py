"""Snapshots for benchmarks, without Spark."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, LENGTHS, PIXELS, TRAIN, VALIDATION
from lookalike.images import Preprocessing
from lookalike.lake import idx
from lookalike.planning import BatchShape

SAMPLE = Path(__file__).parents[1] / "data" / "fashion-mnist-sample"


def clothes(
    count: int | None, part: str = "train", sample: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Images of Fashion-MNIST where it is at hand, else of the sample.

    Args:
        count: the first so many, repeated where there are fewer; None: all of them, once.
        part: 'train' or 't10k', as its files are named.
        sample: of the sample in any case.

    Returns:
        uint8 (count, 28, 28) and their classes, int32 (count,).
    """
    found = Path(os.environ.get("LOOKALIKE_DATA", "")) / "fashion-mnist"
    source = found if found.is_dir() and not sample else SAMPLE
    pixels, labels = (
        idx.parse((source / name).read_bytes(), kind, name)
        for name, kind in (
            (f"{part}-images-idx3-ubyte.gz", idx.IMAGES),
            (f"{part}-labels-idx1-ubyte.gz", idx.LABELS),
        )
    )
    order = np.arange(len(pixels) if count is None else count) % len(pixels)
    return pixels[order], labels[order].astype(np.int32)


def write_snapshot(
    folder: Path,
    images: list[bytes],
    labels: np.ndarray,
    preprocessing: Preprocessing,
    batch: BatchShape,
    kind: str,
    validation: int = 0,
    held_out: int = 0,
) -> None:
    """A snapshot as the step of that name writes it, without Spark.

    Args:
        folder: a new one.
        images: pixels of each image, or its file.
        labels: int (n,), class numbers.
        preprocessing: of the pixels.
        batch: P x K that it is laid out for.
        kind: 'raw' or 'encoded'.
        validation: how many of the first images are validation's too.
        held_out: how many of the last images are validation's alone.
    """
    trained = len(images) - held_out
    counts = np.bincount(labels[:trained])
    size = sum(map(len, images)) // len(images)
    blocks = planning.block_count(trained, size, batch)
    layout = planning.lay_out(counts, blocks, batch.images)
    everywhere = [np.flatnonzero(labels == c) for c in range(len(counts))]
    rows = [own[own < trained] for own in everywhere]
    places = [layout.places(c) for c in range(len(counts))]
    schema = pa.schema(
        [(CLASS_ID, pa.int32()), (COUNT, pa.int32())]
        + [(name, pa.binary()) for name in (ITEM_IDS, LENGTHS, PIXELS)]
    )

    def write(split: str, number: int, chosen: list[np.ndarray]) -> dict[str, Any]:
        packs = []
        for class_id, held in enumerate(chosen):
            if mine := [images[i] for i in held]:
                lengths = [len(data) for data in mine] if kind == "encoded" else []
                packs.append({
                    CLASS_ID: class_id, COUNT: len(mine), ITEM_IDS: b"[]",
                    LENGTHS: np.array(lengths, "<u4").tobytes(), PIXELS: b"".join(mine),
                })  # fmt: skip
        name = f"{split}/block-{number:05d}.parquet"
        (folder / split).mkdir(parents=True, exist_ok=True)
        table = pa.Table.from_pylist(packs, schema=schema)
        options = {"row_group_size": len(packs), "use_dictionary": False, "compression": "none"}
        pq.write_table(table, folder / name, **options)
        return {"path": name, "items": sum(pack[COUNT] for pack in packs)}

    blocks_written = [
        write(TRAIN, block, [own[held == block] for own, held in zip(rows, places, strict=True)])
        for block in range(blocks)
    ]
    looked_at = [own[(own < validation) | (own >= trained)] for own in everywhere]
    validated = [write(VALIDATION, 0, looked_at)] if validation or held_out else []
    recipe = {"preprocessing": asdict(preprocessing), "batch": asdict(batch), "format": kind}
    meta = {
        "recipe": recipe,
        "classes": [str(c) for c in range(len(counts))],
        "counts": counts.tolist(),
        "items": {TRAIN: trained, VALIDATION: validation + held_out},
        "blocks": {TRAIN: blocks_written, VALIDATION: validated},
    }
    artifacts.seal(str(folder), "snapshot", meta, tuple(artifacts.describe(folder)))
