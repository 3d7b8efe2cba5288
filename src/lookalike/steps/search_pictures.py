"""Pictures of a hyperparameter search: its progress, its trials, what mattered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from lookalike.steps.contact_sheet import printable, shortened
from lookalike.steps.importance import variance_explained
from lookalike.steps.trials import Column, Tried, by_parameter, successful

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PROGRESS: Final = "best_so_far.png"
PARALLEL: Final = "parallel_coordinates.png"
IMPORTANCE: Final = "importance.png"

_AXES, _BARS = 12, 20  # parameters that a page has room for
_NAMED = 12  # categories that an axis has room for
_BELOW = -0.13  # where a line passes an axis that its trial has no value on
_DPI = 110
_DARK, _SOFT, _BLUE, _ORANGE, _RED = "#1d2733", "#5b6675", "#2f6db5", "#d9772b", "#d64550"


def draw(folder: Path, *, trials: Sequence[Tried], objective: str) -> list[Path]:
    """Draw what can be drawn of a search for the largest score.

    Args:
        folder: where the PNGs go.
        trials: in any order.
        objective: what the score is called.

    Returns:
        The files that were written: the progress where there is a trial, the parallel coordinates
        of two scored ones and more, the importances where there are any.
    """
    drawn = []
    trials = sorted(trials, key=lambda trial: trial.number)
    known = by_parameter(trials)
    explained, found = variance_explained(trials)
    keys = [key for key in dict.fromkeys([*found, *known]) if key in known]
    if trials:
        drawn.append(folder / PROGRESS)
        _draw_progress(trials, objective, drawn[-1])
    if keys and len(successful(trials)) > 1:
        drawn.append(folder / PARALLEL)
        _draw_parallel(trials, keys, objective, drawn[-1])
    if found:
        drawn.append(folder / IMPORTANCE)
        _draw_importance(found, explained, objective, drawn[-1])
    return drawn


def _draw_progress(trials: Sequence[Tried], objective: str, path: Path) -> None:
    """Scores by trial, the best so far as a line, failed trials as crosses at the bottom."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8.4, 4), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    scored = successful(trials)
    failed = [trial.number for trial in trials if not successful([trial])]
    if scored:
        numbers, scores = [t.number for t in scored], np.array([t.score for t in scored])
        best = int(scores.argmax())
        reached = np.maximum.accumulate(scores)
        axes.step(
            [*numbers, trials[-1].number], [*reached, reached[-1]], where="post", color=_ORANGE,
            label="best so far",
        )  # fmt: skip
        size = 5 if len(trials) <= 100 else 3
        axes.plot(numbers, scores, "o", color=_BLUE, markersize=size, mew=0, label="trial")
        axes.plot(numbers[best], scores[best], "o", color=_ORANGE, markersize=10, mfc="none", mew=2)
        right = numbers[best] > (trials[0].number + trials[-1].number) / 2
        axes.annotate(
            f"trial {numbers[best]}: {scores[best]:.4g}", (numbers[best], scores[best]),
            (6 if right else -6, 9), textcoords="offset points", fontsize=9, color=_DARK,
            ha="right" if right else "left",
        )  # fmt: skip
        axes.margins(y=0.14)  # room for the best one's name and the crosses
        axes.grid(axis="y", alpha=0.25)
    else:
        axes.set_yticks([])
    if failed:
        axes.plot(
            failed, [0.035] * len(failed), "x", transform=axes.get_xaxis_transform(), color=_RED,
            markersize=5.5, mew=1.4, label="failed",
        )  # fmt: skip
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("trial")
    _plain(axes, f"{_text(objective, 40)}; trials: {len(trials):,}, failed: {len(failed):,}")
    figure.savefig(path, facecolor="white")


def _draw_parallel(trials: Sequence[Tried], keys: list[str], objective: str, path: Path) -> None:
    """Scored trials as lines from axis to axis, one a parameter, the last one the score's."""
    from matplotlib import colormaps
    from matplotlib.collections import LineCollection
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke

    scored = sorted(successful(trials), key=lambda t: (t.score, -t.number))  # the best comes last
    known = by_parameter(scored)
    columns = [*(known[key] for key in keys[:_AXES]), Column.of([t.score for t in scored])]
    names, last = [*keys[:_AXES], objective], len(columns) - 1
    heights = np.stack([np.where(c.missing, _BELOW, c.places(c.codes)) for c in columns], axis=1)
    # Perceptually uniform; bad ones recede on white, and none is as light as white.
    colours = ListedColormap(colormaps["viridis_r"](np.linspace(0.06, 1, 256)))
    rgba = colours(heights[:, -1])
    rgba[:-1, 3] = max(0.25, 0.85 - len(scored) / 400)

    figure = Figure(figsize=(max(5.0, 1.35 * len(names)), 4.6), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    lines = [np.column_stack([np.arange(last + 1), line]) for line in heights]
    widths = [1.2] * (len(lines) - 1) + [3.2]
    axes.add_collection(LineCollection(lines, colors=rgba, linewidths=widths, joinstyle="round"))
    halo = [withStroke(linewidth=2.5, foreground="white")]
    for x, (name, column) in enumerate(zip(names, columns, strict=True)):
        axes.plot([x, x], [0, 1], color=_DARK, linewidth=1, zorder=3)
        for height, words in _ticks(column):
            axes.plot(x, height, color=_DARK, marker="_", markersize=6, zorder=3)
            axes.annotate(
                _text(words, 16), (x, height), (6, 0), textcoords="offset points", va="center",
                fontsize=8, color=_SOFT, path_effects=halo, parse_math=False, zorder=4,
            )  # fmt: skip
        group, dot, own = name.rpartition(".")
        axes.text(
            x, 1.05, "\n".join(_text(part, 17) for part in (group + dot, own) if part), ha="center",
            va="bottom", fontsize=9, color=_DARK, parse_math=False,
        )  # fmt: skip
    strip = (last - 0.045, last + 0.045, 0, 1)
    shades = np.linspace(0, 1, 256)[:, None]
    axes.imshow(shades, cmap=colours, aspect="auto", origin="lower", extent=strip, zorder=2.5)
    axes.set_xlim(-0.25, last + 0.5)
    axes.set_ylim(heights.min() - 0.04, 1.04)
    axes.set_axis_off()
    best = scored[-1]
    which = f"{_AXES} of {len(keys):,} parameters" if len(keys) > _AXES else "parameters"
    figure.suptitle(
        f"Trials by {which}; the thick one, trial {best.number}, is best: {best.score:.4g}\n"
        f"trials: {len(trials):,}, failed and not drawn: {len(trials) - len(scored):,}",
        fontsize=10, color=_DARK, x=0.012, ha="left",
    )  # fmt: skip
    figure.savefig(path, facecolor="white")


def _draw_importance(
    found: dict[str, tuple[float, float]], explained: float, objective: str, path: Path
) -> None:
    """Importances as bars, the largest on top; `explained` is what the forest does of the whole."""
    from matplotlib.figure import Figure

    shown = list(found)[:_BARS]
    means, spreads = np.array([found[key] for key in shown]).T
    figure = Figure(figsize=(8.4, 1.5 + 0.3 * len(shown)), dpi=_DPI, layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(shown))
    whiskers = {"ecolor": _DARK, "elinewidth": 1.1, "capsize": 2.5}
    axes.barh(places, means, xerr=spreads, height=0.65, color=_BLUE, error_kw=whiskers)
    for place, mean, end in zip(places, means, np.maximum(means + spreads, 0), strict=True):
        axes.annotate(
            f"{round(mean, 2) + 0:.2f}", (end, place), (6, 0), textcoords="offset points",
            va="center", fontsize=8.5, color=_SOFT,
        )  # fmt: skip
    axes.axvline(0, color=_SOFT, linewidth=0.8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xlim(right=max(0.1, 1.12 * (means + spreads).max()))
    axes.set_xlabel("share of the score's variance; whiskers: standard deviation over repeats")
    axes.grid(axis="x", alpha=0.25)
    axes.set_axisbelow(True)
    which = f" ({_BARS} of {len(found):,} parameters)" if len(found) > _BARS else ""
    _plain(
        axes,
        f"What {_text(objective, 40)} depends on{which}: permutation importance\n"
        f"The random forest explains {max(explained, 0):.0%} of the variance in unseen trials",
    )
    axes.set_yticks(places, [_text(key, 34) for key in shown], parse_math=False, color=_DARK)
    figure.savefig(path, facecolor="white")


def _ticks(column: Column) -> list[tuple[float, str]]:
    """A few places and what they are called."""
    codes = _round_codes(column)
    if column.names:
        words = [column.names[int(code)] for code in codes]
    else:
        words = [f"{code:.7g}" for code in (10**codes if column.log else codes)]
    ticks = list(zip(column.places(codes), words, strict=True))
    return [*ticks, (_BELOW, "not set")] if column.missing.any() else ticks


def _round_codes(column: Column) -> np.ndarray:
    """Those that are short to say; of a few options all."""
    from matplotlib.ticker import MaxNLocator

    codes = column.distinct
    low, high = codes[[0, -1]]
    if column.names:
        return codes[:: math.ceil(len(codes) / _NAMED)]
    if low == high:
        return codes
    if len(codes) < 6 and np.diff(codes).min() > 0.07 * (high - low):
        figures = 10**codes if column.log else codes
        if all(f"{figure:.4g}" == f"{figure:.7g}" for figure in figures):
            return codes  # few, far apart and short: they are options
    if not column.log:
        rounded = np.array(MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high))
    else:
        decades = np.arange(math.floor(low), math.ceil(high) + 1.0)
        inside = ((low <= decades) & (decades <= high)).sum()
        steps = [1] if inside > 3 else [1, 3] if inside > 1 else [1, 2, 5]
        rounded = np.add.outer(decades[:: math.ceil(len(decades) / 6)], np.log10(steps)).ravel()
    slack = 1e-9 * (high - low)  # 3 * 0.1 is more than 0.3
    return rounded[(low - slack <= rounded) & (rounded <= high + slack)]


def _text(text: str, length: int) -> str:
    return shortened(printable(text), length)


def _plain(axes: Axes, title: str) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=_SOFT, labelsize=8.5)
    axes.set_title(title, fontsize=10, color=_DARK, loc="left", parse_math=False)
