"""Training a network: one process or many, the same code."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import tensorflow as tf

from lookalike import planning
from lookalike.config import Augment, Train
from lookalike.errors import LookalikeError
from lookalike.metrics import Scores, exact_scores
from lookalike.model import losses, networks
from lookalike.model.batches import Batch, Shard, Snapshot, epoch_batches
from lookalike.model.ranks import Ranks


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought: `loss` is the mean over its steps and all ranks."""

    number: int
    steps: int
    loss: float
    validation: Scores
    repeated: int


@dataclass(frozen=True)
class Fitted:
    """A trained network, its curve, and its vectors of the validation images."""

    network: tf.keras.Model
    epochs: tuple[Epoch, ...]
    validation_vectors: np.ndarray
    validation_classes: np.ndarray

    @property
    def scores(self) -> Scores:
        """On the validation split, itself left out."""
        return self.epochs[-1].validation


def set_threads(threads: int, local_rank: int = 0) -> None:
    """Threads of this process, and its GPU where there are any. Before anything is computed."""
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        own = gpus[local_rank % len(gpus)]
        tf.config.set_visible_devices(own, "GPU")
        tf.config.experimental.set_memory_growth(own, True)


def _nobody(*_: object) -> None:
    """Who is told where nobody asks."""


def fit(
    snapshot: Snapshot,
    train: Train,
    seed: int,
    ranks: Ranks,
    on_step: Callable[[int, int], None] = _nobody,
    on_epoch: Callable[[Epoch], None] = _nobody,
) -> Fitted:
    """Train a network on a snapshot.

    Args:
        snapshot: what to train on.
        train: see `Train`.
        seed: of weights, batches and augmentation.
        ranks: the processes that train together.
        on_step: told the steps done and the steps in all.
        on_epoch: told each epoch, on every rank.

    Raises:
        ConfigError: a batch that the snapshot cannot fill.
        LookalikeError: the loss is no number.
    """
    tf.keras.utils.set_random_seed(seed)
    network = networks.make(train.network, snapshot.preprocessing, train.embedding_size)
    per_epoch = planning.steps_per_epoch(snapshot.train_items, ranks.size, train.batch)
    steps = per_epoch * train.epochs
    optimizer = _optimizer(train, steps)
    optimizer.build(network.trainable_variables)
    ranks.share([*network.variables, *optimizer.variables])
    step = _step(network, optimizer, losses.multi_similarity(train.loss, ranks), ranks)
    pixels, classes = snapshot.validation()
    shard = Shard(
        rank=ranks.rank,
        ranks=ranks.size,
        batch=train.batch,
        seed=seed,
        buffer_items=train.buffer_mb * 2**20 // snapshot.preprocessing.item_bytes,
    )
    epochs: list[Epoch] = []
    vectors = np.empty((0, train.embedding_size), np.float32)
    for number in range(train.epochs):
        repeated: list[int] = []
        total = tf.zeros(())
        batches = epoch_batches(snapshot, shard, number)
        for taken, (images, labels) in enumerate(
            _augmented(batches, snapshot, train, [seed, number, ranks.rank], repeated),
            start=1,
        ):
            total += step(images, labels)
            on_step(number * per_epoch + taken, steps)
        loss = float(ranks.mean(total / per_epoch))
        if not np.isfinite(loss):
            raise LookalikeError(
                f"the loss became {loss} in epoch {number + 1} of {train.epochs}",
                remedy="Lower train.learning_rate",
            )
        _average_statistics(network, ranks)
        vectors = encode(network, pixels)
        epoch = Epoch(number, per_epoch, loss, _scores(vectors, classes), sum(repeated))
        epochs.append(epoch)
        on_epoch(epoch)
    return Fitted(network, tuple(epochs), vectors, classes)


def encode(network: tf.keras.Model, pixels: np.ndarray, batch: int = 256) -> np.ndarray:
    """Vectors of images: uint8 (n, size, size, channels) to float32 (n, dim)."""
    parts = [
        network(pixels[i : i + batch], training=False).numpy() for i in range(0, len(pixels), batch)
    ]
    return np.concatenate(parts) if parts else np.empty((0, network.output_shape[1]), np.float32)


def _optimizer(train: Train, steps: int) -> tf.keras.optimizers.Optimizer:
    warm = int(train.warmup * steps)
    schedule = tf.keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warm else train.learning_rate,
        decay_steps=max(1, steps - warm),
        warmup_target=train.learning_rate if warm else None,
        warmup_steps=warm,
    )
    return tf.keras.optimizers.AdamW(schedule, weight_decay=train.weight_decay)


def _step(
    network: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    loss: losses.BatchLoss,
    ranks: Ranks,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            value = loss(classes, network(images, training=True))
        gradients = tape.gradient(value, network.trainable_variables)
        optimizer.apply_gradients(
            zip(ranks.averaged(gradients), network.trainable_variables, strict=True)
        )
        return value

    return step


def _augmented(
    batches: Iterator[Batch],
    snapshot: Snapshot,
    train: Train,
    seed: list[int],
    repeated: list[int],
) -> tf.data.Dataset:
    def plain() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in batches:
            repeated.append(batch.repeated)
            yield batch.pixels, batch.classes

    shape = snapshot.preprocessing.shape
    data = tf.data.Dataset.from_generator(
        plain,
        output_signature=(
            tf.TensorSpec((train.batch.size, *shape), tf.uint8),
            tf.TensorSpec((train.batch.size,), tf.int32),
        ),
    )
    start = int(np.random.default_rng(seed).integers(2**31))
    if train.augment != Augment():
        data = data.enumerate(start).map(
            lambda number, batch: (_changed(batch[0], train.augment, number), batch[1])
        )
    return data.prefetch(4)


def _changed(images: tf.Tensor, augment: Augment, number: tf.Tensor) -> tf.Tensor:
    count, height, width = images.shape[0], images.shape[1], images.shape[2]
    if augment.flip:
        flips = tf.random.stateless_uniform((count, 1, 1, 1), [number, 0]) < 0.5
        images = tf.where(flips, tf.reverse(images, [2]), images)
    if augment.shift:
        room = augment.shift
        # Edge rows and columns are repeated, not blackened: catalogues have white grounds too.
        padded = tf.pad(images, [[0, 0], [room, room], [room, room], [0, 0]], "SYMMETRIC")
        offsets = tf.random.stateless_uniform(
            (count, 2), [number, 1], maxval=2 * room + 1, dtype=tf.int32
        )
        rows = offsets[:, :1] + tf.range(height)
        columns = offsets[:, 1:] + tf.range(width)
        images = tf.gather(padded, rows, axis=1, batch_dims=1)
        images = tf.gather(images, columns, axis=2, batch_dims=1)
    return images


def _average_statistics(network: tf.keras.Model, ranks: Ranks) -> None:
    # Batch normalisation's running means are each rank's own until here.
    for variable in network.non_trainable_variables:
        if variable.dtype.is_floating:
            variable.assign(ranks.mean(variable))


def _scores(vectors: np.ndarray, classes: np.ndarray) -> Scores:
    everyone = np.arange(len(vectors))
    found = exact_scores(vectors, classes, vectors, classes, self_rows=everyone)
    return replace(found, by_class={})
