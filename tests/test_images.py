import io

import numpy as np
import pytest
from PIL import Image

from lookalike import images
from lookalike.errors import ImageError
from lookalike.images import Preprocessing, decode

GREY = Preprocessing(4, 1)
RGB = Preprocessing(4, 3)


def file_of(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_png_of_pixels_decodes_to_the_same_pixels() -> None:
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4) * 15
    assert decode(images.encode_png(pixels), GREY)[:, :, 0].tolist() == pixels.tolist()


@pytest.mark.parametrize(("largest", "size"), [(None, (40, 20)), (40, (40, 20)), (10, (10, 5))])
def test_png_of_a_file_is_no_larger_than_asked_for(
    largest: int | None, size: tuple[int, int]
) -> None:
    file = file_of(Image.fromarray(np.full((20, 40, 3), 9, np.uint8)), "JPEG")
    with Image.open(io.BytesIO(images.to_png(file, largest))) as png:
        assert (png.format, png.size) == ("PNG", size)


EXIF = Image.Exif()
EXIF[0x0112] = 3  # turned by 180 degrees
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="3"/></x:xmpmeta>'


@pytest.mark.parametrize(
    ("kind", "said"),
    [("PNG", {"exif": EXIF}), ("JPEG", {"exif": EXIF}), ("JPEG", {"xmp": XMP})],
    ids=["PNG", "JPEG", "JPEG, XMP"],
)
def test_orientation_is_applied(kind: str, said: dict[str, object]) -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    pixels[:8, :8] = 255
    turned = decode(file_of(Image.fromarray(pixels), kind, **said), Preprocessing(16, 3))
    assert turned[15, 15].min() > 240
    assert turned[0, 0].max() < 15


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"subsampling": 0},
        {"subsampling": 1},
        {"progressive": True},
        {"quality": 30},
        {"keep_rgb": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_jpeg_is_what_pillow_reads(mode: str, options: dict[str, object]) -> None:
    waves = np.sin(
        np.arange(41)[:, None, None] * np.array([0.3, 0.9, 0.1]) + np.arange(41)[:, None]
    )
    picture = Image.fromarray((127 + 120 * waves).astype(np.uint8)).convert(mode)
    data = file_of(picture, "JPEG", **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    found = decode(data, Preprocessing(41, 1 if mode == "L" else 3))
    assert np.array_equal(found.squeeze(), expected)


def test_images_are_decoded_into_one_array_as_each_alone() -> None:
    picture = Image.effect_noise((16, 16), 60)
    colours = Image.merge("RGB", [picture, picture.rotate(90), picture.rotate(180)])
    files = [
        file_of(colours, "JPEG"),
        file_of(picture, "JPEG"),
        file_of(colours.resize((9, 5)), "JPEG"),
        file_of(colours),
        file_of(colours.convert("CMYK"), "JPEG"),
        file_of(colours, "JPEG")[:-40] + bytes(40),  # damaged where it ends: grey from there on
    ]
    for preprocessing in (Preprocessing(16, 1), Preprocessing(16, 3)):
        found = images.decode_all(files, preprocessing)
        assert np.array_equal(found, [decode(data, preprocessing) for data in files])
        assert found.ctypes.data % 64 == 0
    with pytest.raises(ImageError):
        images.decode_all([*files, b"no image"], GREY)


def test_jpeg_that_is_only_odd_is_read_as_pillow_reads_it() -> None:
    data = file_of(Image.effect_noise((16, 16), 60).convert("RGB"), "JPEG")
    odd = data[:-2] + bytes(7) + data[-2:]  # which the faster decoder refuses
    assert np.array_equal(decode(odd, Preprocessing(16, 3)), decode(data, Preprocessing(16, 3)))


def test_transparency_is_laid_on_white() -> None:
    assert decode(file_of(Image.new("RGBA", (4, 4), (0, 0, 0, 0))), RGB).min() == 255


def test_sixteen_bit_grey_keeps_its_levels() -> None:
    levels = (np.arange(16).reshape(4, 4) * 4096).astype(np.uint16)
    found = decode(file_of(Image.fromarray(levels)), GREY)[:, :, 0]
    assert found.tolist() == (levels // 256).tolist()


def test_palette_cmyk_and_first_frame() -> None:
    red = Image.new("RGB", (4, 4), "red")
    assert decode(file_of(red.convert("P")), RGB)[0, 0].tolist() == [255, 0, 0]
    cmyk = decode(file_of(red.convert("CMYK"), "JPEG"), RGB)[0, 0]
    assert cmyk[0] > 240
    assert cmyk[1:].max() < 20
    lab = file_of(Image.new("LAB", (4, 4), (136, 208, 195)), "TIFF")  # red, as far as it can
    assert images.examine(lab, phash=True).media == "image/tiff"
    assert decode(lab, RGB)[0, 0, 0] > 200
    assert decode(lab, GREY).shape == (4, 4, 1)
    animated = file_of(red, "GIF", save_all=True, append_images=[Image.new("RGB", (4, 4), "blue")])
    assert decode(animated, RGB)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_every_supported_format_is_resized_to_the_shape(kind: str) -> None:
    data = file_of(Image.new("RGB", (9, 5), "white"), kind)
    for preprocessing in (GREY, RGB):
        found = decode(data, preprocessing)
        assert found.shape == preprocessing.shape
        assert found.dtype == np.uint8
        assert found.min() > 250


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"just some text", "not_an_image"),
        (file_of(Image.new("L", (64, 64)))[:60], "damaged"),
    ],
)
def test_bad_bytes_are_named(data: bytes, reason: str) -> None:
    with pytest.raises(ImageError) as raised:
        decode(data, GREY)
    assert raised.value.reason == reason


def test_a_bomb_is_refused_by_its_header() -> None:
    # 40,000 x 40,000 in 200 kB: decoding it would take 1.6 GB.
    bomb = file_of(Image.new("1", (40_000, 40_000)))
    with pytest.raises(ImageError, match="at most 64,000,000 pixels") as raised:
        decode(bomb, GREY)
    assert raised.value.reason == "too_large"


def test_a_little_too_large_is_refused_too() -> None:
    with pytest.raises(ImageError) as raised:
        decode(file_of(Image.new("1", (8_001, 8_000))), GREY)
    assert raised.value.reason == "too_large"


def test_perceptual_hash_survives_a_new_encoding() -> None:
    blobs = np.random.default_rng(0).integers(256, size=(8, 8), dtype=np.uint8)
    picture = Image.fromarray(blobs).resize((64, 64))
    png = images.examine(file_of(picture), phash=True).phash
    jpeg = images.examine(file_of(picture, "JPEG", quality=85), phash=True).phash
    assert len(png) == 16
    assert (int(png, 16) ^ int(jpeg, 16)).bit_count() <= 4
