"""More ranks, the same mathematics: real Horovod ranks against one process."""

from __future__ import annotations

import functools
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike.config import Train

OWN_NETWORK = '''
import tensorflow as tf

layers = tf.keras.layers


class Normed(layers.Layer):
    """A layer that normalises inside."""

    def __init__(self):
        super().__init__()
        self.dense = layers.Dense(8)
        self.norm = layers.BatchNormalization()

    def call(self, x, training=None):
        return self.norm(self.dense(x), training=training)


def function(images, dim):
    inside = tf.keras.Sequential(
        [layers.Conv2D(6, 3, strides=2), layers.BatchNormalization(), layers.ReLU()]
    )
    x = layers.BatchNormalization(axis=1, scale=False)(inside(images))
    x = Normed()(layers.Flatten()(x))
    return layers.Dense(dim)(layers.ReLU()(x))
'''


EACH = 12
"""Images of a slice: 3 of each of 4 classes out of 5, so that ranks share some and not others."""
DIM = 6

LOSSES: dict[str, dict[str, Any]] = {
    "multi_similarity": {"loss": {"epsilon": 0.3}},
    "hard": {"loss": {"name": "triplet", "mining": "hard"}},
    "semi_hard": {"loss": {"name": "triplet", "mining": "semi_hard"}},
    "normalised_softmax": {"loss": {"name": "normalised_softmax"}},
    "supervised_contrastive": {"loss": {"name": "supervised_contrastive"}},
    "auxiliary": {"loss": {"name": "triplet", "mining": "hard"}, "auxiliary": {"weight": 0.5}},
}
NETWORKS = ("compact_resnet", "own_network:function")


def computed(size: int, alone: bool, folder: str) -> dict[str, Any]:
    """Losses and gradients on `size` slices of a batch: a rank's on its own, or one process's."""
    import tensorflow as tf

    from lookalike.images import Preprocessing
    from lookalike.model import fit, networks, process
    from lookalike.model.ranks import Ranks

    sys.path.insert(0, folder)
    ranks = Ranks() if alone else Ranks.all()
    here = slice(None) if alone else slice(ranks.rank * EACH, (ranks.rank + 1) * EACH)
    classes = np.concatenate([np.repeat((r + np.arange(4)) % 5, 3) for r in range(size)])
    rows = np.random.default_rng(1).normal(size=(len(classes), 10)) + 0.3 * classes[:, None]
    pixels = np.random.default_rng(1).normal(size=(len(classes), 16, 16, 1))
    pixels = np.clip(128 + 60 * pixels + 20 * classes[:, None, None, None], 0, 255)
    rows[4], pixels[4] = rows[3], pixels[3]  # an image that is repeated
    labels = classes[here].astype(np.int32)

    found: dict[str, Any] = {"cores": _cores()}
    for name, train in LOSSES.items():
        inputs = tf.keras.Input((10,))
        linear = tf.keras.Model(inputs, tf.keras.layers.Dense(DIM, use_bias=False)(inputs))
        images = rows[here].astype(np.float32)
        vectors = functools.partial(unit_vectors, linear)
        found[name] = gradients(ranks, train, linear, vectors, images, labels)
    for name in NETWORKS:
        for sync in (False, True):
            network = networks.make(name, Preprocessing(16, 1), DIM, ranks, sync)
            slices = size if alone and not sync else 1
            vectors = functools.partial(vectors_by_slice, network, slices)
            images = pixels[here].astype(np.uint8)
            found[f"{name} {sync}"] = gradients(ranks, {}, network, vectors, images, labels)
        found[f"statistics of {name}"] = [v.numpy() for v in network.non_trainable_variables]
    bounds = [0, *(3 * np.arange(size - 1)), 20]  # rank 0 of several has none
    own = slice(None) if alone else slice(*bounds[ranks.rank : ranks.rank + 2])
    found["uneven"] = ranks.gather_uneven(np.arange(40, dtype=np.float32).reshape(20, 2)[own])
    shared = tf.Variable(float(ranks.rank))
    ranks.share([shared])
    found["facts"] = (ranks.rank, ranks.size, ranks.local_size, ranks.devices, float(shared))
    if not alone:  # each as if on a machine of another kind
        process._CPU = Path(folder) / f"cpu of rank {ranks.rank}"
        process._CPU.write_text("amx_bf16" if ranks.rank > 0 else "none", encoding="utf-8")
        _, found["precision"] = fit._begun(Train(), ranks, None)
    return found


def _cores() -> set[int] | None:
    """Those that this process may use; None where the system does not tell, as on a Mac."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None


def unit_vectors(network: Any, images: Any) -> Any:
    import tensorflow as tf

    return tf.math.l2_normalize(network(images), axis=1)


def vectors_by_slice(network: Any, slices: int, images: Any) -> Any:
    """As one process that normalises each slice by itself."""
    import tensorflow as tf

    parts = [network(part, training=True) for part in tf.split(images, slices)]
    return tf.concat(parts, axis=0)


def gradients(
    ranks: Any, train: dict[str, Any], network: Any, vectors: Any, images: Any, classes: Any
) -> list[np.ndarray]:
    """The mean loss, and its gradients by the weights of network and loss; weights are seeded."""
    import tensorflow as tf

    from lookalike.config import Train
    from lookalike.model import losses

    objective = losses.make(Train(embedding_size=DIM, **train), 5, ranks)
    random = np.random.default_rng(2)
    for variable in [*network.variables, *objective.variables]:
        drawn = random.normal(size=variable.shape) / variable.shape[0] ** 0.5
        variable.assign(np.abs(drawn) + 0.5 if len(variable.shape) == 1 else drawn)
    variables = [*network.trainable_variables, *objective.trainable_variables]

    @tf.function
    def step(images: tf.Tensor, classes: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            value = objective(classes, vectors(images))
        return [ranks.mean(value), *ranks.averaged(tape.gradient(value, variables))]

    return [array.numpy() for array in step(images, classes)]


@pytest.fixture(scope="module", params=[1, 2, 3])
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """One process's results, and those of each rank."""
    import cloudpickle
    from horovod import run

    folder = tmp_path_factory.mktemp("own")
    (folder / "own_network.py").write_text(OWN_NETWORK, encoding="utf-8")
    # The ranks do not find this module: what runs there goes to them whole.
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    size = request.param
    together = run(computed, args=(size, False, str(folder)), num_proc=size, use_gloo=True)
    return computed(size, True, str(folder)), together


Both = tuple[dict[str, Any], list[dict[str, Any]]]


def apart(key: str, both: Both) -> float:
    """Largest difference between any rank's arrays and one process's."""
    alone, together = both
    # Not the loss, which comes first: gradients too small would be as near as they should.
    assert max(np.abs(array).max() for array in alone[key][1:]) > 1e-2
    assert {len(rank[key]) for rank in together} == {len(alone[key])}
    return max(
        float(np.abs(one - other).max())
        for rank in together
        for one, other in zip(rank[key], alone[key], strict=True)
    )


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_and_gradients_are_those_of_one_process(both: Both, loss: str) -> None:
    assert apart(loss, both) <= 1e-5


@pytest.mark.parametrize("network", NETWORKS)
def test_normalised_each_by_itself_as_one_process_does_slice_by_slice(
    both: Both, network: str
) -> None:
    assert apart(f"{network} False", both) <= 1e-5


@pytest.mark.parametrize("network", NETWORKS)
def test_synchronised_normalisation_is_that_of_the_concatenated_batch(
    both: Both, network: str
) -> None:
    alone, together = both
    assert apart(f"{network} True", both) <= 1e-4
    assert apart(f"statistics of {network}", both) <= 1e-4
    if len(together) > 1:  # the two ways differ, or this shows nothing
        ways = zip(alone[f"{network} True"], alone[f"{network} False"], strict=True)
        assert max(np.abs(one - other).max() for one, other in ways) > 1e-2


def test_ranks_have_a_core_each_where_there_are_no_more(both: Both) -> None:
    from joblib import cpu_count

    _, together = both
    if (all_of_them := _cores()) is None:
        pytest.skip("this system leaves no process to choose its cores")
    one_each = len(all_of_them) == len(together) == cpu_count()
    for number, rank in enumerate(together):
        assert rank["cores"] == ({sorted(all_of_them)[number]} if one_each else all_of_them)


def test_rows_of_uneven_ranks_come_in_the_order_of_ranks(both: Both) -> None:
    alone, together = both
    for rank in together:
        assert np.array_equal(rank["uneven"], alone["uneven"])
        assert rank["uneven"].dtype == np.float32


def test_ranks_know_each_other(both: Both) -> None:
    _, together = both
    size = len(together)
    # No GPUs from Spark, where Spark is not; and rank 0's value.
    assert [rank["facts"] for rank in together] == [(r, size, size, (), 0.0) for r in range(size)]


def test_ranks_on_machines_of_other_kinds_train_in_one_precision(both: Both) -> None:
    _, together = both
    assert len({rank["precision"] for rank in together}) == 1


def test_a_rank_in_spark_has_the_gpus_that_spark_gave_it() -> None:
    from horovod.spark.task import task_info
    from pyspark.resource import ResourceInformation

    from lookalike.model import ranks

    assert ranks._devices() == ()
    task_info.set_resources({"gpu": ResourceInformation("gpu", ["2", "5"])})
    try:
        assert ranks._devices() == ("2", "5")
    finally:
        task_info.set_resources({})


def halves(steps: int) -> list[tuple[float, list[np.ndarray]]]:
    """The loss's scale and the weights after each step in half precision, from a scale of 2**30."""
    import tensorflow as tf

    from lookalike.config import Train
    from lookalike.images import Preprocessing
    from lookalike.model import losses, networks, optimizer
    from lookalike.model.ranks import Ranks

    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    ranks = Ranks.all()
    network = networks.make("simple_cnn", Preprocessing(16, 1), DIM)
    train = Train(optimizer="sgd", learning_rate=0.1, warmup=0.0, embedding_size=DIM)
    objective = losses.make(train, 5, ranks)
    ranks.share(network.variables)
    descent = optimizer.make(train, tf.Variable(1000.0), ranks.size)
    descent.build(network.trainable_variables)
    descent._loss_scale.current_loss_scale.assign(2.0**30)
    step = optimizer.make_step(network, descent, objective, ranks)
    random = np.random.default_rng(ranks.rank)
    found = []
    for _ in range(steps):
        classes = np.repeat(np.arange(4), 3).astype(np.int32)
        # The ranks' images are of other contrast: the gradients of one are too large for halves
        # while those of the other are not.
        noise = random.normal(size=(12, 16, 16, 1)) * (2 + 40 * ranks.rank)
        pixels = np.clip(60 + 30 * classes[:, None, None, None] + noise, 0, 255).astype(np.uint8)
        step(tf.constant(pixels), tf.constant(classes))
        found.append((float(descent.loss_scale), network.get_weights()))
    return found


def test_ranks_in_half_precision_leave_out_the_same_steps() -> None:
    import cloudpickle
    from horovod import run

    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    one, other = run(halves, args=(40,), num_proc=2, use_gloo=True)
    scales = [scale for scale, _ in one]
    assert scales[0] < 2**30  # a step left out
    assert scales[-1] == scales[-2]  # and at last none
    assert scales == [scale for scale, _ in other]
    for (_, mine), (_, theirs) in zip(one, other, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert all(np.isfinite(array).all() for array in mine)
    assert any((a != b).any() for a, b in zip(one[0][1], one[-1][1], strict=True))
