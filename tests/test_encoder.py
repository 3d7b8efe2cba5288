"""Encoders of vectors: bytes in, the same direction out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support import write_manifest

from lookalike import artifacts
from lookalike import encoder as encoders
from lookalike.encoder import Encoder, Specification
from lookalike.errors import ArtifactError, ContentError
from lookalike.images import Preprocessing
from lookalike.metrics import Calibration

DIM = 6


def specification(dim: int = DIM, calibration: Calibration | None = None) -> Specification:
    return Specification(None, "cosine", dim, calibration)


@pytest.fixture
def encoder(tmp_path: Path) -> Encoder:
    return Encoder.open(encoders.commit(str(tmp_path), None, specification(), {}).uri)


def test_encoding_is_scaling(encoder: Encoder) -> None:
    random = np.random.default_rng(0)
    given = (random.normal(size=(40, DIM)) * 10.0 ** random.integers(-3, 4, (40, 1))).astype("<f4")
    found = encoder.encode([vector.tobytes() for vector in given])
    assert found.dtype == np.float32
    for vector, scaled in zip(given.tolist(), found, strict=True):
        length = sum(x * x for x in vector) ** 0.5
        assert scaled == pytest.approx([x / length for x in vector], abs=1e-7)
    # One at a time or together, to the last bit.
    alone = [encoder.encode([vector.tobytes()])[0] for vector in given]
    assert np.array_equal(found, np.stack(alone))
    assert encoder.encode([]).shape == (0, DIM)


@pytest.mark.parametrize("size", [1e-45, 1e-30, 1.0, 1e30, 3e38])
def test_any_size_has_a_direction(encoder: Encoder, size: float) -> None:
    vector = np.zeros(DIM, "<f4")
    vector[1], vector[3] = size, -size
    (found,) = encoder.encode([vector.tobytes()])
    assert found == pytest.approx([0, 0.5**0.5, 0, -(0.5**0.5), 0, 0], abs=1e-7)


@pytest.mark.parametrize(
    ("data", "reason", "said"),
    [
        (b"", "wrong_length", "0 bytes. Allowed: 24: 6 little-endian float32"),
        (np.ones(DIM - 1, "<f4").tobytes(), "wrong_length", "20 bytes"),
        (np.ones(DIM, "<f8").tobytes(), "wrong_length", "48 bytes"),
        (np.ones(DIM, "<f4").tobytes() + b"x", "wrong_length", "25 bytes"),
        (np.array([1, 2, np.nan, 4, 5, 6], "<f4").tobytes(), "not_finite", "NaN or infinity"),
        (np.array([1, 2, -np.inf, 4, 5, 6], "<f4").tobytes(), "not_finite", "NaN or infinity"),
        (np.zeros(DIM, "<f4").tobytes(), "zero_vector", "6 finite numbers, not all zero"),
        (np.full(DIM, -0.0, "<f4").tobytes(), "zero_vector", "has no direction"),
    ],
)
def test_what_is_no_vector_is_refused(
    encoder: Encoder, data: bytes, reason: str, said: str
) -> None:
    with pytest.raises(ContentError, match=said) as raised:
        encoder.encode([np.ones(DIM, "<f4").tobytes(), data])
    assert raised.value.reason == reason


def test_the_fingerprint_is_of_what_makes_the_vectors(tmp_path: Path) -> None:
    def fingerprint(given: Specification, made_from: str = "") -> str:
        committed = encoders.commit(str(tmp_path), None, given, {"made_from": made_from})
        return Encoder.open(committed.uri).fingerprint

    own = fingerprint(specification())
    # What it was made from and how its distances are read change no vector.
    assert fingerprint(specification(calibration=Calibration(-3, 1)), "another") == own
    assert fingerprint(specification(dim=DIM + 1)) != own


@pytest.mark.parametrize("calibration", [None, Calibration(-7.5, 2.25)])
def test_a_specification_comes_back(tmp_path: Path, calibration: Calibration | None) -> None:
    given = specification(calibration=calibration)
    opened = Encoder.open(encoders.commit(str(tmp_path), None, given, {}).uri)
    assert opened.specification == given
    assert opened.specification.input == "vector"
    assert Specification(Preprocessing(16, 1), "cosine", 4, None).input == "pixels"


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [("input", "smell", "takes 'smell'. Allowed: 'pixels' or 'vector'"), ("dim", 7, "fingerprint")],
)
def test_a_manifest_that_says_otherwise_is_refused(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    uri = encoders.commit(str(tmp_path), None, specification(), {}).uri
    manifest = Path(uri) / artifacts.MANIFEST
    raw = json.loads(manifest.read_text())
    raw["meta"][key] = value
    write_manifest(manifest, raw)
    with pytest.raises(ArtifactError, match=said):
        Encoder.open(uri)
