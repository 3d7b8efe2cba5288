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
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from lookalike.errors import ConfigError, scrubbed
from lookalike.images import Preprocessing
from lookalike.metrics import Scores
from lookalike.planning import BatchShape
from lookalike.space import WORDS, Part, samples
from lookalike.space import part as parts

M = TypeVar("M", bound=BaseModel)
Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]
Split = Literal["train", "validation", "test"]


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Warehouse(_Model):
    """Where everything is kept."""

    tables: str = Field(
        description="folder or URI of the Delta tables, or a Unity Catalog 'catalog.schema'"
    )
    files: str = Field(description="folder, URI or volume of the artefacts and the report")
    log_days: Positive = Field(30, description="how long a table's old versions can be named")
    deleted_days: Positive = Field(
        7, description="how long `clean` keeps table files that no version in use names"
    )


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


class _Data(_Model):
    """What every source has.

    A split that the source gives an item is kept, except that validation is cut from what is given
    for training where the source gives none; what has no split gets one by hash.
    """

    validation_share: Share = Field(0.1, description="where the source gives no validation split")
    test_share: Share = Field(0.1, description="of items without a split, where it gives no test")
    unseen_classes: Share | tuple[str, ...] = Field(
        0.0, description="share, or names, of the classes kept out of training, to test on"
    )
    max_reject_share: Share = 0.05
    repeated_ids: Literal["refuse", "first", "last"] = Field(
        "refuse", description="of rows of one item_id: refuse the load, or take the one"
    )
    check: bool = Field(True, description="decode every image once, to reject what is damaged")
    phash: bool = Field(True, description="perceptual hashes, by which near duplicates are found")
    max_bytes: Positive = Field(64 * 2**20, description="larger files are rejected unread")

    @model_validator(mode="after")
    def _hashed_is_checked(self) -> _Data:
        if self.phash and not self.check:
            raise ValueError("check = False, but phash decodes every image too: set it to False")
        return self


class _Named(_Data):
    """A source that may name splits."""

    split_names: Annotated[dict[str, Split], Field(min_length=1)] = {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
        **dict.fromkeys(("test", "testing"), "test"),
    }

    @field_validator("split_names", mode="before")
    @classmethod
    def _whatever_the_case(cls, names: Any) -> Any:
        if isinstance(names, dict):
            return {str(name).strip().lower(): split for name, split in names.items()}
        return names


class IdxFiles(_Model):
    """Images and their labels, as IDX files, gzipped or not."""

    images: str
    labels: str


class IdxData(_Data):
    """A catalogue in IDX files, the format of MNIST and its kin."""

    source: Literal["idx"]
    train: IdxFiles
    test: IdxFiles
    label_names: tuple[str, ...] | None = Field(None, description="names of labels 0, 1, 2 ...")


Level = Annotated[
    int, Field(description="a folder between root and file: 1 the outermost, -1 the innermost")
]


class FolderData(_Named):
    """Image files in folders; an item's id is its path below the root."""

    source: Literal["folder"]
    root: str
    suffixes: tuple[str, ...] = Field(
        (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        description="files of other names are passed over, and counted; empty: none is",
    )
    label: Level | None = -1
    split: Level | None = None
    attributes: dict[str, Level] = {}
    pattern: str | None = Field(
        None,
        description="regular expression on the path below the root; its named groups label, "
        "group_id and split are these, others are attributes; they come before the levels",
    )

    @field_validator("label", "split", "attributes")
    @classmethod
    def _no_level_zero(cls, value: Any) -> Any:
        if 0 in (value.values() if isinstance(value, dict) else (value,)):
            raise ValueError("levels count from 1, or from -1 backwards")
        return value

    @field_validator("pattern")
    @classmethod
    def _with_groups(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
            if not groups:
                raise ValueError("it has no named group, such as (?P<label>...)")
        return pattern


class Fetch(_Model):
    """How images are fetched from their URLs."""

    connections: Positive = Field(16, description="open at once, in all")
    timeout: Annotated[float, Field(gt=0)] = Field(10, description="seconds without an answer")
    deadline: Annotated[float, Field(gt=0)] = Field(60, description="seconds for one URL in all")
    retries: Annotated[int, Field(ge=0)] = 3
    backoff: Annotated[float, Field(ge=0)] = Field(0.5, description="seconds, doubled each time")


class _Table(_Named):
    """A table of items. Keys of roles name its columns; what has no role is an attribute."""

    table: str = Field(description="CSV, JSON lines or Parquet files, a Delta folder or table name")
    format: Literal["csv", "json", "parquet", "delta"] | None = Field(
        None, description="else by the name: .csv, .tsv, .json, .jsonl, .ndjson, .parquet; or delta"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="of CSV; else a tab for .tsv, a comma for others"
    )
    item_id: str = "item_id"
    label: str = "label"
    group_id: str = "group_id"
    split: str = "split"
    version: str | None = Field(
        None, description="column that changes when the content does; else what stands in for it"
    )


class ManifestData(_Table):
    """A table of items whose images lie at a path, at a URL, or in the table itself."""

    source: Literal["manifest"]
    path: str | None = Field(None, description="column of paths, absolute or below `root`")
    url: str | None = Field(None, description="column of http:// or https:// addresses")
    bytes: str | None = Field(None, description="column of image files, binary or base64")
    root: str | None = Field(None, description="folder that holds the paths; else the table's own")
    fetch: Fetch = Fetch()

    @model_validator(mode="after")
    def _one_content(self) -> ManifestData:
        named = [key for key in ("path", "url", "bytes") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(
                f"{' and '.join(named) or 'none'} of path, url and bytes is given. Name the column "
                "of one of them"
            )
        if self.root is not None and self.path is None:
            raise ValueError("root is where paths lie: give the column `path`, or leave root out")
        return self


class TextData(_Table):
    """A table of texts, such as titles."""

    source: Literal["text"]
    text: str = "text"


class VectorsData(_Table):
    """A table of items with vectors of their own: nothing is trained, the index takes them."""

    source: Literal["vectors"]
    vector: str = "vector"
    dim: Annotated[int, Field(ge=1, le=65_536)] = Field(description="length of a vector")


Data = Annotated[
    IdxData | FolderData | ManifestData | TextData | VectorsData, Field(discriminator="source")
]
TableData = ManifestData | TextData | VectorsData


_SOURCES: dict[str, type[_Data]] = {
    "idx": IdxData,
    "folder": FolderData,
    "manifest": ManifestData,
    "text": TextData,
    "vectors": VectorsData,
}


class Duplicates(_Model):
    """What counts as the same picture."""

    max_distance: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="differing bits of two 64-bit perceptual hashes"
    )


class Images(_Model):
    """The encoder's input."""

    size: Annotated[int, Field(ge=16, le=1024)] = 64
    channels: Literal[1, 3] = 3

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size, self.channels)


class Snapshots(_Model):
    """How a snapshot keeps its images."""

    format: Literal["raw", "encoded"] = Field(
        "raw", description="raw: decoded pixels, read fastest; encoded: files as they came, smaller"
    )


class MultiSimilarity(_Model):
    """Wang et al. 2019, as tensorflow-similarity computes it."""

    name: Literal["multi_similarity"] = "multi_similarity"
    alpha: Annotated[float, Field(gt=0)] = 2.0
    beta: Annotated[float, Field(gt=0)] = 10.0
    epsilon: Annotated[float, Field(ge=0)] = Field(
        0.1, description="mining's slack, a cosine distance; above 2 nothing is mined, all count"
    )
    lmda: Annotated[float, Field(ge=0, le=2)] = 0.5


class Triplet(_Model):
    """A positive nearer than a negative by a margin (Schroff et al. 2015; Hermans et al. 2017)."""

    name: Literal["triplet"]
    mining: Literal["hard", "semi_hard"] = "semi_hard"
    margin: Annotated[float, Field(gt=0, le=2)] = 0.2


class NormalisedSoftmax(_Model):
    """A direction a class, told apart by cosine (Zhai and Wu 2019)."""

    name: Literal["normalised_softmax"]
    scale: Annotated[float, Field(gt=0)] = 16.0
    smoothing: Share = 0.1


class SupervisedContrastive(_Model):
    """Each positive against all others of the batch (Khosla et al. 2020)."""

    name: Literal["supervised_contrastive"]
    temperature: Annotated[float, Field(gt=0)] = 0.1


def _named(loss: Any) -> Any:
    # Multi-Similarity is what a loss without a name is.
    return {"name": "multi_similarity", **loss} if isinstance(loss, dict) else loss


Loss = Annotated[
    Annotated[
        MultiSimilarity | Triplet | NormalisedSoftmax | SupervisedContrastive,
        Field(discriminator="name"),
    ],
    BeforeValidator(_named),
]


class Auxiliary(_Model):
    """A normalised softmax beside the main loss."""

    weight: Annotated[float, Field(ge=0)] = Field(0.0, description="0: none")
    scale: Annotated[float, Field(gt=0)] = 16.0
    smoothing: Share = 0.1


class Augment(_Model):
    """Random changes of training images."""

    flip: bool = False
    shift: Annotated[int, Field(ge=0, description="pixels, in both directions")] = 0
    erase: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="how likely a rectangle of an image is painted over"
    )
    colour: Share = Field(0.0, description="how far brightness, contrast and saturation may go")


class Train(_Model):
    """Training: what one rank does, and how many there are."""

    ranks: Positive = 1
    threads: Positive | None = Field(
        None, description="CPU threads of a rank and of a trial; else a fair share of the machine"
    )
    network: Annotated[
        str, Field(pattern=r"^(compact_resnet|simple_cnn|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$")
    ] = Field("compact_resnet", description="or a function of yours: package.module:function")
    init_from: str | None = Field(
        None, description="folder or URI of an encoder whose weights training starts from"
    )
    embedding_size: Annotated[int, Field(ge=2, le=4096)] = 128
    classes_per_batch: Annotated[int, Field(ge=2)] = 8
    images_per_class: Annotated[int, Field(ge=2)] = 8
    group_by: str | None = Field(
        None, description="attribute: a batch's classes come from one value of it where they can"
    )
    epochs: Positive = 10
    patience: Positive | None = Field(
        None, description="epochs without a better validation MAP@R after which training ends"
    )
    learning_rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    rank_scaling: Literal["none", "sqrt", "linear"] = Field(
        "none", description="how the learning rate grows with the ranks"
    )
    warmup: Share = 0.1
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    clip_norm: Annotated[float, Field(gt=0)] | None = Field(
        None, description="largest norm of all gradients together"
    )
    ema: Share = Field(0.0, description="decay of the weights' moving average; 0: none")
    precision: Literal["auto", "float32", "mixed_float16"] = Field(
        "auto", description="auto: mixed_float16 on a GPU, float32 elsewhere"
    )
    sync_batch_norm: bool = Field(False, description="normalise over the batch of all ranks")
    deterministic: bool = Field(False, description="slower operations that repeat to the bit")
    loss: Loss = MultiSimilarity()
    auxiliary: Auxiliary = Auxiliary()
    augment: Augment = Augment()
    validation_items: Annotated[int, Field(ge=10)] = 2000
    buffer_mb: Positive = Field(256, description="images held by a rank to draw batches from")
    cache_mb: Positive = Field(4096, description="local disk a rank keeps a remote snapshot on")
    checkpoint_steps: Positive = Field(500, description="steps between checkpoints")
    restarts: Annotated[int, Field(ge=0)] = Field(
        3, description="how often a training goes on by itself when a rank has died"
    )
    silence: Positive = Field(
        120, description="seconds without a word that a rank is given up after"
    )

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.classes_per_batch, self.images_per_class)

    def mathematics(self) -> dict[str, Any]:
        """What decides the encoder: without how it is kept safe meanwhile."""
        safety = {"cache_mb", "checkpoint_steps", "restarts", "silence"}
        return self.model_dump(mode="json", exclude=safety)


class Budget(_Model):
    """How long a training lasts: exactly one of these."""

    epochs: Positive | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = Field(
        None, description="of training steps; validation is not counted"
    )

    @model_validator(mode="after")
    def _one(self) -> Budget:
        if sum(value is not None for value in (self.epochs, self.steps, self.minutes)) != 1:
            raise ValueError("give exactly one of epochs, steps and minutes")
        return self


_NOT_SEARCHED = (
    "ranks",
    "threads",
    "epochs",
    "group_by",
    "deterministic",
    "validation_items",
    "buffer_mb",
    "cache_mb",
    "checkpoint_steps",
    "restarts",
    "silence",
)


class Tune(_Model):
    """The search. Keys of `space` are keys of `train`, dotted: `loss.alpha`."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] = "search"
    trials: Annotated[int, Field(ge=0, description="0: no search, train with the values given")] = 8
    parallelism: Positive | None = Field(
        None, description="trials at once; else as many as the cluster runs tasks, within reason"
    )
    algorithm: Literal["tpe", "random", "anneal"] = "tpe"
    objective: Literal[Scores.METRICS] = Field(  # type: ignore[valid-type]
        "map_at_r", description="on the validation split, itself left out; larger is better"
    )
    budget: Budget = Field(Budget(epochs=2), description="of every trial")
    space: dict[str, Any] = {}

    @field_validator("space")
    @classmethod
    def _of_words(cls, space: dict[str, Any]) -> dict[str, Any]:
        for key, value in space.items():
            try:
                part = parts(value)
            except ValueError as error:
                raise ValueError(f"{key}: {error}") from error
            if not isinstance(part, tuple(WORDS.values())):
                raise ValueError(f"{key}: {value!r} is none of {', '.join(sorted(WORDS))}")
            above = [other for other in space if key.startswith(f"{other}.")]
            if above:
                raise ValueError(f"{key} lies within {above[0]}, which is searched as a whole")
        return space

    @model_validator(mode="after")
    def _learns(self) -> Tune:
        at_once = self.parallelism or 1
        if self.trials and at_once > (most := self.at_most):
            raise ValueError(
                f"parallelism = {at_once} for trials = {self.trials}: "
                + (
                    "there are no more to run"
                    if self.algorithm == "random"
                    else f"{self.algorithm} learns from trials that have ended, and would draw "
                    "most of them before any has, at random"
                )
                + f". Allowed: 1 to {most}"
            )
        return self

    @property
    def at_most(self) -> int:
        """Trials that may run at once, so that the search can still learn from those before."""
        share = 1 if self.algorithm == "random" else 2
        return max(1, self.trials // share)

    @property
    def parts(self) -> dict[str, Part]:
        """The space, as `lookalike.space` says it."""
        return {key: parts(value) for key, value in self.space.items()}


_OF_KINDS: dict[str, tuple[str, ...]] = {
    "auto": (),
    "exact": (),
    "hnsw": ("m", "ef_construction", "ef_search"),
    "ivf_flat": ("nlist", "nprobe"),
    "ivf_sq8": ("nlist", "nprobe", "rerank"),
    "ivf_pq": ("nlist", "nprobe", "rerank", "pq_bytes"),
    "kd_tree": (),
}
_OF_AUTO = ("recall", "k", "memory", "prefer", "growth", "deletes", "seconds")


class Index(_Model):
    """How the index keeps vectors: what is wished for, or a kind with parameters of its own."""

    kind: Literal["auto", "exact", "hnsw", "ivf_flat", "ivf_sq8", "ivf_pq", "kd_tree"] = Field(
        "auto", description="auto: tried on the catalogue's own vectors, see `Wishes`"
    )
    recall: Annotated[float, Field(gt=0, le=1)] = Field(0.95, description="of held-out vectors")
    k: Annotated[int, Field(ge=1, le=1000)] = Field(10, description="that recall is measured at")
    memory: Positive | None = Field(None, description="bytes of vectors, ids apart")
    prefer: Literal["latency", "throughput"] = "latency"
    growth: Annotated[float, Field(ge=0)] = Field(0.0, description="share of items to come")
    deletes: Share = Field(0.0, description="share of items to go")
    seconds: Annotated[float, Field(gt=0)] = Field(120.0, description="for trying kinds, about")
    m: Annotated[int, Field(ge=4, le=128)] = 16
    ef_construction: Annotated[int, Field(ge=8)] = 100
    ef_search: Annotated[int, Field(ge=8)] = 64
    nlist: Annotated[int, Field(ge=0)] = Field(0, description="0: by the number of items")
    nprobe: Positive = 16
    pq_bytes: Positive = 16
    rerank: Annotated[int, Field(ge=0)] = Field(
        4, description="candidates, in multiples of k, compared by float16 vectors; 0 keeps none"
    )

    @model_validator(mode="after")
    def _of_the_kind(self) -> Index:
        own = _OF_AUTO if self.kind == "auto" else _OF_KINDS[self.kind]
        if wrong := self.model_fields_set - {"kind", *own} - self._defaults():
            raise ValueError(
                f"kind = {self.kind!r} does not take {', '.join(sorted(wrong))}. "
                f"Allowed beside it: {', '.join(own) or 'nothing'}"
            )
        return self

    def _defaults(self) -> set[str]:
        """Fields that say what they say anyway."""
        fields = type(self).model_fields
        return {name for name in fields if getattr(self, name) == fields[name].default}

    @property
    def parameters(self) -> dict[str, Any]:
        """What `Wishes` takes where the kind is auto, else what `Plan` takes."""
        own = _OF_AUTO if self.kind == "auto" else ("kind", *_OF_KINDS[self.kind])
        return {name: getattr(self, name) for name in own}


class Evaluate(_Model):
    """The bounded sample that quality is measured on."""

    queries: Annotated[int, Field(ge=10)] = 5_000
    gallery: Annotated[int, Field(ge=10)] = 60_000
    pictured: Annotated[int, Field(ge=1, le=50)] = 10


class Gate(_Model):
    """What a candidate must show to become the champion."""

    above_raw_pixels: bool = Field(True, description="where items are images")
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
    data: Data
    duplicates: Duplicates = Duplicates()
    images: Images = Images()
    snapshot: Snapshots = Snapshots()
    tune: Tune = Tune()
    train: Train = Train()
    index: Index = Index()
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
        self._check_classes(self.train)
        self._searchable()
        return self

    def _check_classes(self, train: Train) -> None:
        names = self.data.label_names if isinstance(self.data, IdxData) else None
        if names is not None and train.classes_per_batch > len(names):
            raise ValueError(
                f"train.classes_per_batch = {train.classes_per_batch} is more than the "
                f"{len(names)} classes in data.label_names. Allowed: 2 to {len(names)}"
            )

    def _searchable(self) -> None:
        for key, part in self.tune.parts.items():
            if key in _NOT_SEARCHED:
                raise ValueError(
                    f"tune.space: {key!r} is not searched: a trial is one process with a budget of "
                    f"its own, on the recipe's snapshot. Not searched: {', '.join(_NOT_SEARCHED)}"
                )
            for value in samples(part):
                try:
                    found = with_values(self.train, {key: value})
                except ConfigError as error:
                    raise ValueError(f"tune.space: {error}") from error
                self._check_classes(found)
                if found.images_per_class > (most := self.train.images_per_class):
                    raise ValueError(
                        f"tune.space: images_per_class = {found.images_per_class}, but the "
                        f"snapshot is laid out for the recipe's own. Allowed: 2 to {most}"
                    )


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
    path, siblings = _place(model, error["loc"])
    key = ".".join(path)
    if error["type"] == "extra_forbidden":
        return f"unknown key {key!r}. Allowed here: {', '.join(siblings)}"
    if error["type"] == "missing":
        return f"{key!r} is missing"
    if error["type"] in ("union_tag_invalid", "union_tag_not_found"):
        tag, members = _UNIONS[path[-1]]
        given = error["ctx"].get("tag")
        said = "is missing" if given is None else f"= {given!r}"
        return f"{key}.{tag} {said}. Allowed: {', '.join(members)}"
    message = error["msg"].removeprefix("Value error, ")
    if not key or path[0] in _MAY_HOLD_SECRETS:
        return f"{key}: {message}".removeprefix(": ")
    return f"{key} = {error['input']!r}: {message}"


_UNIONS: dict[str, tuple[str, dict[str, type[_Model]]]] = {
    "data": ("source", {**_SOURCES}),
    "loss": (
        "name",
        {
            "multi_similarity": MultiSimilarity,
            "triplet": Triplet,
            "normalised_softmax": NormalisedSoftmax,
            "supervised_contrastive": SupervisedContrastive,
        },
    ),
}
"""Where one key says which others there are: that key, and what it may say."""

_MAY_HOLD_SECRETS = ("spark", "mlflow")


def _place(model: Any, location: tuple[Any, ...]) -> tuple[list[str], list[str]]:
    """Keys from the recipe's top to where an error is, and the keys that may stand there."""
    keys: list[str] = []
    for depth, part in enumerate(location):
        if keys and keys[-1] in _UNIONS and part in _UNIONS[keys[-1]][1]:
            # pydantic names the member of the union, a recipe does not
            model = _UNIONS[keys[-1]][1][part]
            continue
        keys.append(str(part))
        if depth == len(location) - 1:
            break
        field = getattr(model, "model_fields", {}).get(part)
        model = None if field is None else field.annotation
    known = sorted(model.model_fields) if hasattr(model, "model_fields") else []
    return keys, known or ["see the recipe's documentation"]
