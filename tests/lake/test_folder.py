"""What a path says, without Spark."""

from __future__ import annotations

import pytest

from lookalike.config import FolderData
from lookalike.lake.sources.files import located
from lookalike.lake.sources.folder import Place, place


def folder(**data: object) -> FolderData:
    return FolderData.model_validate({"source": "folder", "root": "r", **data})


@pytest.mark.parametrize(
    ("path", "data", "said"),
    [
        ("a/b/c.jpg", {}, Place("b", None, None, {})),
        ("c.jpg", {}, Place(None, None, None, {})),
        ("train/fruit/kiwi/1.jpg", {"split": 1}, Place("kiwi", None, "train", {})),
        (
            "train/fruit/kiwi/1.jpg",
            {"label": 3, "split": 1, "attributes": {"department": 2, "shelf": 9}},
            Place("kiwi", None, "train", {"department": "fruit"}),
        ),
        ("x/1.jpg", {"label": -2}, Place(None, None, None, {})),
        ("x/1.jpg", {"label": None}, Place(None, None, None, {})),
        (
            "red/SKU12_3 é\n.jpg",
            {"pattern": r"(?P<group_id>SKU\d+)_(?P<view>\d+)", "attributes": {"colour": 1}},
            Place("red", "SKU12", None, {"colour": "red", "view": "3"}),
        ),
        ("boots/1.jpg", {"pattern": r"^(?P<label>.)(?P<other>x)?"}, Place("b", None, None, {})),
        ("boots/1.jpg", {"pattern": r"(?P<label>zzz)"}, Place("boots", None, None, {})),
    ],
)
def test_levels_and_patterns(path: str, data: dict[str, object], said: Place) -> None:
    assert place(path, folder(**data)) == said


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("/a//b/../c/", "/a/c"),
        ("file:/a/b/", "file:/a/b"),
        ("s3://bucket//a/", "s3://bucket/a"),
        ("hdfs://name:8020/a", "hdfs://name:8020/a"),
        ("hdfs:///data/photos/", "hdfs:///data/photos"),
        ("dbfs:/mnt//a/", "dbfs:/mnt/a"),
    ],
)
def test_a_place_is_written_in_one_way(path: str, said: str) -> None:
    assert located(path) == said
