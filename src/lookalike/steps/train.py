"""Train the encoder on several ranks, with the values that the search found."""

from __future__ import annotations

from typing import Any

from lookalike import artifacts, encoder
from lookalike.config import with_values
from lookalike.errors import DataError
from lookalike.steps import tune
from lookalike.steps.context import Context, Result

STEP = "train"


class TrainedEncoder(Result):
    """The committed encoder, its figures on validation, and the MLflow run of its training."""

    uri: str
    fingerprint: str
    validation: dict[str, float]
    repeated: float
    steps: int
    ranks: int
    run_id: str

    @property
    def words(self) -> str:
        return (
            f"encoder {self.fingerprint[:12]}: {self.steps:,} steps on each of {self.ranks} ranks "
            f"(padding: {self.repeated:.1%} of the images came twice in an epoch); validation "
            f"P@1 {self.validation['p_at_1']:.3f}, MAP@R {self.validation['map_at_r']:.3f}"
        )


def run(context: Context) -> TrainedEncoder:
    """Train on the newest snapshot, or find the encoder that was trained so."""
    from lookalike.model import launch

    config, ledger = context.config, context.ledger
    snapshot = ledger.need("snapshot").outputs
    values = _searched(context, snapshot["uri"])
    train = with_values(config.train, values)
    inputs = {
        "snapshot": snapshot["uri"],
        "train": train.model_dump(mode="json"),
        "seed": config.seed,
    }
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["uri"], encoder.KIND)):
        return TrainedEncoder(**last.outputs | {"unchanged": True})
    with context.tracking.run("model") as run:
        run.params({"train": train.model_dump(), "seed": config.seed})
        run.tags({"snapshot": snapshot["uri"], "searched": str(bool(values))})
        job = launch.Job(
            snapshot=snapshot["uri"],
            encoders=context.encoders,
            train=train,
            seed=config.seed,
            made_from={"snapshot": snapshot["uri"], "config": config.recorded()},
            run=run,
        )
        trained = launch.train(
            job,
            context.progress,
            context.log / f"train-{run.run_id}.log",
        )
        run.tags({"encoder": trained.fingerprint})
        run.metrics({"repeated_share": trained.repeated})
    result = TrainedEncoder(
        uri=trained.uri,
        fingerprint=trained.fingerprint,
        validation=trained.scores,
        repeated=trained.repeated,
        steps=trained.steps,
        ranks=train.ranks,
        run_id=run.run_id,
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def of(context: Context, fingerprint: str, what: str) -> dict[str, Any]:
    """Outputs of the newest training, which must be that of an encoder.

    Args:
        context: whose ledger.
        fingerprint: of the encoder that something was made with.
        what: was made with it.

    Raises:
        DataError: another encoder has been trained since; both are named.
    """
    trained = context.ledger.need(STEP).outputs
    if trained["fingerprint"] != fingerprint:
        raise DataError(
            f"the newest {what} is of encoder {fingerprint[:12]}, the newest encoder is "
            f"{trained['fingerprint'][:12]}",
            remedy="Run `lookalike embed`, `index` and `evaluate` for the newest encoder",
        )
    return trained


def _searched(context: Context, snapshot: str) -> dict[str, Any]:
    if context.config.tune.trials == 0:
        return {}
    if found := context.ledger.find(tune.STEP, tune.inputs_of(context, snapshot)):
        return dict(found.outputs["values"])
    raise DataError(
        f"tune.trials = {context.config.tune.trials}, but no search of this recipe was made on "
        f"the snapshot {snapshot}",
        remedy="Run `lookalike tune` first, or --set tune.trials=0 to train with the values given",
    )
