"""What a picture looks like: a sketch that tells its copies from pictures that are only alike.

A perceptual hash of 64 bits finds copies, but not them alone. It is of the grey picture, so a red
shirt and a blue one have the same; and shop photos of a kind, laid out alike, lie so close that a
chain of neighbours joins thousands. So what it finds is looked at more closely: by the same hash
of four times as many bits, and by the colours of 4 x 4 fields.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lookalike import images
from lookalike.images import Preprocessing
from lookalike.lake.hamming import popcount

SKETCH_BYTES: Final = 80
"""32 of the hash, then 16 of each of Y, Cb and Cr."""

_SIZE = 64  # pixels, square
_SIDE = 16  # lowest frequencies in both directions
_FIELDS = 4  # in both directions
_FINER = _SIDE**2 // 64
_HASH_BYTES = _SIDE**2 // 8
# Of 255. A photo brightened by 1.3 changes by up to 60 in Y, a field of it by 20 in Cb and Cr;
# a thing of another colour changes the fields that it fills by 50 and more.
_LUMA, _CHROMA = 64, 24
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)  # JFIF


def sketch(data: bytes) -> bytes:
    """The sketch of an image file, of `SKETCH_BYTES`.

    Raises:
        ImageError: as `images.decode`.
    """
    from scipy.fft import dctn  # type: ignore[import-untyped]

    ycbcr = images.decode(data, Preprocessing(_SIZE, 3)) @ _YCBCR.T
    low = dctn(ycbcr[:, :, 0])[:_SIDE, :_SIDE]
    bits = np.packbits(low > np.median(low))
    step = _SIZE // _FIELDS
    fields = ycbcr.reshape(_FIELDS, step, _FIELDS, step, 3).mean((1, 3)) + (0, 128, 128)
    return bits.tobytes() + fields.transpose(2, 0, 1).round().clip(0, 255).astype("u1").tobytes()


def alike(some: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """Whether sketches are of one picture: bool (n,).

    The hash of 256 bits may differ in the same share of its bits as that of 64.

    Args:
        some, others: uint8 (n, SKETCH_BYTES).
        distance: most differing bits of 64.
    """
    differing = np.zeros(len(some), np.int64)
    for word in range(0, _HASH_BYTES, 8):
        a, b = (np.ascontiguousarray(x[:, word : word + 8]).view(np.uint64) for x in (some, others))
        differing += popcount((a ^ b)[:, 0])
    apart = np.abs(some[:, _HASH_BYTES:].astype(np.int16) - others[:, _HASH_BYTES:])
    luma, chroma = apart[:, : _FIELDS**2], apart[:, _FIELDS**2 :]
    same = differing <= distance * _FINER
    return same & (luma.max(1) <= _LUMA) & (chroma.max(1) <= _CHROMA)
