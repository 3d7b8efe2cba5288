"""Training learns, and the exported graph is what was trained."""

from pathlib import Path

import numpy as np

from lookalike import encoder
from lookalike.config import Augment, Train
from lookalike.images import encode_png
from lookalike.metrics import Calibration
from lookalike.model.batches import Snapshot
from lookalike.planning import BatchShape


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
