"""IDX files, the format of MNIST and its kin: images in one file, their labels in another.

The format: big-endian int32 magic number 0x0803 (images) or 0x0801 (labels), one int32 for each
dimension, then the bytes.
"""

from __future__ import annotations

import gzip
import zlib

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
    dimensions = 3 if kind == IMAGES else 1
    header = 4 + 4 * dimensions
    shape = tuple(int(n) for n in np.frombuffer(data[4:header], ">i4"))
    if len(shape) < dimensions or len(data) - header != int(np.prod(shape)):
        raise DataError(
            f"{name} says {' x '.join(map(str, shape))} bytes and has {len(data) - header:,}",
            remedy="The file is cut off or damaged: fetch it again",
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def parse_pair(
    images: bytes, labels: bytes, images_name: str, labels_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Read images and their labels.

    Returns:
        uint8 (n, height, width) and uint8 (n,).

    Raises:
        DataError: as `parse`, or their counts differ.
    """
    pixels, numbers = (
        parse(images, IMAGES, images_name),
        parse(labels, LABELS, labels_name),
    )
    if len(pixels) != len(numbers):
        raise DataError(
            f"{images_name} has {len(pixels):,} images and {labels_name} has {len(numbers):,} "
            "labels",
            remedy="Name the label file that belongs to the images",
        )
    return pixels, numbers


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
