"""What a picture looks like: a sketch that tells its copies from pictures that are only alike.

A perceptual hash of 64 bits finds copies, but not them alone. It is of the grey picture, so a red
shirt and a blue one have the same; and shop photos of a kind, laid out alike, lie so close that
chains of neighbours join thousands. So what it finds is looked at more closely: by a hash of four
times as many bits, those left out that chance decides, and by the colours of 4 x 4 fields.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from lookalike import images
from lookalike.images import Preprocessing
from lookalike.lake.hamming import popcount

SKETCH_BYTES: Final = 112
"""32 of bits, 32 of which bits count, then a byte a field of Y, of Cb and of Cr."""

_SIZE = 64  # pixels, square
_SIDE = 16  # lowest frequencies in both directions
_BITS = _SIDE**2 // 8  # bytes
_FIELDS = 4  # in both directions
# How far from the median a frequency must lie for its bit to count: what noise of two grey levels
# in each pixel comes to. Smooth pictures have little but noise in their upper frequencies.
_NOISE = 2 * 2 * _SIZE
_FEWEST = 16  # bits that count, on both sides
# Of 255. A photo brightened by 1.3 changes by up to 60 in Y, a field of it by 20 in Cb and Cr;
# a thing of another colour changes the fields that it fills by 50 and more.
_LUMA, _CHROMA = 64, 24
_YCBCR = np.array(
    [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
)  # JFIF
_ZERO = np.array([0, 128, 128])


def sketch(data: bytes) -> bytes:
    """The sketch of an image file, of `SKETCH_BYTES`.

    Raises:
        ImageError: as `images.decode`.
    """
    from scipy.fft import dctn  # type: ignore[import-untyped]

    ycbcr = images.decode(data, Preprocessing(_SIZE, 3)) @ _YCBCR.T
    low = dctn(ycbcr[:, :, 0])[:_SIDE, :_SIDE]
    low -= np.median(low)
    step = _SIZE // _FIELDS
    fields = ycbcr.reshape(_FIELDS, step, _FIELDS, step, 3).mean((1, 3)) + _ZERO
    return b"".join(
        (
            np.packbits(low > 0).tobytes(),
            np.packbits(np.abs(low) > _NOISE).tobytes(),
            fields.transpose(2, 0, 1).round().clip(0, 255).astype(np.uint8).tobytes(),
        )
    )


def alike(some: np.ndarray, others: np.ndarray, distance: int) -> np.ndarray:
    """Whether sketches are of one picture: bool (n,).

    Of the bits that count, the same share may differ as of the 64.

    Args:
        some, others: uint8 (n, SKETCH_BYTES).
        distance: most differing bits of 64.
    """
    count = (some & others)[:, _BITS : 2 * _BITS]
    differing = _ones((some ^ others)[:, :_BITS] & count)
    sure = _ones(count)
    same = (sure >= _FEWEST) & (differing * 64 <= distance * sure)
    apart = np.abs(some[:, 2 * _BITS :].astype(np.int16) - others[:, 2 * _BITS :])
    luma, chroma = apart[:, : _FIELDS**2], apart[:, _FIELDS**2 :]
    return same & (luma.max(1) <= _LUMA) & (chroma.max(1) <= _CHROMA)


def _ones(bits: np.ndarray) -> np.ndarray:
    words = np.ascontiguousarray(bits).view(np.uint64)
    return popcount(words.ravel()).reshape(words.shape).sum(1, dtype=np.int64)
