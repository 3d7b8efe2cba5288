"""What a training's process chooses by itself."""

from pathlib import Path

import pytest

from lookalike.config import Train


@pytest.mark.parametrize(
    ("flags", "onednn", "chosen"),
    [
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "1", "mixed_bfloat16"),
        ("avx512f avx512_bf16 amx_bf16 amx_tile", "0", "float32"),  # what uses them is off
        ("avx512f avx512_bf16", "1", "float32"),  # no units for matrices: not faster
        (None, "1", "float32"),  # not Linux
    ],
)
def test_halves_are_computed_where_the_cpu_has_units_for_them(
    flags: str | None, onednn: str, chosen: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lookalike.model import process

    import tensorflow as tf  # isort: skip

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("there is a GPU, which decides")
    about = tmp_path / "cpuinfo"
    if flags is not None:
        about.write_text(f"flags : fpu {flags}\n", encoding="utf-8")
    monkeypatch.setattr(process, "_CPU", about)
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", onednn)
    assert process.precision(Train()) == chosen
    assert process.precision(Train(precision="float32")) == "float32"
