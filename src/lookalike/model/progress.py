"""How far a training is, and what it has brought until there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lookalike.metrics import Scores


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought.

    Attributes:
        number: from 0.
        steps: that every rank took.
        loss: mean over its steps and all ranks.
        validation: scores on the validation split, itself left out.
        repeated: images that came twice, mean over all ranks.
        images_per_second: over all ranks, validation not counted.
        waiting: share of the steps' time that this rank waited for data.
    """

    number: int
    steps: int
    loss: float
    validation: Scores
    repeated: float
    images_per_second: float
    waiting: float


class Watcher:
    """Who is told how a training goes. This one does not listen."""

    def step(self, done: int, total: int) -> None:
        """Steps done on this rank, and steps in all."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has been validated; told on every rank."""

    def resumed(self, step: int) -> None:
        """The training goes on from a checkpoint after so many steps."""


@dataclass
class Place:
    """Where a training stands; with the variables, all of it."""

    epoch: int = 0
    step: int = 0
    spent: float = 0.0
    """Seconds of training steps, where they are what is budgeted."""
    loss: float = 0.0
    repeated: float = 0.0
    precision: str = ""
    """Keras's policy that is trained with; of checkpoints of before, not known."""
    curve: list[Epoch] = field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Place:
        """From what a checkpoint holds of it."""
        curve = [
            Epoch(**{**epoch, "validation": Scores(**epoch["validation"])})
            for epoch in kept["curve"]
        ]
        return cls(**{**kept, "curve": curve})

    @property
    def since_best(self) -> int:
        """Epochs after the one that was validated best."""
        scores = [epoch.validation.map_at_r for epoch in self.curve]
        return len(scores) - 1 - int(np.argmax(scores))
