"""Training: what one rank does, how many there are, and values of a search put in."""

from __future__ import annotations

import hashlib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lookalike.config.fields import Model, Positive, Share
from lookalike.config.keys import put
from lookalike.config.losses import Auxiliary, Loss, MultiSimilarity
from lookalike.config.refusals import validated
from lookalike.planning import BatchShape

Dimension = Annotated[int, Field(ge=2, le=4096)]


class Augment(Model):
    """Random changes of training images."""

    flip: bool = False
    shift: Annotated[int, Field(ge=0, description="pixels, in both directions")] = 0
    erase: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0, description="how likely a rectangle of an image is painted over"
    )
    colour: Share = Field(0.0, description="how far brightness, contrast and saturation may go")


class Train(Model):
    """Training: what one rank does, and how many there are."""

    ranks: Positive = 1
    threads: Positive | None = Field(
        None, description="CPU threads of a rank and of a trial; else a fair share of the machine"
    )
    network: Annotated[
        str,
        Field(pattern=r"^(compact_resnet(_48)?|simple_cnn|[A-Za-z_][\w.]*:[A-Za-z_]\w*)$"),
    ] = Field(
        "compact_resnet",
        description="compact_resnet, compact_resnet_48 (of 48 filters in place of 32), simple_cnn, "
        "or a function of yours: package.module:function",
    )
    init_from: str | None = Field(
        None,
        description="folder or URI of an encoder whose weights training starts from; of another "
        "embedding_size or detail all but the last layer's",
    )
    mirrored: bool = Field(
        False,
        description="a vector is the mean of those of an image and its mirror image; twice the "
        "work to encode",
    )
    embedding_size: Dimension = 128
    detail: Share = Field(
        0.0,
        description="share of a vector for what its network sees and its loss would leave out, in "
        "half of its numbers: better for classes that come later and for the nearest of all, less "
        "so for gathering those trained on",
    )
    classes_per_batch: Annotated[int, Field(ge=2)] = 8
    images_per_class: Annotated[int, Field(ge=2)] = 8
    group_by: str | None = Field(
        None, description="attribute: a batch's classes come from one value of it where they can"
    )
    epochs: Positive = 10
    patience: Positive | None = Field(
        None, description="epochs without a better validation MAP@R after which training ends"
    )
    optimizer: Literal["adamw", "sgd"] = Field(
        "adamw",
        description="sgd: with Nesterov's momentum of 0.9; wants a learning_rate about 40 times as "
        "high, and as much less weight_decay",
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
    precision: Literal["auto", "float32", "mixed_float16", "mixed_bfloat16"] = Field(
        "auto",
        description="auto: mixed_float16 on a GPU, mixed_bfloat16 on a CPU with matrix units "
        "(AMX), float32 elsewhere",
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

    @model_validator(mode="after")
    def _leave_something_to_train(self) -> Train:
        if self.detail and self.embedding_size < 4:
            raise ValueError("detail takes half of embedding_size, which is then at least 4")
        return self

    @property
    def batch(self) -> BatchShape:
        return BatchShape(self.classes_per_batch, self.images_per_class)

    @property
    def detail_size(self) -> int:
        """Numbers of a vector that are its detail."""
        return self.embedding_size // 2 if self.detail else 0

    @property
    def trained_size(self) -> int:
        """Numbers of a vector that the loss is of."""
        return self.embedding_size - self.detail_size

    def mathematics(self) -> dict[str, Any]:
        """What decides the encoder: without how it is kept safe meanwhile, and with a hash of the
        file that a network of the user's own is in, where it is to be found here."""
        left_out = {"cache_mb", "checkpoint_steps", "restarts", "silence"}
        if not self.detail:  # as before there was one: the same encoders, by their names
            left_out.add("detail")
        source = network_source(self.network)
        own = {} if source is None else {"network_source": source}
        return self.recorded(left_out) | own


def network_source(network: str) -> str | None:
    """A hash of the file that a network of the user's own is in; None for others, and where there
    is no such file here. Nothing is imported."""
    module, _, function = network.partition(":")
    if not function:
        return None
    parts, path, file = module.split("."), None, None
    for depth in range(1, len(parts) + 1):
        found = PathFinder.find_spec(".".join(parts[:depth]), path)
        if found is None:
            return None
        path, file = found.submodule_search_locations, found.origin
    if file is None or not Path(file).is_file():
        return None
    return hashlib.sha256(Path(file).read_bytes()).hexdigest()


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
        put(raw, key, value, known=True)
    return validated(Train, raw, "train")
