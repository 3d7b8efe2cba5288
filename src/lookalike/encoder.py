"""Bytes to vectors, with ONNX Runtime."""

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
from lookalike.errors import ArtifactError, DataError
from lookalike.images import Preprocessing, decode
from lookalike.metrics import Calibration

KIND = "encoder"
GRAPH = "encoder.onnx"
INPUT, OUTPUT = "pixels", "vector"


@dataclass(frozen=True)
class Specification:
    """What an encoder takes and gives.

    Attributes:
        preprocessing: how bytes become its input.
        metric: 'cosine': vectors have L2 norm 1.
        dim: length of a vector.
        calibration: of its distances.
    """

    preprocessing: Preprocessing
    metric: Literal["cosine"]
    dim: int
    calibration: Calibration


class Encoder:
    """An encoder artefact, opened.

    Attributes:
        fingerprint: sha256 of the graph and of its preprocessing: equal fingerprints give equal
            vectors for equal bytes.
    """

    def __init__(self, folder: Path, meta: dict[str, Any], threads: int = 1):
        self.specification = Specification(
            preprocessing=Preprocessing(**meta["preprocessing"]),
            metric=meta["metric"],
            dim=meta["dim"],
            calibration=Calibration(**meta["calibration"]),
        )
        graph = (folder / GRAPH).read_bytes()
        self.fingerprint = fingerprint(graph, self.specification.preprocessing)
        if self.fingerprint != meta["fingerprint"]:
            raise ArtifactError(
                f"the graph in {folder} has fingerprint {self.fingerprint[:12]}, its manifest says "
                f"{meta['fingerprint'][:12]}",
                remedy="These parts do not belong together: run `lookalike train` again",
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"]
        )

    @classmethod
    def open(cls, uri: str, threads: int = 1) -> Encoder:
        """Open a committed encoder.

        Raises:
            ArtifactError: missing, damaged, or parts that do not belong together.
        """
        artifact = artifacts.open_artifact(uri, KIND)
        with artifacts.workbench() as folder:
            return cls(artifacts.fetch(artifact, folder), artifact.meta, threads)

    def encode(self, images: Sequence[bytes]) -> np.ndarray:
        """Vectors of image files: float32 (n, dim).

        Raises:
            ImageError: an image cannot be decoded.
        """
        if not images:
            return np.empty((0, self.specification.dim), np.float32)
        return self.encode_pixels(
            np.stack([decode(data, self.specification.preprocessing) for data in images])
        )

    def encode_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """Vectors of decoded images: uint8 (n, size, size, channels) to float32 (n, dim).

        Raises:
            DataError: the encoder gave something that is no number.
        """
        (vectors,) = self._session.run([OUTPUT], {INPUT: pixels})
        if not np.isfinite(vectors).all():
            raise DataError(
                f"encoder {self.fingerprint[:12]} gave NaN or infinity",
                remedy="Its training diverged: lower train.learning_rate and train again",
            )
        return vectors


def fingerprint(graph: bytes, preprocessing: Preprocessing) -> str:
    """See `Encoder.fingerprint`."""
    graph_hash = hashlib.sha256(graph).hexdigest()
    return artifacts.fingerprint({"graph": graph_hash, "preprocessing": asdict(preprocessing)})


def commit(
    root: str, graph: bytes, specification: Specification, made_from: dict[str, Any]
) -> artifacts.Artifact:
    """Commit an encoder.

    Args:
        root: folder or URI of all encoders.
        graph: ONNX model: input `pixels` uint8 (n, size, size, channels), rescaling inside;
            output `vector` float32 (n, dim), L2-normalised.
        specification: what it takes and gives.
        made_from: snapshot, config and figures of its training; JSON values.
    """
    with artifacts.workbench() as folder:
        (folder / GRAPH).write_bytes(graph)
        meta = {
            **asdict(specification),
            "fingerprint": fingerprint(graph, specification.preprocessing),
            "made_from": made_from,
            "versions": {p: version(p) for p in ("pillow", "onnxruntime", "numpy")},
        }
        return artifacts.commit(root, KIND, folder, meta)
