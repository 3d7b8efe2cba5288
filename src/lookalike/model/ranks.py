"""One process or many: what training asks of the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf


@dataclass(frozen=True)
class Ranks:
    """The ranks of a training. Without Horovod there is one, and every method is the identity."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    horovod: Any = None

    @classmethod
    def all(cls) -> Ranks:
        """The ranks of the Horovod job that this process is in."""
        import horovod.tensorflow as hvd

        hvd.init()
        return cls(hvd.rank(), hvd.size(), hvd.local_rank(), hvd)

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The rows of all ranks, this rank's own first: (n, ...) to (size * n, ...).

        The gradient is that of the concatenation: each rank's rows get the sum of what all ranks'
        losses ask of them. Horovod's own gradient of allgather is the average over ranks.

        Own rows come first because a loss that compares a batch with itself clears the pairs of
        an image with itself on the main diagonal.
        """
        if self.size == 1:
            return rows
        gathered = _scaled_gradient(self.horovod.allgather(rows), float(self.size))
        return tf.roll(gathered, -self.rank * tf.shape(rows)[0], axis=0)

    def averaged(self, gradients: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Gradients averaged over ranks: that of the mean of the ranks' losses."""
        if self.size == 1:
            return list(gradients)
        return list(self.horovod.grouped_allreduce(gradients, op=self.horovod.Average))

    def mean(self, value: tf.Tensor) -> tf.Tensor:
        """A value averaged over ranks."""
        return value if self.size == 1 else self.horovod.allreduce(value, op=self.horovod.Average)

    def share(self, variables: Sequence[tf.Variable]) -> None:
        """Give all ranks rank 0's values."""
        if self.size > 1:
            self.horovod.broadcast_variables(variables, root_rank=0)


@tf.custom_gradient
def _scaled_gradient(x: tf.Tensor, factor: float) -> tuple[tf.Tensor, Any]:
    return tf.identity(x), lambda upstream: (upstream * factor, None)
