"""A snapshot without Spark, and the environment of TensorFlow."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lookalike import artifacts, planning
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, PIXELS, TRAIN, VALIDATION
from lookalike.images import Preprocessing
from lookalike.planning import BatchShape

# As `lookalike.model` sets them; here before any test imports TensorFlow by another way.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MakeSnapshot = Callable[..., str]


@pytest.fixture
def make_snapshot(tmp_path: Path) -> MakeSnapshot:
    """Write a snapshot of noise: images of class c are bright in row c. Returns its URI."""

    def make(sizes: list[int], batch: BatchShape, blocks: int, size: int = 16) -> str:
        random = np.random.default_rng(0)
        uri = str(tmp_path / "snapshots" / artifacts.new_name())
        layout = planning.lay_out(np.array(sizes), blocks, batch.images)
        packs: dict[int, list[dict[str, object]]] = {block: [] for block in range(blocks)}
        for class_id, count in enumerate(sizes):
            places = (layout.start[class_id] + np.arange(count) % layout.width[class_id]) % blocks
            for block in range(blocks):
                ids = [f"{class_id}/{i}" for i in np.flatnonzero(places == block)]
                if ids:
                    pixels = random.integers(100, size=(len(ids), size, size, 1), dtype=np.uint8)
                    pixels[:, class_id % size] += 150
                    packs[block].append(_pack(class_id, ids, pixels))
        written = {TRAIN: [], VALIDATION: []}
        everything = [pack for block in packs.values() for pack in block]
        files = [*((TRAIN, b, rows) for b, rows in packs.items()), (VALIDATION, 0, everything)]
        for split, block, held in files:
            path = Path(uri) / split / f"block-{block:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(held), path)
            items = sum(int(row[COUNT]) for row in held)
            written[split].append({"path": f"{split}/{path.name}", "items": items})
        recipe = {"preprocessing": asdict(Preprocessing(size, 1)), "batch": asdict(batch)}
        meta = {
            "recipe": recipe,
            "classes": [f"class {c}" for c in range(len(sizes))],
            "counts": sizes,
            "items": {TRAIN: sum(sizes), VALIDATION: sum(sizes)},
            "blocks": written,
        }
        artifacts.seal(uri, "snapshot", meta, tuple(artifacts.describe(Path(uri))))
        return uri

    return make


def _pack(class_id: int, ids: list[str], pixels: np.ndarray) -> dict[str, object]:
    return {
        CLASS_ID: np.int32(class_id),
        COUNT: np.int32(len(ids)),
        ITEM_IDS: json.dumps(ids),
        PIXELS: pixels.tobytes(),
    }
