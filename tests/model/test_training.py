"""The loss against its formula, ranks against one process, the exported graph."""

import math
from pathlib import Path

import numpy as np
import pytest

from lookalike import encoder
from lookalike.config import Augment, Loss, Train
from lookalike.images import Preprocessing, encode_png
from lookalike.metrics import Calibration, unit
from lookalike.model.batches import Snapshot
from lookalike.planning import BatchShape


def multi_similarity(classes, vectors, loss: Loss) -> float:
    """Wang et al. 2019, equations 11 to 15 in distances, one anchor and one pair at a time."""
    total = 0.0
    for i in range(len(classes)):
        distance = [1 - float(vectors[i] @ v) for v in vectors]
        positives = [j for j in range(len(classes)) if classes[j] == classes[i] and j != i]
        negatives = [j for j in range(len(classes)) if classes[j] != classes[i]]
        nearest_negative = min(distance[j] for j in negatives)
        farthest_positive = max(distance[j] for j in positives)
        hard_positives = [j for j in positives if distance[j] > nearest_negative - loss.epsilon]
        hard_negatives = [j for j in negatives if distance[j] < farthest_positive + loss.epsilon]
        if not hard_positives or not hard_negatives:
            continue
        margin = 1 - loss.lmda
        pull = sum(math.exp(loss.alpha * (distance[j] - margin)) for j in hard_positives)
        push = sum(math.exp(-loss.beta * (distance[j] - margin)) for j in hard_negatives)
        total += math.log(1 + pull) / loss.alpha + math.log(1 + push) / loss.beta
    return total / len(classes)


@pytest.mark.parametrize("loss", [Loss(), Loss(alpha=1, beta=30, epsilon=0.5, lmda=0.2)])
def test_the_loss_is_its_formula(loss: Loss) -> None:
    from lookalike.model.losses import multi_similarity as ours
    from lookalike.model.ranks import Ranks

    random = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), 5).astype(np.int32)
    for _ in range(5):
        vectors = unit(random.normal(size=(20, 6)))
        found = float(ours(loss, Ranks())(classes, vectors))
        assert found == pytest.approx(multi_similarity(classes, vectors, loss), rel=1e-5)


@pytest.mark.parametrize("size", [2, 3])
def test_the_gradient_on_ranks_is_that_of_one_process(size: int) -> None:
    """Real Horovod ranks, a linear network: weights' gradient on the concatenated batch."""
    from horovod import run

    def gradient(ranks_size: int | None) -> list[list[float]]:
        import numpy as np
        import tensorflow as tf

        from lookalike.config import Loss
        from lookalike.model.losses import multi_similarity
        from lookalike.model.ranks import Ranks

        ranks = Ranks() if ranks_size is None else Ranks.all()
        images = np.random.default_rng(1).normal(size=(size * 12, 10)).astype(np.float32)
        classes = np.tile(np.repeat(np.arange(4), 3), size).astype(np.int32)
        if ranks_size is not None:
            own = slice(ranks.rank * 12, (ranks.rank + 1) * 12)
            images, classes = images[own], classes[own]
        weights = tf.Variable(np.random.default_rng(2).normal(size=(10, 6)).astype(np.float32))
        with tf.GradientTape() as tape:
            vectors = tf.math.l2_normalize(images @ weights, axis=1)
            value = multi_similarity(Loss(epsilon=0.3), ranks)(classes, vectors)
        (found,) = ranks.averaged(tape.gradient(value, [weights]))
        return found.numpy().tolist()

    (alone,) = run(gradient, args=(None,), num_proc=1, use_gloo=True)
    together = run(gradient, args=(size,), num_proc=size, use_gloo=True)
    for rank in together:
        assert np.abs(np.array(rank) - np.array(alone)).max() <= 1e-5
    assert np.abs(alone).max() > 1e-3


def test_fit_learns_and_its_graph_gives_the_same_vectors(make_snapshot, tmp_path: Path) -> None:
    from lookalike.model import export, fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    train = Train(
        network="simple_cnn", embedding_size=8, classes_per_batch=5, images_per_class=4,
        epochs=6, learning_rate=0.005, augment=Augment(flip=True),
    )  # fmt: skip
    steps: list[tuple[int, int]] = []
    fitted = fit.fit(snapshot, train, 1, Ranks(), lambda done, total: steps.append((done, total)))
    assert [done for done, _ in steps] == list(range(1, 61))
    assert {total for _, total in steps} == {60}
    # Chance is about 1/5; the classes differ by a bright row.
    assert fitted.scores.map_at_r > 0.9
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss

    graph = export.to_onnx(fitted.network, snapshot.preprocessing)
    specification = encoder.Specification(snapshot.preprocessing, "cosine", 8, Calibration(-9, 3))
    committed = encoder.commit(str(tmp_path / "encoders"), graph, specification, {})
    opened = encoder.Encoder.open(committed.uri)
    pixels, _ = snapshot.validation()
    files = [encode_png(image[:, :, 0]) for image in pixels]
    assert np.abs(opened.encode(files) - fitted.validation_vectors).max() <= 1e-5
    # One at a time or many at once: the same vectors.
    singles = np.concatenate([opened.encode([file]) for file in files[:20]])
    assert np.abs(singles - opened.encode(files[:20])).max() <= 1e-6


@pytest.mark.parametrize("network", ["compact_resnet", "simple_cnn"])
@pytest.mark.parametrize("preprocessing", [Preprocessing(28, 1), Preprocessing(64, 3)])
def test_networks_give_unit_vectors(network: str, preprocessing: Preprocessing) -> None:
    from lookalike.model import networks

    made = networks.make(network, preprocessing, 32)
    images = np.random.default_rng(0).integers(256, size=(3, *preprocessing.shape), dtype=np.uint8)
    vectors = made(images, training=False).numpy()
    assert vectors.shape == (3, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert made.count_params() < 4_000_000


def test_augmentation_moves_and_mirrors_within_bounds() -> None:
    import tensorflow as tf

    from lookalike.model.fit import _changed

    images = np.random.default_rng(0).integers(256, size=(64, 8, 8, 1), dtype=np.uint8)
    changed = _changed(tf.constant(images), Augment(flip=True, shift=2), tf.constant(3)).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)], mode="symmetric")
    found = set()
    for image, was, now in zip(padded, images, changed, strict=True):
        mirrored = image[:, ::-1]
        places = [
            (flip, y, x)
            for flip, source in enumerate((image, mirrored))
            for y in range(5)
            for x in range(5)
            if (source[y : y + 8, x : x + 8] == now).all()
        ]
        assert len(places) == 1
        found.add(places[0])
        assert was.shape == now.shape
    assert len(found) > 20  # not all images alike
