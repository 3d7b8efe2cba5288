import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from lookalike.errors import DataError
from lookalike.lake import idx


def images_file(count: int = 3) -> bytes:
    pixels = np.arange(count * 4, dtype=np.uint8)
    return struct.pack(">4i", idx.IMAGES, count, 2, 2) + pixels.tobytes()


def labels_file(count: int = 3) -> bytes:
    return struct.pack(">2i", idx.LABELS, count) + bytes(range(count))


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_images_and_labels(pack) -> None:
    pixels = idx.parse(pack(images_file()), idx.IMAGES, "i")
    labels = idx.parse(pack(labels_file()), idx.LABELS, "l")
    assert pixels.tolist() == np.arange(12).reshape(3, 2, 2).tolist()
    assert labels.tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("data", "kind", "said"),
    [
        (b"", idx.IMAGES, "f has 0 bytes"),
        (b"\x00\x00", idx.IMAGES, "f has 2 bytes"),
        (b"GIF89a..", idx.IMAGES, "f is no IDX file: it begins with 0x47494638"),
        (labels_file(), idx.IMAGES, "f is an IDX label file.*swapped"),
        (images_file(), idx.LABELS, "f is an IDX image file.*swapped"),
        (images_file()[:-1], idx.IMAGES, "f says 3 x 2 x 2 bytes and has 11"),
        (images_file()[:9], idx.IMAGES, "f says"),
        (gzip.compress(images_file())[:-9], idx.IMAGES, "f is a gzip file that breaks off"),
    ],
    ids=range(8),
)
def test_bad_files_are_named(data: bytes, kind: int, said: str) -> None:
    with pytest.raises(DataError, match=said):
        idx.parse(data, kind, "f")


def test_counts_that_differ() -> None:
    with pytest.raises(DataError, match="i has 3 images and l has 4 labels"):
        idx.check_counts(3, 4, "i", "l")


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_peek_reads_the_count_alone(tmp_path: Path, pack) -> None:
    file = tmp_path / "images"
    file.write_bytes(pack(images_file())[:-8])  # damage further on is not its business
    assert idx.peek(file, idx.IMAGES) == 3
    with pytest.raises(DataError, match=r"is an IDX image file.*Allowed: an IDX label file"):
        idx.peek(file, idx.LABELS)
    with pytest.raises(DataError, match="cannot be read"):
        idx.peek(tmp_path / "nowhere", idx.IMAGES)


def test_the_full_files() -> None:
    folder = os.environ.get("LOOKALIKE_DATA")
    if folder is None:
        pytest.skip("LOOKALIKE_DATA names no folder with fashion-mnist/, the four full files")
    for name, count in (("train", 60_000), ("t10k", 10_000)):
        files = [Path(folder) / "fashion-mnist" / f"{name}-{kind}-ubyte.gz"
                 for kind in ("images-idx3", "labels-idx1")]  # fmt: skip
        pixels, labels = (
            idx.parse(file.read_bytes(), kind, file.name)
            for file, kind in zip(files, (idx.IMAGES, idx.LABELS), strict=True)
        )
        assert pixels.shape == (count, 28, 28)
        assert np.bincount(labels).tolist() == [count // 10] * 10
