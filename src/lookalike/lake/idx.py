"""IDX files, the format of MNIST and its kin: images in one file, their labels in another.

The format: big-endian int32 magic number 0x0803 (images) or 0x0801 (labels), one int32 for each
dimension, then the bytes.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from lookalike.errors import DataError

IMAGES, LABELS = 0x0803, 0x0801
_NAMES = {IMAGES: "an IDX image file", LABELS: "an IDX label file"}
_MAGIC_GZIP = b"\x1f\x8b"


def parse(data: bytes, kind: int, name: str) -> np.ndarray:
    """Read an IDX file, gzipped or not.

    Args:
        data: the file's bytes.
        kind: `IMAGES` or `LABELS`.
        name: the file's path, for messages.

    Returns:
        uint8 (n, height, width) or (n,).

    Raises:
        DataError: truncated, not an IDX file, or one of the other kind.
    """
    data = _unpacked(data, name)
    _check_magic(data, kind, name)
    dimensions = 3 if kind == IMAGES else 1
    header = 4 + 4 * dimensions
    shape = tuple(int.from_bytes(data[i : i + 4], "big") for i in range(4, header, 4))
    if len(data) - header != math.prod(shape):
        raise DataError(
            f"{name} says {' x '.join(map(str, shape))} bytes and has "
            f"{max(0, len(data) - header):,}",
            remedy="The file is cut off or damaged: fetch it again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def peek(path: Path, kind: int) -> int:
    """How many images or labels a local file says it has, from its first bytes.

    Raises:
        DataError: unreadable, not an IDX file, or one of the other kind.
    """
    try:
        with path.open("rb") as file:
            packed = file.read(2) == _MAGIC_GZIP
            file.seek(0)
            head = (gzip.GzipFile(fileobj=file) if packed else file).read(8)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path} cannot be read ({error})", remedy="Check the paths under `data` in the recipe"
        ) from error
    _check_magic(head, kind, str(path))
    return int.from_bytes(head[4:8], "big")


def _check_magic(data: bytes, kind: int, name: str) -> None:
    if len(data) < 4:
        raise DataError(f"{name} has {len(data)} bytes", allowed=_NAMES[kind])
    magic = int.from_bytes(data[:4], "big")
    if magic != kind:
        found = _NAMES.get(magic)
        raise DataError(
            f"{name} is {found or f'no IDX file: it begins with 0x{magic:08x}'}",
            allowed=f"{_NAMES[kind]} (0x{kind:08x})",
            remedy="Check data.*.images and data.*.labels: are they swapped?"
            if found
            else "Name the IDX file, gzipped or not",
        )


def check_counts(images: int, labels: int, images_name: str, labels_name: str) -> None:
    """Refuse images and labels that do not belong together.

    Raises:
        DataError: their counts differ.
    """
    if images != labels:
        raise DataError(
            f"{images_name} has {images:,} images and {labels_name} has {labels:,} labels",
            remedy="Name the label file that belongs to the images",
        )


def _unpacked(data: bytes, name: str) -> bytes:
    if not data.startswith(_MAGIC_GZIP):
        return data
    try:
        return gzip.decompress(data)
    except (EOFError, OSError, zlib.error) as error:
        raise DataError(
            f"{name} is a gzip file that breaks off or is damaged ({error})",
            remedy="Fetch it again",
        ) from error
