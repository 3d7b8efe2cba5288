"""Training a network: one process or many, the same code."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from lookalike import artifacts, planning
from lookalike.config import Augment, Budget, Train
from lookalike.errors import LookalikeError
from lookalike.metrics import Scores, exact_scores
from lookalike.model import checkpoints, losses, networks, reader
from lookalike.model.augmentation import augmented
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.ranks import Ranks
from lookalike.model.snapshot import Snapshot

_LOOKED_AT = 25
"""Steps between two looks at whether the loss is a number: each look waits for the device."""

_CALMER = "Lower train.learning_rate or set train.clip_norm. "
_VARIABLES, _BEST = "variables", "best.npz"
_GROWTH = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}


@dataclass(frozen=True)
class Epoch:
    """What an epoch brought.

    Attributes:
        number: from 0.
        steps: that every rank took.
        loss: mean over its steps and all ranks.
        validation: scores on the validation split, itself left out.
        repeated: images that came twice, on this rank.
        images_per_second: over all ranks, validation not counted.
        waiting: share of the steps' time that this rank waited for data.
    """

    number: int
    steps: int
    loss: float
    validation: Scores
    repeated: int
    images_per_second: float
    waiting: float


@dataclass(frozen=True)
class Fitted:
    """A trained network, its curve, and vectors of the validation images.

    Attributes:
        network: with the weights that were validated best: the last ones where there is no
            `patience`, averaged where there is `ema`.
        epochs: what each epoch brought.
        best: the epoch that the weights are of.
        before, after: float32 (n, dim), vectors of the untrained and of the trained network.
        classes: int32 (n,), class numbers of the validation images.
    """

    network: tf.keras.Model
    epochs: tuple[Epoch, ...]
    best: Epoch
    before: np.ndarray
    after: np.ndarray
    classes: np.ndarray

    @property
    def scores(self) -> Scores:
        """On the validation split, itself left out."""
        return self.best.validation


class Watcher:
    """Who is told how a training goes. This one does not listen."""

    def step(self, done: int, total: int) -> None:
        """Steps done on this rank, and steps in all."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch has been validated; told on every rank."""

    def resumed(self, step: int) -> None:
        """The training goes on from a checkpoint after so many steps."""


@dataclass
class _Place:
    """Where a training stands; with the variables, all of it."""

    epoch: int = 0
    step: int = 0
    spent: float = 0.0
    """Seconds of training steps, where they are what is budgeted."""
    loss: float = 0.0
    repeated: int = 0
    curve: list[Epoch] = field(default_factory=list)

    @classmethod
    def of(cls, kept: dict[str, Any]) -> _Place:
        curve = [
            Epoch(**{**epoch, "validation": Scores(**epoch["validation"])})
            for epoch in kept["curve"]
        ]
        return cls(**{**kept, "curve": curve})


@dataclass(frozen=True)
class _Pace:
    """Steps taken in a row, the seconds they took, and those of them without data."""

    steps: int
    seconds: float
    waited: float


def fit(
    snapshot: Snapshot,
    train: Train,
    seed: int,
    ranks: Ranks,
    watcher: Watcher | None = None,
    keeper: Checkpoints | None = None,
    budget: Budget | None = None,
) -> Fitted:
    """Train a network on a snapshot.

    Args:
        snapshot: what to train on.
        train: see `Train`.
        seed: of weights, batches and augmentation.
        ranks: the processes that train together.
        watcher: told how it goes.
        keeper: where to go on from, and where to keep the state every so many steps.
        budget: how long it lasts, in place of `train.epochs`.

    Raises:
        ConfigError: a batch that the snapshot cannot fill.
        LookalikeError: the loss is no number.
    """
    budget = budget or Budget(epochs=train.epochs)
    return _Training(snapshot, train, seed, ranks, watcher or Watcher(), keeper, budget).run()


class _Training:
    def __init__(
        self,
        snapshot: Snapshot,
        train: Train,
        seed: int,
        ranks: Ranks,
        watcher: Watcher,
        keeper: Checkpoints | None,
        budget: Budget,
    ):
        tf.keras.utils.set_random_seed(seed)
        self.snapshot, self.train, self.seed, self.ranks = snapshot, train, seed, ranks
        self.watcher, self.keeper, self.budget = watcher, keeper, budget
        self.per_epoch = planning.steps_per_epoch(snapshot.train_items, ranks.size, train.batch)
        self.steps = budget.steps or self.per_epoch * (budget.epochs or train.epochs)
        """In all; of a budget of minutes as many as will be, as it looks until now."""
        snapshot.check(train.batch, ranks.size, seed, -(-self.steps // self.per_epoch))
        self.network = self._network()
        if train.init_from is not None:
            networks.start_from(self.network, train.init_from)
        self.objective = losses.make(train, len(snapshot.classes), ranks)
        # Before anything is made of them: moving averages begin where the weights do.
        ranks.share([*self.network.variables, *self.objective.trainable_variables])
        self.trained = [*self.network.trainable_variables, *self.objective.trainable_variables]
        # The schedule reads it: what is planned of a budget of minutes changes on the way.
        self.planned = tf.Variable(self.steps, trainable=False, dtype=tf.float32)
        self.optimizer = _optimizer(train, self.planned, ranks.size)
        self.optimizer.build(self.trained)
        self.step = _step(self.network, self.optimizer, self.objective, ranks)
        self.state = tf.train.Checkpoint(
            network=self.network, optimizer=self.optimizer, objective=self.objective
        )
        self.encode = _encoder(self.network)
        self.place = _Place()
        self.cache: Path | None = None
        self.unread: Exception | None = None
        self.best: list[np.ndarray] = []
        """Weights of the best epoch, where training may go on beyond it."""

    def run(self) -> Fitted:
        if not self.snapshot.remote:
            return self._run()
        with reader.cache_folder() as self.cache:
            return self._run()

    def _run(self) -> Fitted:
        pixels, classes = self.snapshot.validation()
        before = self._vectors(pixels)
        self._resume()
        batches = iter(self._batches())
        # A checkpoint at an epoch's last step is of before its validation, which is to be done.
        while (self._done < self.steps or self.place.step) and not self._stale():
            pace = self._epoch(batches)
            with self._averaged():
                scores = _scores(self._vectors(pixels), classes, self.ranks)
                self._end_epoch(scores, pace)
        curve = self.place.curve
        best = curve[-1]
        if self.train.ema:
            self._average()
        if self.best:
            best = max(curve, key=lambda epoch: epoch.validation.map_at_r)
            self.network.set_weights(self.best)
        if tf.keras.mixed_precision.global_policy().name != "float32":
            # What is exported computes alike everywhere.
            tf.keras.mixed_precision.set_global_policy("float32")
            trained, self.network = self.network, self._network()
            self.network.set_weights(trained.get_weights())
            self.encode = _encoder(self.network)
        after = self._vectors(pixels)
        return Fitted(self.network, tuple(curve), best, before, after, classes)

    def _network(self) -> tf.keras.Model:
        train = self.train
        return networks.make(
            train.network,
            self.snapshot.preprocessing,
            train.embedding_size,
            self.ranks,
            train.sync_batch_norm,
        )

    def _epoch(self, batches: Iterator[tuple[tf.Tensor, tf.Tensor, tf.Tensor]]) -> _Pace:
        """Take an epoch's steps, or those that are left of it."""
        place, train = self.place, self.train
        losses_since: list[tf.Tensor] = []
        taken, waited, begin = 0, 0.0, time.perf_counter()
        looked = begin
        while place.step < self.per_epoch and self._done < self.steps:
            asked = time.perf_counter()
            try:
                images, classes, repeated = next(batches)
            except tf.errors.OpError as error:
                raise self.unread or error from None
            waited += time.perf_counter() - asked
            losses_since.append(self.step(images, classes))
            taken += 1
            place.step += 1
            place.repeated += int(repeated)
            done = self._done
            due = self.keeper is not None and done % train.checkpoint_steps == 0
            ends = place.step == self.per_epoch or done == self.steps
            early = self.budget.minutes is not None and done & (done - 1) == 0
            if due or ends or early or done % _LOOKED_AT == 0:
                self._count(losses_since)
                losses_since.clear()
                now = time.perf_counter()
                self._plan(done, now - looked)
                looked = now
            if due:
                self._keep()
            self.watcher.step(done, self.steps)
        self._check_weights()
        return _Pace(taken, time.perf_counter() - begin, waited)

    def _plan(self, done: int, seconds: float) -> None:
        """Of a budget of minutes, see how many steps it will have been.

        Args:
            done: steps.
            seconds: since the look before; the first step's are its compilation's.
        """
        if self.budget.minutes is None:
            return
        if done == 1:
            self.steps = max(self.steps, 2)
            self.planned.assign(self.steps)
            return
        self.place.spent += seconds
        left = self.budget.minutes * 60 - self.place.spent
        each = self.place.spent / (done - 1)
        # All ranks must take as many.
        self.steps = self.ranks.told(done + max(0, round(left / each)))
        self.planned.assign(self.steps)

    def _count(self, since: list[tf.Tensor]) -> None:
        values = tf.stack(since).numpy()
        wrong = np.flatnonzero(~np.isfinite(values))
        if len(wrong):
            first = self._done - len(since) + int(wrong[0]) + 1
            raise LookalikeError(
                f"the loss became {values[wrong[0]]} at step {first:,} "
                f"of {self.steps:,} on rank {self.ranks.rank}",
                remedy=_CALMER + self._kept_so_far(),
            )
        self.place.loss += float(values.sum())

    @property
    def _done(self) -> int:
        """Steps done, over all epochs."""
        return self.place.epoch * self.per_epoch + self.place.step

    def _check_weights(self) -> None:
        # A rectifier makes a zero of NaN: broken weights need not show in the loss.
        for variable in self.network.variables:
            if not np.isfinite(variable.numpy()).all():
                raise LookalikeError(
                    f"the weights {variable.name} became NaN or infinite before step "
                    f"{self._done:,} of {self.steps:,}",
                    remedy=_CALMER + self._kept_so_far(),
                )

    def _kept_so_far(self) -> str:
        last = self.keeper.newest() if self.keeper is not None else None
        if last is None:
            return "There is no checkpoint"
        return f"The last checkpoint is of step {last.meta['step']:,}, in {last.uri}"

    def _end_epoch(self, validation: Scores, pace: _Pace) -> None:
        place = self.place
        images = self.ranks.size * self.train.batch.size * pace.steps
        epoch = Epoch(
            number=place.epoch,
            steps=place.step,
            loss=float(self.ranks.mean(tf.constant(place.loss / place.step))),
            validation=validation,
            repeated=place.repeated,
            images_per_second=images / pace.seconds,
            waiting=pace.waited / pace.seconds,
        )
        place.curve.append(epoch)
        if self.train.patience is not None and self._since_best() == 0:
            self.best = self.network.get_weights()
        place.epoch, place.step, place.loss, place.repeated = place.epoch + 1, 0, 0.0, 0
        self.watcher.epoch(epoch)

    def _since_best(self) -> int:
        scores = [epoch.validation.map_at_r for epoch in self.place.curve]
        return len(scores) - 1 - int(np.argmax(scores))

    def _stale(self) -> bool:
        patience = self.train.patience
        return patience is not None and bool(self.place.curve) and self._since_best() >= patience

    # The state, kept and taken up again.

    def _keep(self) -> None:
        self._average_statistics()
        # As on all ranks, so that whoever goes on from here has it right.
        self.place.loss = float(self.ranks.mean(tf.constant(self.place.loss)))
        if self.ranks.rank != 0 or self.keeper is None:
            return
        self._check_weights()
        with artifacts.workbench() as folder:
            self.state.write(str(folder / _VARIABLES))
            np.savez(folder / _BEST, *self.best)
            self.keeper.save(folder, self._done, asdict(self.place))

    def _resume(self) -> None:
        found = None
        if self.ranks.rank == 0 and self.keeper is not None:
            found = self.keeper.newest()
        uri = self.ranks.told(None if found is None else found.uri)
        if uri is None:
            return
        kept = artifacts.open_artifact(uri, checkpoints.KIND)
        with artifacts.workbench() as folder:
            files = artifacts.fetch(kept, folder)
            try:
                self.state.read(str(files / _VARIABLES)).assert_existing_objects_matched()
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                raise LookalikeError(
                    f"the checkpoint {uri} is not of this network "
                    f"({str(error).strip().splitlines()[0][:200]})",
                    remedy="Make the network of train.network what it was, or remove the folder "
                    f"{uri.rstrip('/').rpartition('/')[0]} to begin anew",
                ) from error
            with np.load(files / _BEST, allow_pickle=False) as best:
                self.best = [best[f"arr_{i}"] for i in range(len(best))]
        self.place = _Place.of(kept.meta["place"])
        self.watcher.resumed(kept.meta["step"])

    # Weights that are validated and exported.

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network with the weights that would leave it now."""
        self._average_statistics()
        if not self.train.ema:
            yield
            return
        live = [variable.numpy() for variable in self.trained]
        self._average()
        try:
            yield
        finally:
            for variable, value in zip(self.trained, live, strict=True):
                variable.assign(value)

    def _average(self) -> None:
        getattr(self.optimizer, "inner_optimizer", self.optimizer).finalize_variable_values(
            self.trained
        )

    def _average_statistics(self) -> None:
        # Batch normalisation's running means are each rank's own until here. What they become is
        # linear in them: averaging more often changes nothing.
        own = [v for v in self.network.non_trainable_variables if v.dtype.is_floating]
        means = self.ranks.averaged([variable.value() for variable in own])
        for variable, mean in zip(own, means, strict=True):
            variable.assign(mean)

    def _vectors(self, pixels: np.ndarray, batch: int = 256) -> np.ndarray:
        """Vectors of images, a share of them by each rank: float32 (n, dim) on all."""
        size, dim = self.ranks.size, self.network.output_shape[1]
        own = pixels[self.ranks.rank :: size]
        parts = [self.encode(own[i : i + batch]).numpy() for i in range(0, len(own), batch)]
        vectors = np.concatenate([np.empty((0, dim), np.float32), *parts])
        if size == 1:
            return vectors
        order = np.concatenate([np.arange(len(pixels))[rank::size] for rank in range(size)])
        result = np.empty((len(pixels), dim), np.float32)
        result[order] = self.ranks.gather_uneven(vectors)
        return result

    def _batches(self) -> tf.data.Dataset:
        """The batches of this epoch and all after it, read and changed ahead of their use.

        One stream of them: an epoch's first are read while the one before is validated.
        """
        place, train, preprocessing = replace(self.place), self.train, self.snapshot.preprocessing
        shard = Shard(
            rank=self.ranks.rank,
            ranks=self.ranks.size,
            batch=train.batch,
            seed=self.seed,
            buffer_items=train.buffer_mb * 2**20 // self.snapshot.item_bytes,
            threads=max(1, tf.config.threading.get_intra_op_parallelism_threads()),
            grouped=train.group_by is not None,
            cache=self.cache,
            cache_bytes=train.cache_mb * 2**20,
        )

        def plain() -> Iterator[tuple[np.ndarray, np.ndarray, int, int]]:
            start = place.step
            try:
                for epoch in itertools.count(place.epoch):  # whoever asks knows when to end
                    rng = np.random.default_rng([self.seed, epoch, self.ranks.rank])
                    first = int(rng.integers(2**31)) + start
                    batches = epoch_batches(self.snapshot, shard, epoch, start)
                    for number, batch in enumerate(batches, first):
                        yield batch.pixels, batch.classes, batch.repeated, number
                    start = 0
            except (LookalikeError, OSError) as error:
                self.unread = error  # TensorFlow gives one of its own for it
                raise

        data = tf.data.Dataset.from_generator(
            plain,
            output_signature=(
                tf.TensorSpec((train.batch.size, *preprocessing.shape), tf.uint8),
                tf.TensorSpec((train.batch.size,), tf.int32),
                tf.TensorSpec((), tf.int32),
                tf.TensorSpec((), tf.int64),
            ),
        )

        def changed(
            pixels: tf.Tensor, classes: tf.Tensor, repeated: tf.Tensor, number: tf.Tensor
        ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
            if train.augment != Augment():
                pixels = augmented(pixels, train.augment, number)
            return pixels, classes, repeated

        return data.map(changed).prefetch(4)


def _encoder(network: tf.keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    encode: Callable[[tf.Tensor], tf.Tensor] = tf.function(
        partial(network, training=False), reduce_retracing=True
    )
    return encode


class _Schedule(tf.keras.optimizers.schedules.LearningRateSchedule):  # type: ignore[misc]
    """Up to the rate over the first steps, then down to 0 by a cosine (Loshchilov & Hutter 2017).

    Args:
        rate: the highest.
        warmup: share of the steps that it rises over.
        planned: float32 scalar, steps in all; what it is while a step is taken counts.
    """

    def __init__(self, rate: float, warmup: float, planned: tf.Variable):
        super().__init__()
        self._rate, self._warmup, self._planned = rate, warmup, planned

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        done = tf.minimum(tf.cast(step, tf.float32) / self._planned, 1.0)
        risen = done / self._warmup if self._warmup else 1.0
        fallen = (done - self._warmup) / (1.0 - self._warmup)
        return self._rate * tf.where(
            done < self._warmup, risen, 0.5 * (1.0 + tf.cos(np.pi * fallen))
        )


def _optimizer(train: Train, planned: tf.Variable, ranks: int) -> tf.keras.optimizers.Optimizer:
    rate = train.learning_rate * ranks ** _GROWTH[train.rank_scaling]
    schedule = _Schedule(rate, train.warmup, planned)
    optimizer = tf.keras.optimizers.AdamW(
        schedule,
        weight_decay=train.weight_decay,
        global_clipnorm=train.clip_norm,
        use_ema=train.ema > 0,
        ema_momentum=train.ema or 0.99,
    )
    if tf.keras.mixed_precision.global_policy().name == "mixed_float16":
        return tf.keras.mixed_precision.LossScaleOptimizer(optimizer)
    return optimizer


def _step(
    network: tf.keras.Model,
    optimizer: tf.keras.optimizers.Optimizer,
    objective: losses.Objective,
    ranks: Ranks,
) -> Callable[[tf.Tensor, tf.Tensor], tf.Tensor]:
    scaled = isinstance(optimizer, tf.keras.mixed_precision.LossScaleOptimizer)

    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        trained = [*network.trainable_variables, *objective.trainable_variables]
        with tf.GradientTape() as tape:
            vectors = network(images, training=True)
            value = objective(classes, vectors)
            differentiated = optimizer.get_scaled_loss(value) if scaled else value
        gradients = tape.gradient(differentiated, trained)
        if scaled:
            gradients = optimizer.get_unscaled_gradients(gradients)
        optimizer.apply_gradients(zip(ranks.averaged(gradients), trained, strict=True))
        # Of vectors that are no numbers a loss that picks pairs picks none, and is zero.
        finite = tf.reduce_all(tf.math.is_finite(vectors))
        return tf.where(finite, value, tf.constant(np.nan, value.dtype))

    return step


def _scores(vectors: np.ndarray, classes: np.ndarray, ranks: Ranks) -> Scores:
    """By rank 0, which tells the others: they must agree on when to stop."""
    if ranks.rank != 0:
        return Scores(**ranks.told(None))
    everyone = np.arange(len(vectors))
    found = exact_scores(vectors, classes, vectors, classes, self_rows=everyone)
    ranks.told(asdict(found := replace(found, by_class={})))
    return found
