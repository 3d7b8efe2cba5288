"""Give every item of the catalogue its vector."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lookalike.errors import LookalikeError
from lookalike.steps.context import Context, Result

STEP = "embed"


class EmbeddedCatalogue(Result):
    """In distinct contents: `seen` = `known` before + `embedded` now + `rejected`."""

    fingerprint: str
    items_version: int
    seen: int
    known: int
    embedded: int
    rejected: int

    @property
    def words(self) -> str:
        return (
            f"{self.seen:,} distinct contents in = {self.embedded:,} embedded + "
            f"{self.known:,} known + {self.rejected:,} rejected"
        )


def run(context: Context) -> EmbeddedCatalogue:
    """Embed what the newest encoder has not seen of the newest catalogue."""
    from lookalike.lake.embed import embed

    ledger = context.ledger
    trained = ledger.need("train").outputs
    items_version = ledger.need("duplicates").outputs["items_version"]
    inputs = {"encoder": trained["fingerprint"], "items_version": items_version}

    def whole(made: dict[str, Any]) -> bool:
        # `clean` deletes all rows of an encoder at once, and a commit stays when they go.
        rows = context.tables.read("embeddings").where(f"encoder = '{made['fingerprint']}'")
        return rows.count() >= made["known"] + made["embedded"]

    if last := ledger.find(STEP, inputs, whole):
        return EmbeddedCatalogue(**last.outputs | {"unchanged": True})
    counts = embed(context.tables, trained["uri"], trained["fingerprint"], items_version)
    result = EmbeddedCatalogue(
        fingerprint=trained["fingerprint"],
        items_version=items_version,
        **asdict(counts),
    )
    if result.seen != result.known + result.embedded + result.rejected:
        raise LookalikeError(
            f"contents were lost: {result.words}",
            remedy="A row of `contents` is missing: ingest into a new warehouse",
        )
    ledger.commit(STEP, inputs, result.model_dump(), context.config.recorded())
    return result
