"""The whole way, once, by the command line; and a Spark session to look at what it made."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pyspark.sql import SparkSession
from support import Way, command, write_recipe

from lookalike import config
from lookalike.lake.session import close_session, open_session
from lookalike.lake.tables import Tables
from lookalike.steps.context import Context


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What the way has made is looked at before other tests release and break things in it."""
    system = [item for item in items if "system" in item.path.parts]
    system.sort(key=lambda item: item.path.name != "test_way.py")
    items[:] = [item for item in items if "system" not in item.path.parts] + system


@pytest.fixture(scope="session")
def way(tmp_path_factory: pytest.TempPathFactory) -> Way:
    """All ten steps on a few hundred images: 2 Spark workers, 2 trials, 2 Horovod ranks."""
    folder = tmp_path_factory.mktemp("a way é")  # a folder as people have them
    conf = write_recipe(folder, train=50, test=12)
    done = command(
        *("run", "--json", "--conf", str(conf)),
        after="assert 'tensorflow' not in sys.modules, 'TensorFlow came into the driver'",
    )
    assert done.returncode == 0, done.stderr
    return Way(conf, folder / "wh", json.loads(done.stdout))


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """The one Spark session of this process."""
    opened = open_session(config.Spark(master="local[2]"), "tests")
    yield opened
    close_session(opened)


@pytest.fixture
def fresh(spark: SparkSession, tmp_path: Path) -> Tables:
    """Empty tables of a warehouse of their own."""
    tables = Tables(spark, str(tmp_path / "tables"))
    tables.ensure()
    return tables


@pytest.fixture(scope="session")
def context(way: Way, spark: SparkSession) -> Context:  # noqa: ARG001  it takes the one there is
    """The way's recipe with a Spark session in this process."""
    return Context(config.load(way.conf, ["spark.master=null"]))
