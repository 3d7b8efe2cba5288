"""What a content is to the eye: a small picture, or words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from lookalike import images
from lookalike.columns import TEXT_MEDIA, VECTOR_MEDIA
from lookalike.errors import ImageError

SIDE: Final = 96
"""Pixels of a tile's longer side, at most."""

_WORDS = 300  # characters; more than a tile shows


@dataclass(frozen=True)
class Tile:
    """Either `png`, a file of at most `SIDE` x `SIDE` pixels, or `words`."""

    png: bytes | None
    words: str | None


def tile(data: bytes, media: str | None) -> Tile:
    """A content as a tile, whatever it is; what cannot be decoded says so.

    Args:
        data: the content's bytes.
        media: its type.
    """
    if media == VECTOR_MEDIA:
        return Tile(None, f"vector of {len(data) // 4:,} numbers")
    if media != TEXT_MEDIA:
        try:
            return Tile(images.to_png(data, SIDE), None)
        except ImageError as error:
            return Tile(None, f"cannot be decoded ({error.reason})")
    # A character has up to 4 bytes, and one that is cut in two does no harm at this length.
    return Tile(None, data[: 4 * _WORDS].decode("utf-8", "replace")[:_WORDS])
