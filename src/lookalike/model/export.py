"""A trained network as an ONNX graph."""

from __future__ import annotations

import io
import logging

import numpy as np
import tensorflow as tf
import tf2onnx

from lookalike.encoder import INPUT, OUTPUT
from lookalike.errors import LookalikeError
from lookalike.images import Preprocessing

OPSET = 17
TOLERANCE = 1e-4


def to_onnx(network: tf.keras.Model, preprocessing: Preprocessing) -> bytes:
    """ONNX model: `pixels` uint8 (n, size, size, channels) to `vector` float32 (n, dim).

    Raises:
        LookalikeError: the graph's vectors are not the network's.
    """
    signature = [tf.TensorSpec((None, *preprocessing.shape), tf.uint8, name=INPUT)]

    @tf.function(input_signature=signature)
    def encode(pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        return {OUTPUT: network(pixels, training=False)}

    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    graph, _ = tf2onnx.convert.from_function(encode, input_signature=signature, opset=OPSET)
    model: bytes = graph.SerializeToString()
    _check(model, network, preprocessing)
    return model


def weights(network: tf.keras.Model) -> bytes:
    """All weights of a network as an .npz file, from which `networks.start_from` begins another.

    Its names are position and name, '0007 dense/kernel:0': Keras's names alone may repeat.
    """
    named = {
        f"{position:04d} {variable.name}": value
        for position, (variable, value) in enumerate(
            zip(network.weights, network.get_weights(), strict=True)
        )
    }
    file = io.BytesIO()
    np.savez(file, **named)
    return file.getvalue()


def _check(model: bytes, network: tf.keras.Model, preprocessing: Preprocessing) -> None:
    import onnxruntime

    pixels = np.random.default_rng(0).integers(256, size=(8, *preprocessing.shape), dtype=np.uint8)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    (found,) = session.run([OUTPUT], {INPUT: pixels})
    expected = network(pixels, training=False).numpy()
    apart = float(np.abs(found - expected).max())
    if apart > TOLERANCE:
        raise LookalikeError(
            f"the exported graph's vectors are {apart:.2g} from the network's",
            allowed=f"at most {TOLERANCE:.0e}",
            remedy="Use layers that tf2onnx exports faithfully",
        )
