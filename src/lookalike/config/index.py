"""The index: what is wished for, or a kind with parameters of its own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from lookalike.config.fields import Model, Positive, Share

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


class Index(Model):
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
