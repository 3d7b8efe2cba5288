"""What quality is measured on, and what a candidate must reach."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lookalike.config.fields import Model, Share


class Evaluate(Model):
    """The bounded sample that quality is measured on."""

    queries: Annotated[int, Field(ge=10)] = 5_000
    gallery: Annotated[int, Field(ge=10)] = 60_000
    pictured: Annotated[int, Field(ge=1, le=50)] = 10


class Gate(Model):
    """What a candidate must show to become the champion."""

    above_raw_pixels: bool = Field(True, description="where items are images")
    max_drop: Share = Field(0.005, description="how far a metric may lie below the champion's")
