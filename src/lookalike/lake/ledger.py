"""The ledger: what each step committed, found by the steps after it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pyspark.sql import Row

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
class Ledger:
    """One row a committed step; versions of a step count from 1."""

    tables: Tables

    def last(self, step: str) -> Commit | None:
        """The newest commit of a step."""
        row = self._rows(step).orderBy("version", ascending=False).first()
        return None if row is None else _commit(row)

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

    def find(self, step: str, inputs: dict[str, Any]) -> Commit | None:
        """The newest commit of a step if it was made from just these inputs."""
        found = self.last(step)
        return found if found is not None and found.inputs == _plain(inputs) else None

    def commit(
        self,
        step: str,
        inputs: dict[str, Any],
        outputs: dict[str, Any],
        config: dict[str, Any],
    ) -> Commit:
        """Add a commit as the step's next version. Of two at once, one takes the one after.

        Raises:
            LookalikeError: others committed first, time and again.
        """
        for _ in range(_TRIES):
            newest = self.last(step)
            version = 1 if newest is None else newest.version + 1
            row = (
                step,
                version,
                json.dumps(inputs, sort_keys=True),
                json.dumps(outputs, sort_keys=True),
                json.dumps(config, sort_keys=True),
                datetime.now(UTC),
            )
            rows = self.tables.spark.createDataFrame([row], SCHEMAS["ledger"])
            try:
                self.tables.insert_new("ledger", rows, ("step", "version"))
            except Exception as error:
                if "Concurrent" not in str(error):
                    raise
                continue
            written = self._rows(step).where(f"version = {version}").first()
            if written is not None and written["at"] == row[5].replace(tzinfo=None):
                return _commit(written)
        raise LookalikeError(
            f"{_TRIES} other commits of {step} came first",
            remedy="Run one job at a time",
        )

    def _rows(self, step: str) -> Any:
        table = self.tables.read("ledger")
        return table.where(table["step"] == step)


def _commit(row: Row) -> Commit:
    return Commit(
        row["step"],
        row["version"],
        json.loads(row["inputs"]),
        json.loads(row["outputs"]),
    )


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))
