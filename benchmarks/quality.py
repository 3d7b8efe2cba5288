"""Claim: the shipped recipe's encoder tells garments apart better than other losses on its budget.

All of Fashion-MNIST, in a class-stratified split of this project's own, not the official one:
trained on the 60,000 images of its first pair of files, judged with the 10,000 of its second.

- A: queries are the test images, the gallery is the training images;
- B: queries and gallery are the test images, the query itself left out.

Search is exact, by cosine. Rows, each the mean over seeds, beside it half the range:

- recipe: `train` of conf/fashion_mnist.yaml, on its ranks;
- hour: the same of conf/fashion_mnist_hour.yaml;
- without_detail: the recipe with train.detail 0;
- multi_similarity: that with auxiliary.weight 0;
- triplet, normalised_softmax, supervised_contrastive: the same network and budget, that loss alone;
- notebook: what a first notebook does, as it runs: a small CNN, Multi-Similarity with the paper's
  beta, Adam, images as they are, but scaled to [0, 1] twice. Its two ranks average no gradients and
  draw from all images, so that one of them is as good as both: it has one of the cores, for as
  many epochs as fit into the recipe's time;
- raw_pixels: nothing is trained.

Then two classes are kept out of training, each pair in a training of its own (--unseen: only that,
--no-unseen: not):

- within: queries and gallery are the unseen classes' test images, the query itself left out;
- full gallery: the same queries, among the 60,000 training images of all ten classes.

Trainings are of about 20 minutes on 2 cores each, the hour's of as long as it says: all rows and
seeds take more than a working day.

    uv run benchmarks/quality.py [--json PATH] [--seeds 3] [--only NAME ...] [--epochs N]
        [--items N] [--unseen | --no-unseen]
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from argparse import BooleanOptionalAction
from pathlib import Path
from typing import Any

import numpy as np
from _figures import Figures, asked, in_process
from _snapshots import clothes, write_snapshot
from rich.console import Console
from rich.table import Table

from lookalike import config, metrics
from lookalike.config import (
    Augment,
    Auxiliary,
    MultiSimilarity,
    NormalisedSoftmax,
    SupervisedContrastive,
    Train,
    Triplet,
)
from lookalike.images import Preprocessing

ROOT = Path(__file__).parents[1]
RECIPE = ROOT / "conf" / "fashion_mnist.yaml"
HOUR = ROOT / "conf" / "fashion_mnist_hour.yaml"
RAW = "raw_pixels"
NAMES = (
    "recipe", "hour", "without_detail", "multi_similarity", "triplet", "normalised_softmax",
    "supervised_contrastive", "notebook", RAW,
)  # fmt: skip
MEASURES = {
    "p_at_1": "P@1", "p_at_10": "P@10", "knn_accuracy": "kNN10",
    "map_at_10": "MAP@10", "map_at_r": "MAP@R", "full_map": "full mAP",
}  # fmt: skip
GOALS = {
    "recipe": {
        "A P@1": 0.920, "A kNN10": 0.932,
        "B P@1": 0.912, "B MAP@10": 0.890, "B MAP@R": 0.840, "B full mAP": 0.895,
    },
    "hour": {"A P@1": 0.930, "B MAP@R": 0.880},
}  # fmt: skip
OF_UNSEEN = ("recipe", "without_detail", RAW)
UNSEEN = {"Pullover and Shirt": (2, 6), "Sandal and Shirt": (5, 6)}
PROBE = 4_000
"""Images that two recipes' paces are compared on."""
VALIDATION = 500


def main() -> None:
    parser = asked(__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument("--epochs", type=int, help="else as the recipe says")
    parser.add_argument("--items", type=int, help="first training images; else all")
    parser.add_argument(
        "--unseen", action=BooleanOptionalAction, help="only, or no classes kept out of training"
    )
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help="one training, in here")
    parser.add_argument("--pace", choices=NAMES, help="how fast it trains, in here")
    parser.add_argument("--without", type=int, nargs="+", default=[], help="classes kept out")
    given = parser.parse_args()
    if given.unseen and not set(given.only) & set(OF_UNSEEN):
        parser.error(f"--unseen has the rows {', '.join(OF_UNSEEN)}")
    if given.one:
        name, seed = given.one
        print(json.dumps(_one(name, int(seed), given.items, given.epochs, given.without)))
        return
    if given.pace:
        print(json.dumps(_pace(given.pace)))
        return
    passed_on = [
        text
        for key in ("items", "epochs")
        if (value := getattr(given, key)) is not None
        for text in (f"--{key}", str(value))
    ]
    pixels, _ = clothes(given.items)
    test, _ = clothes(None, "t10k")
    title = (
        f"{len(pixels):,} training and {len(test):,} test images of Fashion-MNIST, a "
        f"class-stratified split of this project's own, not the official one; {given.seeds} seeds, "
        "the mean and half the range"
    )
    Console().print(title)
    figures = Figures("quality", title)
    seeds = range(1, given.seeds + 1)
    if given.unseen is not True:
        runs = {name: _runs(name, seeds, passed_on) for name in given.only}
        _show("", runs)
        _add(figures, runs)
    for kept_out, numbers in UNSEEN.items() if given.unseen is not False else ():
        without = [*passed_on, "--without", *map(str, numbers)]
        runs = {name: _runs(name, seeds, without) for name in given.only if name in OF_UNSEEN}
        _show(f"{kept_out} kept out of training", runs)
        _add(figures, runs, f"{kept_out}: ")
    figures.show(given.json)


# --- figures ----------------------------------------------------------------------------------

Runs = dict[str, list[dict[str, float]]]
"""Figures of every seed, by the row's name."""


def _runs(name: str, seeds: range, arguments: list[str]) -> list[dict[str, float]]:
    found = []
    for seed in seeds if name != RAW else range(1):  # raw pixels have no seed
        found.append(in_process(__file__, "--one", name, str(seed), *arguments))
        # Hours lie between the first and the last: what is known is said.
        print(f"{name}, seed {seed}: {json.dumps(found[-1])}", file=sys.stderr)
    return found


def _show(about: str, runs: Runs) -> None:
    columns = list(dict.fromkeys(column for found in runs.values() for column in found[0]))
    for protocol in dict.fromkeys(column.rpartition(" | ")[0] for column in columns):
        own = [column for column in columns if column.rpartition(" | ")[0] == protocol]
        # A figure's name without its protocol, which is the title's.
        heads = [column.rpartition(" | ")[2] for column in own]
        title = ": ".join(filter(None, (about, protocol)))
        table = Table("", *heads, title=title, title_justify="left", min_width=len(title))
        for name, found in runs.items():
            table.add_row(name, *(_cell([run[c] for run in found if c in run]) for c in own))
        Console().print(table)


def _cell(values: list[float]) -> str:
    if not values:
        return ""
    spread = f" ± {np.ptp(values) / 2:.4f}" if len(values) > 1 else ""
    return f"{np.mean(values):.4f}{spread}"


def _add(figures: Figures, runs: Runs, before: str = "") -> None:
    for name, found in runs.items():
        for column in found[0]:
            values = [run[column] for run in found]
            short = column.replace(" | ", " ")
            goal = GOALS.get(name, {}).get(short)
            better = "lower" if short == "minutes" else "higher"
            # The tables show them all: only those with a goal are listed again.
            figures.add(
                f"{before}{name}: {short}", float(np.mean(values)), "", goal, better,
                spread=float(np.ptp(values) / 2), listed=goal is not None,
            )  # fmt: skip


# --- one training and its figures -------------------------------------------------------------


def _one(
    name: str, seed: int, items: int | None, epochs: int | None, without: list[int]
) -> dict[str, float]:
    pixels, labels = clothes(items)
    test, test_labels = clothes(None, "t10k")
    minutes = 0.0
    if name == RAW:
        gallery, queries = (images.reshape(len(images), -1) for images in (pixels, test))
    else:
        seen = ~np.isin(labels, without)
        train = _training(name, epochs, len(np.unique(labels[seen])))
        begin = time.perf_counter()
        vectors = _vectors(train, seed, pixels[seen], labels[seen], np.concatenate([pixels, test]))
        gallery, queries = vectors[: len(pixels)], vectors[len(pixels) :]
        minutes = (time.perf_counter() - begin) / 60
    if without:
        own = np.isin(test_labels, without)
        queries, test_labels = queries[own], test_labels[own]
        spaces = {"within": None, "full gallery": (gallery, labels)}
    else:
        spaces = {"A": (gallery, labels), "B": None}
    found = {} if name == RAW else {"minutes": minutes}
    for protocol, among in spaces.items():
        for measure, value in _measured(queries, test_labels, among).items():
            found[f"{protocol} | {measure}"] = value
    return found


def _measured(
    queries: np.ndarray, labels: np.ndarray, gallery: tuple[np.ndarray, np.ndarray] | None
) -> dict[str, float]:
    """Figures among a gallery and its labels; None: among themselves, each left out itself."""
    own = None if gallery is not None else np.arange(len(queries))
    asked_for = (queries, labels, *(gallery or (queries, labels)), own)
    scores = metrics.exact_scores(*asked_for)
    full = metrics.full_average_precision(*asked_for)
    values = {name: getattr(scores, name) for name in scores.METRICS} | {"full_map": full}
    return {said: values[name] for name, said in MEASURES.items()}


def _training(name: str, epochs: int | None, classes: int) -> Train:
    recipe = config.load(HOUR if name == "hour" else RECIPE).train
    # Of this many classes; all others of a batch would be missing.
    recipe = recipe.model_copy(
        update={"classes_per_batch": min(recipe.classes_per_batch, classes)}
        | ({"epochs": epochs} if epochs else {})
    )
    if name in ("recipe", "hour"):
        return recipe
    recipe = recipe.model_copy(update={"detail": 0.0})
    if name == "without_detail":
        return recipe
    plain = recipe.model_copy(update={"auxiliary": Auxiliary()})
    if name == "multi_similarity":
        return plain
    if name == "notebook":
        notebook = plain.model_copy(
            update={
                "ranks": 1,
                "threads": 1,
                "network": "_notebook:network",
                "precision": "float32",
                "mirrored": False,
                "loss": MultiSimilarity(beta=40.0),
                "augment": Augment(),
                "optimizer": "adamw",  # without decay: Adam
                "learning_rate": 0.001,
                "weight_decay": 0.0,
                "warmup": 0.0,
                "ema": 0.0,
            }
        )
        return notebook if epochs else notebook.model_copy(update={"epochs": _as_long()})
    loss: Any = {
        "triplet": Triplet(name="triplet"),
        "normalised_softmax": NormalisedSoftmax(
            name="normalised_softmax",
            scale=recipe.auxiliary.scale,
            smoothing=recipe.auxiliary.smoothing,
        ),
        "supervised_contrastive": SupervisedContrastive(name="supervised_contrastive"),
    }[name]
    return plain.model_copy(update={"loss": loss})


def _as_long() -> int:
    """How many of the notebook's epochs take as long as the recipe's, whose ranks share them."""
    recipe = config.load(RECIPE).train
    pace = {name: in_process(__file__, "--pace", name)["pace"] for name in ("recipe", "notebook")}
    return max(1, round(recipe.epochs / recipe.ranks * pace["notebook"] / pace["recipe"]))


def _pace(name: str) -> dict[str, float]:
    """Images a second of a row's training, in one process of one thread."""
    from lookalike.model import fit, process
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    pixels, labels = clothes(PROBE)
    train = _training(name, 2, len(np.unique(labels)))
    train = train.model_copy(update={"ranks": 1, "threads": 1})
    process.set_up(train)
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as folder:
        snapshot = Snapshot.open(_snapshot(Path(folder), train, pixels, labels))
        fitted = fit.fit(snapshot, train, 0, Ranks())
    return {"pace": fitted.epochs[-1].images_per_second}


def _vectors(
    train: Train, seed: int, pixels: np.ndarray, labels: np.ndarray, shown: np.ndarray
) -> np.ndarray:
    """Train on images, on the ranks that `train` asks for, and encode those `shown`."""
    with tempfile.TemporaryDirectory(prefix="lookalike-bench-") as name:
        folder = Path(name)
        uri = _snapshot(folder, train, pixels, labels)
        np.save(folder / "shown.npy", shown[..., np.newaxis])
        if train.ranks == 1:
            from lookalike.model.ranks import Ranks

            parts = [_fitted(train, seed, uri, folder / "shown.npy", Ranks())]
        else:
            parts = _on_ranks(train, seed, uri, folder / "shown.npy")
    vectors = np.empty((len(shown), parts[0].shape[1]), np.float32)
    for rank, part in enumerate(parts):
        vectors[rank :: len(parts)] = part
    return vectors


def _on_ranks(train: Train, seed: int, uri: str, shown: Path) -> list[np.ndarray]:
    from horovod.spark import run

    from lookalike.config import Spark
    from lookalike.lake.session import open_session

    def rank() -> np.ndarray:
        from lookalike.model.ranks import Ranks

        return fitted(train, seed, uri, shown, Ranks.all())

    open_session(Spark(master=f"local[{train.ranks}]"), "benchmark")
    fitted = _fitted
    found: list[np.ndarray] = run(rank, num_proc=train.ranks, use_gloo=True, verbose=0)
    return found


def _fitted(train: Train, seed: int, uri: str, shown: Path, ranks: Any) -> np.ndarray:
    """A rank's share of the vectors of the images shown: every `ranks.size`-th."""
    from lookalike.model import fit, process
    from lookalike.model.snapshot import Snapshot

    process.set_up(train, ranks)
    network = fit.fit(Snapshot.open(uri), train, seed, ranks).network
    own = np.load(shown)[ranks.rank :: ranks.size]
    vectors: np.ndarray = network.predict(own, batch_size=500, verbose=0)
    return vectors


def _snapshot(folder: Path, train: Train, pixels: np.ndarray, labels: np.ndarray) -> str:
    _, numbers = np.unique(labels, return_inverse=True)  # without gaps where classes are kept out
    files = [image.tobytes() for image in pixels]
    # Validation is only looked at between epochs, and takes part in nothing.
    write_snapshot(
        folder / "snapshot", files, numbers, Preprocessing(28, 1), train.batch, "raw", VALIDATION
    )
    return str(folder / "snapshot")


if __name__ == "__main__":
    main()
