"""Searches without Spark: what is drawn, what fails, what goes on."""

import json
import math
import typing
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import pytest
from hyperopt.pyll.stochastic import sample

from lookalike.config import Budget, Train, Tune, with_values
from lookalike.errors import ConfigError, LookalikeError
from lookalike.model import tune
from lookalike.model.tune import Trial, Work
from lookalike.planning import BatchShape
from lookalike.space import Integers

SMALL = Train.model_validate(
    {
        "network": "simple_cnn",
        "embedding_size": 8,
        "classes_per_batch": 4,
        "images_per_class": 4,
        "threads": 1,
        "precision": "float32",
    }
)


@pytest.fixture
def work(make_snapshot: Callable[..., str]) -> Callable[..., Work]:
    uri = make_snapshot([24] * 5, BatchShape(4, 4), blocks=4)

    def make(**values: object) -> Work:
        given = {"trials": 4, "budget": {"steps": 3}} | values
        return Work(uri, SMALL, Tune.model_validate(given), 3)

    return make


EVERY_WORD = {
    "learning_rate": {"log_uniform": [0.001, 0.01]},
    "warmup": {"uniform": [0.0, 0.5]},
    "embedding_size": {"int": [4, 8]},
    "weight_decay": {"normal": [0.02, 0.005]},
    "augment.flip": {"choice": [True, False]},
    "clip_norm": {"choice": [None, 1.0]},
    "loss": {
        "choice": [
            {"name": "triplet", "mining": {"choice": ["hard", "semi_hard"]}},
            {"alpha": {"uniform": [1.0, 4.0]}, "beta": 20.0},
        ]
    },
}


def test_whole_numbers_are_as_likely_at_the_ends_as_between() -> None:
    random = np.random.default_rng(0)
    part = tune._expression("x", Integers(4, 8))
    drawn = Counter(sample(part, rng=random) for _ in range(4000))
    assert sorted(drawn) == [4, 5, 6, 7, 8]
    assert all(700 < count < 900 for count in drawn.values())


@pytest.mark.parametrize("algorithm", ["tpe", "random", "anneal"])
def test_every_word_is_drawn_and_its_best_trains_again(
    work: Callable[..., Work], algorithm: str
) -> None:
    """What is kept of a trial is what it trained with: trained so again, it scores the same."""
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    asked = work(space=EVERY_WORD, algorithm=algorithm, trials=3)
    told: list[Trial] = []
    trials = tune.search(None, asked, told.append)
    assert trials == told
    assert [trial.number for trial in trials] == list(range(3))
    assert {trial.error for trial in trials} == {None}
    for trial in trials:
        assert set(trial.values) == set(EVERY_WORD)
        assert 0.001 <= trial.values["learning_rate"] <= 0.01
        assert trial.values["embedding_size"] in range(4, 9)
        assert trial.values["clip_norm"] in (None, 1.0)
        loss = trial.values["loss"]
        assert loss.keys() in ({"name", "mining"}, {"alpha", "beta"})
        assert Trial.of(json.loads(json.dumps(asdict(trial)))) == trial
    best = tune.best(trials)
    assert best.score == max(trial.score or 0 for trial in trials)
    train = with_values(SMALL, best.values)
    snapshot = Snapshot.open(asked.snapshot)
    again = fit.fit(snapshot, train, asked.seed, Ranks(), budget=Budget(steps=3))
    assert again.scores.map_at_r == pytest.approx(best.score, abs=1e-6)


@pytest.mark.parametrize("objective", typing.get_args(Tune.model_fields["objective"].annotation))
def test_every_score_can_be_searched_for_and_no_trial_ends_early(
    work: Callable[..., Work], objective: str
) -> None:
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    space = {"learning_rate": {"choice": [0.01]}}
    asked = work(space=space, objective=objective, trials=1, budget={"epochs": 3})
    patient = replace(asked, train=asked.train.model_copy(update={"patience": 1}))
    (trial,) = tune.search(None, patient, lambda _: None)
    assert trial.error is None
    assert 0 < trial.fitting <= trial.end - trial.begin
    train = with_values(SMALL, trial.values)
    again = fit.fit(
        Snapshot.open(asked.snapshot), train, asked.seed, Ranks(), budget=Budget(epochs=3)
    )
    assert len(again.epochs) == 3
    if objective == "full_map":
        vectors = again.after.astype(np.float64)
        ranked = np.argsort(-vectors @ vectors.T, axis=1, kind="stable")
        precisions = []
        for query, row in enumerate(ranked):
            right = [again.classes[i] == again.classes[query] for i in row if i != query]
            hits = [place for place, is_right in enumerate(right, start=1) if is_right]
            precisions.append(np.mean([(n + 1) / place for n, place in enumerate(hits)]))
        assert trial.score == pytest.approx(np.mean(precisions), abs=1e-4)
        assert trial.curve == (trial.score,)
    else:
        assert trial.score == pytest.approx(getattr(again.scores, objective), abs=1e-6)
        assert len(trial.curve) == 3


def test_a_search_goes_on_from_trials_that_were_kept(work: Callable[..., Work]) -> None:
    asked = work(space=EVERY_WORD, algorithm="random", trials=3)
    first = tune.search(None, asked, lambda _: None)
    failed = replace(first[1], score=None, error="its worker was lost")
    kept = [first[0], failed, first[2]]
    told: list[Trial] = []
    trials = tune.search(None, asked, told.append, kept, 5)
    assert trials == [*kept, *told]
    assert [trial.number for trial in told] == [3, 4]
    drawn = [trial.drawn["learning_rate"] for trial in trials]
    assert len(set(drawn)) == 5
    assert tune.search(None, asked, told.append, kept, 3) == kept


def test_tpe_learns_from_trials_that_were_kept(work: Callable[..., Work]) -> None:
    """Told of 30 trials that were the better the higher the rate, it draws high rates."""
    space = {"learning_rate": {"log_uniform": [1e-4, 1e-2]}}
    asked = work(space=space, trials=36, budget={"steps": 1})
    kept = [
        Trial(
            number=i,
            values={"learning_rate": rate},
            score=i / 30,
            curve=(),
            error=None,
            begin=0,
            end=0,
            worker="",
            drawn={"learning_rate": rate},
        )
        for i, rate in enumerate(1e-4 * 100 ** (j / 29) for j in range(30))
    ]
    drawn = [t.values["learning_rate"] for t in tune.search(None, asked, lambda _: None, kept)[30:]]
    assert len(drawn) == 6
    assert sorted(drawn)[3] > 1e-3  # the middle of the range; at random the odds are even


def test_trials_that_fail_are_told_and_the_search_goes_on(work: Callable[..., Work]) -> None:
    space = {
        "learning_rate": {"choice": [0.005, 1.0]},
        "classes_per_batch": {"choice": [4, 6]},  # of 5 classes
        "weight_decay": {"choice": [0.0, 1e38]},
    }
    trials = tune.search(
        None, work(space=space, algorithm="random", trials=10, budget={"steps": 6}), lambda _: None
    )
    assert len(trials) == 10
    errors = {trial.error for trial in trials if trial.error is not None}
    assert any("classes" in error for error in errors)
    assert any("became" in error for error in errors)
    assert tune.best(trials).values["classes_per_batch"] == 4
    for trial in trials:
        assert (trial.score is None) == (trial.error is not None)


def test_where_all_fail_the_commonest_reasons_are_named() -> None:
    def failed(error: str) -> Trial:
        return Trial(0, {}, None, (), error, 0, 0, "")

    trials = [failed(e) for e in ("a", "b", "b", "c", "c", "c", "d")]
    with pytest.raises(
        LookalikeError, match=r"all 7 trials failed: 3 with 'c'; 2 with 'b'; 1 with"
    ):
        tune.best(trials)


def test_a_trial_on_several_ranks_is_refused(work: Callable[..., Work]) -> None:
    asked = work(space={"warmup": {"uniform": [0.0, 0.5]}})
    several = replace(asked, train=asked.train.model_copy(update={"ranks": 2}))
    with pytest.raises(ConfigError, match=r"train\.ranks = 2, but a trial is one process"):
        tune.search(None, several, lambda _: None)


def test_a_listener_that_fails_is_told_again(work: Callable[..., Work]) -> None:
    calls: list[int] = []

    def listen(trial: Trial) -> None:
        calls.append(trial.number)
        if len(calls) == 1:
            raise OSError("away for a moment")

    asked = work(space={"warmup": {"uniform": [0.0, 0.5]}}, trials=2)
    assert len(tune.search(None, asked, listen)) == 2
    assert calls == [0, 0, 1]


@pytest.mark.parametrize(
    "budget", [{"epochs": 2}, {"steps": 3}, {"steps": 17}, {"minutes": 0.02}], ids=str
)
def test_a_budget_is_kept_and_the_rate_falls_to_its_end(
    make_snapshot: Callable[..., str], budget: dict[str, float]
) -> None:
    from lookalike.model import fit, progress
    from lookalike.model.ranks import Ranks
    from lookalike.model.snapshot import Snapshot

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(4, 4), blocks=4))
    begin: list[float] = []

    class Watcher(progress.Watcher):
        def step(self, done: int, total: int) -> None:
            begin.append(done / total)

    training = fit._Training(
        snapshot, SMALL, 1, Ranks(), Watcher(), None, Budget.model_validate(budget)
    )
    fitted = training.run()
    steps = sum(epoch.steps for epoch in fitted.epochs)
    each = training.per_epoch
    assert steps == len(begin) == training.steps
    if "minutes" in budget:
        assert steps > each  # a step takes milliseconds
    else:
        assert steps == budget.get("steps", budget.get("epochs", 0) * each)
    assert len(fitted.epochs) == math.ceil(steps / each)
    assert begin[-1] == 1.0
    schedule = training.optimizer._learning_rate
    assert float(schedule(steps)) == pytest.approx(0, abs=1e-9)
    assert float(schedule(steps * SMALL.warmup)) == pytest.approx(SMALL.learning_rate)
