"""A small shop with a release: what the examples of docs/serving.md ask."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa

from lookalike import artifacts
from lookalike.columns import FAMILY
from lookalike.encoder import Encoder
from lookalike.images import encode_png, thumbnail
from lookalike.index import Plan, build
from lookalike.serving.contract import Limits
from lookalike.serving.release import assemble

ENCODER = Path(__file__).parent / "formats" / str(artifacts.FORMAT) / "release" / "encoder"
LIMITS = Limits(rows=50, k=20, image_bytes=5_000, image_pixels=10_000)
KINDS = ("boot", "shirt", "bag")
EACH = 10


@dataclass(frozen=True)
class Item:
    """An item of the shop, with its photo as a PNG file."""

    item_id: str
    label: str
    attributes: dict[str, str]
    family: str | None
    photo: bytes


def items() -> list[Item]:
    """Thirty, by ascending id; boots 1 and 2 are photos of one product."""
    random = np.random.default_rng(3)
    found = []
    for number, kind in enumerate(KINDS):
        base = random.integers(256, size=(16, 16))
        for i in range(1, EACH + 1):
            pixels = np.clip(base + random.normal(0, 40, size=base.shape), 0, 255).astype(np.uint8)
            about = {"brand": ("north", "south", "west")[i % 3], "price": str(20 * i + number)}
            family = "a product" if kind == "boot" and i <= 2 else None
            photo = encode_png(pixels)
            found.append(Item(f"{kind}-{i:02d}", f"{kind}s", about, family, photo))
    return sorted(found, key=lambda item: item.item_id)


def release(folder: Path) -> Path:
    """A release of `items`, with thumbnails of them all."""
    encoder = Encoder.open(str(ENCODER))
    shop = items()
    vectors = encoder.encode([item.photo for item in shop])
    maps = [
        list((item.attributes | ({FAMILY: item.family} if item.family else {})).items())
        for item in shop
    ]
    ids = pa.array([item.item_id for item in shop])
    batch = pa.record_batch(
        [
            ids,
            pa.array([item.label for item in shop]),
            pa.array(maps, pa.map_(pa.string(), pa.string())),
            pa.array(list(vectors), pa.list_(pa.float32())),
        ],
        ["item_id", "label", "attributes", "vector"],
    )
    made_from = {"encoder": encoder.fingerprint, "items_version": 7}
    indexes = str(folder / "index")
    version = build(indexes, [batch], encoder.specification.dim, Plan("exact"), made_from)
    pictures = pa.record_batch(
        [ids, pa.array([thumbnail(item.photo, 8) for item in shop])], ["item_id", "thumbnail"]
    )
    return assemble(folder / "release", str(ENCODER), indexes, version.name, {}, LIMITS, [pictures])


@contextmanager
def ending(process: psutil.Popen) -> Iterator[None]:
    """A server, with what it has started, ended in the end."""
    try:
        yield
    finally:
        for one in [*process.children(recursive=True), process]:
            one.kill()
        process.wait(30)
