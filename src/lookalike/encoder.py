"""Bytes to vectors: images by a network in ONNX Runtime, vectors as they are."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from lookalike import artifacts
from lookalike.errors import ArtifactError, ContentError, DataError
from lookalike.images import Preprocessing, decode_all
from lookalike.metrics import Calibration

KIND = "encoder"
GRAPH = "encoder.onnx"
WEIGHTS = "weights.npz"
"""What another training may start from: nothing that encodes reads it, and some lack it."""
INPUT, OUTPUT = "pixels", "vector"


@dataclass(frozen=True)
class Specification:
    """What an encoder takes and gives.

    Attributes:
        preprocessing: how image files become its input; None where it takes vectors: they come
            with the catalogue as little-endian float32, and encoding them is scaling them.
        metric: 'cosine': vectors have L2 norm 1.
        dim: length of a vector.
        calibration: of its distances; None where there was nothing to fit it to.
    """

    preprocessing: Preprocessing | None
    metric: Literal["cosine"]
    dim: int
    calibration: Calibration | None

    @property
    def input(self) -> Literal["pixels", "vector"]:
        """What bytes become before they are encoded."""
        return "vector" if self.preprocessing is None else "pixels"


class Encoder:
    """An encoder artefact, opened.

    Attributes:
        fingerprint: sha256 of the graph and of its preprocessing, or of the specification where
            there is no graph: equal fingerprints give equal vectors for equal bytes.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], threads: int = 1):
        self.specification = _specification(meta, str(folder))
        takes_vectors = self.specification.preprocessing is None
        graph = None if takes_vectors else (folder / GRAPH).read_bytes()
        self.fingerprint = fingerprint(graph, self.specification)
        if self.fingerprint != meta["fingerprint"]:
            raise ArtifactError(
                f"the encoder in {folder} has fingerprint {self.fingerprint[:12]}, its manifest "
                f"says {meta['fingerprint'][:12]}",
                remedy="These parts do not belong together: run `lookalike train` again",
            )
        self._session: Any = None if graph is None else _session(graph, threads)

    @classmethod
    def open(cls, uri: str, threads: int = 1) -> Encoder:
        """Open a committed encoder.

        Raises:
            ArtifactError: missing, damaged, or parts that do not belong together.
        """
        artifact = artifacts.open_artifact(uri, KIND)
        with artifacts.workbench() as folder:
            return cls(artifacts.fetch(artifact, folder), artifact.meta, threads)

    def encode(self, contents: Sequence[bytes]) -> np.ndarray:
        """Vectors of image files, or of vectors as bytes: float32 (n, dim), L2 norm 1.

        Raises:
            ImageError: an image cannot be decoded.
            ContentError: these are no bytes of a vector that can be searched with.
            DataError: the graph gave something that is no number.
        """
        dim, preprocessing = self.specification.dim, self.specification.preprocessing
        if not contents:
            return np.empty((0, dim), np.float32)
        if preprocessing is None:
            return scaled(contents, dim)
        pixels = decode_all(contents, preprocessing)
        (vectors,) = self._session.run([OUTPUT], {INPUT: pixels})
        if not np.isfinite(vectors).all():
            raise DataError(
                f"encoder {self.fingerprint[:12]} gave NaN or infinity",
                remedy="Its training diverged: lower train.learning_rate and train again",
            )
        return vectors


def scaled(contents: Sequence[bytes], dim: int) -> np.ndarray:
    """Vectors as bytes, little-endian float32, scaled to L2 norm 1: float32 (n, dim).

    Raises:
        ContentError: bytes of another length, NaN or infinity, or a vector that is zero.
    """
    return np.stack([normalised(_parsed(data, dim), dim) for data in contents])


def normalised(vector: np.ndarray, dim: int) -> np.ndarray:
    """A vector scaled to L2 norm 1: float32 (dim,) to float32 (dim,).

    Raises:
        ContentError: another shape, NaN or infinity in it, or all of it zero.
    """
    allowed = f"{dim} finite numbers, not all zero"
    if vector.shape != (dim,):
        raise ContentError("wrong_length", f"the vector has shape {vector.shape}", allowed=allowed)
    if not np.isfinite(vector).all():
        raise ContentError("not_finite", "the vector holds NaN or infinity", allowed=allowed)
    # In doubles, where no square of a float32 overflows or vanishes.
    wide = vector.astype(np.float64)
    if (norm := np.linalg.norm(wide)) == 0:
        raise ContentError(
            "zero_vector", "the vector is zero: it has no direction", allowed=allowed
        )
    result: np.ndarray = (wide / norm).astype(np.float32)
    return result


def fingerprint(graph: bytes | None, specification: Specification) -> str:
    """See `Encoder.fingerprint`."""
    if graph is None or specification.preprocessing is None:
        names = ("input", "metric", "dim")
        return artifacts.fingerprint({name: getattr(specification, name) for name in names})
    graph_hash = hashlib.sha256(graph).hexdigest()
    preprocessing = asdict(specification.preprocessing)
    return artifacts.fingerprint({"graph": graph_hash, "preprocessing": preprocessing})


def commit(
    root: str,
    graph: bytes | None,
    specification: Specification,
    made_from: dict[str, Any],
    weights: bytes | None = None,
) -> artifacts.Artifact:
    """Commit an encoder.

    Args:
        root: folder or URI of all encoders.
        graph: ONNX model: input `pixels` uint8 (n, size, size, channels), rescaling inside;
            output `vector` float32 (n, dim), L2-normalised. None where the input is a vector.
        specification: what it takes and gives.
        made_from: snapshot, config and figures of its training; JSON values.
        weights: .npz file of what the graph was made from, kept beside it for another training to
            start from; no part of the fingerprint. None where there are none.
    """
    with artifacts.workbench() as folder:
        for name, data in ((GRAPH, graph), (WEIGHTS, weights)):
            if data is not None:
                (folder / name).write_bytes(data)
        meta = {
            **asdict(specification),
            "input": specification.input,
            "fingerprint": fingerprint(graph, specification),
            "made_from": made_from,
            "versions": {
                package: version(package)
                for package in ("pillow", "simplejpeg", "onnxruntime", "numpy")
            },
        }
        return artifacts.commit(root, KIND, folder, meta)


def _specification(meta: dict[str, Any], where: str) -> Specification:
    # The first encoders took pixels, and did not say so.
    takes = meta.get("input", "pixels")
    if takes not in ("pixels", "vector"):
        raise ArtifactError(
            f"the encoder {where} takes {takes!r}",
            allowed="'pixels' or 'vector'",
            remedy="Open it with the version of lookalike that wrote it",
        )
    calibration = meta["calibration"]
    return Specification(
        preprocessing=None if takes == "vector" else Preprocessing(**meta["preprocessing"]),
        metric=meta["metric"],
        dim=meta["dim"],
        calibration=None if calibration is None else Calibration(**calibration),
    )


def _session(graph: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def _parsed(data: bytes, dim: int) -> np.ndarray:
    if len(data) != 4 * dim:
        raise ContentError(
            "wrong_length",
            f"the vector has {len(data):,} bytes",
            allowed=f"{4 * dim:,}: {dim:,} little-endian float32",
        )
    return np.frombuffer(data, "<f4").astype(np.float32, copy=False)
