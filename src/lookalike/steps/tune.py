"""Search hyperparameters across the cluster's workers.

A search has a name. What it is made from and every trial that ends are kept beside the artefacts,
so that a search that was killed goes on, and one that has finished can be extended.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

from mlflow.entities import RunStatus
from mlflow.exceptions import MlflowException

from lookalike import artifacts, space
from lookalike.config import VectorsData, network_source
from lookalike.errors import ConfigError
from lookalike.steps import search_pictures
from lookalike.steps.context import Context, Result, Skipped
from lookalike.steps.snapshot import newest_matching
from lookalike.steps.trials import Tried
from lookalike.tracking import Run, flat

if TYPE_CHECKING:
    from lookalike.model.tune import Trial

STEP = "tune"
SEARCH, TRIAL = "search", "trial"
_NUMBER = "trial"
"""The tag of a trial's run that holds its number."""
_SHOWN = 5
_ALONE = {"ranks": 1, "threads": None, "epochs": 1, "patience": None}
"""What trials do not take from the recipe's training."""


class Tuned(Result):
    """`values`, by keys of `train`, are those of the trial `best`; empty without a search."""

    values: dict[str, Any]
    objective: str
    score: float | None
    best: int | None
    trials: int
    failed: int
    run_id: str | None

    @property
    def words(self) -> str:
        if self.score is None:
            return "no search (tune.trials is 0): the recipe's own values go into training"
        best = ", ".join(f"{k} {_short(v)}" for k, v in space.flat(self.values).items())
        return (
            f"{self.trials} trials, {self.failed} failed; best validation {self.objective} "
            f"{self.score:.3f}, of trial {self.best}, with {best}"
        )


def run(context: Context, more: int = 0, fresh: bool = True) -> Tuned | Skipped:
    """Search on the newest snapshot, go on with a search that was killed, or find it done.

    A search of which all trials failed is begun anew: what they ran into may be mended.

    Args:
        context: the recipe.
        more: trials beyond those of the recipe, or beyond those of a search that was finished.
        fresh: whether to begin anew where recipe or snapshot are not those of the search.

    Raises:
        ConfigError: they are not, and it may not.
        LookalikeError: all trials failed.
    """
    config = context.config
    if isinstance(config.data, VectorsData):
        return Skipped(why="no search: the catalogue brings its own vectors")
    if config.tune.trials == 0:
        return Tuned(
            values={}, objective=config.tune.objective, score=None, best=None, trials=0, failed=0,
            run_id=None,
        )  # fmt: skip
    from lookalike.lake.session import preloaded
    from lookalike.model import tune

    snapshot = newest_matching(context)["uri"]
    inputs = inputs_of(context, snapshot)
    found = _found(context, inputs, fresh)
    kept = [] if found is None else found.trials()
    last = context.ledger.find(STEP, inputs)
    wanted = config.tune.trials
    if more:  # beyond what was finished: trials of a search that was killed are some of them
        wanted = max(wanted, len(kept) if last is None else last.outputs["trials"]) + more
    if found is not None and len(kept) >= wanted and all(trial.error is not None for trial in kept):
        context.say(f"All trials of the search {config.tune.name} failed: it begins anew")
        _left(context, found)
        found, kept = None, []
    if last is not None and len(kept) >= wanted and last.outputs["trials"] == len(kept):
        return Tuned(**last.outputs | {"unchanged": True})
    again = None
    if found is not None and context.tracking.has(found.run_id):
        again = found.run_id
    with context.tracking.run(f"{STEP} {config.tune.name}", again) as parent:
        if found is None or again is None:
            found = _begun(context, inputs, parent, found)
        if kept:
            parent.abandon_within()
            context.say(f"Going on with the search {config.tune.name}: {len(kept)} trials are done")
        work = tune.Work(
            snapshot, context.train.model_copy(update={"ranks": 1}), config.tune, config.seed
        )
        with (
            _logged(parent, kept, config.tune.objective) as log,
            preloaded(context.spark, tune.PRELOADED),
        ):

            def on_trial(trial: Trial) -> None:
                found.keep(trial)
                log(trial)
                context.progress(trial.number + 1, wanted)

            trials = tune.search(context.spark, work, on_trial, kept, wanted)
        best = tune.best(trials)
        parent.metrics({f"validation_{config.tune.objective}": best.score or 0.0})
        parent.retag("best.", {k: str(v) for k, v in space.flat(best.values).items()})
        _draw(parent, trials, config.tune.objective)
    result = Tuned(
        values=best.values,
        objective=config.tune.objective,
        score=best.score,
        best=best.number,
        trials=len(trials),
        failed=sum(trial.error is not None for trial in trials),
        run_id=parent.run_id,
    )
    context.ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def inputs_of(context: Context, snapshot: str) -> dict[str, Any]:
    """What a search is made from: equal inputs, the same search, however many trials it has.

    Of training it is what trials take from it: a trial is one process, of its own budget.
    """
    config = context.config
    alone = context.train.model_copy(update=_ALONE)
    names = space.samples(config.tune.parts.get("network", ""))
    tried = {name: network_source(name) for name in names}
    sources = {name: source for name, source in tried.items() if source is not None}
    return {
        "snapshot": snapshot,
        "train": alone.mathematics(),
        "tune": config.tune.model_dump(mode="json", exclude={"trials", "parallelism"}),
        "seed": config.seed,
        **({"network_sources": sources} if sources else {}),
    }


@dataclass(frozen=True)
class _Search:
    """A search that was begun: what it is made from, its MLflow run, the folder of its trials."""

    inputs: dict[str, Any]
    run_id: str
    folder: str

    def trials(self) -> list[Trial]:
        """Those that ended."""
        from lookalike.model.tune import Trial

        kept = artifacts.survey(self.folder, TRIAL)
        trials = [Trial.of(manifest.meta) for _, manifest in kept if manifest is not None]
        return sorted(trials, key=lambda trial: trial.number)

    def keep(self, trial: Trial) -> None:
        uri = artifacts.join(self.folder, artifacts.new_name())
        artifacts.seal(uri, TRIAL, asdict(trial), ())


def _begun(
    context: Context, inputs: dict[str, Any], parent: Run, before: _Search | None
) -> _Search:
    """A new search; or, with its trials, one whose MLflow run is not there any more."""
    config = context.config
    parent.params({"train": config.train.recorded(), "tune": config.tune.model_dump()})
    parent.tags({"snapshot": inputs["snapshot"], "search": config.tune.name})
    uri = artifacts.join(context.searches, config.tune.name, artifacts.new_name())
    folder = artifacts.join(uri, "trials") if before is None else before.folder
    begun = _Search(inputs, parent.run_id, folder)
    artifacts.seal(uri, SEARCH, asdict(begun), ())
    return begun


def _found(context: Context, inputs: dict[str, Any], fresh: bool) -> _Search | None:
    """The newest search of this name and these inputs."""
    name, searches = context.config.tune.name, _searches(context)
    for search in reversed(searches):
        if search.inputs == inputs:
            return search
    if not searches:
        return None
    newest = searches[-1]
    difference = _difference(newest.inputs, inputs)
    if not fresh:
        raise ConfigError(
            f"the search {name!r} was made with others: {difference}",
            remedy="Give --fresh to begin it anew, or name another one in tune.name",
        )
    context.say(f"A new search {name}, for what has changed: {difference}")
    _left(context, newest)
    return None


def _left(context: Context, search: _Search) -> None:
    """Nobody goes on with this one."""
    with suppress(MlflowException, OSError):
        Run(context.tracking, search.run_id).abandon()


def _searches(context: Context) -> list[_Search]:
    """All of this name, by time."""
    kept = artifacts.survey(artifacts.join(context.searches, context.config.tune.name), SEARCH)
    found = [_Search(**manifest.meta) for _, manifest in kept if manifest is not None]
    for search in found:  # earlier ones say also what trials do not take
        search.inputs["train"] |= _ALONE
    return found


def differences(context: Context, inputs: dict[str, Any]) -> str:
    """In what the newest search of the recipe's name is another than of these inputs; empty where
    there is none, or it is of them."""
    searches = _searches(context)
    return _difference(searches[-1].inputs, inputs) if searches else ""


def _difference(before: dict[str, Any], now: dict[str, Any]) -> str:
    others = list(_differences(before, now))
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return "; ".join(others[:_SHOWN]) + more


def _differences(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    old, new = flat(before), flat(now)
    for key in sorted(old | new):
        if key not in new:
            yield f"{key} was {old[key]!r}, and is not there"
        elif key not in old:
            yield f"{key} was not there, and is {new[key]!r}"
        elif old[key] != new[key]:
            yield f"{key} was {old[key]!r}, and is {new[key]!r}"


@contextmanager
def _logged(
    parent: Run, kept: Sequence[Trial], objective: str
) -> Iterator[Callable[[Trial], None]]:
    """Log trials beside the search, which must not wait for a server that is away.

    Args:
        parent: the search's run.
        kept: trials of before, which are logged where they are not yet.
        objective: what their scores are called.

    Yields:
        What takes a trial to be logged.

    Raises:
        MlflowException: at the end, where the server is away still.
    """
    logged = {run.data.tags.get(_NUMBER) for run in parent.within()}
    coming: SimpleQueue[Trial | None] = SimpleQueue()
    untold: list[Trial] = []

    def work() -> None:
        while (trial := coming.get()) is not None:
            try:
                if not untold:  # each call to a server that is away lasts minutes
                    _log(parent, trial, objective)
                    continue
            except (MlflowException, OSError):
                pass
            untold.append(trial)

    for trial in kept:
        if str(trial.number) not in logged:
            coming.put(trial)
    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield coming.put
    finally:
        coming.put(None)
        thread.join()
    if untold:
        parent.abandon_within()  # what was logged by half
        for trial in untold:
            _log(parent, trial, objective)


def _log(parent: Run, trial: Trial, objective: str) -> None:
    run = parent.tracking.start(
        f"trial {trial.number}", parent.run_id, start_time=int(trial.begin * 1000)
    )
    run.params(space.flat(trial.values))
    for epoch, value in enumerate(trial.curve, start=1):
        run.metrics({f"validation_{objective}": value}, step=epoch)
    run.metrics({"seconds": trial.end - trial.begin})
    run.tags({"worker": trial.worker, **({"error": trial.error} if trial.error else {})})
    run.tags({_NUMBER: str(trial.number)})  # the last of it: it is logged whole
    status = RunStatus.FAILED if trial.error else RunStatus.FINISHED
    run.end(status, int(trial.end * 1000))


def _draw(parent: Run, trials: Sequence[Trial], objective: str) -> None:
    tried = [Tried(trial.number, space.flat(trial.values), trial.score) for trial in trials]
    with artifacts.workbench() as folder:
        for picture in search_pictures.draw(folder, trials=tried, objective=objective):
            parent.file(picture)


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
