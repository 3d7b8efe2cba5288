"""Bytes to arrays: the one place that decodes images.

Training, embedding and serving all come through `decode`, so the same bytes are the same array
wherever they are seen.
"""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

import numpy as np
import simplejpeg
from PIL import Image, ImageOps

from lookalike.errors import ImageError

MAX_PIXELS = 64_000_000
"""Largest width x height that is decoded; a header that promises more is refused unread."""

_TURNED = (b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0")
"""What segments of a JPEG file begin with that may say which side is up."""

_TURBO = {"L": "GRAY", "RGB": "RGB"}
"""Modes of JPEG files that libjpeg-turbo decodes into an array, and its names of them."""

_PLAIN = {
    1: ("L", {"Gray"}, b"\xff\xda\0\x08\x01"),
    3: ("RGB", {"YCbCr", "RGB"}, b"\xff\xda\0\x0c\x03"),
}
"""By channels: their mode, libjpeg-turbo's names of what JPEG files keep them as, and what the
pixels begin with in such a file, after all else that it says."""

SUPPORTED = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


@dataclass(frozen=True)
class Preprocessing:
    """How bytes become the encoder's input.

    Attributes:
        size: height and width in pixels of the square that an image is resized to.
        channels: 1 for grey, 3 for RGB.
    """

    size: int
    channels: Literal[1, 3]

    @property
    def shape(self) -> tuple[int, int, int]:
        """(height, width, channels)."""
        return (self.size, self.size, self.channels)

    @property
    def item_bytes(self) -> int:
        """Bytes of one decoded image."""
        return self.size * self.size * self.channels


def content_hash(data: bytes) -> str:
    """Hexadecimal sha256 of an image's original bytes: its name in `contents`."""
    return hashlib.sha256(data).hexdigest()


def decode(data: bytes, preprocessing: Preprocessing, into: np.ndarray | None = None) -> np.ndarray:
    """Decode an image file to the encoder's input.

    Turned upright by its EXIF orientation, laid on white where it is transparent, the first frame
    where it has several, resized without regard to its aspect where it is not the size asked for.

    Args:
        data: the bytes of a file in one of the `SUPPORTED` formats.
        preprocessing: size and channels of the result.
        into: where the result is to be; None for an array of its own.

    Returns:
        uint8 array of shape (size, size, channels).

    Raises:
        ImageError: empty, not an image, truncated, or of more than `MAX_PIXELS` pixels.
    """
    pixels = _as_it_is(data, preprocessing, into)
    if pixels is not None:
        return pixels
    image = _upright(data)
    mode, *_ = _PLAIN[preprocessing.channels]
    if image.mode != mode:
        image = image.convert(mode)
    if image.size != (preprocessing.size, preprocessing.size):
        # reducing_gap=None: the exact filter, the same whatever the file's format.
        image = image.resize((preprocessing.size, preprocessing.size), Image.Resampling.BICUBIC)
    pixels = np.asarray(image, dtype=np.uint8).reshape(preprocessing.shape)
    if into is None:
        return pixels
    into[:] = pixels
    return into


def decode_all(files: Sequence[bytes], preprocessing: Preprocessing) -> np.ndarray:
    """Decode image files, one after the other, as `decode` does.

    Returns:
        uint8 array of shape (files, size, size, channels).

    Raises:
        ImageError: as `decode`.
    """
    shape = (len(files), *preprocessing.shape)
    # TensorFlow copies what begins elsewhere than at a multiple of 64 bytes.
    memory = np.empty(math.prod(shape) + 64, np.uint8)
    begin = -memory.ctypes.data % 64
    pixels = memory[begin : begin + math.prod(shape)].reshape(shape)
    for image, data in zip(pixels, files, strict=True):
        decode(data, preprocessing, image)
    return pixels


@dataclass(frozen=True)
class Examined:
    """What an image file is.

    Attributes:
        width, height: in pixels, upright.
        media: its type, such as 'image/jpeg'.
        phash: 64-bit perceptual hash in hexadecimal (imagehash's phash: DCT of the 32 x 32 grey
            image); None where it was not asked for.
    """

    width: int
    height: int
    media: str
    phash: str | None


def examine(data: bytes, phash: bool) -> Examined:
    """Decode an image file once, to see that it can be.

    Raises:
        ImageError: as `decode`.
    """
    kind = _open(data).format or ""
    image = _upright(data)
    media = Image.MIME.get(kind, f"image/{kind.lower()}")
    return Examined(*image.size, media, _phash(image) if phash else None)


def _phash(image: Image.Image) -> str:
    import imagehash  # needed where catalogues are loaded, not where they are served

    return str(imagehash.phash(image))


def encode_png(pixels: np.ndarray) -> bytes:
    """PNG file of a uint8 array of shape (height, width) or (height, width, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()


def to_png(data: bytes, largest: int | None = None) -> bytes:
    """An image file of any supported format as an upright PNG.

    Args:
        data: the file's bytes.
        largest: of width and height in pixels, beyond which it is made smaller, its aspect kept.

    Raises:
        ImageError: as `decode`.
    """
    image = _grey_or_rgb(data)
    if largest is not None:
        image.thumbnail((largest, largest), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def pixels(data: bytes) -> int:
    """Width x height of an image file, as its header says.

    Raises:
        ImageError: empty, not an image, or of more than `MAX_PIXELS` pixels.
    """
    image = _open(data)
    return image.width * image.height


def thumbnail(data: bytes, size: int) -> bytes:
    """An image file of any supported format as a JPEG of at most size x size, its aspect kept.

    Raises:
        ImageError: as `decode`.
    """
    image = _grey_or_rgb(data)
    image.thumbnail((size, size), reducing_gap=2.0)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=80)
    return buffer.getvalue()


def _open(data: bytes) -> Image.Image:
    if not data:
        raise ImageError("empty", "the image has 0 bytes", allowed=f"a {_formats()} file")
    try:
        with warnings.catch_warnings():
            # Pillow warns from 89 million pixels on; the limit below is ours and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=SUPPORTED)
    except Image.DecompressionBombError as error:
        raise _too_large(str(error)) from None
    except Exception as error:  # Pillow raises nearly anything on hostile bytes
        start = data[:12]
        raise ImageError(
            "not_an_image",
            f"the {len(data):,} bytes that begin with {start!r} are not an image",
            allowed=f"a {_formats()} file",
        ) from error
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"the image has {image.width:,} x {image.height:,} pixels")
    return image


def _upright(data: bytes) -> Image.Image:
    file = _open(data)
    try:
        image = _decoded(data, file)
        ImageOps.exif_transpose(image, in_place=True)
        if image.mode.startswith("I"):  # 16-bit grey, which convert("L") would clip
            high = np.asarray(image, dtype=np.int64) // 256
            image = Image.fromarray(high.clip(0, 255).astype(np.uint8))
        if image.mode == "LAB":  # which Pillow turns into RGB alone
            image = image.convert("RGB")
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.new("RGBA", rgba.size, "white")
            image.alpha_composite(rgba)
    except Exception as error:  # as above: damaged files fail in many ways
        raise ImageError(
            "damaged",
            f"the {file.format or ''} image of {len(data):,} bytes breaks off or is damaged "
            f"({error})",
            remedy="Replace the file",
        ) from error
    return image


def _grey_or_rgb(data: bytes) -> Image.Image:
    """Upright, in a mode that PNG and JPEG both keep."""
    image = _upright(data)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _as_it_is(
    data: bytes, preprocessing: Preprocessing, into: np.ndarray | None
) -> np.ndarray | None:
    """The pixels of a JPEG file that needs no change; None for another file.

    The same as by way of Pillow, whose opening and copying would take half of the time.
    """
    mode, kept, scan = _PLAIN[preprocessing.channels]
    with suppress(ValueError):  # no JPEG file, or a damaged one
        *size, keeps, _ = simplejpeg.decode_jpeg_header(data)
        if size == [preprocessing.size] * 2 and keeps in kept:
            said = data[: data.find(scan)]
            if not any(segment in said for segment in _TURNED):
                pixels: np.ndarray = simplejpeg.decode_jpeg(data, _TURBO[mode], buffer=into)
                return pixels
    return None


def _decoded(data: bytes, image: Image.Image) -> Image.Image:
    """An opened file with its pixels read.

    Pillow's own reading of JPEG gives the same pixels, of the same library, in thrice the time.
    """
    colours = _TURBO.get(image.mode)
    if image.format in ("JPEG", "MPO") and colours is not None:
        with suppress(ValueError):  # what is damaged Pillow reads as far as can be, or tells of
            pixels = simplejpeg.decode_jpeg(data, colours)
            found = Image.fromarray(pixels[:, :, 0] if colours == "GRAY" else pixels)
            found.info = image.info  # its orientation among it
            return found
    image.load()
    return image


def _too_large(fact: str) -> ImageError:
    return ImageError(
        "too_large",
        fact,
        allowed=f"at most {MAX_PIXELS:,} pixels",
        remedy="Send a smaller image",
    )


def _formats() -> str:
    return ", ".join(SUPPORTED[:-1]) + " or " + SUPPORTED[-1]
