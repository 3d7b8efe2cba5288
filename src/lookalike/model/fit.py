"""Training a network: one process or many, the same code."""

from __future__ import annotations

import itertools
import time
from contextlib import closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import tensorflow as tf
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped] # scikit-learn's

from lookalike import artifacts, planning
from lookalike.config import Budget, Train
from lookalike.errors import LookalikeError
from lookalike.metrics import Scores
from lookalike.model import (
    checkpoints,
    detail,
    feed,
    losses,
    networks,
    optimizer,
    process,
    validation,
)
from lookalike.model.batches import Shard, epoch_batches
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.progress import Epoch, Place, Watcher
from lookalike.model.ranks import Ranks
from lookalike.model.snapshot import Snapshot

_LOOKED_AT = 25
"""Steps between two looks at whether the loss is a number: each look waits for the device."""

_CALMER = "Lower train.learning_rate or set train.clip_norm. "
_VARIABLES, _BEST = "variables", "best.npz"


@dataclass(frozen=True)
class Fitted:
    """A trained network, its curve, and vectors of the validation images.

    Attributes:
        network: with the weights that were validated best: the last ones where there is no
            `patience`, averaged where there is `ema`.
        epochs: what each epoch brought, its scores those of what was trained.
        best: the epoch that the weights are of, with the scores of the network as it is here: in
            float32, whatever it was trained in, and with detail where there is any.
        before, after: float32 (n, ...), vectors of the untrained and of the trained network, the
            former computed as it is trained and without detail.
        classes: int32 (n,), class numbers of the validation images.
        precision: Keras's policy that it was trained with.
    """

    network: tf.keras.Model
    epochs: tuple[Epoch, ...]
    best: Epoch
    before: np.ndarray
    after: np.ndarray
    classes: np.ndarray
    precision: str

    @property
    def scores(self) -> Scores:
        """On the validation split, itself left out."""
        return self.best.validation


def _begun(train: Train, ranks: Ranks, keeper: Checkpoints | None) -> tuple[str | None, str]:
    """What all ranks begin with, even where their machines differ: the checkpoint to go on from,
    and the policy of Keras to train with. A training that goes on goes on as it began."""
    kept = keeper.newest() if keeper is not None and ranks.rank == 0 else None
    uri, before = (None, "") if kept is None else (kept.uri, Place.of(kept.meta["place"]).precision)
    told: tuple[str | None, str] = ranks.told((uri, before or process.precision(train)))
    return told


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
    """Train a network on a snapshot, in the precision that `train` asks for.

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
    own = tf.keras.mixed_precision.global_policy()
    try:
        checkpoint, precision = _begun(train, ranks, keeper)
        tf.keras.mixed_precision.set_global_policy(precision)
        training = _Training(snapshot, train, seed, ranks, watcher or Watcher(), keeper, budget)
        return training.run(checkpoint)
    finally:
        tf.keras.mixed_precision.set_global_policy(own)


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
        self._use(self._network())
        if train.init_from is not None:
            networks.start_from(self.encoder, train.init_from)
        self.objective = losses.make(train, len(snapshot.classes), ranks)
        # Before anything is made of them: moving averages begin where the weights do.
        ranks.share([*self.network.variables, *self.objective.trainable_variables])
        self.trained = [*self.network.trainable_variables, *self.objective.trainable_variables]
        # The schedule reads it: what is planned of a budget of minutes changes on the way.
        self.planned = tf.Variable(self.steps, trainable=False, dtype=tf.float32)
        self.optimizer = optimizer.make(train, self.planned, ranks.size)
        self.optimizer.build(self.trained)
        self.step = optimizer.make_step(self.network, self.optimizer, self.objective, ranks)
        self.state = tf.train.Checkpoint(
            network=self.network, optimizer=self.optimizer, objective=self.objective
        )
        self.place = Place(precision=tf.keras.mixed_precision.global_policy().name)
        self.cache: Path | None = None
        self.best: list[np.ndarray] = []
        """Weights of the best epoch, where training may go on beyond it."""

    def run(self, checkpoint: str | None = None) -> Fitted:
        """Train, from a checkpoint's URI on or from the beginning."""
        remote = self.snapshot.remote
        with artifacts.workbench() if remote else nullcontext() as self.cache:
            return self._run(checkpoint)

    def _run(self, checkpoint: str | None) -> Fitted:
        train = self.train
        pixels, classes = self.snapshot.validation()
        before = self._vectors(pixels)
        if checkpoint is not None:
            self._resume(checkpoint)
        stream = feed.stream(
            self.snapshot, self._shard(), train.augment, self.place.epoch, self.place.step
        )
        with closing(stream) as batches:
            # A checkpoint at an epoch's last step is of before its validation, which is to be done.
            while (self._done < self.steps or self.place.step) and not self._stale():
                pace = self._epoch(batches)
                # What would leave it now is validated.
                self._average_statistics()
                with optimizer.averaged(self.optimizer, self.trained):
                    scores = validation.scores(self._vectors(pixels), classes, self.ranks)
                    self._end_epoch(scores, pace)
        curve = self.place.curve
        best = curve[-1]
        optimizer.average(self.optimizer, self.trained)
        if self.best:
            best = max(curve, key=lambda epoch: epoch.validation.map_at_r)
            self.network.set_weights(self.best)
        precision = self.place.precision
        if precision != "float32":
            # What is exported computes alike everywhere, and what is said is said of it.
            tf.keras.mixed_precision.set_global_policy("float32")
            trained = self.network.get_weights()
            self._use(self._network())
            self.network.set_weights(trained)
        if train.detail:
            self._add_detail()
        after = self._vectors(pixels)
        if precision != "float32" or train.detail:
            best = replace(best, validation=validation.scores(after, classes, self.ranks))
        return Fitted(self.encoder, tuple(curve), best, before, after, classes, precision)

    def _use(self, network: tf.keras.Model) -> None:
        """Take this network; what makes vectors of it has the same weights."""
        self.network = network
        self.encoder = networks.with_mirror(network) if self.train.mirrored else network
        self.encode = validation.forward(self.encoder)

    def _network(self) -> tf.keras.Model:
        train = self.train
        network = networks.make(
            train.network,
            self.snapshot.preprocessing,
            train.trained_size,
            self.ranks,
            train.sync_batch_norm,
        )
        if train.detail:  # so that what is wrong is told before the training
            detail.parts(network, train.detail_size, train.mirrored)
        return network

    def _add_detail(self) -> None:
        """Let vectors be with detail, whose components are those of the first training images."""
        train, ranks = self.train, self.ranks
        both = detail.parts(self.network, train.detail_size, train.mirrored)
        numbers = validation.forward(tf.keras.Model(both.input, both.output[1]))
        # No more than were trained on: a short trial does not end with a long look.
        batches = -(-detail.IMAGES // (ranks.size * train.batch.size))
        batches = min(batches, self.per_epoch, self.steps)
        first = itertools.islice(epoch_batches(self.snapshot, self._shard(), 0), batches)
        own = np.concatenate([numbers(batch.pixels).numpy() for batch in first])
        everyones = ranks.gather_uneven(own)
        with threadpool_limits(tf.config.threading.get_intra_op_parallelism_threads() or None):
            # By one of them: all must have the same, to the bit.
            found = detail.components(everyones, train.detail_size) if ranks.rank == 0 else None
        self.encoder = detail.with_detail(both, train.detail, *ranks.told(found))
        self.encode = validation.forward(self.encoder)

    def _shard(self) -> Shard:
        train = self.train
        return Shard(
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

    def _vectors(self, pixels: np.ndarray) -> np.ndarray:
        # No more at once than are trained on: that many there is memory for.
        dim, batch = self.encoder.output_shape[1], self.train.batch.size
        return validation.vectors(self.encode, pixels, dim, self.ranks, batch)

    def _epoch(self, batches: feed.Batches) -> _Pace:
        """Take an epoch's steps, or those that are left of it."""
        place, train = self.place, self.train
        losses_since: list[tf.Tensor] = []
        taken, waited, begin = 0, 0.0, time.perf_counter()
        looked = begin
        while place.step < self.per_epoch and self._done < self.steps:
            asked = time.perf_counter()
            images, classes, repeated = next(batches)
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
                    f"{self._done:,} of {self.steps:,} on rank {self.ranks.rank}",
                    remedy=_CALMER + self._kept_so_far(),
                )

    def _kept_so_far(self) -> str:
        last = self.keeper.newest() if self.keeper is not None else None
        if last is None:
            return "There is no checkpoint"
        return f"The last checkpoint is of step {last.meta['step']:,}, in {last.uri}"

    def _end_epoch(self, scores: Scores, pace: _Pace) -> None:
        place = self.place
        images = self.ranks.size * self.train.batch.size * pace.steps
        self._average_counts()
        epoch = Epoch(
            number=place.epoch,
            steps=place.step,
            loss=place.loss / place.step,
            validation=scores,
            repeated=place.repeated,
            images_per_second=images / pace.seconds,
            waiting=pace.waited / pace.seconds,
        )
        place.curve.append(epoch)
        if self.train.patience is not None and place.since_best == 0:
            self.best = self.network.get_weights()
        place.epoch, place.step, place.loss, place.repeated = place.epoch + 1, 0, 0.0, 0.0
        self.watcher.epoch(epoch)

    def _stale(self) -> bool:
        patience = self.train.patience
        return patience is not None and bool(self.place.curve) and self.place.since_best >= patience

    # The state, kept and taken up again.

    def _keep(self) -> None:
        self._average_statistics()
        self._average_counts()  # so that whoever goes on from here has them right
        if self.ranks.rank != 0 or self.keeper is None:
            return
        self._check_weights()
        with artifacts.workbench() as folder:
            try:
                self.state.write(str(folder / _VARIABLES))
                np.savez(folder / _BEST, *self.best)
            except (OSError, tf.errors.OpError) as error:
                raise LookalikeError(
                    f"the checkpoint at step {self._done:,} could not be written to {folder} "
                    f"({str(error).strip().splitlines()[0][:200]})",
                    remedy="Make room there, or name another folder in TMPDIR. "
                    + self._kept_so_far(),
                ) from error
            self.keeper.save(folder, self._done, asdict(self.place))

    def _resume(self, uri: str) -> None:
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
        self.place = replace(Place.of(kept.meta["place"]), precision=self.place.precision)
        self.watcher.resumed(kept.meta["step"])

    def _average_counts(self) -> None:
        place = self.place
        means = self.ranks.mean(tf.constant([place.loss, place.repeated]))
        place.loss, place.repeated = means.numpy().tolist()

    def _average_statistics(self) -> None:
        # Batch normalisation's running means are each rank's own until here. What they become is
        # linear in them: averaging more often changes nothing.
        own = [v for v in self.network.non_trainable_variables if v.dtype.is_floating]
        means = self.ranks.averaged([variable.value() for variable in own])
        for variable, mean in zip(own, means, strict=True):
            variable.assign(mean)
