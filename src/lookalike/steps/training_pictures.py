"""Pictures of a training: its curves, its embedding, neighbours before and after, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from lookalike import images, metrics
from lookalike.metrics import Reliability
from lookalike.steps import report
from lookalike.steps.contact_sheet import printable, shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES: Final = "learning_curves.png"
EMBEDDING: Final = "embedding.png"
NEIGHBOURS: Final = "neighbours_before_and_after.png"
RELIABILITY: Final = "reliability.png"

_SEED = 0  # of the items that are shown and of their map: the same pictures of the same vectors
_MAPPED = 1_000  # t-SNE of so many takes seconds
_SEARCHED = 2_000
_QUERIES = 8
_PERPLEXITY = 30
_COLOURS = (  # tab10's and its lighter ones; black and yellow where those are grey, as others are
    "#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#000000",
    "#bcbd22", "#17becf", "#aec7e8", "#ffbb78", "#98df8a", "#ff9896", "#c5b0d5", "#c49c94",
    "#f7b6d2", "#ffd92f", "#dbdb8d", "#9edae5",
)  # fmt: skip
_DPI = 110
_DARK, _SOFT, _BLUE, _ORANGE = "#1d2733", "#5b6675", "#2f6db5", "#d9772b"


def draw(
    folder: Path,
    *,
    before: np.ndarray,
    after: np.ndarray,
    pixels: np.ndarray | None,
    classes: np.ndarray,
    names: Sequence[str],
    reliability: Reliability | None,
    curve: Sequence[dict[str, Any]],
) -> list[Path]:
    """Draw what can be drawn of a training and of the validation split.

    Args:
        folder: where the PNGs go.
        before: float (n, dim), vectors of validation items before the training.
        after: float (n, dim), of the same items after it.
        pixels: uint8 (n, height, width, channels), of 1 or 3 channels; None of items that are no
            images.
        classes: int (n,), numbers of the items' classes.
        names: of the classes, by number.
        reliability: of the calibration; None where there is none.
        curve: an entry an epoch: epoch (from 1 on), loss, p_at_1, map_at_r, images_per_second.

    Returns:
        The files that were written: the curves where there is an epoch, the embedding of three
        items and more, the neighbours of two images and more, the reliability where it is known.
    """
    drawn = []
    if curve:
        drawn.append(folder / CURVES)
        draw_curves(curve, drawn[-1])
    if len(after) > 2:
        drawn.append(folder / EMBEDDING)
        draw_embedding(after, classes, names, drawn[-1])
    if pixels is not None and len(pixels) > 1:
        drawn.append(folder / NEIGHBOURS)
        draw_before_and_after(before, after, pixels, np.array(names)[classes], drawn[-1])
    if reliability is not None:
        drawn.append(folder / RELIABILITY)
        draw_reliability(reliability, drawn[-1])
    return drawn


def draw_curves(curve: Sequence[dict[str, Any]], path: Path) -> None:
    """A PNG of loss, validation scores and images per second by epoch.

    Args:
        curve: an entry an epoch, as `draw` takes them.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 3.3), dpi=_DPI, layout="constrained")
    loss, scores, speed = figure.subplots(1, 3)
    epochs = [entry["epoch"] for entry in curve]

    def line(axes: Axes, key: str, colour: str, label: str | None = None) -> None:
        values = [entry[key] for entry in curve]
        axes.plot(epochs, values, color=colour, label=label, marker="o", markersize=3)

    line(loss, "loss", _BLUE)
    line(scores, "p_at_1", _BLUE, "P@1")
    line(scores, "map_at_r", _ORANGE, "MAP@R")
    line(speed, "images_per_second", _BLUE)
    scores.legend(frameon=False)
    speed.margins(y=0.1)
    speed.set_ylim(bottom=0)
    speed.yaxis.set_major_formatter("{x:,.0f}")
    for axes, title in (
        (loss, "Training loss"),
        (scores, "Validation scores"),
        (speed, "Images per second"),
    ):
        _plain(axes, title)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(axis="y", alpha=0.25)
    figure.savefig(path, facecolor="white")


def draw_embedding(
    vectors: np.ndarray, classes: np.ndarray, names: Sequence[str], path: Path
) -> None:
    """A PNG of vectors in the plane, a colour a class: t-SNE (van der Maaten and Hinton 2008).

    Neighbours stay near; distances between groups and their sizes mean nothing.

    Args:
        vectors: float (n, dim), n > 2; of more than 1,000 a random sample is shown.
        classes: int (n,), numbers of the items' classes.
        names: of the classes, by number; the largest 20 are named, the others are grey.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    rows = _sampled(len(vectors), _MAPPED)
    plane, shown = _plane(metrics.unit(vectors[rows])), classes[rows]
    found, counts = np.unique(shown, return_counts=True)
    largest = found[np.argsort(-counts, kind="stable")][: len(_COLOURS)]

    figure = Figure(figsize=(8.4, 6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    others = ~np.isin(shown, largest)
    handles, labels = [], []
    x, y = plane.T
    if others.any():
        handles.append(axes.scatter(x[others], y[others], s=9, color="#cfd3d9", linewidths=0))
        labels.append(f"{len(found) - len(largest):,} other classes ({others.sum():,})")
    for own, colour in zip(largest, _COLOURS, strict=False):
        points = shown == own
        handles.append(axes.scatter(x[points], y[points], s=13, color=colour, linewidths=0))
        labels.append(f"{shortened(printable(names[own]), 20)} ({points.sum():,})")
    if others.any():  # drawn below the others, named after them
        handles, labels = [*handles[1:], handles[0]], [*labels[1:], labels[0]]
    sample = "" if len(rows) == len(vectors) else f" of {len(vectors):,}, chosen at random"
    _plain(
        axes,
        f"Embedding of the validation split after training\n"
        f"t-SNE of {len(rows):,} items{sample}; {len(found):,} classes",
    )
    axes.set_axis_off()  # its units mean nothing
    axes.set_aspect("equal", adjustable="datalim")
    legend = figure.legend(
        handles, labels, loc="outside right upper", frameon=False, fontsize=8.5, markerscale=2
    )
    for text in legend.get_texts():
        text.set_parse_math(False)
    figure.savefig(path, facecolor="white")


def draw_before_and_after(
    before: np.ndarray, after: np.ndarray, pixels: np.ndarray, labels: np.ndarray, path: Path
) -> None:
    """A PNG of some items with their nearest neighbours before and after the training.

    Exact search by cosine among the items, the query itself left out.

    Args:
        before: float (n, dim), n > 1; of more than 2,000 a random sample is searched.
        after: float (n, dim), of the same items.
        pixels: uint8 (n, height, width, channels), of 1 or 3 channels.
        labels: (n,) class names.
        path: where the PNG goes.
    """
    rows = _sampled(len(pixels), _SEARCHED)
    labels = labels[rows]
    queries = report.chosen_queries(labels, np.ones(len(rows), dtype=bool), _QUERIES)
    columns = {}
    for when, vectors in (("before", before), ("after", after)):
        units = metrics.unit(vectors[rows])
        ((_, found, _),) = metrics.nearest(units[queries], units, report.NEIGHBOURS + 1)
        neighbours = metrics.without_self(found, queries)
        right = int((labels[neighbours] == labels[queries, None]).sum())
        columns[f"{when} training: {right} of {neighbours.size} of the same class"] = neighbours
    shown = np.unique(np.concatenate([queries, *(c.ravel() for c in columns.values())]))
    pictures = {int(row): _png(pixels[rows[row]]) for row in shown}
    escaped = np.array([printable(name).replace("$", r"\$") for name in labels])  # no mathematics
    report.draw_neighbours(queries, columns, pictures, escaped, path)


def draw_reliability(reliability: Reliability, path: Path) -> None:
    """A PNG of what a calibration said of pairs against what they were, above how many they were.

    Args:
        reliability: of the calibration.
        path: where the PNG goes.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 6.4), dpi=_DPI, layout="constrained")
    diagram, histogram = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    counts = np.array(reliability.counts)
    full = counts > 0
    diagram.plot([0, 1], [0, 1], color=_SOFT, linewidth=1, linestyle="--", label="as it should be")
    diagram.plot(
        np.array(reliability.predicted)[full],
        np.array(reliability.observed)[full],
        color=_BLUE,
        marker="o",
        markersize=5,
        label="as it is, a point a bin",
    )
    diagram.set_xlim(0, 1)
    diagram.set_ylim(-0.02, 1.02)
    diagram.set_ylabel("share of pairs of one class")
    diagram.legend(loc="upper left", frameon=False)
    diagram.grid(alpha=0.25)
    _plain(
        diagram,
        f"Reliability of P(similar): expected calibration error {reliability.error:.3f}\n"
        f"{counts.sum():,} pairs of validation items, half of them of one class",
    )
    histogram.bar(
        np.arange(len(counts)) / len(counts), counts, width=1 / len(counts), align="edge",
        color=_BLUE, alpha=0.7, edgecolor="white",
    )  # fmt: skip
    histogram.set_xlabel("P(similar) that was predicted")
    histogram.set_ylabel("pairs")
    histogram.yaxis.set_major_formatter("{x:,.0f}")
    _plain(histogram)
    figure.savefig(path, facecolor="white")


def _plane(units: np.ndarray) -> np.ndarray:
    """float (n, 2): the map of unit vectors, n > 2."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # scikit-learn's

    if np.ptp(units, axis=0).max() < 1e-6:  # a network that collapsed: all items are one point
        return np.zeros((len(units), 2))
    mapped = TSNE(
        init="pca" if units.shape[1] > 1 else "random",
        metric="cosine",
        perplexity=min(_PERPLEXITY, (len(units) - 1) / 3),
        random_state=_SEED,
    )
    # Threads of OpenMP spin while they wait: of so few items one is fastest where cores are shared.
    with threadpool_limits(1):
        return mapped.fit_transform(units)


def _sampled(items: int, most: int) -> np.ndarray:
    """Rows of at most so many items, in order."""
    if items <= most:
        return np.arange(items)
    return np.sort(np.random.default_rng(_SEED).choice(items, most, replace=False))


def _png(pixels: np.ndarray) -> bytes:
    return images.encode_png(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)


def _plain(axes: Axes, title: str | None = None) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_SOFT, labelsize=8.5)
    if title:
        axes.set_title(title, fontsize=10, color=_DARK, loc="left")
