"""What quality is measured on, and what a candidate must reach."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lookalike.config.fields import Model, Positive, Share


class Evaluate(Model):
    """The bounded sample that quality is measured on."""

    queries: Annotated[int, Field(ge=10)] = 5_000
    gallery: Annotated[int, Field(ge=10)] = 60_000
    pictured: Annotated[int, Field(ge=1, le=50)] = 10


Figure = Literal["A p_at_1", "B map_at_r", "A p_at_1 of the index", "index recall@10"]
"""What the gate looks at; protocols are explained in the report."""


class Gate(Model):
    """What a candidate must show to become the champion; the two are measured on the same queries,
    each with its own encoder and index."""

    above_raw_pixels: bool = Field(True, description="where items are images")
    min: dict[Figure, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="floors by figure, e.g. {A p_at_1: 0.9, index recall@10: 0.95}"
    )
    max_drop: Share = Field(0.005, description="how far a figure may lie below the champion's")
    max_drop_recall: Share = Field(0.02, description="the same, of the index's recall")
    max_drop_class: Share = Field(
        0.05, description="the same, of P@1 of the class that fell most (protocol A)"
    )
    class_queries: Positive = Field(
        50, description="classes of fewer test items are not compared one by one"
    )
    max_latency_ms: Annotated[float, Field(gt=0)] | None = Field(
        None, description="in which 19 of 20 single questions are answered, on the step's machine"
    )
