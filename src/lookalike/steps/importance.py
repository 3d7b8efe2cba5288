"""How much of a search's score each parameter explains."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lookalike.steps.trials import Column, Tried, by_parameter, successful

_ENOUGH = 8  # scored trials that say something of importances
_REPEATS, _TREES = 5, 100


def importances(trials: Sequence[Tried]) -> dict[str, tuple[float, float]]:
    """How much of the score's variance each parameter explains, largest first.

    Permutation importance (Breiman 2001) under a random forest: half of what the squared error
    grows by when the parameter's values change places, by the scores' variance. Each trial is
    predicted by trees whose bootstrap left it out. Of an additive model that is the share of
    variance that the parameter makes (Gregorutti, Michel and Saint-Pierre 2017).

    Returns:
        Mean and standard deviation over 5 repeats, each of another forest and permutation.
        Parameters of one value are left out; all are of fewer than 8 scored trials and of equal
        scores.
    """
    return variance_explained(trials)[1]


def variance_explained(trials: Sequence[Tried]) -> tuple[float, dict[str, tuple[float, float]]]:
    """What the forest explains of the variance in unseen trials, and `importances`."""
    scores = np.array([trial.score for trial in successful(trials)], dtype=float)
    known = by_parameter(trials)
    keys = [key for key, column in known.items() if len(column.distinct) > 1]
    if len(scores) < _ENOUGH or np.ptp(scores) == 0 or not keys:
        return 0.0, {}
    from sklearn.ensemble import RandomForestRegressor

    scores = (scores - scores.min()) / np.ptp(scores)  # squares of what is tiny would be 0
    scores = (scores - scores.mean()) / scores.std()
    encoded = [_encoded(known[key], known) for key in keys]
    table = np.concatenate([block for block, _ in encoded], axis=1)
    errors = np.empty((_REPEATS, 1 + len(keys)))
    for repeat in range(_REPEATS):
        random = np.random.default_rng(repeat)
        copies = np.repeat(table[None], 1 + len(keys), axis=0)  # the first one stays as it is
        start = 0
        for copy, (block, rows) in zip(copies[1:], encoded, strict=True):
            end = start + block.shape[1]
            copy[rows, start:end] = block[random.permutation(rows)]
            start = end
        forest = RandomForestRegressor(_TREES, random_state=repeat).fit(table, scores)
        total, trees = np.zeros(copies.shape[:2]), np.zeros(len(table))
        for tree, seen in zip(forest.estimators_, forest.estimators_samples_, strict=True):
            unseen = np.setdiff1d(np.arange(len(table)), seen)
            flat = copies[:, unseen].reshape(-1, table.shape[1])
            total[:, unseen] += tree.predict(flat).reshape(len(copies), -1)
            trees[unseen] += 1
        predicted = total / trees  # none of 100 bootstraps leave out: less than 1 in 10^18
        errors[repeat] = ((predicted - scores) ** 2).mean(axis=1)
    grown = (errors[:, 1:] - errors[:, :1]) / 2
    means, spreads = grown.mean(axis=0).tolist(), grown.std(axis=0).tolist()
    found = dict(zip(keys, zip(means, spreads, strict=True), strict=True))
    found = dict(sorted(found.items(), key=lambda item: -item[1][0]))
    return 1 - float(errors[:, 0].mean()), found


def _encoded(column: Column, known: dict[str, Column]) -> tuple[np.ndarray, np.ndarray]:
    """A parameter as the forest sees it, float (n, columns), and rows whose values change places.

    Categories have a column each; where the value is missing stands the mean of the others. That it
    is missing is one more column, unless another parameter tells it, as the choice does under which
    this one exists: all that exist under it would share what is the choice's own.
    """
    missing = column.missing
    block = column.codes[:, None]
    if column.names:
        block = (block == np.arange(len(column.names))).astype(float)
    block = np.where(missing[:, None], block[~missing].mean(axis=0), block)
    if not missing.any() or any(_tells(other, missing) for other in known.values()):
        return block, np.flatnonzero(~missing)
    return np.column_stack([block, missing]), np.arange(len(missing))


def _tells(other: Column, missing: np.ndarray) -> bool:
    """Whether each value of a parameter says if another one is missing; no number drawn freely."""
    values = np.where(other.missing, np.inf, other.codes)
    distinct = np.unique(values)
    return (
        other.missing.sum() < missing.sum()
        and len(distinct) <= len(values) // 2
        and all(len(np.unique(missing[values == value])) == 1 for value in distinct)
    )
