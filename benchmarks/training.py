"""What training costs beside a bare loop, on one rank and on two, and what its start is made of.

    uv run benchmarks/training.py [--json PATH] [--rounds 3] [--items 12000]

Images of 28 x 28, batches of 10 x 8, the network and the loss of the demo, one thread a process.

- bare: a tf.function over the same network, loss and optimiser, batches in memory;
- fit: `lookalike`'s training in one process, from a snapshot;
- auto: the same in the precision that `train.precision: auto` takes on this machine;
- 1 rank, 2 ranks: `fit` as Horovod ranks, also with batches of 10 x 32, for gradients are as many
  of many images as of few, and with images of 64 x 64 x 3 (the same, enlarged) as photos have;
- beside: two of `fit` at once that know nothing of one another: what two ranks could reach at most
  on this machine, whose cores share caches, memory and clock.

Horovod's threads and Spark's driver want a part of a core beside the ranks: on two cores they take
it from them.

Each in processes of its own, in turns; the first epoch of each is not counted.
"""

from __future__ import annotations

import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from _figures import Figures, asked, in_process
from _snapshots import clothes, write_snapshot
from PIL import Image

from lookalike.config import Train
from lookalike.images import Preprocessing
from lookalike.planning import BatchShape

SAMPLE = Path(__file__).parents[1] / "data" / "fashion-mnist-sample"
BATCH = BatchShape(10, 8)
LARGE = BatchShape(10, 32)
ENLARGED = Preprocessing(64, 3)
SMALL = "small"
EPOCHS = 4
SEED = 1


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--items", type=int, default=12_000)
    parser.add_argument("--one", nargs=2, help="measure one, in this process")
    given = parser.parse_args()
    if given.one:
        kind, folder = given.one
        print(json.dumps(_KINDS[kind](Path(folder))))
        return
    kinds = ("bare", "fit", "auto", "beside", "one", "two",
             "one large", "two large", "one enlarged", "two enlarged")  # fmt: skip
    rounds: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        _write(Path(folder), given.items)
        for _ in range(given.rounds):
            rounds.append({kind: _measured(kind, folder) for kind in kinds})
        start = in_process(__file__, "--one", "start", folder)
    title = f"{given.items:,} images of 28 x 28, batches of 10 x 8, one thread a process"
    figures = Figures("training", title)

    def ratio(above: str, below: str) -> float:
        return median(r[above]["pace"] / r[below]["pace"] for r in rounds)

    figures.add("fit / bare loop, images/s", ratio("fit", "bare"), "x", 0.95, "higher")
    figures.add("one Horovod rank / fit", ratio("one", "fit"), "x", 0.97, "higher")
    figures.add("two ranks / one, each rank", ratio("two", "one") / 2, "x", 0.85, "higher")
    for name, what in (("large", "batches of 10 x 32"), ("enlarged", "images of 64 x 64 x 3")):
        each = ratio(f"two {name}", f"one {name}") / 2
        figures.add(f"the same, {what}", each, "x", None, "higher")
    beside = ratio("beside", "fit") / 2
    figures.add("two processes that share nothing / one, each", beside, "x", None, "higher")
    figures.add("two ranks / two such processes", ratio("two", "beside"), "x", None, "higher")
    figures.add("fit, precision auto / float32", ratio("auto", "fit"), "x", None, "higher")
    for name, kind in (("", "fit"), (", two ranks", "two")):
        waiting = median(r[kind]["waiting"] for r in rounds)
        figures.add(f"share of a step waiting for data{name}", waiting, "", 0.03)
    figures.add("bare loop", median(r["bare"]["pace"] for r in rounds), "images/s")
    for name, seconds in start.items():
        figures.add(f"until the first step: {name}", seconds, "s")
    figures.show(given.json)


def _measured(kind: str, folder: str) -> dict[str, float]:
    if kind != "beside":
        return in_process(__file__, "--one", kind, folder)
    with ThreadPoolExecutor(2) as pool:
        alone = [pool.submit(in_process, __file__, "--one", "fit", folder) for _ in range(2)]
        return {"pace": sum(each.result()["pace"] for each in alone)}


def _train(ranks: int = 1, batch: BatchShape = BATCH) -> Train:
    return Train(
        ranks=ranks,
        threads=1,
        classes_per_batch=batch.classes,
        images_per_class=batch.images,
        epochs=EPOCHS,
        learning_rate=0.001,
        precision="float32",
    )


def _bare(folder: Path) -> dict[str, float]:
    from lookalike.model import losses, networks, process  # first: it says which Keras

    import tensorflow as tf  # isort: skip
    from lookalike.model.batches import Shard, epoch_batches
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    train = _train()
    process.set_up(train)
    snapshot = Snapshot.open(str(folder / SMALL))
    shard = Shard(0, 1, BATCH, SEED, 10**6)
    batches = [
        (tf.constant(b.pixels), tf.constant(b.classes)) for b in epoch_batches(snapshot, shard, 0)
    ]
    network = networks.make(train.network, snapshot.preprocessing, train.trained_size)
    objective = losses.make(train, len(snapshot.classes), Ranks())
    schedule = tf.keras.optimizers.schedules.CosineDecay(train.learning_rate, 10_000)
    optimizer = tf.keras.optimizers.AdamW(schedule, weight_decay=train.weight_decay)

    def step(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = objective(classes, network(images, training=True))
        gradients = tape.gradient(value, network.trainable_variables)
        optimizer.apply_gradients(zip(gradients, network.trainable_variables, strict=True))
        return value

    stepped = tf.function(step)
    paces = []
    for _ in range(EPOCHS):
        begin = time.perf_counter()
        for images, classes in batches:
            value = stepped(images, classes)
        float(value)
        paces.append(len(batches) * BATCH.size / (time.perf_counter() - begin))
    return {"pace": median(paces[1:])}


def _fit(folder: Path, precision: str = "float32") -> dict[str, float]:
    from lookalike.model.ranks import Ranks

    train = _train().model_copy(update={"precision": precision})
    return _fitted(str(folder / SMALL), Ranks(), train)


def _fitted(folder: str, ranks: Any, train: Train) -> dict[str, float]:
    from lookalike.model import fit, process
    from lookalike.model.snapshot import Snapshot

    process.set_up(train, ranks)
    fitted = fit.fit(Snapshot.open(folder), train, SEED, ranks)
    return {
        "pace": median(epoch.images_per_second for epoch in fitted.epochs[1:]),
        "waiting": median(epoch.waiting for epoch in fitted.epochs[1:]),
    }


def _ranks(
    folder: Path, count: int, batch: BatchShape = BATCH, images: str = SMALL
) -> dict[str, float]:
    from horovod.spark import run

    from lookalike.config import Spark
    from lookalike.lake.session import open_session

    def rank() -> dict[str, float]:
        from lookalike.model.ranks import Ranks

        return fitted(place, Ranks.all(), train)

    open_session(Spark(master=f"local[{count}]"), "benchmark")
    fitted, place, train = _fitted, str(folder / images), _train(count, batch)
    found: dict[str, float] = run(rank, num_proc=count, use_gloo=True, verbose=0)[0]
    return found


def _start(folder: Path) -> dict[str, float]:
    """Seconds between moments of a training that Horovod starts in Spark tasks, from the process's
    begin to the first step."""
    import psutil

    born = psutil.Process().create_time()
    from horovod.common.util import gloo_built
    from horovod.spark import run

    from lookalike.config import Spark
    from lookalike.lake.session import open_session

    brought = time.time()
    open_session(Spark(master="local[2]"), "benchmark")
    opened = time.time()
    gloo_built(verbose=False)

    def rank() -> list[float]:
        import psutil

        moments = [psutil.Process().create_time()]
        from lookalike.model import fit, process, progress
        from lookalike.model.ranks import Ranks
        from lookalike.model.snapshot import Snapshot

        moments.append(time.time())
        ranks = Ranks.all()
        moments.append(time.time())

        class First(progress.Watcher):
            def step(self, done: int, total: int) -> None:  # noqa: ARG002
                if len(moments) == 3:
                    moments.append(time.time())

        process.set_up(train, ranks)
        fit.fit(Snapshot.open(place), train, SEED, ranks, First())
        return moments

    place, train = str(folder / SMALL), _train(2).model_copy(update={"epochs": 1})
    asked = time.time()
    started, imported, joined, stepped = run(rank, num_proc=2, use_gloo=True, verbose=0)[0]
    return {
        "Python and imports": brought - born,
        "a Spark session": opened - brought,
        "Horovod asks whether it can (beside the rest)": asked - opened,
        "Spark tasks, Horovod's services": started - asked,
        "a rank's imports": imported - started,
        "ranks find one another": joined - imported,
        "network, first vectors of validation, first batch, tracing": stepped - joined,
        "in all": opened - born + stepped - asked,
    }


_KINDS = {
    "bare": _bare,
    "fit": _fit,
    "auto": lambda folder: _fit(folder, "auto"),
    "one": lambda folder: _ranks(folder, 1),
    "two": lambda folder: _ranks(folder, 2),
    "one large": lambda folder: _ranks(folder, 1, LARGE),
    "two large": lambda folder: _ranks(folder, 2, LARGE),
    "one enlarged": lambda folder: _ranks(folder, 1, images="enlarged"),
    "two enlarged": lambda folder: _ranks(folder, 2, images="enlarged"),
    "start": _start,
}


def _write(folder: Path, count: int) -> None:
    pixels, labels = clothes(count)
    small = [image.tobytes() for image in pixels]
    write_snapshot(folder / SMALL, small, labels, Preprocessing(28, 1), LARGE, "raw", 500)
    side = (ENLARGED.size, ENLARGED.size)
    few = pixels[: count // 4]
    large = [Image.fromarray(image).resize(side).convert("RGB").tobytes() for image in few]
    write_snapshot(folder / "enlarged", large, labels[: len(few)], ENLARGED, BATCH, "raw", 500)


if __name__ == "__main__":
    main()
