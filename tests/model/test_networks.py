"""Networks of ours and of others, halves and singles, and weights to start from."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lookalike import artifacts, encoder
from lookalike.encoder import WEIGHTS, Encoder, Specification
from lookalike.errors import ArtifactError, ConfigError
from lookalike.images import Preprocessing, encode_png

SMALL = Preprocessing(16, 1)

OWN_NETWORKS = """
import numpy as np
import tensorflow as tf

layers = tf.keras.layers
number = 3
seen = []


def good(images, dim):
    seen.append((images.shape, images.dtype))
    x = layers.Lambda(lambda x: tf.nn.relu(x - 0.5))(images)
    return layers.Dense(dim)(layers.Flatten()(x))


class Wide:
    def __call__(self, images, dim):
        return layers.Dense(dim + 1)(layers.Flatten()(images))


wide = Wide()


def high(images, dim):
    return layers.Conv2D(dim, 3)(images)


def array(images, dim):
    return np.zeros((4, dim))


def mixes(images, dim):
    x = layers.Dense(dim)(layers.Flatten()(images))
    return x * tf.reduce_mean(images, [1, 2, 3])[:, None]


def wrong(images, dim):
    raise ValueError("wrong in any precision")


def model(images, dim):
    return tf.keras.Sequential([layers.Flatten(), layers.Dense(dim)])


def brightness(images, dim):
    x = layers.GlobalAveragePooling2D()(images)
    return layers.Dense(dim, kernel_initializer="ones")(layers.Concatenate()([x, x * 0 + 1]))
"""


@pytest.fixture
def own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_networks.py").write_text(OWN_NETWORKS, encoding="utf-8")
    (tmp_path / "broken_networks.py").write_text("import no_such_package\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    import own_networks

    return own_networks


@pytest.fixture(params=["mixed_float16", "mixed_bfloat16"])
def halves(request: pytest.FixtureRequest) -> Iterator[str]:
    import tensorflow as tf

    tf.keras.mixed_precision.set_global_policy(request.param)
    yield request.param.removeprefix("mixed_")
    tf.keras.mixed_precision.set_global_policy("float32")


def images_of(preprocessing: Preprocessing, count: int = 5) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(256, size=(count, *preprocessing.shape), dtype=np.uint8)


def made(name: str, dim: int = 8, seed: int = 0, preprocessing: Preprocessing = SMALL) -> Any:
    import tensorflow as tf

    from lookalike.model import networks

    tf.keras.utils.set_random_seed(seed)
    return networks.make(name, preprocessing, dim)


@pytest.mark.parametrize("network", ["compact_resnet", "compact_resnet_48", "simple_cnn"])
@pytest.mark.parametrize("preprocessing", [Preprocessing(28, 1), Preprocessing(64, 3)])
def test_networks_give_unit_vectors(network: str, preprocessing: Preprocessing) -> None:
    network = made(network, 32, preprocessing=preprocessing)
    vectors = network(images_of(preprocessing), training=False).numpy()
    assert vectors.shape == (5, 32)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-5)
    assert network.count_params() < 4_000_000


def test_a_function_by_its_import_path_is_a_network(own_networks: Any) -> None:
    network = made("own_networks:good", 7)
    assert own_networks.seen == [((None, 16, 16, 1), "float32")]
    images = images_of(SMALL)
    vectors = network(images, training=False).numpy()
    kernel, bias = network.get_weights()
    features = np.maximum(images.reshape(5, -1) / 255 - 0.5, 0) @ kernel + bias
    expected = features / np.linalg.norm(features, axis=1, keepdims=True)
    assert np.abs(vectors - expected).max() < 1e-5


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module:function", "No module named 'no_such_module'.*Spark's workers"),
        ("broken_networks:function", "No module named 'no_such_package'.*Install"),
        ("own_networks:bad", "'bad' in 'own_networks' is not there.*Name a function"),
        ("own_networks:number", "'number' in 'own_networks' is a int.*Name a function"),
        ("own_networks:wide", r"shape \(None, 9\). Allowed: \(None, 8\)"),
        ("own_networks:high", r"shape \(None, 14, 14, 8\). Allowed: \(None, 8\).*Dense"),
        ("own_networks:array", "gave a ndarray. Allowed: what layers of tf.keras"),
        ("own_networks:model", "gave a Sequential.*not a model"),
        (
            "resnet",
            "'resnet'.*compact_resnet, compact_resnet_48, simple_cnn, or 'package.module:function'",
        ),
    ],
)
@pytest.mark.usefixtures("own_networks")
def test_what_is_no_network_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as raised:
        made(name)
    assert f"train.network = '{name}'" in str(raised.value)


@pytest.mark.parametrize("name", ["compact_resnet", "simple_cnn", "own_networks:good"])
@pytest.mark.usefixtures("own_networks")
def test_halves_end_in_float32(name: str, halves: str) -> None:
    network = made(name)
    inner = {layer.compute_dtype for layer in network.layers if layer.weights}
    assert halves in inner  # or this would test nothing
    assert {weight.dtype.name for weight in network.weights} == {"float32"}
    vectors = network(images_of(SMALL), training=True)
    assert vectors.dtype == "float32"
    # To the last digits of float32, where halves have three.
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1, abs=1e-6)
    last = [layer for layer in network.layers if "batch_norm" in layer.name][-1:]
    assert all(layer.compute_dtype == "float32" for layer in last)


@pytest.mark.usefixtures("own_networks")
def test_a_network_that_does_not_work_in_halves_is_told(halves: str) -> None:
    import tensorflow as tf

    said = f"'own_networks:mixes' does not work in mixed_{halves} .*train.precision to float32"
    with pytest.raises(ConfigError, match=said):
        made("own_networks:mixes")
    with pytest.raises(ValueError, match="wrong in any precision"):
        made("own_networks:wrong")
    assert tf.keras.mixed_precision.global_policy().name == f"mixed_{halves}"
    tf.keras.mixed_precision.set_global_policy("float32")
    assert made("own_networks:mixes").output_shape == (None, 8)


def test_a_network_of_halves_goes_on_in_singles(halves: str) -> None:
    import tensorflow as tf

    from lookalike.model import export

    network = made("compact_resnet")
    images = images_of(SMALL)
    network(images, training=True)
    rough = network(images, training=False).numpy()
    tf.keras.mixed_precision.set_global_policy("float32")
    exact = made("compact_resnet", seed=1)
    exact.set_weights(network.get_weights())
    vectors = exact(images, training=False).numpy()
    # bfloat16 has three bits less.
    assert 0 < np.abs(vectors - rough).max() < {"float16": 0.01, "bfloat16": 0.08}[halves]
    assert export.to_onnx(exact, SMALL)  # which compares the graph's vectors


def test_synchronised_normalisation_changes_nothing_in_use() -> None:
    from lookalike.model import export, networks
    from lookalike.model.ranks import Ranks

    plain = made("compact_resnet")
    images = images_of(SMALL)
    plain(images, training=True)
    synchronised = networks.make("compact_resnet", SMALL, 8, Ranks(), sync_batch_norm=True)
    synchronised.set_weights(plain.get_weights())
    apart = synchronised(images, training=False) - plain(images, training=False)
    assert np.abs(apart).max() < 1e-6
    assert export.to_onnx(synchronised, SMALL)  # which compares the graph's vectors


def test_an_image_and_its_mirror_image_get_one_vector() -> None:
    from lookalike.model import export, networks

    plain = made("compact_resnet")
    images = images_of(SMALL)
    mirrored = images[:, :, ::-1]
    plain(images, training=True)
    both = networks.with_mirror(plain)
    found = both(images, training=False).numpy()
    total = plain(images, training=False).numpy() + plain(mirrored, training=False).numpy()
    expected = total / np.linalg.norm(total, axis=1, keepdims=True)
    assert np.abs(found - expected).max() < 1e-6
    assert np.abs(both(mirrored, training=False).numpy() - found).max() < 1e-6
    assert [w.name for w in both.weights] == [w.name for w in plain.weights]
    assert export.weights(both) == export.weights(plain)
    assert export.to_onnx(both, SMALL)  # which compares the graph's vectors


def committed(root: Path, network: Any, weights: bool = True) -> str:
    from lookalike.model import export

    specification = Specification(SMALL, "cosine", network.output_shape[1], None)
    graph = export.to_onnx(network, SMALL)
    kept = export.weights(network) if weights else None
    return encoder.commit(str(root), graph, specification, {}, kept).uri


def test_weights_come_back_from_an_encoder(tmp_path: Path) -> None:
    from lookalike.model import networks

    first = made("compact_resnet", seed=0)
    first(images_of(SMALL), training=True)  # moves the statistics too
    uri = committed(tmp_path, first)
    second = made("compact_resnet", seed=1)
    assert networks.start_from(second, uri) == (45, 45)
    for one, other in zip(first.get_weights(), second.get_weights(), strict=True):
        assert np.array_equal(one, other)


def test_layers_of_another_shape_begin_anew(tmp_path: Path) -> None:
    from lookalike.model import networks

    first = made("simple_cnn", dim=8)
    uri = committed(tmp_path, first)
    wider = made("simple_cnn", dim=12, seed=1)
    before = wider.get_weights()
    assert networks.start_from(wider, uri) == (4, 6)
    after = wider.get_weights()
    for position, old in enumerate(first.get_weights()):
        expected = old if position < 4 else before[position]
        assert np.array_equal(after[position], expected)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    from lookalike.model import export, networks

    cnn = made("simple_cnn")
    uri = committed(tmp_path, cnn)
    resnet = made("compact_resnet")
    before = resnet.get_weights()
    with pytest.raises(ConfigError, match=r"'compact_resnet' has 45 weights.* has 6") as raised:
        networks.start_from(resnet, uri)
    assert uri in str(raised.value)
    assert all(np.array_equal(a, b) for a, b in zip(before, resnet.get_weights(), strict=True))

    import tensorflow as tf

    one, other = (
        tf.keras.Sequential([tf.keras.Input((n,)), tf.keras.layers.Dense(n)]) for n in (3, 4)
    )
    specification = Specification(None, "cosine", 3, None)
    kept = encoder.commit(str(tmp_path), None, specification, {}, export.weights(one)).uri
    with pytest.raises(ConfigError, match=r"2 weights.*none has the same shape.*init_from"):
        networks.start_from(other, kept)
    without = committed(tmp_path, cnn, weights=False)
    with pytest.raises(ConfigError, match=r"keeps no weights.*Train it again") as raised:
        networks.start_from(cnn, without)
    assert without in str(raised.value)
    with pytest.raises(ArtifactError):
        networks.start_from(cnn, str(tmp_path / "nowhere"))


def test_damaged_weights_are_refused(tmp_path: Path) -> None:
    from lookalike.model import networks

    network = made("simple_cnn")
    uri = committed(tmp_path, network)
    file = Path(uri) / WEIGHTS
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ArtifactError, match=r"weights\.npz"):
        networks.start_from(network, uri)


def test_weights_change_no_encoder(tmp_path: Path) -> None:
    from lookalike.model import export

    network = made("simple_cnn")
    graph, specification = export.to_onnx(network, SMALL), Specification(SMALL, "cosine", 8, None)
    with_weights, without = (
        Encoder.open(encoder.commit(str(tmp_path), graph, specification, {}, kept).uri)
        for kept in (export.weights(network), None)
    )
    assert with_weights.fingerprint == without.fingerprint
    files = [encode_png(image[:, :, 0]) for image in images_of(SMALL)]
    assert np.array_equal(with_weights.encode(files), without.encode(files))


def test_weights_are_plain_arrays_by_position_and_name(tmp_path: Path) -> None:
    network = made("simple_cnn")
    uri = committed(tmp_path, network)
    with np.load(Path(uri) / WEIGHTS, allow_pickle=False) as kept:
        names = [f"{i:04d} {v.name}" for i, v in enumerate(network.weights)]
        assert list(kept) == names
        assert re.fullmatch(r"0000 conv2d\w*/kernel:0", names[0])
        for name, weight in zip(names, network.get_weights(), strict=True):
            assert np.array_equal(kept[name], weight)
    paths = [e.path for e in artifacts.open_artifact(uri, encoder.KIND).manifest.files]
    assert WEIGHTS in paths
