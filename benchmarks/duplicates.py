"""Claim: copies of a picture are found, pictures that are only alike are not, at little cost.

Planted copies: 500 photos, each re-encoded, resized, cropped, brightened and mirrored, as items
beside all photos, through the tables and the code of the `duplicates` step. Photos: those of the
folder `LOOKALIKE_DATA`/grocery (348 x 348, JPEG), else 2,000 of the shipped sample, enlarged
eightfold.

- A copy is found if it is in the cluster of its original; a cluster is by `max_distance`.
- A pair is right if both are of one photo, whatever the copies. All pairs of different photos
  count as wrong, though some photos are of a burst, and hardly two.
- Mirrored copies are other pictures to a perceptual hash. They are shown, not asked for.

The trade-off by distance is of single pairs (original, copy), with no third to join them; 'hash
alone' is what the closer look by sketches is there for. Distances of perceptual hashes are even:
half of their bits are set. The largest cluster is that of the shipped sample, 12,000 shop photos
laid out alike.

Cost: 200,000 random hashes of 64 bits, with neighbours planted at each distance.

    uv run benchmarks/duplicates.py [--json PATH] [--photos N] [--hashes N]
"""

from __future__ import annotations

import gzip
import io
import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.parquet as pq
from _figures import Figures, asked
from PIL import Image, ImageEnhance, ImageOps
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from rich.console import Console
from rich.table import Table

from lookalike.config import Duplicates, Spark
from lookalike.images import content_hash, encode_png, examine
from lookalike.lake import hamming
from lookalike.lake.components import Forest
from lookalike.lake.duplicates import near, write
from lookalike.lake.idx import IMAGES, parse
from lookalike.lake.looks import alike, sketch
from lookalike.lake.session import close_session, open_session
from lookalike.lake.tables import Tables

SAMPLE = Path(__file__).parents[1] / "data" / "fashion-mnist-sample"
DISTANCE = Duplicates().max_distance
DISTANCES = range(0, 11)
GOALS = {"re-encoded": 0.95, "resized": 0.95}


def _saved(image: Image.Image, form: str = "JPEG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def _resized(image: Image.Image, factor: float) -> bytes:
    size = (round(image.width * factor), round(image.height * factor))
    return _saved(image.resize(size, Image.Resampling.BICUBIC), quality=90)


def _cropped(image: Image.Image, share: float) -> bytes:
    left, top = round(image.width * share), round(image.height * share)
    return _saved(ImageOps.crop(image, (left, top, left, top)), quality=90)


def _brightened(image: Image.Image, factor: float) -> bytes:
    return _saved(ImageEnhance.Brightness(image).enhance(factor), quality=90)


COPIES: dict[str, dict[str, Callable[[Image.Image], bytes]]] = {
    "re-encoded": {
        "JPEG, quality 50": lambda image: _saved(image, quality=50),
        "JPEG, quality 75": lambda image: _saved(image, quality=75),
        "WebP, quality 80": lambda image: _saved(image, "WEBP", quality=80),
        "PNG": lambda image: _saved(image, "PNG"),
    },
    "resized": {
        f"{factor} x": lambda image, factor=factor: _resized(image, factor)  # type: ignore[misc]
        for factor in (0.5, 0.75, 1.5)
    },
    "brightened": {
        f"{factor} x": lambda image, factor=factor: _brightened(image, factor)  # type: ignore[misc]
        for factor in (1.15, 1.3)
    },
    "cropped": {
        f"{share:.0%} a side": lambda image, share=share: _cropped(image, share)  # type: ignore[misc]
        for share in (0.02, 0.03, 0.04)
    },
    "mirrored": {"mirrored": lambda image: _saved(ImageOps.mirror(image), quality=90)},
}
ORIGINAL = "original"


@dataclass(frozen=True)
class Pictures:
    """Files as items.

    Attributes:
        photo: int64 (n,): the number of the photo that each is of.
        kind: str (n,): of copy, or `ORIGINAL`.
        hashes: uint64 (n,).
        sketches: uint8 (n, SKETCH_BYTES).
        files: Parquet files of rows of `contents`, with their item_id.
    """

    photo: np.ndarray
    kind: np.ndarray
    hashes: np.ndarray
    sketches: np.ndarray
    files: list[Path]


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--photos", type=int, default=500, help="that have copies")
    parser.add_argument("--hashes", type=int, default=200_000)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as name:
        folder = Path(name)
        title, sources = _photos()
        pictures = _pictures(sources, arguments.photos, folder)
        shop = _shop_photos()
        figures = Figures("duplicates", f"{arguments.photos} photos copied, among {title}")
        _trade_off(pictures, shop, figures)
        spark = open_session(Spark(master="local[2]", driver_memory="3g"), "benchmark")
        try:
            _planted(spark, pictures, folder, figures)
            _cost(spark, arguments.hashes, figures)
        finally:
            close_session(spark)
    figures.show(arguments.json)


def _photos() -> tuple[str, list[bytes]]:
    grocery = Path(os.environ.get("LOOKALIKE_DATA", "")) / "grocery"
    if "LOOKALIKE_DATA" in os.environ and grocery.is_dir():
        found = [path.read_bytes() for path in sorted(grocery.rglob("*.jpg"))]
        return f"{len(found):,} photos of groceries", found
    sample = (Image.fromarray(pixels) for pixels in _sample()[:2000])
    return (
        "2,000 photos of the shipped sample, enlarged",
        [_saved(image.resize((224, 224), Image.Resampling.BICUBIC), "PNG") for image in sample],
    )


def _sample() -> np.ndarray:
    names = [SAMPLE / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
    return np.concatenate(
        [parse(gzip.decompress(name.read_bytes()), IMAGES, str(name)) for name in names]
    )


Made = list[tuple[str, bytes, int, bytes]]


def _looked_at(kind: str, data: bytes) -> tuple[str, bytes, int, bytes]:
    return kind, data, int(str(examine(data, True).phash), 16), sketch(data)


def _original(data: bytes) -> Made:
    return [_looked_at(ORIGINAL, data)]


def _copied(data: bytes) -> Made:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    named = chain.from_iterable(
        ((f"{kind}: {how}", make) for how, make in ways.items()) for kind, ways in COPIES.items()
    )
    return [*_original(data), *(_looked_at(kind, make(image)) for kind, make in named)]


def _pictures(sources: list[bytes], copied: int, folder: Path) -> Pictures:
    step = len(sources) / min(copied, len(sources))
    chosen = {int(i * step) for i in range(min(copied, len(sources)))}
    columns: list[list[Any]] = [[], [], [], []]
    files: list[Path] = []
    with multiprocessing.Pool() as pool:
        few = pool.imap(_copied, [sources[i] for i in sorted(chosen)], chunksize=4)
        many = [i for i in range(len(sources)) if i not in chosen]
        rest = pool.imap(_original, [sources[i] for i in many], chunksize=32)
        rows: list[dict[str, Any]] = []
        for photo, made in zip([*sorted(chosen), *many], chain(few, rest), strict=True):
            for kind, data, hash_, sketched in made:
                for column, value in zip(columns, (photo, kind, hash_, sketched), strict=True):
                    column.append(value)
                rows.append(
                    {
                        "item_id": f"{len(columns[0]) - 1:06d}",
                        "sha256": content_hash(data),
                        "bytes": data,
                        "phash": f"{hash_:016x}",
                    }
                )
            if len(rows) > 500:
                files.append(_written(rows, folder))
                rows = []
        files.append(_written(rows, folder))
    photos, kinds, hashes, sketches = columns
    return Pictures(
        np.array(photos),
        np.array(kinds),
        np.array(hashes, np.uint64),
        np.frombuffer(b"".join(sketches), np.uint8).reshape(len(sketches), -1),
        files,
    )


def _written(rows: list[dict[str, Any]], folder: Path) -> Path:
    path = folder / f"contents-{len(list(folder.iterdir())):04d}.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def _shop_photos() -> tuple[np.ndarray, np.ndarray]:
    with multiprocessing.Pool() as pool:
        made = pool.map(_original, [encode_png(pixels) for pixels in _sample()], chunksize=200)
    hashes = np.array([hash_ for ((_, _, hash_, _),) in made], np.uint64)
    sketches = b"".join(sketched for ((_, _, _, sketched),) in made)
    return hashes, np.frombuffer(sketches, np.uint8).reshape(len(made), -1)


def _all_pairs(hashes: np.ndarray, distance: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All pairs of so close hashes, by comparing all with all."""
    for step in range(1, len(hashes)):
        apart = hamming.popcount(hashes[:-step] ^ hashes[step:])
        left = np.flatnonzero(apart <= distance)
        yield left, left + step


def _trade_off(
    pictures: Pictures, shop: tuple[np.ndarray, np.ndarray], figures: Figures
) -> None:  # fmt: skip
    hashes, sketches = pictures.hashes, pictures.sketches
    found = list(_all_pairs(hashes, max(DISTANCES)))
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    apart = hamming.popcount(hashes[left] ^ hashes[right])
    same = pictures.photo[left] == pictures.photo[right]
    kinds = np.array([kind.partition(":")[0] for kind in pictures.kind])
    original = kinds == ORIGINAL
    table = Table("max_distance", *COPIES, "precision", "largest cluster",
                  title="By distance: confirmed (hash alone)")  # fmt: skip
    sizes = _largest(*shop)
    for distance in DISTANCES:
        close = apart <= distance
        looks = close.copy()
        looks[close] = alike(sketches[left[close]], sketches[right[close]], distance)
        cells = []
        for kind in COPIES:
            pair = same & (
                (original[left] & (kinds[right] == kind))
                | (original[right] & (kinds[left] == kind))
            )
            planted = int((kinds == kind).sum())
            confirmed, alone = ((pair & by).sum() / planted for by in (looks, close))
            cells.append(f"{confirmed:.3f} ({alone:.3f})")
            if distance == DISTANCE:
                figures.add(f"pairs found, {kind}, hash alone", alone, better="higher")
                figures.add(f"pairs found, {kind}", confirmed, better="higher")
        right_ones = [(by & same).sum() / max(by.sum(), 1) for by in (looks, close)]
        cells.append("{:.4f} ({:.4f})".format(*right_ones))
        cells.append("{} ({})".format(*sizes[distance]))
        table.add_row(str(distance), *cells)
        if distance == DISTANCE:
            originals = original[left] & original[right]
            figures.add("pairs of two photos, hash alone", int((close & originals).sum()))
            figures.add("pairs of two photos", int((looks & originals).sum()))
            figures.add("largest cluster of 12,000 shop photos, hash alone", sizes[distance][1])
            figures.add("largest cluster of 12,000 shop photos", sizes[distance][0])
    Console(width=160).print(table)


def _largest(hashes: np.ndarray, sketches: np.ndarray) -> dict[int, tuple[int, int]]:
    """By distance: items of the largest cluster, confirmed and by the hash alone."""
    forests = {distance: (Forest(), Forest()) for distance in DISTANCES}
    for left, right in _all_pairs(hashes, max(DISTANCES)):
        apart = hamming.popcount(hashes[left] ^ hashes[right])
        for distance, both in forests.items():
            close = np.flatnonzero(apart <= distance)
            looks = close[alike(sketches[left[close]], sketches[right[close]], distance)]
            for forest, by in zip(both, (looks, close), strict=True):
                forest.add(left[by], right[by], apart[by])
    return {d: (_size(both[0]), _size(both[1])) for d, both in forests.items()}


def _size(forest: Forest) -> int:
    _, roots, _ = forest.trees()
    return int(np.unique(roots, return_counts=True)[1].max()) if len(roots) else 1


def _planted(spark: SparkSession, pictures: Pictures, folder: Path, figures: Figures) -> None:
    tables = Tables(spark, str(folder / "tables"))
    tables.ensure()
    rows = spark.read.parquet(*map(str, pictures.files))
    contents = rows.dropDuplicates(["sha256"])
    tables.replace("contents", contents.select(
        "sha256", F.lit("image/jpeg").alias("media"), "bytes", F.lit(1).alias("width"),
        F.lit(1).alias("height"), "phash"))  # fmt: skip
    none = F.lit(None).cast("string")
    items = rows.select(
        "item_id", none.alias("group_id"), "sha256", none.alias("label"),
        F.lit(None).cast("map<string,string>").alias("attributes"), none.alias("given_split"),
        F.lit("benchmark").alias("source"), F.lit("1").alias("source_version"),
        F.current_timestamp().alias("updated_at"))  # fmt: skip
    tables.replace("items", items)
    begin = time.perf_counter()
    write(tables, tables.version("items"), DISTANCE)
    figures.add(f"step on {len(pictures.photo):,} files", time.perf_counter() - begin, "s")

    cluster = np.arange(len(pictures.photo))
    for row in tables.read("duplicates").toLocalIterator():
        cluster[int(row["item_id"])] = int(row["cluster_id"])
    originals = dict(
        zip(pictures.photo[pictures.kind == ORIGINAL],
            cluster[pictures.kind == ORIGINAL], strict=True)
    )  # fmt: skip
    home = np.array([originals[photo] for photo in pictures.photo])
    for kind, ways in COPIES.items():
        of_kind = np.char.startswith(pictures.kind, f"{kind}: ")
        figures.add(f"copies found, {kind}", float((cluster == home)[of_kind].mean()),
                    goal=GOALS.get(kind), better="higher")  # fmt: skip
        for how in ways if len(ways) > 1 else ():
            some = pictures.kind == f"{kind}: {how}"
            figures.add(f"... {how}", float((cluster == home)[some].mean()), better="higher")
    both = np.unique(np.stack([cluster, pictures.photo]), axis=1, return_counts=True)[1]
    together = np.unique(cluster, return_counts=True)[1]
    of_one, of_any = (int((n * (n - 1) // 2).sum()) for n in (both, together))
    figures.add("precision of pairs in clusters", of_one / of_any, goal=0.99, better="higher")
    figures.add("pairs in clusters", of_any, better="higher")
    figures.add("of them of different photos", of_any - of_one)


def _cost(spark: SparkSession, count: int, figures: Figures) -> None:
    random = np.random.default_rng(0)
    hashes = random.integers(2**64, size=count, dtype=np.uint64)
    copies = 200
    planted = {}
    for distance in range(1, DISTANCE + 1):
        rows = random.choice(count, copies, replace=False)
        flips = [sum(1 << int(b) for b in random.choice(64, distance, replace=False))
                 for _ in rows]  # fmt: skip
        planted[distance] = (rows, len(hashes) + np.arange(copies))
        hashes = np.concatenate([hashes, hashes[rows] ^ np.array(flips, np.uint64)])
    forest, nodes = Forest(), np.arange(len(hashes))
    begin = time.perf_counter()
    whole = hamming.Runs(nodes, hashes, np.zeros(len(hashes), np.int64), hamming.ALL)
    compared = hamming.search(whole, DISTANCE, nodes, forest)
    figures.add("join of hashes, in one process", time.perf_counter() - begin, "s")
    figures.add("pairs compared", compared)
    figures.add("share of all pairs", compared / (len(hashes) * (len(hashes) - 1) / 2))

    table = pa.table({"node": nodes, "hash": hashes.view(np.int64)}).to_pandas()
    points = spark.createDataFrame(table).persist()
    points.count()
    with _memory() as peak:
        begin = time.perf_counter()
        found = near(points, DISTANCE).collect()
        figures.add(f"join of {len(hashes):,} hashes, Spark", time.perf_counter() - begin, "s")
    for name, size in peak.items():
        figures.add(f"peak memory, {name}", size / 2**20, "MiB")
    root = {row["node"]: row["root"] for row in found}
    missed = [d for d, pairs in planted.items() for a, b in zip(*pairs, strict=True)
              if a not in root or root[a] != root.get(b)]  # fmt: skip
    figures.add("planted neighbours found", 1 - len(missed) / (copies * DISTANCE),
                goal=1.0, better="higher")  # fmt: skip


@contextmanager
def _memory() -> Iterator[dict[str, int]]:
    """The most that this process, Spark's JVM, and the largest Python worker held, in bytes."""
    me, stop = psutil.Process(), threading.Event()
    peak = {"driver": 0, "JVM": 0, "a Python worker": 0}

    def watch() -> None:
        while not stop.wait(0.1):
            for process in (me, *me.children(recursive=True)):
                try:
                    java = "java" in process.name()
                    name = "driver" if process == me else "JVM" if java else "a Python worker"
                    peak[name] = max(peak[name], process.memory_info().rss)
                except psutil.Error:
                    continue  # it has ended

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peak
    finally:
        stop.set()
        thread.join()


if __name__ == "__main__":
    main()
