"""Build the nearest-neighbour index of the catalogue."""

from __future__ import annotations

from typing import Any

from lookalike import artifacts
from lookalike.encoder import Encoder
from lookalike.errors import ArtifactError, LookalikeError
from lookalike.index import Plan, Wishes, build
from lookalike.index.build import VERSION
from lookalike.index.reading import parts_of
from lookalike.steps import plan_picture, train
from lookalike.steps.context import Context, Result

STEP = "index"


class Indexed(Result):
    """The committed index version: `seen` items = `count` in it + `left_out` without a vector.

    `recall` is that of held-out vectors, where the kind was chosen by trying and one was left to
    be missed; the version's folder holds what was tried, plan.json and its picture.
    """

    version: str
    encoder: str
    items_version: int
    seen: int
    count: int
    left_out: int
    kind: str
    recall: float | None = None

    @property
    def words(self) -> str:
        found = "" if self.recall is None else f" (recall {self.recall:.3f})"
        return (
            f"{self.seen:,} items in = {self.count:,} indexed + {self.left_out:,} without a "
            f"vector; {self.kind}{found}, version {self.version}"
        )


def run(context: Context) -> Indexed:
    """Index the newest encoder's vectors of the newest embedded catalogue."""
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    config, ledger = context.config, context.ledger
    embedded = ledger.need("embed").outputs
    trained = train.of(context, embedded["fingerprint"], "embedding")
    chosen = config.index.parameters
    plan = Wishes(**chosen) if config.index.kind == "auto" else Plan(**chosen)
    # What it calls copies is one with their splits; the items may be newer.
    decided = ledger.need("duplicates").outputs
    versions = {
        "items": embedded["items_version"],
        "duplicates": decided["duplicates_version"],
    }
    made_from = {
        "encoder": embedded["fingerprint"],
        **{f"{table}_version": version for table, version in versions.items()},
    }
    inputs = {**made_from, "plan": {"kind": config.index.kind} | chosen}
    places = artifacts.join(context.indexes, "versions")

    def whole(made: dict[str, Any]) -> bool:
        try:
            version = artifacts.open_artifact(artifacts.join(places, made["version"]), VERSION)
            parts_of(context.indexes, version)
        except ArtifactError:
            return False
        return True

    if last := ledger.find(STEP, inputs, whole):
        return Indexed(**last.outputs | {"unchanged": True})
    specification = Encoder.open(trained["uri"]).specification
    rows = catalogue.with_vectors(context.tables, embedded["fingerprint"], versions)
    with record_batches(rows, context.files) as batches:
        built = build(
            context.indexes,
            batches,
            specification.dim,
            plan,
            made_from,
            metric=specification.metric,
            draw=plan_picture.draw,
        )
    seen = context.tables.read("items", embedded["items_version"]).count()
    count = built.meta["count"]
    left_out = catalogue.without_vectors(
        context.tables, embedded["fingerprint"], embedded["items_version"]
    ).count()
    if seen != count + left_out:
        raise LookalikeError(f"{seen:,} items came, {count:,} + {left_out:,} are accounted for")
    result = Indexed(
        version=built.name,
        encoder=embedded["fingerprint"],
        items_version=embedded["items_version"],
        seen=seen,
        count=count,
        left_out=left_out,
        kind=built.meta["plan"]["kind"],
        recall=built.meta["recall"],
    )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result
