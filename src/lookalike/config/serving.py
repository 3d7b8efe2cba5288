"""What a release carries, and what one request of it may hold."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from lookalike.config.fields import Model, Positive
from lookalike.images import MAX_PIXELS


class Serving(Model):
    """A release's pictures and limits; a request beyond one is refused with its name."""

    thumbnails: Annotated[int, Field(ge=0, le=96)] = Field(
        0, description="pixels of the longer side of each item's picture; 0: none are carried"
    )
    max_rows: Positive = Field(1_000, description="of a request")
    max_k: Positive = Field(1_000, description="items of an answer")
    max_image_bytes: Positive = Field(16 * 2**20, description="of an image file, without base64")
    max_image_pixels: Annotated[int, Field(ge=1, le=MAX_PIXELS)] = Field(
        MAX_PIXELS, description="width x height of an image"
    )

    @property
    def limits(self) -> dict[str, int]:
        """By name, as `lookalike.serving.contract.Limits` takes them."""
        kept = self.model_dump(exclude={"thumbnails"})
        return {name.removeprefix("max_"): value for name, value in kept.items()}
