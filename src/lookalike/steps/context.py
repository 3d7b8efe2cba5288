"""What every step gets: the recipe, and the rooms it opens from it as they are needed."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from lookalike import artifacts, retention
from lookalike.config import Config, Train
from lookalike.errors import ConfigError
from lookalike.tracking import Tracking

if TYPE_CHECKING:  # `query` and `serve` run where there is no Spark
    from pyspark.sql import SparkSession

    from lookalike.lake.ledger import Ledger
    from lookalike.lake.tables import Tables


class Result(BaseModel):
    """What a step committed."""

    model_config = ConfigDict(frozen=True)

    unchanged: bool = False
    """Whether it had been committed before, so that nothing was done."""

    @property
    def words(self) -> str:
        """The result in a line."""
        raise NotImplementedError


class Skipped(Result):
    """A step that has nothing to do for this catalogue."""

    unchanged: bool = True
    why: str

    @property
    def words(self) -> str:
        return self.why


def _nobody(*_: object) -> None:
    """Who is told of progress where nobody asks."""


class Context:
    """A recipe at work. As a context manager it closes what it opened.

    Args:
        config: the recipe.
        progress: told what is done and what there is in all, by steps that know; and in a third
            word, at what pace.
        say: told what people should know before a step is done.
        log: folder for what ranks print.
    """

    def __init__(
        self,
        config: Config,
        progress: Callable[..., None] = _nobody,
        say: Callable[[str], None] = _nobody,
        log: Path | None = None,
    ):
        self.config = config
        self.progress = progress
        self.say = say
        self.log = log or Path(tempfile.gettempdir()) / "lookalike-logs"

    def __enter__(self) -> Context:
        return self

    def __exit__(self, *_: object) -> None:
        if "spark" in self.__dict__ and self.config.spark.master is not None:
            from lookalike.lake.session import close_session

            close_session(self.spark)

    @cached_property
    def spark(self) -> SparkSession:
        from lookalike.lake.session import open_session

        return open_session(self.config.spark, self.config.name)

    @cached_property
    def tables(self) -> Tables:
        """The warehouse's tables, made where they are not there."""
        from lookalike.lake.tables import Tables

        where = self.config.warehouse
        tables = Tables(self.spark, where.tables, where.log_days, where.deleted_days)
        tables.ensure()
        return tables

    @cached_property
    def ledger(self) -> Ledger:
        from lookalike.lake.ledger import Ledger

        return Ledger(self.tables)

    @cached_property
    def tracking(self) -> Tracking:
        where = self.config.mlflow
        return Tracking.of(
            self.files, self.config.experiment_name, where.tracking_uri, where.registry_uri
        )

    @cached_property
    def files(self) -> str:
        """The warehouse's folder or URI of files.

        Raises:
            ConfigError: it cannot be written to.
        """
        uri = self.config.warehouse.files
        folder = artifacts.local_path(uri)
        if folder is None:
            return uri
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=folder):  # closed first, then removed
                pass
        except OSError as error:
            raise ConfigError(
                f"warehouse.files = {uri!r} cannot be written to ({error.strerror})",
                remedy="Name a folder that can be",
            ) from error
        # Spark's workers have working folders of their own.
        return str(folder)

    @property
    def train(self) -> Train:
        """The recipe's training, as its processes take it."""
        found = self.config.train
        if found.init_from is None or (local := artifacts.local_path(found.init_from)) is None:
            return found
        # As for `files`: to a worker a relative path would be another.
        return found.model_copy(update={"init_from": str(local)})

    @property
    def encoders(self) -> str:
        return artifacts.join(self.files, "encoders")

    @property
    def searches(self) -> str:
        return artifacts.join(self.files, "searches")

    @property
    def checkpoints(self) -> str:
        return artifacts.join(self.files, "checkpoints")

    @property
    def indexes(self) -> str:
        return artifacts.join(self.files, "index")

    @property
    def reports(self) -> str:
        return artifacts.join(self.files, "reports")

    @property
    def inspections(self) -> str:
        return artifacts.join(self.files, "inspections")

    @property
    def kept(self) -> tuple[tuple[str, str], ...]:
        """Kinds of artefacts that stay until they are cleaned away, and the root of each."""
        return (
            (retention.SNAPSHOT, artifacts.join(self.files, "snapshots")),
            (retention.ENCODER, self.encoders),
            (retention.INDEX, artifacts.join(self.indexes, "versions")),
            (retention.PART, artifacts.join(self.indexes, "parts")),
            (retention.REPORT, self.reports),
            (retention.INSPECTION, self.inspections),
        )
