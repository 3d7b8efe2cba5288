"""What a training's process chooses by itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from lookalike.config import Train


@pytest.fixture
def policy() -> Iterator[None]:
    import tensorflow as tf

    yield
    tf.keras.mixed_precision.set_global_policy("float32")


@pytest.mark.usefixtures("policy")
@pytest.mark.parametrize(
    ("flags", "chosen"),
    [
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "mixed_bfloat16"),
        ("avx512f avx512_bf16", "float32"),  # no units for matrices: not faster
        (None, "float32"),  # not Linux
    ],
)
def test_halves_are_computed_where_the_cpu_has_units_for_them(
    flags: str | None, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.model import process

    import tensorflow as tf  # isort: skip

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU, which decides")
    about = tmp_path / "cpuinfo"
    if flags is not None:
        about.write_text(f"flags : fpu {flags}\n", encoding="utf-8")
    monkeypatch.setattr(process, "_CPU", about)
    process.set_arithmetic(Train())
    assert tf.keras.mixed_precision.global_policy().name == chosen
    process.set_arithmetic(Train(precision="float32"))
    assert tf.keras.mixed_precision.global_policy().name == "float32"
