"""The search for better values of training."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lookalike.config.fields import Model, Positive
from lookalike.config.training import Train, with_values
from lookalike.errors import ConfigError
from lookalike.metrics import FULL_MAP, Scores
from lookalike.space import WORDS, Part, samples
from lookalike.space import part as parts


class Budget(Model):
    """How long a training lasts: exactly one of these."""

    epochs: Positive | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of training steps; validation is not counted"
    )

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(value is not None for value in (self.epochs, self.steps, self.minutes)) != 1:
            raise ValueError("give exactly one of epochs, steps and minutes")
        return self


_NOT_SEARCHED = (
    "ranks",
    "threads",
    "epochs",
    "init_from",
    "group_by",
    "deterministic",
    "patience",
    "validation_items",
    "buffer_mb",
    "cache_mb",
    "checkpoint_steps",
    "restarts",
    "silence",
)


class Tune(Model):
    """The search. Keys of `space` are keys of `train`, dotted: `loss.alpha`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "search"
    trials: Annotated[int, Field(ge=0, description="0: no search, train with the values given")] = 8
    parallelism: Positive | None = Field(
        None, description="trials at once; else as many as the cluster runs tasks, within reason"
    )
    algorithm: Literal["tpe", "random", "anneal"] = "tpe"
    objective: Literal[(*Scores.METRICS, FULL_MAP)] = Field(  # type: ignore[valid-type]
        "map_at_r", description="on the validation split, itself left out; larger is better"
    )
    budget: Budget = Field(Budget(epochs=2), description="of every trial")
    space: dict[str, Any] = {}

    @field_validator("space")
    @classmethod
    def _of_words(cls, space: dict[str, Any]) -> dict[str, Any]:
        for key, value in space.items():
            try:
                part = parts(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            if not isinstance(part, tuple(WORDS.values())):
                raise ValueError(f"{key}: {value!r} is none of {', '.join(sorted(WORDS))}")
            above = [other for other in space if key.startswith(f"{other}.")]
            if above:
                raise ValueError(f"{key} lies within {above[0]}, which is searched as a whole")
        return space

    @model_validator(mode="after")
    def _learns(self) -> Tune:
        at_once = self.parallelism or 1
        if self.trials and at_once > (most := self.at_most):
            raise ValueError(
                f"parallelism = {at_once} for trials = {self.trials}: "
                + (
                    "there are no more to run"
                    if self.algorithm == "random"
                    else f"{self.algorithm} learns from trials that have ended, and would draw "
                    "too many of them before any has, at random"
                )
                + f". Allowed: 1 to {most}"
            )
        return self

    @property
    def at_most(self) -> int:
        """Trials that may run at once, so that the search can still learn from those before.

        A third of them, for TPE draws a third at random before it learns, and then as many again
        as were handed out meanwhile.
        """
        share = 1 if self.algorithm == "random" else 3
        return max(1, self.trials // share)

    @property
    def parts(self) -> dict[str, Part]:
        """The space, as `lookalike.space` says it."""
        return {key: parts(value) for key, value in self.space.items()}


def trainings(tune: Tune, train: Train) -> Iterator[Train]:
    """For each key of the space, the recipe's training with values that the key may take.

    Args:
        tune: names the space.
        train: the recipe's own values.

    Raises:
        ValueError: a key that is not searched, or a value that training does not take.
    """
    for key, part in tune.parts.items():
        if key in _NOT_SEARCHED:
            raise ValueError(
                f"tune.space: {key!r} is not searched: a trial is one process with a budget of "
                f"its own, on the recipe's snapshot. Not searched: {', '.join(_NOT_SEARCHED)}"
            )
        for value in samples(part):
            try:
                found = with_values(train, {key: value})
            except ConfigError as error:
                raise ValueError(f"tune.space: {error}") from error
            if found.images_per_class > (most := train.images_per_class):
                raise ValueError(
                    f"tune.space: images_per_class = {found.images_per_class}, but the "
                    f"snapshot is laid out for the recipe's own. Allowed: 2 to {most}"
                )
            yield found
