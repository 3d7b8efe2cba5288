"""The index."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from lookalike.config.fields import Model


class IndexPlan(Model):
    """How the index keeps vectors."""

    kind: Literal["exact", "hnsw"] = "hnsw"
    m: Annotated[int, Field(ge=4, le=128)] = 16
    ef_construction: Annotated[int, Field(ge=8)] = 100
    ef_search: Annotated[int, Field(ge=8)] = 64
