"""The ledger: what each step committed, found by the steps after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import DataFrame, Row
from pyspark.sql import functions as F

from lookalike.errors import DataError, LookalikeError
from lookalike.lake.tables import SCHEMAS, Tables

_TRIES = 5


@dataclass(frozen=True)
class Commit:
    """A committed step: what it took, what it made."""

    step: str
    version: int
    inputs: dict[str, Any]
    outputs: dict[str, Any]


@dataclass(frozen=True)
class Since:
    """The commits that a decision was made upon.

    Attributes:
        inputs: that all of them have, among others.
        version: of the newest; 0 where there was none.
    """

    inputs: dict[str, Any]
    version: int

    def before(self, commit: Commit) -> bool:
        """Whether a commit is one of those, and newer."""
        return commit.version > self.version and self.inputs.items() <= commit.inputs.items()


def _always(outputs: dict[str, Any]) -> bool:
    return bool(outputs)


@dataclass(frozen=True)
class Ledger:
    """One row a committed step; versions of a step count from 1."""

    tables: Tables

    def last(self, step: str) -> Commit | None:
        """The newest commit of a step."""
        row = self._rows(step).orderBy("version", ascending=False).first()
        return None if row is None else _commit(row)

    def all(self, step: str) -> list[Commit]:
        """All commits of a step, the newest first: as many as it was run with other inputs."""
        return [
            _commit(row) for row in self._rows(step).orderBy("version", ascending=False).collect()
        ]

    def need(self, step: str) -> Commit:
        """The newest commit of a step.

        Raises:
            DataError: there is none.
        """
        if (found := self.last(step)) is None:
            raise DataError(
                f"this warehouse ({self.tables.location}) has no committed {step}",
                remedy=f"Run `lookalike {step}` first, or name another warehouse",
            )
        return found

    def find(
        self,
        step: str,
        inputs: dict[str, Any],
        whole: Callable[[dict[str, Any]], bool] = _always,
    ) -> Commit | None:
        """What a step made from just these inputs before, so that it need not make it again.

        Where other inputs were committed since, it is committed anew: the newest commit is what
        later steps take.

        Args:
            step: its name.
            inputs: what it takes now.
            whole: whether the outputs of a commit are still there.
        """
        same = self._rows(step).where(F.col("inputs") == json.dumps(inputs, sort_keys=True))
        row = same.orderBy("version", ascending=False).first()
        if row is None:
            return None
        found, newest = _commit(row), self.last(step)
        if not whole(found.outputs):
            return None
        if newest is not None and newest.version == found.version:
            return found
        return self.commit(step, inputs, found.outputs, json.loads(row["config"]))

    def commit(
        self,
        step: str,
        inputs: dict[str, Any],
        outputs: dict[str, Any],
        config: dict[str, Any],
        since: Since | None = None,
    ) -> Commit:
        """Add a commit as the step's next version. Of two at once, one takes the one after.

        Args:
            step: its name.
            inputs, outputs: what it took, what it made.
            config: its recipe.
            since: what it was decided upon: where more of that has come, nothing is committed.

        Raises:
            LookalikeError: others committed first.
        """
        for _ in range(_TRIES):
            newest = self.last(step)
            version = 1 if newest is None else newest.version + 1
            if since is not None and any(since.before(one) for one in self.all(step)):
                raise LookalikeError(
                    f"another {step} was committed meanwhile", remedy="Run this again"
                )
            row = (
                step,
                version,
                json.dumps(inputs, sort_keys=True),
                json.dumps(outputs, sort_keys=True),
                json.dumps(config, sort_keys=True),
                datetime.now(UTC),
            )
            rows = self.tables.spark.createDataFrame([row], SCHEMAS["ledger"])
            self.tables.insert_new("ledger", rows, ("step", "version"))
            # Ours, not another's of the same version; compared by Spark, which knows time zones.
            ours = (F.col("version") == version) & (F.col("at") == F.lit(row[5]))
            if (written := self._rows(step).where(ours).first()) is not None:
                return _commit(written)
        raise LookalikeError(
            f"{_TRIES} other commits of {step} came first",
            remedy="Run one job at a time",
        )

    def _rows(self, step: str) -> DataFrame:
        return self.tables.read("ledger").where(F.col("step") == step)


def _commit(row: Row) -> Commit:
    return Commit(
        row["step"],
        row["version"],
        json.loads(row["inputs"]),
        json.loads(row["outputs"]),
    )
