"""Search hyperparameters across the cluster's workers."""

from __future__ import annotations

from typing import Any

from lookalike.config import VectorsData
from lookalike.steps.context import Context, Result, Skipped

STEP = "tune"


class Tuned(Result):
    """`values`, by dotted keys of `train`, are those of the best trial; empty without a search."""

    values: dict[str, Any]
    map_at_r: float | None
    trials: int
    failed: int
    run_id: str | None

    @property
    def words(self) -> str:
        if self.map_at_r is None:
            return "no search (tune.trials is 0): the recipe's own values go into training"
        best = ", ".join(f"{k} {_short(v)}" for k, v in self.values.items())
        return (
            f"{self.trials} trials, {self.failed} failed; best validation MAP@R "
            f"{self.map_at_r:.3f} with {best}"
        )


def run(context: Context) -> Tuned | Skipped:
    """Search on the newest snapshot, or find the search that was made on it."""
    config = context.config
    if isinstance(config.data, VectorsData):
        return Skipped(why="no search: the catalogue brings its own vectors")
    if config.tune.trials == 0:
        return Tuned(values={}, map_at_r=None, trials=0, failed=0, run_id=None)
    from lookalike.lake.session import preloaded
    from lookalike.model import tune

    ledger = context.ledger
    snapshot = ledger.need("snapshot").outputs["uri"]
    inputs = inputs_of(context, snapshot)
    if last := ledger.find(STEP, inputs):
        return Tuned(**last.outputs | {"unchanged": True})
    ended = 0

    def on_trial(trial: tune.Trial) -> None:
        nonlocal ended
        ended += 1
        context.progress(ended, config.tune.trials)
        _log(context, parent.run_id, trial)

    with context.tracking.run("search") as parent:
        parent.params({"train": config.train.model_dump(), "tune": config.tune.model_dump()})
        with preloaded(context.spark, tune.PRELOADED):
            found = tune.search(
                context.spark,
                snapshot,
                config.train,
                config.tune,
                config.seed,
                on_trial,
            )
        parent.metrics({"validation_map_at_r": found.map_at_r})
        parent.tags({f"best.{key}": str(value) for key, value in found.values.items()})
    result = Tuned(
        values=found.values,
        map_at_r=found.map_at_r,
        trials=len(found.trials),
        failed=sum(trial.error is not None for trial in found.trials),
        run_id=parent.run_id,
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def inputs_of(context: Context, snapshot: str) -> dict[str, Any]:
    """What a search is made from: equal inputs, the same search."""
    config = context.config
    return {
        "snapshot": snapshot,
        "train": config.train.mathematics(),
        "tune": config.tune.model_dump(mode="json"),
        "seed": config.seed,
    }


def _log(context: Context, parent: str, trial: Any) -> None:
    from mlflow.entities import RunStatus

    run = context.tracking.start(
        f"trial {trial.number}", parent, start_time=int(trial.begin * 1000)
    )
    run.params(trial.values)
    run.tags({"worker": trial.worker, **({"error": trial.error} if trial.error else {})})
    for epoch, value in enumerate(trial.curve):
        run.metrics({"validation_map_at_r": value}, step=epoch)
    run.metrics({"seconds": trial.end - trial.begin})
    status = RunStatus.FAILED if trial.error else RunStatus.FINISHED
    run.end(status, int(trial.end * 1000))


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
