"""The models of conf/*.yaml: what a recipe may say, checked before anything starts."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lookalike.errors import ConfigError, scrubbed
from lookalike.images import Preprocessing
from lookalike.planning import BatchShape

M = TypeVar("M", bound=BaseModel)
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Warehouse(_Model):
    """Where everything is kept."""

    tables: str = Field(
        description="folder or URI of the Delta tables, or a Unity Catalog 'catalog.schema'"
    )
    files: str = Field(description="folder, URI or volume of the artefacts and the report")


class Spark(_Model):
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


class IdxFiles(_Model):
    """Images and their labels, as IDX files, gzipped or not."""

    images: str
    labels: str


class IdxData(_Model):
    """A catalogue in IDX files, the format of MNIST and its kin."""

    source: Literal["idx"]
    train: IdxFiles
    test: IdxFiles
    label_names: tuple[str, ...] | None = Field(None, description="names of labels 0, 1, 2 ...")
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.1
    max_reject_share: Share = 0.05
    phash: bool = True


class Images(_Model):
    """The encoder's input."""

    size: Annotated[int, Field(ge=16, le=1024)] = 64
    channels: Literal[1, 3] = 3

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size, self.channels)


class Loss(_Model):
    """Multi-Similarity (Wang et al. 2019), as tensorflow-similarity computes it."""

    alpha: Annotated[float, Field(gt=0)] = 2.0
    beta: Annotated[float, Field(gt=0)] = 10.0
    epsilon: Annotated[float, Field(ge=0)] = 0.1
    lmda: Annotated[float, Field(ge=0, le=2)] = 0.5


class Augment(_Model):
    """Random changes of training images."""

    flip: bool = False
    shift: Annotated[int, Field(ge=0, description="pixels, in both directions")] = 0


class Train(_Model):
    """Training: what one rank does, and how many there are."""

    ranks: Positive = 1
    threads: Positive = Field(1, description="CPU threads of a rank and of a trial")
    network: Literal["compact_resnet", "simple_cnn"] = "compact_resnet"
    embedding_size: Annotated[int, Field(ge=2, le=4096)] = 128
    classes_per_batch: Annotated[int, Field(ge=2)] = 8
    images_per_class: Annotated[int, Field(ge=2)] = 8
    epochs: Positive = 10
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    loss: Loss = Loss()
    augment: Augment = Augment()
    buffer_mb: Positive = Field(256, description="images held by a rank to draw batches from")
    validation_items: Annotated[int, Field(ge=10)] = 2000

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.classes_per_batch, self.images_per_class)


class LogUniform(_Model):
    log_uniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]


class Uniform(_Model):
    uniform: tuple[float, float]


class Integers(_Model):
    int: tuple[int, int]


class Choice(_Model):
    choice: Annotated[tuple[Any, ...], Field(min_length=1)]


_NOT_SEARCHED = (
    "ranks",
    "threads",
    "epochs",
    "classes_per_batch",
    "images_per_class",
    "buffer_mb",
    "validation_items",
)
Range = LogUniform | Uniform | Integers | Choice


class Tune(_Model):
    """The search. Keys of `space` are keys of `train`, dotted: `loss.alpha`."""

    trials: Annotated[int, Field(ge=0, description="0: no search, train with the values given")] = 8
    parallelism: Positive = 1
    epochs: Positive = 2
    space: dict[str, Range] = {}

    @field_validator("space", mode="before")
    @classmethod
    def _known_words(cls, space: Any) -> Any:
        words = {"log_uniform", "uniform", "int", "choice"}
        for key, spec in (space or {}).items():
            if not isinstance(spec, dict) or len(spec) != 1 or not set(spec) <= words:
                raise ValueError(f"{key}: {spec!r} is none of {', '.join(sorted(words))}")
        return space

    @field_validator("space")
    @classmethod
    def _ascending(cls, space: dict[str, Range]) -> dict[str, Range]:
        for key, spec in space.items():
            (word,) = type(spec).model_fields
            bounds = getattr(spec, word)
            if word != "choice" and not bounds[0] < bounds[1]:
                raise ValueError(f"{key}: {word} goes from {bounds[0]} to {bounds[1]}, not upwards")
        return space


class IndexPlan(_Model):
    """How the index keeps vectors."""

    kind: Literal["exact", "hnsw"] = "hnsw"
    m: Annotated[int, Field(ge=4, le=128)] = 16
    ef_construction: Annotated[int, Field(ge=8)] = 100
    ef_search: Annotated[int, Field(ge=8)] = 64


class Evaluate(_Model):
    """The bounded sample that quality is measured on."""

    queries: Annotated[int, Field(ge=10)] = 5_000
    gallery: Annotated[int, Field(ge=10)] = 60_000
    pictured: Annotated[int, Field(ge=1, le=50)] = 10


class Gate(_Model):
    """What a candidate must show to become the champion."""

    above_raw_pixels: bool = True
    max_drop: Share = Field(0.005, description="how far a metric may lie below the champion's")


class Mlflow(_Model):
    """Where runs and models are kept; without a URI: MLFLOW_TRACKING_URI, or in the warehouse."""

    tracking_uri: str | None = None
    experiment: str | None = Field(None, description="else the recipe's name")
    model: str | None = Field(None, description="registered model; else the recipe's name")


class Config(_Model):
    """A recipe: everything that `lookalike run` does."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_./-]+$")] = Field(
        description="of the MLflow experiment and registered model, unless `mlflow` names them"
    )
    seed: Annotated[int, Field(ge=0)] = 17
    warehouse: Warehouse
    spark: Spark = Spark()
    data: IdxData
    images: Images = Images()
    tune: Tune = Tune()
    train: Train = Train()
    index: IndexPlan = IndexPlan()
    evaluate: Evaluate = Evaluate()
    gate: Gate = Gate()
    mlflow: Mlflow = Mlflow()

    @property
    def experiment_name(self) -> str:
        return self.mlflow.experiment or self.name

    @property
    def model_name(self) -> str:
        return self.mlflow.model or self.name

    def recorded(self) -> dict[str, Any]:
        """What artefacts, ledger and MLflow keep of a recipe: not what may hold secrets."""
        kept = self.model_dump_json(exclude={"mlflow", "spark"})
        recorded: dict[str, Any] = json.loads(scrubbed(kept))
        return recorded

    @model_validator(mode="after")
    def _possible(self) -> Config:
        slots = self.spark.slots
        for key, value in (
            ("tune.parallelism", self.tune.parallelism),
            ("train.ranks", self.train.ranks),
        ):
            if slots is not None and value > slots:
                raise ValueError(
                    f"{key} = {value} is more than the {slots} tasks that spark.master = "
                    f"{self.spark.master!r} runs at once. Allowed: 1 to {slots}"
                )
        if self.tune.trials and self.tune.parallelism > self.tune.trials:
            raise ValueError(
                f"tune.parallelism = {self.tune.parallelism} is more than tune.trials = "
                f"{self.tune.trials}. Allowed: 1 to {self.tune.trials}"
            )
        if self.tune.trials and not self.tune.space:
            raise ValueError(
                f"tune.trials = {self.tune.trials}, but tune.space names nothing to search. Name "
                "keys of train in it, or set tune.trials to 0"
            )
        names = self.data.label_names
        if names is not None and self.train.classes_per_batch > len(names):
            raise ValueError(
                f"train.classes_per_batch = {self.train.classes_per_batch} is more than the "
                f"{len(names)} classes in data.label_names. Allowed: 2 to {len(names)}"
            )
        self._searchable()
        return self

    def _searchable(self) -> None:
        for key, spec in self.tune.space.items():
            if key in _NOT_SEARCHED:
                raise ValueError(
                    f"tune.space: {key!r} is not searched: budget, snapshot and cluster are made "
                    f"for the recipe's own. Not searched: {', '.join(_NOT_SEARCHED)}"
                )
            (word,) = type(spec).model_fields
            for value in getattr(spec, word):
                try:
                    with_values(self.train, {key: value})
                except ConfigError as error:
                    raise ValueError(f"tune.space: {error}") from error


def with_values(train: Train, values: dict[str, Any]) -> Train:
    """A training with some values replaced, e.g. by a search's best.

    Args:
        train: the values to begin with.
        values: dotted keys of `train`, e.g. {"loss.alpha": 2.0}.

    Raises:
        ConfigError: a key that `train` does not have or a value that it does not allow.
    """
    raw = train.model_dump()
    for key, value in values.items():
        _set(raw, key, value, known=True)
    return _validated(Train, raw, "train")


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
            _set(raw, key, yaml.safe_load(value))
        except yaml.YAMLError as error:
            raise ConfigError(f"--set {setting!r}: the value is not YAML ({error})") from error
    return _validated(Config, _expanded(raw), str(path))


def _set(raw: dict[str, Any], key: str, value: Any, known: bool = False) -> None:
    # Spark's own keys have dots of theirs: below spark.conf a key is one.
    head, conf, rest = key.partition("spark.conf.")
    *parents, last = ["spark", "conf", rest] if conf and not head else key.split(".")
    inner: Any = raw
    for parent in parents:
        inner = inner.get(parent) if known else inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key!r}: {parent!r} has no keys below it")
    if known and last not in inner:
        raise ConfigError(f"{key!r} is no key of train", allowed=", ".join(sorted(inner)))
    inner[last] = value


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


def _validated(model: type[M], raw: Any, where: str) -> M:
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(
            f"{where}: " + "; ".join(_in_words(model, e) for e in error.errors())
        ) from None


def _in_words(model: type[BaseModel], error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}. Allowed here: {', '.join(_siblings(model, error['loc']))}"
    if error["type"] == "missing":
        return f"{key!r} is missing"
    message = error["msg"].removeprefix("Value error, ")
    if not key or error["loc"][0] in _MAY_HOLD_SECRETS:
        return f"{key}: {message}".removeprefix(": ")
    return f"{key} = {error['input']!r}: {message}"


_MAY_HOLD_SECRETS = ("spark", "mlflow")


def _siblings(model: Any, path: tuple[Any, ...]) -> list[str]:
    for part in path[:-1]:
        field = model.model_fields.get(part) if hasattr(model, "model_fields") else None
        if field is None:
            return ["see the recipe's documentation"]
        model = field.annotation
    return sorted(model.model_fields) if hasattr(model, "model_fields") else []
