"""A page of small pictures: what a catalogue looks like, at a glance."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from lookalike.lake.tiles import SIDE, Tile

COLUMNS: Final = 8
"""Pictures side by side."""

_DPI = 128  # a power of two: pixels / dpi * dpi is what it was, to the last bit
_CELL = 128
_MARGIN, _GAP = 24, 12
_WIDTH = 2 * _MARGIN + COLUMNS * _CELL
_FONT = "DejaVu Sans Mono"  # comes with matplotlib
_SIZE, _LINE = 11, 14  # of a character and of a line, in pixels
_ID_LINES = 2
_DARK, _SOFT, _RULE, _PAPER, _ALARM = "#1d2733", "#5b6675", "#c9ced6", "#f2f3f5", "#c22f3d"


@dataclass(frozen=True)
class Shown:
    """A tile; below it what is to say of it, a line each, then the item's id."""

    tile: Tile
    notes: tuple[str, ...]
    item_id: str


@dataclass(frozen=True)
class Group:
    """Tiles that belong together, below a heading; `alarming` is said in red."""

    shown: tuple[Shown, ...]
    heading: str | None = None
    alarming: bool = False


@dataclass(frozen=True)
class Section:
    """Groups below a title; `empty` is said where there are none.

    Of fewer than `COLUMNS` columns, tiles are wider, and hold more words.
    """

    title: str
    groups: tuple[Group, ...]
    empty: str
    columns: int = COLUMNS


@dataclass(frozen=True)
class _Line:
    x: int
    y: int
    words: str
    size: int = _SIZE
    colour: str = _DARK


@dataclass(frozen=True)
class _Box:
    x: int
    y: int
    width: int
    tile: Tile


def draw(title: str, sections: Sequence[Section], path: Path) -> None:
    """Draw the page as a PNG, as long as it needs to be.

    Ids may be of any length and hold anything. A character that the font lacks is drawn as U+FFFD.

    Args:
        title: of the page.
        sections: from top to bottom.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.font_manager import findfont, get_font
    from matplotlib.patches import Rectangle

    parts, height = _laid_out(title, sections)
    glyphs = get_font(findfont(_FONT)).get_charmap()
    figure = Figure(figsize=(_WIDTH / _DPI, height / _DPI), dpi=_DPI)

    def say(line: _Line) -> None:
        words = "".join(c if ord(c) in glyphs else "\N{REPLACEMENT CHARACTER}" for c in line.words)
        figure.text(
            line.x / _WIDTH, 1 - line.y / height, words, va="top", family=_FONT,
            fontsize=line.size * 72 / _DPI, color=line.colour, parse_math=False,
        )  # fmt: skip

    for part in parts:
        if isinstance(part, _Line):
            say(part)
            continue
        if part.tile.png is not None:
            # Pixel by pixel, where axes would blur what they scale.
            pixels = _pixels(part.tile.png)
            down = part.y + (SIDE - pixels.shape[0]) // 2
            figure.figimage(pixels, part.x, height - down - pixels.shape[0], origin="upper")
            continue
        corner = part.x / _WIDTH, 1 - (part.y + SIDE) / height
        shape = part.width / _WIDTH, SIDE / height
        figure.add_artist(Rectangle(corner, *shape, facecolor=_PAPER, edgecolor=_RULE))
        for line in _words(part):
            say(line)
    figure.savefig(path, facecolor="white")


def printable(text: str) -> str:
    """A text in one line: control characters as Python writes them."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters: its middle left out, for paths tell most at the end."""
    if len(text) <= length:
        return text
    head = (length - 1) // 3
    tail = length - 1 - head
    return f"{text[:head]}…{text[len(text) - tail :]}"


def _laid_out(title: str, sections: Sequence[Section]) -> tuple[list[_Line | _Box], int]:
    """All parts of the page with their places from its upper left corner, and its height."""
    parts: list[_Line | _Box] = [_Line(_MARGIN, _MARGIN, _fitting(title, 20), 20)]
    y = _MARGIN + 24
    for section in sections:
        y += 2 * _GAP
        parts.append(_Line(_MARGIN, y, _fitting(section.title, 15), 15))
        y += 20 + _GAP
        if not section.groups:
            parts.append(_Line(_MARGIN, y, _fitting(section.empty), colour=_SOFT))
            y += _LINE
        for group in section.groups:
            if group.heading is not None:
                colour = _ALARM if group.alarming else _DARK
                parts.append(_Line(_MARGIN, y, _fitting(group.heading), colour=colour))
                y += _LINE + 4
            for start in range(0, len(group.shown), section.columns):
                row = group.shown[start : start + section.columns]
                parts += [
                    part
                    for i, shown in enumerate(row)
                    for part in _cell(shown, i, y, section.columns)
                ]
                lines = _ID_LINES + max(len(shown.notes) for shown in row)
                y += SIDE + 4 + lines * _LINE + _GAP
    return parts, y + _MARGIN


def _cell(shown: Shown, place: int, y: int, columns: int) -> Iterator[_Line | _Box]:
    step = COLUMNS * _CELL // columns
    x = _MARGIN + place * step
    yield _Box(x, y, step - (_CELL - SIDE), shown.tile)
    length = _characters(step) - 1
    below = y + SIDE + 4
    for note in shown.notes:
        yield _Line(x, below, shortened(printable(note), length))
        below += _LINE
    item_id = shortened(printable(shown.item_id), _ID_LINES * length)
    for start in range(0, len(item_id), length):
        yield _Line(x, below, item_id[start : start + length], colour=_SOFT)
        below += _LINE


def _words(box: _Box) -> Iterator[_Line]:
    padding = 6
    lines = textwrap.wrap(
        printable(" ".join((box.tile.words or "").split())),
        _characters(box.width - 2 * padding),
        max_lines=(SIDE - padding) // _LINE,
        placeholder="…",
    )
    for number, line in enumerate(lines):
        yield _Line(box.x + padding, box.y + padding + number * _LINE, line, colour=_SOFT)


def _fitting(text: str, size: int = _SIZE) -> str:
    return shortened(printable(text), _characters(_WIDTH - 2 * _MARGIN, size))


def _characters(width: int, size: int = _SIZE) -> int:
    """How many fit: all of the font are equally wide, 0.602 of their size, in whole pixels."""
    return width // math.ceil(0.602 * size)


def _pixels(png: bytes) -> np.ndarray:
    """uint8 (h, w, 3), enlarged by a whole number where it is small."""
    from PIL import Image

    pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
    times = max(1, SIDE // max(pixels.shape[:2]))
    return pixels.repeat(times, axis=0).repeat(times, axis=1)
