"""Training learns, and the exported graph is what was trained."""

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest

from lookalike import encoder
from lookalike.config import Augment, Budget, Train
from lookalike.errors import LookalikeError
from lookalike.images import encode_png
from lookalike.metrics import Calibration, exact_scores
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.snapshot import Snapshot
from lookalike.planning import BatchShape


@pytest.mark.parametrize(
    ("mirrored", "precision", "detail"),
    [
        (False, "float32", 0),
        (True, "float32", 0),
        (False, "float32", 0.2),
        (True, "mixed_bfloat16", 0.2),
    ],
)
def test_fit_learns_and_its_graph_gives_the_same_vectors(
    make_snapshot: Callable[..., str],
    tmp_path: Path,
    mirrored: bool,
    precision: str,
    detail: float,
) -> None:
    import tensorflow as tf

    from lookalike.model import export, fit, progress
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    train = Train(
        network="simple_cnn", embedding_size=8, classes_per_batch=5, images_per_class=4,
        epochs=6, learning_rate=0.005, augment=Augment(flip=True), mirrored=mirrored,
        precision=precision, detail=detail,
    )  # fmt: skip
    steps: list[tuple[int, int]] = []

    class Watcher(progress.Watcher):
        def step(self, done: int, total: int) -> None:
            steps.append((done, total))

    tf.keras.mixed_precision.set_global_policy("mixed_float16")
    try:
        fitted = fit.fit(snapshot, train, 1, Ranks(), Watcher())
        assert tf.keras.mixed_precision.global_policy().name == "mixed_float16"  # as it was
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")
    assert fitted.precision == precision
    assert fitted.best.number == fitted.epochs[-1].number == 5
    if precision == "float32" and not detail:
        assert fitted.best == fitted.epochs[-1]
    assert [done for done, _ in steps] == list(range(1, 61))
    assert {total for _, total in steps} == {60}
    # Chance is about 1/5; the classes differ by a bright row.
    assert fitted.scores.map_at_r > 0.9
    assert fitted.epochs[-1].loss < fitted.epochs[0].loss

    graph = export.to_onnx(fitted.network, snapshot.preprocessing)
    specification = encoder.Specification(snapshot.preprocessing, "cosine", 8, Calibration(-9, 3))
    committed = encoder.commit(str(tmp_path / "encoders"), graph, specification, {})
    opened = encoder.Encoder.open(committed.uri)
    pixels, classes = snapshot.validation()
    # What is said of it is said of the network that leaves.
    found = exact_scores(fitted.after, classes, fitted.after, classes, np.arange(len(classes)))
    assert fitted.scores.map_at_r == found.map_at_r
    files = [encode_png(image[:, :, 0]) for image in pixels]
    assert np.abs(opened.encode(files) - fitted.after).max() <= 1e-5
    turned = [encode_png(image[:, ::-1, 0]) for image in pixels]
    assert (np.abs(opened.encode(turned) - fitted.after).max() <= 1e-5) == mirrored
    # One at a time or many at once: the same vectors.
    singles = np.concatenate([opened.encode([file]) for file in files[:20]])
    assert np.abs(singles - opened.encode(files[:20])).max() <= 1e-6


def small(**values: object) -> Train:
    given: dict[str, object] = {
        "network": "simple_cnn", "embedding_size": 8, "classes_per_batch": 5,
        "images_per_class": 4, "epochs": 4, "learning_rate": 0.005, "precision": "float32",
    }  # fmt: skip
    return Train.model_validate(given | values)


EVERYTHING = {
    "ema": 0.9,
    "clip_norm": 1.0,
    "patience": 3,
    "auxiliary": {"weight": 0.5},
    "network": "compact_resnet",
    "augment": {"flip": True, "shift": 2, "erase": 0.3, "colour": 0.2},
}


@pytest.mark.parametrize(
    "values",
    [
        {},
        EVERYTHING,
        {"precision": "mixed_float16", "loss": {"name": "triplet"}},
        {"precision": "mixed_bfloat16", "auxiliary": {"weight": 0.5}},
        {"optimizer": "sgd", "learning_rate": 0.05},
    ],
)
def test_going_on_from_a_checkpoint_ends_alike(
    make_snapshot: Callable[..., str], tmp_path: Path, values: dict[str, object]
) -> None:
    from lookalike.model import fit, process, progress
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    train = small(checkpoint_steps=7, **values)
    told: list[int] = []

    class Watcher(progress.Watcher):
        def __init__(self, last: int):
            self.last = last

        def step(self, done: int, total: int) -> None:  # noqa: ARG002
            if done == self.last:
                raise KeyboardInterrupt

        def resumed(self, step: int) -> None:
            told.append(step)

    def fitted(folder: str, last: int) -> fit.Fitted:
        process.set_determinism(train)
        kept = Checkpoints(str(tmp_path / folder))
        return fit.fit(snapshot, train, 1, Ranks(), Watcher(last), kept)

    whole = fitted("whole", 0)
    with pytest.raises(KeyboardInterrupt):
        fitted("killed", 25)
    ended = fitted("killed", 0)
    assert told == [21]
    weights = zip(whole.network.get_weights(), ended.network.get_weights(), strict=True)
    assert max(np.abs(one - other).max() for one, other in weights) <= 1e-5
    assert ended.best.number == whole.best.number
    assert [e.loss for e in ended.epochs] == pytest.approx([e.loss for e in whole.epochs])
    assert np.abs(whole.after - ended.after).max() <= 1e-5
    assert np.abs(whole.after - whole.before).max() > 0.1


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_training_killed_in_its_last_validation_is_validated(
    make_snapshot: Callable[..., str], tmp_path: Path, epochs: int
) -> None:
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    train = small(checkpoint_steps=10 * epochs, epochs=epochs)
    kept = Checkpoints(str(tmp_path / "kept"))
    whole = fit.fit(snapshot, train, 1, Ranks(), keeper=kept)
    newest = kept.newest()
    assert newest is not None
    assert newest.meta["step"] == 10 * epochs == sum(epoch.steps for epoch in whole.epochs)
    again = fit.fit(snapshot, train, 1, Ranks(), keeper=kept)
    assert [epoch.validation for epoch in again.epochs] == [e.validation for e in whole.epochs]
    assert np.abs(whole.after - again.after).max() <= 1e-5


def test_a_checkpoint_of_another_network_is_named(
    make_snapshot: Callable[..., str], tmp_path: Path
) -> None:
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    kept = Checkpoints(str(tmp_path / "kept"))
    fit.fit(snapshot, small(checkpoint_steps=10, epochs=1), 1, Ranks(), keeper=kept)
    other = small(embedding_size=16, epochs=1)
    words = r"the checkpoint .* is not of this network .* remove the folder \S+kept to begin anew"
    with pytest.raises(LookalikeError, match=words):
        fit.fit(snapshot, other, 1, Ranks(), keeper=kept)


def test_the_best_epochs_weights_are_kept(make_snapshot: Callable[..., str]) -> None:
    from lookalike.metrics import exact_scores
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    fitted = fit.fit(snapshot, small(epochs=60, patience=2), 1, Ranks())
    scores = [epoch.validation.map_at_r for epoch in fitted.epochs]
    best = int(np.argmax(scores))
    assert len(fitted.epochs) == min(60, best + 3)
    assert len(fitted.epochs) < 60
    assert fitted.best.number == best
    everyone = np.arange(len(fitted.after))
    found = exact_scores(
        fitted.after, fitted.classes, fitted.after, fitted.classes, self_rows=everyone
    )
    assert found.map_at_r == pytest.approx(scores[best], abs=1e-6)


@pytest.mark.parametrize(
    ("which", "said"),
    [
        (-1, r"loss became nan at step 13 of 40 on rank 0"),  # of the last layer: no vectors
        (0, r"weights .*kernel.* became NaN or infinite before step 15 of 40"),
    ],
)
def test_what_is_no_number_is_named_with_its_step_and_the_last_checkpoint(
    make_snapshot: Callable[..., str], tmp_path: Path, which: int, said: str
) -> None:
    from lookalike.model import fit, progress
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))

    class Breaks(progress.Watcher):
        def step(self, done: int, total: int) -> None:  # noqa: ARG002
            if done == 12:
                weights = training.network.trainable_variables[which]
                weights.assign(np.full(weights.shape, np.nan))

    kept = Checkpoints(str(tmp_path / "kept"))
    training = fit._Training(
        snapshot, small(checkpoint_steps=5), 1, Ranks(), Breaks(), kept, Budget(epochs=4)
    )
    with pytest.raises(LookalikeError, match=f"{said}.*last checkpoint is of step 10"):
        training.run()


def test_a_training_goes_on_in_the_precision_that_it_began_in(
    make_snapshot: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun on a machine that trains in bfloat16, it goes on so on one that would not."""
    import tensorflow as tf

    from lookalike.model import fit, process
    from lookalike.model.ranks import Ranks

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU, which decides")
    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    train = small(precision="auto", checkpoint_steps=3)
    kept = Checkpoints(str(tmp_path / "kept"))
    about = tmp_path / "cpuinfo"
    monkeypatch.setattr(process, "_CPU", about)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "1")
    about.write_text("amx_bf16", encoding="utf-8")
    assert fit.fit(snapshot, train, 1, Ranks(), None, kept).precision == "mixed_bfloat16"
    about.write_text("none", encoding="utf-8")
    assert fit.fit(snapshot, train, 1, Ranks(), None, kept).precision == "mixed_bfloat16"
    assert fit.fit(snapshot, train, 1, Ranks()).precision == "float32"


def test_a_remote_snapshot_trains_as_a_local_one_and_leaves_no_cache(
    make_snapshot: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.model import fit, process, progress
    from lookalike.model.ranks import Ranks

    uri = make_snapshot([40] * 5, BatchShape(5, 4), blocks=4, size=32)
    remote = "memory:///trained-on"
    fsspec.filesystem("memory").put(uri, "/trained-on", recursive=True)
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    cached: list[int] = []

    class Watcher(progress.Watcher):
        def epoch(self, epoch: progress.Epoch) -> None:  # noqa: ARG002
            cached.append(len(list(temporary.glob("lookalike-*/**/*.val"))))

    train = small(epochs=2)
    process.set_determinism(train)
    one, other = (
        fit.fit(Snapshot.open(where), train, 1, Ranks(), Watcher()).network.get_weights()
        for where in (uri, remote)
    )
    assert all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))
    assert cached == [0, 0, 4, 4]
    assert list(temporary.glob("*lookalike-*")) == []


_WITH_LITTLE_ROOM = """
import resource, sys
from lookalike.config import Train
from lookalike.model import fit, progress
from lookalike.model.checkpoints import Checkpoints
from lookalike.model.ranks import Ranks
from lookalike.model.snapshot import Snapshot

class Watcher(progress.Watcher):
    def step(self, done, total):
        if done == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

train = Train.model_validate_json(sys.argv[2])
fit.fit(Snapshot.open(sys.argv[1]), train, 1, Ranks(), Watcher(), Checkpoints(sys.argv[3]))
"""


def test_a_full_temporary_folder_is_told_with_the_checkpoint_before(
    make_snapshot: Callable[..., str], tmp_path: Path
) -> None:
    snapshot = make_snapshot([40] * 5, BatchShape(5, 4), blocks=4)
    train = small(checkpoint_steps=2, threads=1).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", _WITH_LITTLE_ROOM, snapshot, train, str(tmp_path / "kept")],
        stderr=subprocess.PIPE, text=True, timeout=120, check=False,
    )  # fmt: skip
    said = done.stderr.splitlines()[-1]
    assert "LookalikeError: the checkpoint at step 4 could not be written to" in said
    assert "TMPDIR. The last checkpoint is of step 2" in said


@pytest.mark.parametrize(
    "also",
    [{}, {"precision": "mixed_bfloat16", "ema": 0.5, "patience": 1, "learning_rate": 0.05}],
    ids=str,
)
def test_detail_lies_beside_what_was_trained(
    make_snapshot: Callable[..., str], also: dict[str, object]
) -> None:
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    given = {"auxiliary": {"weight": 0.5}, "mirrored": True} | also
    plain = fit.fit(snapshot, small(embedding_size=5, **given), 1, Ranks())
    fitted = fit.fit(snapshot, small(embedding_size=9, detail=0.3, **given), 1, Ranks())
    # The same training, with its weights and no others; detail is put beside what it made.
    for own, other in zip(fitted.network.get_weights(), plain.network.get_weights(), strict=True):
        assert np.allclose(own, other, atol=1e-4)
    assert fitted.before.shape[1] == plain.after.shape[1] == 5
    assert fitted.after.shape[1] == 9
    assert np.allclose(fitted.after[:, :5], np.sqrt(0.7) * plain.after, atol=1e-3)
    assert np.allclose((fitted.after[:, 5:] ** 2).sum(axis=1), 0.3, atol=1e-3)
    assert fitted.best.number == plain.best.number
    everyone = np.arange(len(fitted.after))
    found = exact_scores(
        fitted.after, fitted.classes, fitted.after, fitted.classes, self_rows=everyone
    )
    assert fitted.scores.map_at_r == pytest.approx(found.map_at_r, abs=1e-6)
    pixels, _ = snapshot.validation()
    assert np.allclose(fitted.network.predict(pixels, verbose=0), fitted.after, atol=1e-5)


def test_a_training_starts_from_an_encoders_weights(
    make_snapshot: Callable[..., str], tmp_path: Path
) -> None:
    from lookalike.model import export, fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))
    first = fit.fit(snapshot, small(), 1, Ranks())
    specification = encoder.Specification(snapshot.preprocessing, "cosine", 8, Calibration(-9, 3))
    uri = encoder.commit(
        str(tmp_path),
        export.to_onnx(first.network, snapshot.preprocessing),
        specification,
        {},
        weights=export.weights(first.network),
    ).uri
    again = fit.fit(snapshot, small(init_from=uri, epochs=1), 2, Ranks())
    assert np.abs(again.before - first.after).max() <= 1e-5
    assert np.abs(fit.fit(snapshot, small(epochs=1), 2, Ranks()).before - first.after).max() > 0.1


def test_what_a_recipe_says_is_what_is_trained(make_snapshot: Callable[..., str]) -> None:
    """Each value alone gives other weights than none does; the same again the same ones."""
    from lookalike.model import fit
    from lookalike.model.ranks import Ranks

    snapshot = Snapshot.open(make_snapshot([40] * 5, BatchShape(5, 4), blocks=4))

    def trained(**values: object) -> list[np.ndarray]:
        train = small(epochs=1, **values)
        weights: list[np.ndarray] = fit.fit(snapshot, train, 1, Ranks()).network.get_weights()
        return weights

    def apart(one: list[np.ndarray], other: list[np.ndarray]) -> float:
        return max(float(np.abs(a - b).max()) for a, b in zip(one, other, strict=True))

    plain = trained()
    assert apart(trained(buffer_mb=300, checkpoint_steps=3, silence=60), plain) < 1e-5
    for values in (
        {"ema": 0.9},
        {"clip_norm": 0.01},
        {"weight_decay": 0.5},
        {"warmup": 0.5},
        {"augment": {"flip": True}},
        {"augment": {"shift": 3}},
        {"augment": {"erase": 1.0}},
        {"augment": {"colour": 0.3}},
        {"auxiliary": {"weight": 0.5}},
        {"loss": {"epsilon": 0.9}},
    ):
        assert apart(trained(**values), plain) > 1e-4, values


def test_how_batches_are_read_and_normalised_is_the_recipes(
    make_snapshot: Callable[..., str],
) -> None:
    import tensorflow as tf

    from lookalike.model import fit
    from lookalike.model.progress import Watcher
    from lookalike.model.ranks import Ranks

    groups = ["a", "a", "a", "b", "b"]
    uri = make_snapshot([40] * 5, BatchShape(2, 4), blocks=4, groups=groups)
    values = {"network": "compact_resnet", "classes_per_batch": 2, "buffer_mb": 3, "cache_mb": 7}
    for also in ({}, {"group_by": "kind", "sync_batch_norm": True}):
        training = fit._Training(
            Snapshot.open(uri), small(**values, **also), 5, Ranks(), Watcher(), None,
            Budget(epochs=1),
        )  # fmt: skip
        shard = training._shard()
        assert (shard.seed, shard.batch) == (5, BatchShape(2, 4))
        assert shard.buffer_items == 3 * 2**20 // 256
        assert shard.cache_bytes == 7 * 2**20
        assert shard.grouped == bool(also)
        normal = [layer for layer in training.network.submodules
                  if isinstance(layer, tf.keras.layers.BatchNormalization)]  # fmt: skip
        assert any(layer.fused for layer in normal) == (not also)
