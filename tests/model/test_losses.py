"""Each loss against its formula, one anchor and one pair at a time."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lookalike.config import (
    Auxiliary,
    Loss,
    MultiSimilarity,
    NormalisedSoftmax,
    SupervisedContrastive,
    Train,
    Triplet,
)
from lookalike.metrics import unit

CLASSES, DIM = 5, 6


def positives_of(i: int, classes: np.ndarray) -> list[int]:
    return [j for j in range(len(classes)) if classes[j] == classes[i] and j != i]


def negatives_of(i: int, classes: np.ndarray) -> list[int]:
    return [j for j in range(len(classes)) if classes[j] != classes[i]]


def distances_of(i: int, vectors: np.ndarray) -> list[float]:
    return [1 - float(vectors[i] @ other) for other in vectors]


def multi_similarity(loss: MultiSimilarity, classes: np.ndarray, vectors: np.ndarray) -> float:
    """Wang et al. 2019, equations 11 to 15 in distances."""
    total = 0.0
    for i in range(len(classes)):
        distance = distances_of(i, vectors)
        positives, negatives = positives_of(i, classes), negatives_of(i, classes)
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


def triplet(loss: Triplet, classes: np.ndarray, vectors: np.ndarray) -> float:
    """Hermans et al. 2017, equation 5; Schroff et al. 2015, section 3.2, every positive."""
    total = 0.0
    for i in range(len(classes)):
        distance = distances_of(i, vectors)
        positives, negatives = positives_of(i, classes), negatives_of(i, classes)
        if not positives or not negatives:
            continue
        if loss.mining == "hard":
            farthest = max(distance[j] for j in positives)
            nearest = min(distance[j] for j in negatives)
            total += max(0.0, loss.margin + farthest - nearest)
            continue
        for j in positives:
            farther = [distance[k] for k in negatives if distance[k] > distance[j]]
            negative = min(farther) if farther else max(distance[k] for k in negatives)
            total += max(0.0, loss.margin + distance[j] - negative) / len(positives)
    return total / len(classes)


def supervised_contrastive(
    loss: SupervisedContrastive, classes: np.ndarray, vectors: np.ndarray
) -> float:
    """Khosla et al. 2020, L_out of equation 2."""
    total = 0.0
    for i in range(len(classes)):
        weight = [math.exp(float(vectors[i] @ v) / loss.temperature) for v in vectors]
        everyone = sum(weight) - weight[i]
        positives = positives_of(i, classes)
        for j in positives:
            total -= math.log(weight[j] / everyone) / len(positives)
    return total / len(classes)


def normalised_softmax(
    loss: NormalisedSoftmax | Auxiliary,
    classes: np.ndarray,
    vectors: np.ndarray,
    proxies: np.ndarray,
) -> float:
    """Zhai and Wu 2019, the targets smoothed."""
    total = 0.0
    for own, vector in zip(classes, vectors, strict=True):
        logits = [loss.scale * float(vector @ p) / math.sqrt(float(p @ p)) for p in proxies]
        everyone = math.log(sum(math.exp(logit) for logit in logits))
        for other, logit in enumerate(logits):
            target = loss.smoothing / len(proxies) + (1 - loss.smoothing) * (other == own)
            total -= target * (logit - everyone)
    return total / len(classes)


ORACLES: dict[type, Callable[..., float]] = {
    MultiSimilarity: multi_similarity,
    Triplet: triplet,
    SupervisedContrastive: supervised_contrastive,
    NormalisedSoftmax: normalised_softmax,
}
LOSSES: list[Loss] = [
    MultiSimilarity(),
    MultiSimilarity(alpha=1, beta=30, epsilon=0.5, lmda=0.2),
    MultiSimilarity(beta=10, epsilon=3),
    Triplet(name="triplet", mining="hard"),
    Triplet(name="triplet", mining="hard", margin=0.7),
    Triplet(name="triplet", mining="semi_hard"),
    Triplet(name="triplet", mining="semi_hard", margin=0.7),
    SupervisedContrastive(name="supervised_contrastive"),
    SupervisedContrastive(name="supervised_contrastive", temperature=0.5),
    NormalisedSoftmax(name="normalised_softmax"),
    NormalisedSoftmax(name="normalised_softmax", scale=4, smoothing=0),
]


def test_above_two_epsilon_mines_nothing() -> None:
    for classes, vectors in batches():
        kept = [objective(MultiSimilarity(epsilon=e))(classes, vectors) for e in (2.1, 1000.0)]
        assert float(kept[0]) == float(kept[1])


def objective(loss: Loss, auxiliary: Auxiliary = Auxiliary(), classes: int = CLASSES) -> Any:  # noqa: B008
    from lookalike.model import losses
    from lookalike.model.ranks import Ranks

    train = Train(embedding_size=DIM, loss=loss, auxiliary=auxiliary)
    return losses.make(train, classes, Ranks())


def batches() -> list[tuple[np.ndarray, np.ndarray]]:
    """Class ids and vectors, from all directions to one heap a class.

    The classes have 2 to 6 images, in no order, and one image comes twice.
    """
    random = np.random.default_rng(0)
    found = []
    for apart in (0.0, 0.5, 1.0, 3.0):
        classes = random.permutation(np.repeat(np.arange(CLASSES), np.arange(2, 2 + CLASSES)))
        middles = random.normal(size=(CLASSES, DIM))
        vectors = unit(random.normal(size=(len(classes), DIM)) + apart * middles[classes])
        once, again = np.flatnonzero(classes == 3)[:2]
        vectors[again] = vectors[once]
        found.append((classes.astype(np.int32), vectors.astype(np.float32)))
    return found


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_loss_is_its_formula(loss: Loss) -> None:
    ours = objective(loss)
    proxies = [variable.numpy() for variable in ours.trainable_variables]
    values = []
    for classes, vectors in batches():
        found = float(ours(classes, vectors))
        expected = ORACLES[type(loss)](loss, classes, vectors, *proxies)
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)
        values.append(found)
    assert max(values) > 0.1
    if not proxies:  # which where they begin stand for no class yet
        assert values[-1] < values[0]


@pytest.mark.parametrize("mining", ["hard", "semi_hard"])
def test_triplets_by_hand(mining: str) -> None:
    from lookalike.model import losses

    def value(*others: int) -> float:
        """Of an anchor at 0 degrees, its positive at 60 degrees and some negatives."""
        distances = np.array([[d(angle) for angle in (0, 60, *others)]], np.float32)
        positives = np.array([[False, True, *(False for _ in others)]])
        negatives = np.array([[False, False, *(True for _ in others)]])
        mined = losses.batch_hard if mining == "hard" else losses.semi_hard
        return float(mined(distances, positives, negatives, 0.2)[0])

    def d(angle: int) -> float:
        return 1 - math.cos(math.radians(angle))

    # The nearest of all, or of those beyond the positive.
    nearest = 20 if mining == "hard" else 65
    assert value(-65, -20, -120) == pytest.approx(0.2 + d(60) - d(nearest), abs=1e-6)
    # Nothing beyond the positive: the farthest there is, or the nearest all the same.
    left = 20 if mining == "hard" else 40
    assert value(-20, -40) == pytest.approx(0.2 + d(60) - d(left), abs=1e-6)
    # A negative beyond the margin asks for nothing.
    assert value(-120) == 0


@pytest.mark.parametrize("loss", LOSSES[2:9:2], ids=str)
def test_anchors_without_positive_or_negative_ask_for_nothing(loss: Loss) -> None:
    import tensorflow as tf

    random = np.random.default_rng(1)
    vectors = tf.constant(unit(random.normal(size=(4, DIM))), tf.float32)
    for classes in ([0, 1, 2, 3], [1, 1, 1, 1]):
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            value = objective(loss)(np.array(classes, np.int32), vectors)
        gradient = tape.gradient(value, vectors).numpy()
        assert np.isfinite(gradient).all()
        if isinstance(loss, Triplet) or classes[1] != classes[2]:
            assert float(value) == 0
            assert not gradient.any()


@pytest.mark.parametrize("loss", LOSSES[::2], ids=str)
def test_the_auxiliary_is_added_by_its_weight(loss: Loss) -> None:
    auxiliary = Auxiliary(weight=0.3, scale=8, smoothing=0.2)
    both = objective(loss, auxiliary)
    proxies, *own = [variable.numpy() for variable in both.trainable_variables]
    assert len(own) == isinstance(loss, NormalisedSoftmax)  # which has proxies of its own
    classes, vectors = batches()[0]
    main = ORACLES[type(loss)](loss, classes, vectors, *own)
    beside = normalised_softmax(auxiliary, classes, vectors, proxies)
    assert float(both(classes, vectors)) == pytest.approx(main + 0.3 * beside, rel=1e-5)


def test_proxies_are_seeded_and_trained() -> None:
    import tensorflow as tf

    def made() -> Any:
        tf.keras.utils.set_random_seed(5)
        return objective(NormalisedSoftmax(name="normalised_softmax"), classes=400)

    first, second = made(), made()
    (proxies,) = first.trainable_variables
    assert proxies.shape == (400, DIM)
    assert np.array_equal(proxies, second.trainable_variables[0])
    assert 0.9 < np.linalg.norm(proxies.numpy(), axis=1).mean() < 1.1
    classes, vectors = batches()[0]
    with tf.GradientTape() as tape:
        value = first(classes, vectors)
    gradient = tape.gradient(value, proxies).numpy()
    # Every class is told apart from those in the batch, its own direction is left free.
    assert (np.abs(gradient).max(axis=1) > 0).all()
    assert np.abs((gradient * proxies.numpy()).sum(axis=1)).max() < 1e-6
    assert objective(MultiSimilarity()).trainable_variables == ()


@pytest.mark.parametrize("loss", LOSSES[::2], ids=str)
def test_halves_are_computed_in_float32(loss: Loss) -> None:
    import tensorflow as tf

    ours = objective(loss, Auxiliary(weight=0.5))
    classes, vectors = batches()[1]
    halves = tf.cast(vectors, tf.float16)
    with tf.GradientTape() as tape:
        tape.watch(halves)
        value = ours(classes, halves)
    assert value.dtype == tf.float32
    assert float(value) == float(ours(classes, tf.cast(halves, tf.float32)))
    assert tape.gradient(value, halves).dtype == tf.float16
