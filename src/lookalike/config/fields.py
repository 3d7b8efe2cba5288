"""What every part of a recipe is made of."""

from __future__ import annotations

import json
from collections.abc import Set
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lookalike.errors import scrubbed

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(ge=1)]


class Model(BaseModel):
    """Takes no key that it does not name, and does not change."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def recorded(self, exclude: Set[str] = frozenset()) -> dict[str, Any]:
        """What is kept of it where others read, as JSON values: without some fields, and without
        the secrets that an address may hold."""
        kept = self.model_dump_json(exclude=set(exclude))
        recorded: dict[str, Any] = json.loads(scrubbed(kept))
        return recorded
