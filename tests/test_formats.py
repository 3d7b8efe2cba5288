"""A tiny artefact of each format ever written still opens and answers."""

from pathlib import Path

import numpy as np
import pytest

from lookalike import artifacts
from lookalike.images import encode_png
from lookalike.serving.release import Release

FORMATS = sorted((Path(__file__).parent / "formats").iterdir())


def test_there_is_one_of_the_current_format() -> None:
    assert str(artifacts.FORMAT) in {folder.name for folder in FORMATS}


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
def test_it_opens_and_answers(folder: Path) -> None:
    artifacts.verify(artifacts.open_artifact(str(folder / "release"), "release"))
    release = Release.open(folder / "release")
    images = np.random.default_rng(1).integers(256, size=(5, 16, 16), dtype=np.uint8)
    vectors = release.encoder.encode([encode_png(image) for image in images])
    found = release.index.search(vectors, 5)
    assert [answer[0].item_id for answer in found] == [f"item {i}" for i in range(5)]
    assert [answer[0].label for answer in found] == ["a", "a", "b", "b", None]
    assert max(answer[0].distance for answer in found) < 1e-6


@pytest.mark.parametrize("folder", FORMATS, ids=lambda path: path.name)
def test_a_release_of_vectors_opens_and_answers(folder: Path) -> None:
    artifacts.verify(artifacts.open_artifact(str(folder / "vectors"), "release"))
    release = Release.open(folder / "vectors")
    vectors = np.random.default_rng(2).normal(size=(5, 4)).astype("<f4")
    found = release.index.search(release.encoder.encode([v.tobytes() for v in vectors]), 5)
    assert [answer[0].item_id for answer in found] == [f"item {i}" for i in range(5)]
    assert [answer[0].label for answer in found] == ["a", "a", "b", "b", None]
    assert max(answer[0].distance for answer in found) < 1e-6
