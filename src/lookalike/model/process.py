"""This process: its threads, its GPU, its precision."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import tensorflow as tf
from joblib import cpu_count  # type: ignore[import-untyped] # scikit-learn's

from lookalike.config import Train
from lookalike.errors import ConfigError
from lookalike.model.ranks import Ranks

_CPU = Path("/proc/cpuinfo")
"""Where Linux lists what the CPU can do and the kernel allows."""


def set_up(train: Train, ranks: Ranks = Ranks(), sharing: int = 1) -> None:  # noqa: B008
    """Threads, GPU and determinism of this process. Before anything is computed.

    Args:
        train: see `Train`.
        ranks: whose place on the machine decides the GPU: Spark's where it assigned one.
        sharing: processes that share the machine's cores, where `train.threads` does not say.

    Raises:
        ConfigError: Spark's address of a GPU is no number.
    """
    sharing = max(sharing, ranks.local_size)
    # Of the machine, or of what a container may use of it.
    threads = train.threads or max(1, cpu_count() // sharing)
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if seen := gpus():
        own = seen[gpu_of(ranks.devices, ranks.local_rank, len(seen))]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)
    # 10 bits of float32's 23: neither would a graph's vectors be the network's, nor the gradient of
    # several ranks that of one. What is fast on GPUs is mixed_float16.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    set_determinism(train)


def gpus() -> list[tf.config.PhysicalDevice]:
    """Those that TensorFlow sees on this machine."""
    found: list[tf.config.PhysicalDevice] = tf.config.list_physical_devices("GPU")
    return found


def gpu_of(addresses: Sequence[str], local_rank: int, seen: int) -> int:
    """Which of the GPUs that are seen is this process's own; ranks that outnumber them share.

    Args:
        addresses: that Spark assigned; none where it assigns no GPUs.
        local_rank: the place among the machine's ranks.
        seen: GPUs that TensorFlow sees; in a container of its own fewer than Spark counts.

    Raises:
        ConfigError: an address is no number.
    """
    if not addresses:
        return local_rank % seen
    if not addresses[0].isdigit():
        raise ConfigError(
            f"Spark assigned the GPU {addresses[0]!r}, which is no number",
            allowed="the GPUs' numbers, from 0 on",
            remedy="Let the script of spark.worker.resource.gpu.discoveryScript print those",
        )
    return int(addresses[0]) % seen


def set_determinism(train: Train) -> None:
    """Let operations repeat to the bit from now on, where `train` asks for it."""
    if train.deterministic:
        tf.config.experimental.enable_op_determinism()


def precision(train: Train) -> str:
    """The policy of Keras to train with: where `train` leaves it open, the fastest here.

    bfloat16 only where a CPU has matrix units, which oneDNN uses: elsewhere it is no faster, or
    emulated.
    """
    if train.precision != "auto":
        return train.precision
    if gpus():
        return "mixed_float16"
    has_units = _CPU.exists() and "amx_bf16" in _CPU.read_text()
    used = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1").lower() not in ("0", "false")
    return "mixed_bfloat16" if has_units and used else "float32"
