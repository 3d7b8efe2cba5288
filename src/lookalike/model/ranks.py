"""One process or many: what training asks of the others."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf
from joblib import cpu_count  # type: ignore[import-untyped] # scikit-learn's


@dataclass(frozen=True)
class Ranks:
    """The ranks of a training. Without Horovod there is one, and every method is the identity.

    Attributes:
        rank, size: this one's number, and how many there are.
        local_rank, local_size: the same among those on this machine.
        devices: addresses of the GPUs that Spark gave this rank's task
            (`spark.task.resource.gpu.amount`); empty where it gave none.
        horovod: its TensorFlow module; None where there is one rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    devices: tuple[str, ...] = ()
    horovod: Any = None

    @classmethod
    def all(cls) -> Ranks:
        """The ranks of the Horovod job that this process is in."""
        import horovod.tensorflow as hvd

        _settle()
        hvd.init()
        return cls(hvd.rank(), hvd.size(), hvd.local_rank(), hvd.local_size(), _devices(), hvd)

    def gather(self, rows: tf.Tensor) -> tf.Tensor:
        """The rows of all ranks, this rank's own first: (n, ...) to (size * n, ...).

        The gradient is that of the concatenation: each rank's rows get the sum of what all ranks'
        losses ask of them.

        Own rows come first because a loss that compares a batch with itself clears the pairs of
        an image with itself on the main diagonal.
        """
        if self.size == 1:
            return rows
        return tf.roll(self._concatenated(rows), -self.rank * tf.shape(rows)[0], axis=0)

    def gather_uneven(self, rows: np.ndarray) -> np.ndarray:
        """The rows of all ranks in the order of ranks, each rank as many as it has.

        Args:
            rows: (n, ...), any n, the same type and inner shape on every rank.

        Returns:
            (sum of all n, ...), alike on every rank. Nothing is derived through it.
        """
        if self.size == 1:
            return rows
        gathered: np.ndarray = self.horovod.allgather(tf.constant(rows)).numpy()
        return gathered

    def moments(self, mean: tf.Tensor, variance: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Mean and variance over all ranks' values from those over each rank's, equally many.

        The variance is the mean of the ranks' variances plus the variance of their means, which
        unlike E[x^2] - E[x]^2 loses no digits where the mean is large. One exchange for both, and
        the same bits on every rank.
        """
        if self.size == 1:
            return mean, variance
        every = self._concatenated(tf.stack([mean, variance])[tf.newaxis])
        mean = tf.reduce_mean(every[:, 0], axis=0)
        spread = tf.math.squared_difference(every[:, 0], mean)
        return mean, tf.reduce_mean(every[:, 1] + spread, axis=0)

    def averaged(self, values: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Each averaged over ranks, all in one exchange; gradients become those of the mean of
        the ranks' losses."""
        if self.size == 1 or not values:
            return list(values)
        return list(self.horovod.grouped_allreduce(values, op=self.horovod.Average))

    def mean(self, value: tf.Tensor) -> tf.Tensor:
        """A value averaged over ranks."""
        return value if self.size == 1 else self.horovod.allreduce(value, op=self.horovod.Average)

    def told(self, value: Any) -> Any:
        """Rank 0's value, on every rank; any that pickles."""
        return value if self.size == 1 else self.horovod.broadcast_object(value, 0, name="told")

    def share(self, variables: Sequence[tf.Variable]) -> None:
        """Give all ranks rank 0's values."""
        if self.size > 1:
            self.horovod.broadcast_variables(variables, root_rank=0)

    def _concatenated(self, rows: tf.Tensor) -> tf.Tensor:
        # Horovod's gradient of allgather is the average over ranks, that of a concatenation the
        # sum.
        return _scaled_gradient(self.horovod.allgather(rows), float(self.size))


@tf.custom_gradient
def _scaled_gradient(x: tf.Tensor, factor: float) -> tuple[tf.Tensor, Any]:
    return tf.identity(x), lambda upstream: (upstream * factor, None)


def _settle() -> None:
    """Where this machine has no more cores than ranks, let Horovod take less of them.

    Its thread would wake each millisecond; and threads that are moved from core to core make one
    rank wait for the other.
    """
    size, own = (int(os.environ.get(f"HOROVOD_LOCAL_{name}", "0")) for name in ("SIZE", "RANK"))
    if cpu_count() > size:
        return
    os.environ.setdefault("HOROVOD_CYCLE_TIME", "2.5")
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    # Not where others may have been given a share of the same cores: all would begin at the first.
    if len(cores) == size == cpu_count():
        with suppress(OSError):  # a sandbox may forbid it
            os.sched_setaffinity(0, {cores[own]})


def _devices() -> tuple[str, ...]:
    # Imported already where Spark has started this process; elsewhere it would bring pyspark.
    task = sys.modules.get("horovod.spark.task")
    return () if task is None else tuple(task.get_available_devices())
