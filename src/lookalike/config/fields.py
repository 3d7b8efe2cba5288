"""What every part of a recipe is made of."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Takes no key that it does not name, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
