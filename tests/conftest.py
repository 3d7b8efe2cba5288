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
from lookalike.columns import CLASS_ID, COUNT, ITEM_IDS, LENGTHS, PIXELS, TRAIN, VALIDATION
from lookalike.images import Preprocessing, encode_png
from lookalike.planning import BatchShape

# As `lookalike.model` sets them; here before any test imports TensorFlow by another way.
os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

MakeSnapshot = Callable[..., str]


@pytest.hookimpl(tryfirst=True)  # pytest-xdist reads the groups in this hook, too
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A file's tests run in one process, and so do all files that look at the way."""
    of_way = {item.path for item in items if "way" in getattr(item, "fixturenames", ())}
    for item in items:
        own = str(item.path.relative_to(Path(__file__).parent))
        group = "way" if item.path in of_way else own
        item.add_marker(pytest.mark.xdist_group(group))


@pytest.fixture
def make_snapshot(tmp_path: Path) -> MakeSnapshot:
    """Write a snapshot of noise: images of class c are bright in row c. Returns its URI.

    Its validation images are those of training, or none.
    """

    def make(
        sizes: list[int],
        batch: BatchShape,
        blocks: int,
        size: int = 16,
        kind: str = "raw",
        groups: list[str | None] | None = None,
        validated: bool = True,
    ) -> str:
        random = np.random.default_rng(0)
        uri = str(tmp_path / "snapshots" / artifacts.new_name())
        layout = planning.lay_out(np.array(sizes), blocks, batch.images)
        places = [layout.places(class_id) for class_id in range(len(sizes))]
        written = {TRAIN: [], VALIDATION: []}
        everything: list[dict[str, object]] = []

        def write(split: str, block: int, packs: list[dict[str, object]]) -> None:
            path = Path(uri) / split / f"block-{block:05d}.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.Table.from_pylist(packs), path)
            items = sum(int(row[COUNT]) for row in packs)
            written[split].append({"path": f"{split}/{path.name}", "items": items})

        for block in range(blocks):
            packs = []
            for class_id, held in enumerate(places):
                if ids := [f"{class_id}/{i}" for i in np.flatnonzero(held == block)]:
                    pixels = random.integers(100, size=(len(ids), size, size, 1), dtype=np.uint8)
                    pixels[:, class_id % size] += 150
                    packs.append(_pack(class_id, ids, pixels, kind))
            write(TRAIN, block, packs)
            everything += packs if validated else []
        if validated:
            write(VALIDATION, 0, everything)
        recipe = {
            "preprocessing": asdict(Preprocessing(size, 1)),
            "batch": asdict(batch),
            "format": kind,
        }
        meta = {
            "recipe": recipe,
            "classes": [f"class {c}" for c in range(len(sizes))],
            "counts": sizes,
            "items": {TRAIN: sum(sizes), VALIDATION: sum(sizes) * validated},
            "blocks": written,
            "groups": groups,
            "versions": {"items": 3, "splits": 1},
        }
        artifacts.seal(uri, "snapshot", meta, tuple(artifacts.describe(Path(uri))))
        return uri

    return make


def _pack(class_id: int, ids: list[str], pixels: np.ndarray, kind: str) -> dict[str, object]:
    files = [encode_png(image[:, :, 0]) for image in pixels] if kind == "encoded" else []
    return {
        CLASS_ID: np.int32(class_id),
        COUNT: np.int32(len(ids)),
        ITEM_IDS: json.dumps(ids).encode(),
        LENGTHS: np.array([len(file) for file in files], "<u4").tobytes(),
        PIXELS: b"".join(files) if files else pixels.tobytes(),
    }
