"""What a row asks for: its image, item, or vector, read and checked."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lookalike import images
from lookalike.encoder import normalised
from lookalike.errors import ContentError, ImageError
from lookalike.serving.contract import KINDS, Limits
from lookalike.serving.release import Release


@dataclass(frozen=True)
class Query:
    """What to look for: an image file to encode, or a vector; of an item, its id too."""

    image: bytes | None = None
    vector: np.ndarray | None = None
    item_id: str | None = None


def read(record: Mapping[Any, Any], release: Release, limits: Limits) -> Query:
    """A row's query.

    Raises:
        ContentError: there is none, or more than one, or it cannot be searched with.
    """
    preprocessing = release.encoder.specification.preprocessing
    allowed = ("item_id", "vector") if preprocessing is None else ("image", "item_id", "vector")
    given = [kind for kind in KINDS if not missing(record.get(kind))]
    if len(given) != 1:
        raise ContentError(
            "no_query" if not given else "many_queries",
            f"the row has {' and '.join(given) or 'nothing to look for'}",
            allowed=f"one of {', '.join(allowed)}",
        )
    (kind,) = given
    value, dim = record[kind], release.index.dim
    match kind:
        case "item_id":
            return _item(value, release)
        case "vector":
            return Query(vector=_vector(value, dim))
        case "text":
            takes = "images" if preprocessing else "vectors"
            raise ContentError(
                "wrong_kind",
                f"the row has a text, but this release's encoder takes {takes}",
                allowed=f"one of {', '.join(allowed)}",
            )
    if preprocessing is None:
        raise ContentError(
            "wrong_kind",
            "the row has an image, but this release was made of vectors and has no network "
            "that would encode it",
            allowed=f"an item_id, or a vector of {dim} numbers",
        )
    data = _bytes(value, limits)
    if kind == "input" and len(data) == preprocessing.item_bytes and not _opens(data):
        pixels = np.frombuffer(data, np.uint8).reshape(preprocessing.shape)
        return Query(image=images.encode_png(pixels.squeeze()))
    limits.check("image_pixels", images.pixels(data), "the image's pixels are", "too_large")
    return Query(image=data)


def missing(value: Any) -> bool:
    """Whether a row lacks it: what it does not have arrives from MLflow as NaN."""
    return value is None or (isinstance(value, float) and np.isnan(value))


def whole(value: Any) -> Any:
    """A number as it was sent: beside rows that lack it, MLflow's table makes 42 a 42.0."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _item(value: Any, release: Release) -> Query:
    item_id = str(whole(value))
    vector = release.index.vector(item_id)
    if vector is None:
        raise ContentError("no_such_item", f"there is no item {item_id[:100]!r} in the index")
    return Query(vector=vector, item_id=item_id)


def _opens(data: bytes) -> bool:
    try:
        images.pixels(data)
    except ImageError:
        return False
    return True


def _bytes(value: Any, limits: Limits) -> bytes:
    if isinstance(value, str):
        # Of base64, whose length tells enough not to decode it.
        _check_bytes(len(value) * 3 // 4 - 100, limits)
        try:
            value = base64.b64decode(value.partition("base64,")[2] or value, validate=True)
        except (binascii.Error, ValueError):
            raise ContentError(
                "not_base64",
                "the image is a string that is not base64",
                allowed="base64 of an image file, with or without a data-URL prefix",
            ) from None
    if not isinstance(value, bytes):
        raise ContentError(
            "not_base64",
            f"the image is a {type(value).__name__}",
            allowed="base64 of an image file, or bytes",
        )
    _check_bytes(len(value), limits)
    return value


def _check_bytes(found: int, limits: Limits) -> None:
    limits.check("image_bytes", found, "the image's bytes are", "too_many_bytes")


def _vector(value: Any, dim: int) -> np.ndarray:
    try:
        vector = np.asarray(value, dtype=np.float32)
    except (TypeError, ValueError, OverflowError):
        raise ContentError(
            "not_a_vector", "the vector is no list of numbers", allowed=f"{dim} numbers"
        ) from None
    return normalised(vector, dim)
