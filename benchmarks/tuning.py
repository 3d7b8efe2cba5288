"""What a search gains from a second slot and from learning, and what a trial costs beside training.

    uv run benchmarks/tuning.py [--json PATH] [--items 6000] [--seeds 3] [--only trials]

Fashion-MNIST, or the sample, 28 x 28; its last 1,000 images are for validation alone. Trials by
SparkTrials in one-threaded processes. Of trials, and of a recipe that takes what they find:

- slots: one search of 6 equal trials, one at a time and two at a time, in turns;
- overhead: of the searches one at a time, the seconds that are not training, by trials, as the
  share that they would be of trials of a minute;
- learning: searches of 12 trials of equal steps, by TPE and at random, from equal seeds;
- recipe: `train` of conf/demo.yaml on the shipped sample, with its own values and with those that
  its own search found, in one process: the test images among the training images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean, median
from typing import Any

import numpy as np
from _figures import Figures, asked, in_process
from _snapshots import clothes, write_snapshot

from lookalike import config, metrics
from lookalike.config import Spark, Train, Tune
from lookalike.images import Preprocessing
from lookalike.lake.session import close_session, open_session, preloaded
from lookalike.model import tune
from lookalike.model.tune import Trial, Work
from lookalike.planning import BatchShape

RECIPE = Path(__file__).parents[1] / "conf" / "demo.yaml"
BATCH = BatchShape(10, 8)
HELD_OUT = 1_000
OWN = "its own values"
SPACE = {
    "learning_rate": {"log_uniform": [1e-4, 3e-2]},
    "weight_decay": {"log_uniform": [1e-4, 0.3]},
    "warmup": {"uniform": [0.0, 0.6]},
    "embedding_size": {"choice": [8, 32, 128]},
    "auxiliary.weight": {"choice": [0.0, 0.5, 2.0]},
    "loss": {
        "choice": [
            {"name": "triplet", "margin": {"uniform": [0.05, 0.5]}},
            {"alpha": {"uniform": [1.0, 5.0]}, "beta": {"uniform": [5.0, 50.0]}},
        ]
    },
}


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--items", type=int, default=6_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60, help="of a trial that is scored")
    parser.add_argument("--only", choices=["trials", "recipe"])
    parser.add_argument("--one", nargs=3, metavar=("SNAPSHOT", "TRAIN", "SEED"), help="in here")
    given = parser.parse_args()
    if given.one:
        uri, train, seed = given.one
        print(json.dumps(_tested(uri, Train.model_validate_json(train), int(seed))))
        return
    spark = open_session(Spark(master="local[2]"), "benchmark")
    try:
        with tempfile.TemporaryDirectory() as folder, preloaded(spark, tune.PRELOADED):
            title = (
                f"{given.items:,} images of 28 x 28, trials of {given.steps} steps, one thread each"
            )
            figures = Figures("tuning", title)
            if given.only != "recipe":
                _trials(spark, _write(Path(folder) / "snapshot", given.items), given, figures)
            if given.only != "trials":
                _recipe(spark, Path(folder) / "sample", given.seeds, figures)
    finally:
        close_session(spark)
    figures.show(given.json)


def _trials(spark: Any, uri: str, given: argparse.Namespace, figures: Figures) -> None:
    equal = _work(uri, trials=6, steps=given.steps, space={"warmup": {"uniform": [0.1, 0.11]}})
    _timed(spark, replace(equal, tune=_with(equal.tune, trials=1)))  # the worker's imports
    rounds = []
    for _ in range(given.rounds):
        one = _timed(spark, equal)
        two = _timed(spark, replace(equal, tune=_with(equal.tune, parallelism=2)))
        rounds.append((one, two))
    speed = median(one[0] / two[0] for one, two in rounds)
    figures.add("two slots / one, trials a second", speed, "x", 1.6, "higher")
    beside = median((one[0] - sum(t.fitting for t in one[1])) / len(one[1]) for one, _ in rounds)
    figures.add("beside fit, a trial, of a trial of 60 s", beside / 60, "", 0.10)
    figures.add("beside fit, a trial", beside, "s")
    figures.add("a trial", median(t.end - t.begin for (_, ts), _ in rounds for t in ts), "s")
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        for algorithm in ("tpe", "random"):
            work = _work(
                uri, trials=12, steps=given.steps, space=SPACE, algorithm=algorithm, parallelism=2
            )
            trials = tune.search(spark, replace(work, seed=seed), _nobody)
            found.setdefault(algorithm, []).append(tune.best(trials).score or 0.0)
    for algorithm, scores in found.items():
        figures.add(f"best MAP@R of 12 trials, {algorithm}", mean(scores), better="higher")
    wins = sum(a > b for a, b in zip(found["tpe"], found["random"], strict=True))
    figures.add(f"seeds of {given.seeds} that TPE is better with", wins, better="higher")


def _recipe(spark: Any, folder: Path, seeds: int, figures: Figures) -> None:
    recipe = config.load(RECIPE)
    train = recipe.train.model_copy(update={"ranks": 1})
    pixels, labels = clothes(None, sample=True)
    write_snapshot(
        folder, [image.tobytes() for image in pixels], labels, Preprocessing(28, 1), train.batch,
        "raw", held_out=HELD_OUT,
    )  # fmt: skip
    found: dict[str, list[dict[str, float]]] = {OWN: [], "the search's": []}
    for seed in range(seeds):
        alone = train.model_copy(update={"threads": 1})
        best = tune.best(tune.search(spark, Work(str(folder), alone, recipe.tune, seed), _nobody))
        tried = (train, config.with_values(train, best.values))
        for scores, with_these in zip(found.values(), tried, strict=True):
            arguments = str(folder), with_these.model_dump_json(), str(seed)
            scores.append(in_process(__file__, "--one", *arguments))
    for name in ("MAP@R", "P@1"):
        for which, scores in found.items():
            values = [score[name] for score in scores]
            spread = float(np.ptp(values) / 2)
            # What the search found is to beat what is written there.
            goal = None if which == OWN else mean(score[name] for score in found[OWN])
            label = f"demo, {which}: {name}"
            figures.add(label, mean(values), "", goal, better="higher", spread=spread)


def _tested(uri: str, train: Train, seed: int) -> dict[str, float]:
    from lookalike.model import fit, process
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    process.set_up(train)
    network = fit.fit(Snapshot.open(uri), train, seed, Ranks()).network
    (queries, asked_for), (gallery, labels) = (clothes(None, part, sample=True)
                                               for part in ("t10k", "train"))  # fmt: skip
    vectors = [network.predict(x[..., np.newaxis], batch_size=500, verbose=0)
               for x in (queries, gallery)]  # fmt: skip
    scores = metrics.exact_scores(vectors[0], asked_for, vectors[1], labels)
    return {"MAP@R": scores.map_at_r, "P@1": scores.p_at_1}


def _work(uri: str, **values: Any) -> Work:
    train = Train(
        threads=1,
        classes_per_batch=BATCH.classes,
        images_per_class=BATCH.images,
        precision="float32",
    )
    given = {"algorithm": "random", "parallelism": 1} | values
    return Work(uri, train, Tune(budget={"steps": given.pop("steps")}, **given), 1)


def _with(given: Tune, **values: Any) -> Tune:
    return given.model_copy(update=values)


def _timed(spark: Any, work: Work) -> tuple[float, list[Trial]]:
    begin = time.perf_counter()
    trials = tune.search(spark, work, _nobody)
    assert all(trial.error is None for trial in trials), trials
    return time.perf_counter() - begin, trials


def _nobody(_: Trial) -> None:
    """Nobody listens."""


def _write(folder: Path, count: int) -> str:
    pixels, labels = clothes(count + HELD_OUT)
    files = [image.tobytes() for image in pixels]
    write_snapshot(folder, files, labels, Preprocessing(28, 1), BATCH, "raw", held_out=HELD_OUT)
    return str(folder)


if __name__ == "__main__":
    main()
