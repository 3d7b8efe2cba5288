"""The contact sheet, whatever the catalogue holds; and its tiles."""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lookalike.columns import TEXT_MEDIA, VECTOR_MEDIA
from lookalike.images import encode_png
from lookalike.lake.tiles import SIDE, Tile, tile
from lookalike.steps.contact_sheet import (
    COLUMNS,
    Group,
    Section,
    Shown,
    draw,
    printable,
    shortened,
)

ODD = (
    "new\nline\r\n\t.jpg",
    "日本語/🍎.jpg",
    "$x^2$ {a} \\frac % & _ ~.jpg",
    "\u202e right to left \u200b\x00\x1b[31m",
    "folder/" * 200 + "end.jpg",
    "W" * 5000,
    "e\u0301" * 100,
    "",
)


def colour(number: int) -> tuple[int, int, int]:
    """One that nothing else on the page has."""
    return 200, 10 + number, 90


def solid(number: int, width: int, height: int) -> bytes:
    return encode_png(np.full((height, width, 3), colour(number), np.uint8))


def jpeg(width: int, height: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), (10, 200, 30)).save(buffer, "JPEG")
    return buffer.getvalue()


def drawn(folder: Path, *sections: Section) -> np.ndarray:
    """The page's pixels, uint8 (h, w, 3); a warning is an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw("a page", sections, folder / "page.png")
    with Image.open(folder / "page.png") as page:
        assert page.format == "PNG"
        return np.array(page.convert("RGB"))


def pixels_of(page: np.ndarray, number: int) -> int:
    return int((page == colour(number)).all(axis=2).sum())


def section(ids: tuple[str, ...], notes: tuple[str, ...] = ("a label", "train")) -> Section:
    shown = (Shown(tile(solid(i, 96, 96), "image/png"), notes, name) for i, name in enumerate(ids))
    return Section("Some items", (Group(tuple(shown)),), "no items")


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (8, 1), (9, 2), (24, 3)])
def test_each_item_has_its_tile(tmp_path: Path, count: int, rows: int) -> None:
    page = drawn(tmp_path, section(tuple(f"item {i}" for i in range(count))))
    assert [pixels_of(page, i) for i in range(count)] == [SIDE * SIDE] * count
    assert pixels_of(page, count) == 0
    red = page[:, :, 0] == 200
    places = np.flatnonzero((red & (page[:, :, 2] == 90)).any(axis=1))
    assert len(places) == rows * SIDE  # as many lines of pixels as rows of tiles have


@pytest.mark.parametrize("odd", ODD)
def test_odd_ids_and_notes_change_no_layout(tmp_path: Path, odd: str) -> None:
    plain = drawn(tmp_path, section(("item",) * COLUMNS))
    page = drawn(tmp_path, section((odd,) * COLUMNS, (odd, odd)))
    assert page.shape == plain.shape
    assert [pixels_of(page, i) for i in range(COLUMNS)] == [SIDE * SIDE] * COLUMNS
    # Nothing runs into the margins.
    for edge in (page[:, :20], page[:, -20:], page[:20], page[-20:]):
        assert (edge == 255).all()


@pytest.mark.parametrize("odd", ODD)
def test_odd_titles_headings_and_words(tmp_path: Path, odd: str) -> None:
    shown = Shown(Tile(None, odd), ("reason",), "item")
    groups = (Group((shown,) * 4, heading=odd, alarming=True),)
    page = drawn(tmp_path, Section(odd, groups, ""), Section("none", (), odd))
    for edge in (page[:, :20], page[:, -20:], page[:20], page[-20:]):
        assert (edge == 255).all()


def test_words_stay_in_their_tile(tmp_path: Path) -> None:
    for columns, width in ((COLUMNS, SIDE), (4, 224)):
        words = Shown(Tile(None, "many words " * 100), (), "")
        page = drawn(tmp_path, Section("", (Group((words,)),), "", columns))
        box = (page == (0xF2, 0xF3, 0xF5)).all(axis=2)
        down, right = np.flatnonzero(box.any(axis=1)), np.flatnonzero(box.any(axis=0))
        assert down[-1] - down[0] < SIDE
        assert right[-1] - right[0] < width
        page[down[0] - 2 : down[-1] + 3, right[0] - 2 : right[-1] + 3] = 255
        below = page[down[0] - 2 :]
        assert (below == 255).all()


def test_a_page_without_anything(tmp_path: Path) -> None:
    empty = [Section(name, (), "none") for name in ("one", "two", "three")]
    page = drawn(tmp_path, *empty)
    assert (page != 255).any()
    assert page.shape[0] < drawn(tmp_path, section(("item",)), *empty[1:]).shape[0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((28, 28), (84, 84)), ((10, 40), (20, 80)), ((96, 50), (96, 50)), ((1, 1), (96, 96))],
)
def test_small_pictures_grow_by_whole_numbers(
    tmp_path: Path, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    shown = Shown(tile(solid(0, *size), "image/png"), (), "item")
    page = drawn(tmp_path, Section("", (Group((shown,)),), ""))
    seen = (page == colour(0)).all(axis=2)
    across, down = seen.any(axis=0).sum(), seen.any(axis=1).sum()
    assert (across, down) == expected
    assert seen.sum() == across * down


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (96, 72)), ((300, 400), (72, 96)), ((5000, 20), (96, 1)), ((97, 97), (96, 96))],
)
def test_large_pictures_keep_their_shape(size: tuple[int, int], expected: tuple[int, int]) -> None:
    found = tile(jpeg(*size), "image/jpeg")
    assert found.words is None
    with Image.open(io.BytesIO(found.png or b"")) as picture:
        assert picture.size == expected
        centre = np.asarray(picture)[expected[1] // 2, expected[0] // 2].astype(int)
    assert np.abs(centre - (10, 200, 30)).max() < 4


@pytest.mark.parametrize(
    ("data", "media", "words"),
    [
        (b"", "image/png", r"cannot be decoded \(empty\)"),
        (b"no image at all", "image/jpeg", r"cannot be decoded \(not_an_image\)"),
        (b"no image at all", None, r"cannot be decoded \(not_an_image\)"),
        (jpeg(500, 500)[:2000], "image/jpeg", r"cannot be decoded \(damaged\)"),
        ("Nike Zoom é".encode(), TEXT_MEDIA, "Nike Zoom é"),
        (b"\xff\xfe not UTF-8", TEXT_MEDIA, "\ufffd\ufffd not UTF-8"),
        ("é".encode() * 10**6, TEXT_MEDIA, "é{300}"),
        (np.zeros(1234, "<f4").tobytes(), VECTOR_MEDIA, "vector of 1,234 numbers"),
        (b"", VECTOR_MEDIA, "vector of 0 numbers"),
    ],
)
def test_what_is_no_picture_is_words(
    tmp_path: Path, data: bytes, media: str | None, words: str
) -> None:
    found = tile(data, media)
    assert found.png is None
    assert re.fullmatch(words, found.words or "")
    drawn(tmp_path, Section("", (Group((Shown(found, (), "item"),)),), ""))


def test_printable_is_one_line() -> None:
    assert printable("a\nb\x00 é 日") == "a\\nb\\x00 é 日"
    for odd in ODD:
        assert printable(odd).isprintable()


def test_shortened_keeps_both_ends() -> None:
    assert shortened("abc", 3) == "abc"
    for length in range(1, 12):
        found = shortened("abcdefghijkl", length)
        assert len(found) == length
        start, end = found.split("…")
        assert "abcdefghijkl".startswith(start)
        assert "abcdefghijkl".endswith(end)
