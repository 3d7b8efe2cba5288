"""A recipe as a whole, and how it is read."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, model_validator

from lookalike.config.backends import Mlflow, Spark, Warehouse
from lookalike.config.fields import Model
from lookalike.config.images import Duplicates, Images, Snapshots
from lookalike.config.index import Index
from lookalike.config.keys import put
from lookalike.config.quality import Evaluate, Gate
from lookalike.config.refusals import validated
from lookalike.config.search import Tune, trainings
from lookalike.config.serving import Serving
from lookalike.config.sources import Data, IdxData, VectorsData
from lookalike.config.training import Train
from lookalike.errors import ConfigError


class Config(Model):
    """A recipe: everything that `lookalike run` does."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = Field(
        description="of the MLflow experiment and registered model, unless `mlflow` names them"
    )
    seed: Annotated[int, Field(ge=0)] = 17
    warehouse: Warehouse
    spark: Spark = Spark()
    data: Data
    duplicates: Duplicates = Duplicates()
    images: Images = Images()
    snapshot: Snapshots = Snapshots()
    tune: Tune = Tune()
    train: Train = Train()
    index: Index = Index()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    serving: Serving = Serving()
    mlflow: Mlflow = Mlflow()

    @property
    def experiment_name(self) -> str:
        return self.mlflow.experiment or self.name

    @property
    def model_name(self) -> str:
        return self.mlflow.model or self.name

    def recorded(self, exclude: Set[str] = frozenset({"mlflow", "spark"})) -> dict[str, Any]:
        """What artefacts, ledger and MLflow keep of a recipe: not what may hold secrets."""
        return super().recorded(exclude)

    @model_validator(mode="after")
    def _possible(self) -> Config:
        slots = self.spark.slots
        for key, value in (
            ("tune.parallelism", self.tune.parallelism or 1),
            ("train.ranks", self.train.ranks),
        ):
            if slots is not None and value > slots:
                raise ValueError(
                    f"{key} = {value} is more than the {slots} tasks that spark.master = "
                    f"{self.spark.master!r} runs at once. Allowed: 1 to {slots}"
                )
        searches = self.tune.trials > 0 and not isinstance(self.data, VectorsData)
        if searches and not self.tune.space:
            raise ValueError(
                f"tune.trials = {self.tune.trials}, but tune.space names nothing to search. Name "
                "keys of train in it, or set tune.trials to 0"
            )
        if any(sign in self.model_name for sign in "/:"):
            raise ValueError(
                f"MLflow takes no model of the name {self.model_name!r}. Allowed: names without / "
                "and :. Set mlflow.model, or another name"
            )
        self._check_classes(self.train)
        for train in trainings(self.tune, self.train):
            self._check_classes(train)
        return self

    def _check_classes(self, train: Train) -> None:
        names = self.data.label_names if isinstance(self.data, IdxData) else None
        if names is not None and train.classes_per_batch > len(names):
            raise ValueError(
                f"train.classes_per_batch = {train.classes_per_batch} is more than the "
                f"{len(names)} classes in data.label_names. Allowed: 2 to {len(names)}"
            )


def load(path: Path, settings: Sequence[str] = ()) -> Config:
    """Read a recipe.

    Args:
        path: YAML file; `${NAME}` and `${NAME:-else}` in its strings come from the environment.
        settings: "a.b=c", each set on top of the file; c is read as YAML.

    Raises:
        ConfigError: no such file, not YAML, an unknown key, a wrong type or an impossible value.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"--conf {path}: {error.strerror}",
            remedy="Name a recipe, for example conf/demo.yaml",
        ) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"--conf {path} is not YAML ({error})") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"--conf {path} holds {type(raw).__name__}", allowed="keys and values")
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {setting!r}", allowed="KEY=VALUE, e.g. train.epochs=3")
        try:
            put(raw, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not YAML ({error})") from error
    return validated(Config, _expanded(raw), str(path))


def _expanded(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _expanded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_expanded(v) for v in value]
    if isinstance(value, str):
        return re.sub(r"\$\{(\w+)(?::-([^}]*))?\}", _from_environment, value)
    return value


def _from_environment(found: re.Match[str]) -> str:
    name, otherwise = found[1], found[2]
    value = os.environ.get(name, otherwise)
    if value is None:
        raise ConfigError(
            f"the recipe names ${{{name}}}, which the environment does not have",
            remedy=f"Set {name}, or write ${{{name}:-VALUE}}",
        )
    return value
