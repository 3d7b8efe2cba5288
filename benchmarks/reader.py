"""Claim: batches come several times as fast as by Petastorm's own ways, and JPEG as by tf.data.

60,000 images of 28 x 28 (Fashion-MNIST, where the folder `LOOKALIKE_DATA` has it, else the shipped
sample over and over), decoded: lookalike's `raw` snapshot, against Petastorm with a TransformSpec,
against tf.io.decode_raw behind a Petastorm reader, and an in-memory numpy sampler to compare with.
20,000 JPEG files of 224 x 224 (random crops of `LOOKALIKE_DATA`/grocery): the `encoded` snapshot
against tf.data with tf.io.decode_jpeg on the same files.

All make batches of 8 classes x 8 images, as tensors of tf.data: lookalike's as training takes them
("arrays": before they are tensors), Petastorm's and tf.data's by their own means: shuffled, 8 of a
class together, 8 of those a batch (which may bring a class twice); "plain" is without that, but 64
shuffled images a batch, which is less to do. Each runs in a process of its own, on as many threads,
in turns; a pass to warm up, then passes that count. Peaks are of resident memory, TensorFlow's
included.

    uv run benchmarks/reader.py [--json PATH] [--images N] [--photos N] [--rounds N] [--passes N]
"""

from __future__ import annotations

import io
import itertools
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from _figures import Figures, asked, in_process
from _snapshots import clothes, write_snapshot
from PIL import Image

from lookalike import planning
from lookalike.images import Preprocessing
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "data" / "fashion-mnist-sample"
BATCH = BatchShape(8, 8)
THREADS = 2
BUFFER = 64 * 2**20
SHUFFLED = 10_000  # images that the others shuffle among
_OPEN = ExitStack()
"""What is closed when all passes are done."""


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--photos", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--passes", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help="one pass, in here")
    arguments = parser.parse_args()
    if arguments.one:
        name, folder = arguments.one
        with _OPEN:
            _measure(CONTENDERS[name], Path(folder), arguments.passes)
        return
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as name:
        folder = Path(name)
        _write_images(folder, arguments.images)
        _write_photos(folder, arguments.photos)
        found: dict[str, list[dict[str, float]]] = {name: [] for name in CONTENDERS}
        for _ in range(arguments.rounds):
            for contender, runs in found.items():
                runs.append(
                    in_process(
                        __file__, "--one", contender, str(folder), "--passes", str(arguments.passes)
                    )
                )
    pace = {name: median(run["pace"] for run in runs) for name, runs in found.items()}
    figures = Figures(
        "reader",
        f"{arguments.images:,} images of 28 x 28, {arguments.photos:,} JPEG of 224 x 224; "
        f"{BATCH} a batch, {THREADS} threads",
    )
    for name, rival, goal in (
        ("raw / Petastorm with TransformSpec", "TransformSpec", 5.0),
        ("raw / Petastorm with TransformSpec, plain", "plain TransformSpec", None),
        ("raw / Petastorm with decode_raw", "decode_raw", 3.0),
        ("raw / Petastorm with decode_raw, plain", "plain decode_raw", None),
        ("raw, arrays / numpy in memory", "numpy", None),
        ("encoded / tf.data with decode_jpeg", "decode_jpeg", 1.0),
        ("encoded / tf.data with decode_jpeg, plain", "plain decode_jpeg", None),
    ):
        ours = "encoded" if "jpeg" in rival else name.partition(" /")[0]
        figures.add(name, pace[ours] / pace[rival], "x", goal, "higher")
    for name, value in pace.items():
        figures.add(f"{name}: pace", value, "images/s", None, "higher")
    for name, runs in found.items():
        figures.add(f"{name}: peak memory", median(run["peak"] for run in runs), "MiB")
    figures.show(arguments.json)


def _measure(batches: Callable[[Path, int], Iterator[Any]], folder: Path, passes: int) -> None:
    paces = []
    for number in range(passes + 1):
        begin, images = time.perf_counter(), 0
        for batch in batches(folder, number):
            images += len(batch)
        paces.append(images / (time.perf_counter() - begin))
    status = Path("/proc/self/status")
    peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    print(json.dumps({"pace": median(paces[1:]), "peak": int(peak[1]) / 1024 if peak else 0.0}))


# --- the contenders: the images of each batch, uint8 (64, size, size, channels) --------------


def _arrays(kind: str) -> Callable[[Path, int], Iterator[Any]]:
    opened: list[tuple[Snapshot, Shard]] = []

    def batches(folder: Path, number: int) -> Iterator[Any]:
        if not opened:
            opened.append(_opened(folder / kind))
        return (batch.pixels for batch in epoch_batches(*opened[0], number))

    return batches


def _tensors(kind: str) -> Callable[[Path, int], Iterator[Any]]:
    streams: list[tuple[int, Iterator[Any]]] = []  # one for all epochs, as in training

    def batches(folder: Path, number: int) -> Iterator[Any]:
        from lookalike.config import Augment
        from lookalike.model import feed

        if not streams:
            snapshot, shard = _opened(folder / kind)
            steps = planning.steps_per_epoch(snapshot.train_items, 1, BATCH)
            stream = feed.stream(snapshot, shard, Augment(), number, 0)
            streams.append((steps, _OPEN.enter_context(closing(stream))))
        steps, opened = streams[0]
        return (pixels for pixels, *_ in itertools.islice(opened, steps))

    return batches


def _opened(folder: Path) -> tuple[Snapshot, Shard]:
    """Once, as training does."""
    snapshot = Snapshot.open(str(folder))
    return snapshot, Shard(0, 1, BATCH, 1, BUFFER // snapshot.item_bytes, threads=THREADS)


def _petastorm(folder: Path, number: int, **options: Any) -> Any:
    from petastorm import make_batch_reader

    return make_batch_reader(
        f"file://{folder}/rows",
        reader_pool_type="thread",
        workers_count=THREADS,
        num_epochs=1,
        seed=number,
        **options,
    )


def _transform_spec(folder: Path, number: int, plain: bool = False) -> Iterator[Any]:
    from petastorm import TransformSpec
    from petastorm.tf_utils import make_petastorm_dataset

    def decoded(rows: Any) -> Any:
        rows["image"] = rows["image"].map(
            lambda data: np.frombuffer(data, np.uint8).reshape(28, 28, 1)
        )
        return rows

    spec = TransformSpec(decoded, edit_fields=[("image", np.uint8, (28, 28, 1), False)])
    with _petastorm(folder, number, transform_spec=spec) as reader:
        rows = make_petastorm_dataset(reader).unbatch().map(lambda row: (row.image, row.label))
        yield from _batched(rows.shuffle(SHUFFLED, seed=number), plain)


def _decode_raw(folder: Path, number: int, plain: bool = False) -> Iterator[Any]:
    import tensorflow as tf
    from petastorm.tf_utils import make_petastorm_dataset

    def decoded(row: Any) -> Any:
        return tf.reshape(tf.io.decode_raw(row.image, tf.uint8), (-1, 28, 28, 1)), row.label

    with _petastorm(folder, number) as reader:
        rows = make_petastorm_dataset(reader).map(decoded).unbatch()
        yield from _batched(rows.shuffle(SHUFFLED, seed=number), plain)


def _decode_jpeg(folder: Path, number: int, plain: bool = False) -> Iterator[Any]:
    import tensorflow as tf

    paths = np.array(sorted(str(path) for path in (folder / "photos").iterdir()))
    labels = np.load(folder / "photos.npy")
    order = np.random.default_rng(number).permutation(len(paths))
    files = tf.data.Dataset.from_tensor_slices((paths[order], labels[order]))

    def decoded(path: Any, label: Any) -> Any:
        image = tf.io.decode_jpeg(tf.io.read_file(path), channels=3)
        return tf.ensure_shape(image, (224, 224, 3)), label

    if plain:
        yield from _batched(files.map(decoded, num_parallel_calls=THREADS), plain)
    else:  # paths are grouped, which is quicker than images
        grouped = _grouped(files).unbatch().unbatch()
        yield from _batched(grouped.map(decoded, num_parallel_calls=THREADS), plain=True)


def _grouped(rows: Any) -> Any:
    import tensorflow as tf

    k, p = BATCH.images, BATCH.classes
    of_class = rows.group_by_window(
        lambda _, label: tf.cast(label, tf.int64), lambda _, few: few.batch(k), window_size=k
    )
    whole = of_class.filter(lambda few, _: tf.shape(few)[0] == k)
    return whole.batch(p, drop_remainder=True)


def _batched(rows: Any, plain: bool) -> Iterator[Any]:
    import tensorflow as tf

    options = tf.data.Options()
    options.threading.private_threadpool_size = THREADS
    data = rows.batch(BATCH.size, drop_remainder=True) if plain else _grouped(rows)
    for images, _ in data.with_options(options).prefetch(2):
        yield tf.reshape(images, (-1, *images.shape[-3:]))


def _numpy(folder: Path, number: int) -> Iterator[Any]:
    """All in memory: what is the least that sampling P x K takes."""
    if not _HELD:
        _HELD.extend((np.load(folder / "images.npy"), np.load(folder / "labels.npy")))
    pixels, labels = _HELD
    random = np.random.default_rng(number)
    rows = [random.permutation(np.flatnonzero(labels == c)) for c in np.unique(labels)]
    for _ in range(len(pixels) // BATCH.size):
        chosen = random.permutation(len(rows))[: BATCH.classes]
        yield pixels[np.concatenate([random.choice(rows[c], BATCH.images) for c in chosen])]


_HELD: list[np.ndarray] = []

CONTENDERS: dict[str, Callable[[Path, int], Iterator[Any]]] = {
    "raw": _tensors("raw"),
    "raw, arrays": _arrays("raw"),
    "TransformSpec": _transform_spec,
    "plain TransformSpec": partial(_transform_spec, plain=True),
    "decode_raw": _decode_raw,
    "plain decode_raw": partial(_decode_raw, plain=True),
    "numpy": _numpy,
    "encoded": _tensors("encoded"),
    "encoded, arrays": _arrays("encoded"),
    "decode_jpeg": _decode_jpeg,
    "plain decode_jpeg": partial(_decode_jpeg, plain=True),
}

# --- the data --------------------------------------------------------------------------------


def _write_images(folder: Path, count: int) -> None:
    pixels, labels = clothes(count)
    pixels = pixels[..., None]
    np.save(folder / "images.npy", pixels)
    np.save(folder / "labels.npy", labels)
    rows = pa.table({"image": pa.array([image.tobytes() for image in pixels], pa.binary()),
                     "label": pa.array(labels)})  # fmt: skip
    (folder / "rows").mkdir()
    part = -(-count // 10)  # ten files, as a Spark job would write
    for number, start in enumerate(range(0, count, part)):
        file = folder / "rows" / f"part-{number}.parquet"
        pq.write_table(rows.slice(start, part), file, row_group_size=1000)
    files = [image.tobytes() for image in pixels]
    write_snapshot(folder / "raw", files, labels, Preprocessing(28, 1), BATCH, "raw")


def _write_photos(folder: Path, count: int) -> None:
    random = np.random.default_rng(0)
    root = Path(os.environ.get("LOOKALIKE_DATA", "")) / "grocery"
    originals = sorted(root.rglob("*.jpg")) if root.is_dir() else []
    each = -(-count // max(1, len(originals) or 100))
    (folder / "photos").mkdir()
    files: list[bytes] = []
    labels: list[str] = []
    for original in originals or range(100):
        if isinstance(original, Path):
            image, label = Image.open(original).convert("RGB"), original.parent.name
        else:  # no photos at hand: noise, coarse as photos are
            noise = random.integers(256, size=(40, 40, 3), dtype=np.uint8)
            image, label = Image.fromarray(noise).resize((348, 348)), str(original % 20)
        for _ in range(min(each, count - len(files))):
            file = io.BytesIO()
            left, top = (int(random.integers(0, side // 6)) for side in image.size)
            box = (left, top, left + 5 * image.width // 6, top + 5 * image.height // 6)
            image.resize((224, 224), box=box).save(file, "JPEG", quality=88)
            files.append(file.getvalue())
            labels.append(label)
            (folder / "photos" / f"{len(files):06d}.jpg").write_bytes(files[-1])
    _, numbers = np.unique(labels, return_inverse=True)
    np.save(folder / "photos.npy", numbers)
    write_snapshot(folder / "encoded", files, numbers, Preprocessing(224, 3), BATCH, "encoded")


if __name__ == "__main__":
    main()
