"""Claim: a load costs little more than Spark's own reading and writing, and a reload next to none.

20,000 photos as files: the first load without looking at the images, and with decoding and
perceptual hashes, against Spark's `binaryFile` read and Delta write of the same files; then the
reload of what has not changed, of 1 % more, and of other attributes for 1 % (a manifest of the
same files). 60,000 images in IDX files: the same reloads. All in one session, in turns.

Photos: those of the folder `LOOKALIKE_DATA`/grocery, each in nine versions (itself and random
crops of 5/6 of its sides, as JPEG of quality 88); else the shipped sample, enlarged.

    uv run benchmarks/ingest.py [--json PATH] [--photos N] [--images N] [--rounds N]
"""

from __future__ import annotations

import csv
import gzip
import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
from _figures import Figures, asked
from PIL import Image
from pydantic import TypeAdapter
from pyspark.sql import SparkSession

from lookalike.config import Data, Spark
from lookalike.lake import idx, ingest
from lookalike.lake.session import close_session, open_session
from lookalike.lake.sources import open_source
from lookalike.lake.tables import Tables

ROOT = Path(__file__).parents[1]
_TEST_IMAGES = 10_000
SAMPLE = ROOT / "data" / "fashion-mnist-sample"


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--images", type=int, default=60_000, help="in IDX files")
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if arguments.images <= _TEST_IMAGES:
        parser.error(f"--images {arguments.images}: more than {_TEST_IMAGES:,}, which are for test")
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as name:
        folder = Path(name)
        content = _write_photos(folder / "photos", arguments.photos)
        title = f"{arguments.photos:,} photos, {content / 2**20:.0f} MiB"
        spark = open_session(Spark(master="local[2]", driver_memory="3g"), "benchmark")
        try:
            figures = Figures("ingest", f"{title}, and IDX files of {arguments.images:,} images")
            _photos(spark, folder, arguments.rounds, content, figures)
            _idx(spark, folder, arguments.rounds, arguments.images, figures)
        finally:
            close_session(spark)
    figures.show(arguments.json)


def _photos(spark: SparkSession, folder: Path, rounds: int, content: int, figures: Figures) -> None:
    root = folder / "photos"
    files = sorted(path.relative_to(root).as_posix() for path in root.rglob("*.jpg"))
    plain = _data(source="folder", root=str(root), check=False, phash=False)
    full = _data(source="folder", root=str(root))
    feed = _data(source="manifest", table=str(folder / "feed.csv"), path="path", root=str(root))
    one_percent = len(files) // 100
    seconds: dict[str, list[float]] = {}

    def timed(name: str, work: Callable[..., object], *taken: object) -> None:
        begin = time.perf_counter()
        work(*taken)
        seconds.setdefault(name, []).append(time.perf_counter() - begin)

    written = 0
    for number in range(rounds + 1):
        tables = {name: _tables(spark, folder / "wh" / name) for name in ("plain", "full", "feed")}
        timed("spark", _spark_itself, spark, root, folder / "rival")
        timed("plain", _load, tables["plain"], plain)
        timed("full", _load, tables["full"], full)
        timed("unchanged", _load, tables["full"], full)
        more = list(_add_photos(root, files[:one_percent], number))
        timed("more", _load, tables["full"], full)
        for path in more:
            path.unlink()
        _write_feed(folder / "feed.csv", files, 0)
        timed("feed", _load, tables["feed"], feed)
        before = _bytes(folder / "wh" / "feed")
        _write_feed(folder / "feed.csv", files, one_percent)
        timed("attributes", _load, tables["feed"], feed)
        written = _bytes(folder / "wh" / "feed") - before
        shutil.rmtree(folder / "wh")
    took = {name: median(values[1:]) for name, values in seconds.items()}  # the first warms up

    def ratio(name: str, part: str, whole: str, goal: float | None = None) -> None:
        figures.add(name, took[part] / took[whole], "x", goal)

    ratio("first load, images not looked at / Spark's read and write", "plain", "spark", 1.25)
    ratio("first load, decoded and hashed / Spark's read and write", "full", "spark", 2.5)
    ratio("unchanged reload / first", "unchanged", "full", 0.20)
    ratio("unchanged reload / first, images not looked at", "unchanged", "plain")
    ratio("1 % more / first", "more", "full", 0.30)
    ratio("1 % more / first, images not looked at", "more", "plain")
    ratio("attributes of 1 % / first, a manifest", "attributes", "feed", 0.30)
    figures.add("bytes written for them / content", written / content, "", 0.05)
    figures.add("Spark's read and write", took["spark"], "s")


def _idx(spark: SparkSession, folder: Path, rounds: int, images: int, figures: Figures) -> None:
    count = images - _TEST_IMAGES
    more = images // 100
    pixels, labels = _idx_images(images + more)
    data = _data(
        source="idx",
        **{
            split: {"images": str(folder / f"{split}-i"), "labels": str(folder / f"{split}-l")}
            for split in ("train", "test")
        },
    )
    seconds: dict[str, list[float]] = {}
    for number in range(rounds + 1):
        tables = _tables(spark, folder / "wh" / "idx")
        changed = labels.copy()
        changed[:more] = (changed[:more] + 1) % 10
        # What each load finds: images in the training file, and labels.
        found = {
            "first": (count, labels),
            "unchanged": (count, labels),
            "labels": (count, changed),
            "more": (count + more, changed),
        }
        for name, (train, given) in found.items():
            if name != "unchanged":
                _write_idx(folder / "train", pixels[:train], given[:train])
                _write_idx(folder / "test", pixels[-_TEST_IMAGES:], given[-_TEST_IMAGES:])
            begin = time.perf_counter()
            _load(tables, data)
            seconds.setdefault(name, []).append(time.perf_counter() - begin)
        shutil.rmtree(folder / "wh")
        assert number <= rounds
    took = {name: median(values[1:]) for name, values in seconds.items()}
    figures.add("IDX: first", took["first"], "s")
    figures.add("IDX: unchanged reload / first", took["unchanged"] / took["first"], "x", 0.20)
    figures.add("IDX: 1 % more / first", took["more"] / took["first"], "x", 0.30)
    figures.add("IDX: labels of 1 % / first", took["labels"] / took["first"], "x", 0.30)


def _spark_itself(spark: SparkSession, root: Path, to: Path) -> None:
    files = spark.read.format("binaryFile").option("recursiveFileLookup", "true").load(str(root))
    files.write.format("delta").mode("overwrite").save(str(to))


def _load(tables: Tables, data: Data) -> None:
    """What the `ingest` step does, its ledger's row aside."""
    source = open_source(tables.spark, data)
    state, marker = source.state(), Path(tables.location) / "state"
    if state is not None and marker.exists() and marker.read_text() == state:
        return
    done = ingest.load(tables, source, ingest.Rules.of(data))
    assert done.seen == done.used, done
    marker.write_text(state or "")


def _tables(spark: SparkSession, folder: Path) -> Tables:
    tables = Tables(spark, str(folder))
    tables.ensure()
    return tables


def _data(**data: object) -> Data:
    found: Data = TypeAdapter(Data).validate_python(data)
    return found


def _originals() -> Iterator[bytes]:
    if (found := os.environ.get("LOOKALIKE_DATA")) and (Path(found) / "grocery").is_dir():
        yield from (path.read_bytes() for path in sorted(Path(found).rglob("grocery/**/*.jpg")))
        return
    name = "train-images-idx3-ubyte.gz"
    for pixels in idx.parse((SAMPLE / name).read_bytes(), idx.IMAGES, name):
        file = io.BytesIO()
        Image.fromarray(pixels).resize((348, 348)).save(file, "JPEG", quality=95)
        yield file.getvalue()


def _write_photos(folder: Path, count: int) -> int:
    random = np.random.default_rng(0)
    originals = list(_originals())
    size = 0
    for number in range(count):
        data = originals[number % len(originals)]
        if number >= len(originals):
            data = _cropped(data, random)
        path = folder / f"{number // 1000:03d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        size += len(data)
    return size


def _cropped(data: bytes, random: np.random.Generator) -> bytes:
    image = Image.open(io.BytesIO(data))
    left, top = (int(random.integers(0, side // 6)) for side in image.size)
    box = (left, top, left + 5 * image.width // 6, top + 5 * image.height // 6)
    file = io.BytesIO()
    image.crop(box).save(file, "JPEG", quality=88)
    return file.getvalue()


def _add_photos(root: Path, files: list[str], seed: int) -> Iterator[Path]:
    random = np.random.default_rng(1000 + seed)
    for name in files:
        path = root / "more" / name.replace("/", "-")
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(_cropped((root / name).read_bytes(), random))
        yield path


def _write_feed(path: Path, files: list[str], changed: int) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["item_id", "path", "label", "price"])
        rows.writerows(
            [name, name, name[:3], 20 if i < changed else 10] for i, name in enumerate(files)
        )


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _idx_images(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels, repeated where there are fewer: Fashion-MNIST, else the sample."""
    found = Path(os.environ.get("LOOKALIKE_DATA", "")) / "fashion-mnist"
    folder = found if found.is_dir() else SAMPLE
    pixels, labels = (
        np.concatenate(
            [
                idx.parse((folder / f"{split}-{name}").read_bytes(), kind, name)
                for split in ("train", "t10k")
            ]
        )
        for name, kind in (
            ("images-idx3-ubyte.gz", idx.IMAGES),
            ("labels-idx1-ubyte.gz", idx.LABELS),
        )
    )
    rows = np.arange(count) % len(pixels)
    return pixels[rows], labels[rows]


def _write_idx(path: Path, pixels: np.ndarray, labels: np.ndarray) -> None:
    for suffix, values in (("i", pixels), ("l", labels)):
        head = bytes([0, 0, 8, values.ndim])
        head += b"".join(n.to_bytes(4, "big") for n in values.shape)
        path.with_name(f"{path.name}-{suffix}").write_bytes(
            gzip.compress(head + values.tobytes(), 1)
        )


if __name__ == "__main__":
    main()
