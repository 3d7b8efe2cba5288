"""Near hashes, components and sketches, against naive loops."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageEnhance

from lookalike.images import encode_png, examine
from lookalike.lake import components, duplicates, hamming
from lookalike.lake.components import FAR, Forest
from lookalike.lake.looks import SKETCH_BYTES, alike, sketch

Trees = dict[int, tuple[int, int]]


def naive_trees(nodes: list[int], edges: list[tuple[int, int, int]]) -> Trees:
    """Smallest node of each one's component, and its smallest distance; of nodes with an edge."""
    root = {node: node for node in nodes}
    nearest: dict[int, int] = {}
    for a, b, distance in edges:
        low, high = sorted((root[a], root[b]))
        root = {node: low if r == high else r for node, r in root.items()}
        for node in (a, b):
            nearest[node] = min(nearest.get(node, FAR), distance)
    return {node: (root[node], distance) for node, distance in nearest.items()}


def naive_near(hashes: list[int], distance: int) -> Trees:
    """Trees of the hashes' places, by comparing all with all."""
    places = range(len(hashes))
    apart = [(i, j, (hashes[i] ^ hashes[j]).bit_count()) for i in places for j in places if i < j]
    return naive_trees(list(places), [edge for edge in apart if edge[2] <= distance])


def trees_of(forest: Forest) -> Trees:
    nodes, roots, distances = (column.tolist() for column in forest.trees())
    return dict(zip(nodes, zip(roots, distances, strict=True), strict=True))


def banded(hashes: list[int], masks: list[int], rows: int) -> Iterator[pa.RecordBatch]:
    """What Spark sends: sorted by band and key, in batches of some rows."""
    signed = np.array(hashes, np.uint64).view(np.int64)
    table = [
        (band, int(value & np.int64(np.uint64(mask).view(np.int64))), node, int(value))
        for band, mask in enumerate(masks)
        for node, value in enumerate(signed)
    ]
    table.sort()
    for start in range(0, len(table), rows):
        band, key, node, value = zip(*table[start : start + rows], strict=True)
        yield pa.RecordBatch.from_arrays(
            [pa.array(band, pa.int32()), pa.array(key), pa.array(node), pa.array(value)],
            names=["band", "key", "node", "hash"],
        )


@st.composite
def crowds(draw: st.DrawFn) -> list[int]:
    """Hashes of which many share most of their bits, as those of photos of one kind do."""
    centres = draw(st.lists(st.integers(0, hamming.ALL), min_size=1, max_size=4))
    flips = st.lists(st.integers(0, 63), max_size=7)
    chosen = draw(st.lists(st.tuples(st.sampled_from(centres), flips), min_size=1, max_size=60))
    hashes = []
    for centre, bits in chosen:
        for bit in bits:
            centre ^= 1 << bit  # noqa: PLW2901
        hashes.append(centre)
    return hashes


@given(st.lists(st.integers(0, hamming.ALL), min_size=1))
def test_popcount(words: list[int]) -> None:
    counted = hamming.popcount(np.array(words, np.uint64))
    assert counted.tolist() == [word.bit_count() for word in words]


@given(st.integers(0, hamming.ALL), st.integers(0, 16))
def test_bands_share_out_the_bits(free: int, distance: int) -> None:
    bands = hamming.bands(distance, free)
    assert len(bands) == distance + 1
    assert sum(bands) == free
    assert np.bitwise_or.reduce(np.array(bands, np.uint64)) == free
    sizes = [band.bit_count() for band in bands]
    assert max(sizes) - min(sizes) <= 1


@given(st.lists(st.integers(1, 9), max_size=12))
def test_pairs_are_those_within_runs(lengths: list[int]) -> None:
    runs = np.repeat(np.arange(len(lengths)), lengths)
    found = [(int(a), int(b)) for left, right in hamming.pairs(runs)
             for a, b in zip(left, right, strict=True)]  # fmt: skip
    n = len(runs)
    assert sorted(found) == [
        (i, j) for i in range(n) for j in range(i + 1, n) if runs[i] == runs[j]
    ]


@settings(max_examples=60, deadline=None)
@given(crowds(), st.integers(0, 9), st.integers(1, 50), st.sampled_from((1, 5, 1000)))
def test_a_search_by_bands_misses_nothing(
    hashes: list[int], distance: int, rows: int, large: int
) -> None:
    """Whatever the batches that Spark cuts the rows into, and however runs are cut up further."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_LARGE", large)
        patch.setattr(duplicates, "_CHUNK", 20)
        masks = hamming.bands(distance)
        found = list(duplicates._searched(banded(hashes, masks, rows), masks, distance))
    forest = Forest()
    for batch in found:
        forest.add(*(batch.column(name).to_numpy() for name in ("node", "root", "distance")))
    assert trees_of(forest) == naive_near(hashes, distance)


@settings(max_examples=30, deadline=None)
@given(crowds(), st.integers(0, 6))
def test_a_pair_is_joined_once_and_only_where_it_agrees(hashes: list[int], distance: int) -> None:
    asked: list[tuple[int, int]] = []

    def agree(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        asked.extend((min(i, j), max(i, j)) for i, j in zip(a.tolist(), b.tolist(), strict=True))
        return (a + b) % 3 > 0

    forest, values, nodes = Forest(), np.array(hashes, np.uint64), np.arange(len(hashes))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hamming, "_LARGE", 6)
        whole = hamming.Runs(nodes, values, np.zeros(len(hashes), np.int64), hamming.ALL)
        hamming.search(whole, distance, nodes, forest, agree)

    near = [
        (i, j, d)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (d := (hashes[i] ^ hashes[j]).bit_count()) <= distance
    ]
    assert sorted(asked) == [(i, j) for i, j, _ in near]
    kept = [edge for edge in near if (edge[0] + edge[1]) % 3 > 0]
    assert trees_of(forest) == naive_trees(nodes.tolist(), kept)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(0, 8)), max_size=40),
    st.sampled_from((1, 7, 1000)),
)
def test_a_forest_of_pieces_is_that_of_the_whole(
    edges: list[tuple[int, int, int]], pending: int
) -> None:
    forest, parts = Forest(), (Forest(), Forest())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(components, "_PENDING", pending)
        for number, (a, b, distance) in enumerate(edges):
            for x, y in ((a, b), (b, a)):
                parts[number % 2].add(np.array([x]), np.array([y]), np.array([distance], np.uint8))
        for part in parts:
            forest.add(*part.trees())
    assert trees_of(forest) == naive_trees(sorted({n for e in edges for n in e[:2]}), edges)


def photo(seed: int, side: int = 160) -> Image.Image:
    """Coloured blobs: as a photo is, most of it at low frequencies."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def shirt(colour: str) -> Image.Image:
    image = Image.new("RGB", (160, 160), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((50, 30, 110, 140), fill=colour)
    draw.rectangle((25, 35, 135, 65), fill=colour)
    return image


def saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def looks_like(some: bytes, other: bytes, distance: int = 4) -> bool:
    a, b = (np.frombuffer(sketch(data), np.uint8)[None] for data in (some, other))
    assert a.shape == b.shape == (1, SKETCH_BYTES)
    (found,) = alike(a, b, distance)
    return bool(found)


@pytest.mark.parametrize("seed", range(4))
def test_copies_of_a_picture_are_alike(seed: int) -> None:
    image = photo(seed)
    original = saved(image, "PNG")
    assert looks_like(original, saved(image, quality=50))
    assert looks_like(original, saved(image, "WEBP", quality=70))
    assert looks_like(original, saved(image.resize((80, 80)), quality=90))
    assert looks_like(original, saved(ImageEnhance.Brightness(image).enhance(1.15), quality=90))
    assert not looks_like(original, saved(photo(seed + 100), "PNG"))
    assert not looks_like(original, saved(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), "PNG"))


@pytest.mark.parametrize("colour", ["blue", "green", "gray", "navy"])
def test_a_shirt_of_another_colour_is_another(colour: str) -> None:
    """Though its hash, of the grey picture, is the same or nearly."""
    red, other = saved(shirt("red"), "PNG"), saved(shirt(colour), "PNG")
    hashes = [int(str(examine(data, True).phash), 16) for data in (red, other)]
    assert (hashes[0] ^ hashes[1]).bit_count() <= 4
    assert not looks_like(red, other)


@pytest.mark.parametrize("value", [0, 128, 255])
def test_hashes_of_one_colour_tell_nothing(value: int) -> None:
    flat = encode_png(np.full((40, 60), value, np.uint8))
    assert int(str(examine(flat, True).phash), 16).bit_count() < duplicates._TELLING
    real = int(str(examine(saved(photo(1)), True).phash), 16)
    assert real.bit_count() >= duplicates._TELLING
