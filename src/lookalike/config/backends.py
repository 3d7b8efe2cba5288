"""What a recipe runs on, and where its results are kept."""

from __future__ import annotations

import os
import re

from pydantic import Field

from lookalike.config.fields import Model, Positive


class Warehouse(Model):
    """Where everything is kept."""

    tables: str = Field(
        description="folder or URI of the Delta tables, or a Unity Catalog 'catalog.schema'"
    )
    files: str = Field(description="folder, URI or volume of the artefacts and the report")
    log_days: Positive = Field(30, description="how long a table's old versions can be named")
    deleted_days: Positive = Field(
        7, description="how long `clean` keeps table files that no version in use names"
    )


class Spark(Model):
    """The Spark session. Without a master, the one that is there: spark-submit's, Databricks'."""

    master: str | None = None
    driver_memory: str = "1g"
    executor_memory: str = "1g"
    shuffle_partitions: Positive = 4
    conf: dict[str, str] = {}

    @property
    def slots(self) -> int | None:
        """Tasks that run at once, where the master says it."""
        if found := re.fullmatch(r"local-cluster\[(\d+),\s*(\d+),\s*\d+\]", self.master or ""):
            return int(found[1]) * int(found[2])
        if found := re.fullmatch(r"local\[(\d+|\*)(?:,.*)?\]", self.master or ""):
            return os.cpu_count() if found[1] == "*" else int(found[1])
        return 1 if self.master == "local" else None


class Mlflow(Model):
    """Where runs and models are kept; without a URI: MLFLOW_TRACKING_URI, or in the warehouse."""

    tracking_uri: str | None = None
    registry_uri: str | None = Field(
        None, description="of models, e.g. databricks-uc; else where runs are kept"
    )
    experiment: str | None = Field(
        None, description="else the recipe's name; on Databricks an absolute path"
    )
    model: str | None = Field(
        None,
        description="registered model, in Unity Catalog 'catalog.schema.name'; else the recipe's "
        "name",
    )
