"""What a step gets from its recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from lookalike import config
from lookalike.steps.context import Context

ROOT = Path(__file__).parents[2]


def test_workers_find_the_encoder_that_training_starts_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their working folder is another than the command's."""
    monkeypatch.chdir(tmp_path)
    for given, meant in (
        ("encoders/one", f"{tmp_path}/encoders/one"),
        ("s3://shop/encoders/one", "s3://shop/encoders/one"),
        ("null", None),
    ):
        recipe = config.load(ROOT / "conf" / "demo.yaml", (f"train.init_from={given}",))
        assert Context(recipe).train.init_from == meant
