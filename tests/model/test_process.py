"""What a training's process chooses by itself."""

from pathlib import Path

import pytest

from lookalike.config import Train
from lookalike.errors import ConfigError


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


@pytest.mark.parametrize(
    ("addresses", "local_rank", "seen", "own"),
    [
        ((), 0, 1, 0),
        ((), 3, 4, 3),
        ((), 2, 2, 0),  # ranks that outnumber them share
        (("3",), 0, 4, 3),  # Spark's word goes before the rank's place
        (("5", "6"), 1, 8, 5),
        (("2",), 0, 1, 0),  # a container that sees its own alone
    ],
)
def test_a_process_has_the_gpu_that_spark_assigned_or_that_of_its_place(
    addresses: tuple[str, ...], local_rank: int, seen: int, own: int
) -> None:
    from lookalike.model import process

    assert process.gpu_of(addresses, local_rank, seen) == own


def test_a_gpu_without_a_number_is_refused() -> None:
    from lookalike.model import process

    with pytest.raises(ConfigError, match=r"assigned the GPU 'GPU-5b1', which is no number"):
        process.gpu_of(("GPU-5b1",), 0, 2)
