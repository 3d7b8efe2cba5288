"""Images: which are the same, what the encoder sees, how a snapshot keeps them."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lookalike.config.fields import Model
from lookalike.images import Preprocessing


class Duplicates(Model):
    """What counts as the same picture."""

    max_distance: Annotated[int, Field(ge=0, le=16)] = Field(
        4, description="differing bits of two 64-bit perceptual hashes"
    )


class Images(Model):
    """The encoder's input."""

    size: Annotated[int, Field(ge=16, le=1024)] = 64
    channels: Literal[1, 3] = 3

    @property
    def preprocessing(self) -> Preprocessing:
        return Preprocessing(self.size, self.channels)


class Snapshots(Model):
    """How a snapshot keeps its images."""

    format: Literal["raw", "encoded"] = Field(
        "raw", description="raw: decoded pixels, read fastest; encoded: files as they came, smaller"
    )
