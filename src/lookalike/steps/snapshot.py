"""Write a pinned version of the tables as Parquet packs for training."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from lookalike import artifacts, retention
from lookalike.columns import TEXT_MEDIA
from lookalike.config import TextData, VectorsData
from lookalike.errors import DataError, LookalikeError
from lookalike.steps.context import Context, Result, Skipped

STEP = "snapshot"


class Snapshotted(Result):
    """`seen` labelled and unlabelled items of train and validation = `train` + `validation` +
    `left_out`.

    `size` is what the files have, in bytes; `raw_size` and `encoded_size` what its images take in
    either format, the latter about.
    """

    uri: str
    seen: int
    train: int
    validation: int
    left_out: int
    classes: int
    blocks: int
    size: int
    format: str
    raw_size: int
    encoded_size: int

    @property
    def words(self) -> str:
        return (
            f"{self.seen:,} in = {self.train:,} train + {self.validation:,} validation + "
            f"{self.left_out:,} left out (no label, or beyond train.validation_items); "
            f"{self.classes} classes in {self.blocks} blocks, {self.size / 2**20:.1f} MiB "
            f"{self.format}"
        )


def run(context: Context) -> Snapshotted | Skipped:
    """Write the snapshot of the newest items and splits, or find it; of vectors there is none.

    Raises:
        DataError: the catalogue holds texts, for which there is no network.
    """
    config = context.config
    if isinstance(config.data, VectorsData):
        return Skipped(why="no snapshot: the catalogue brings its own vectors")
    if isinstance(config.data, TextData):
        raise DataError(
            f"the catalogue holds texts (contents of media {TEXT_MEDIA!r}), and there is no "
            "network that trains on them",
            allowed="images, or vectors",
            remedy="Encode the texts yourself and bring their vectors: data.source = vectors",
        )
    from lookalike.lake import snapshot

    ledger = context.ledger
    versions = pinned(ledger.need("duplicates").outputs)
    recipe = snapshot.Recipe(
        preprocessing=config.images.preprocessing,
        batch=config.train.batch,
        validation_items=config.train.validation_items,
        seed=config.seed,
        format=config.snapshot.format,
        group_by=config.train.group_by,
    )
    inputs = {"versions": versions, "recipe": asdict(recipe)}
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["uri"], snapshot.KIND)):
        return Snapshotted(**last.outputs | {"unchanged": True})
    sizes = snapshot.Sizes(0, 0)

    def on_sizes(told: snapshot.Sizes) -> None:
        nonlocal sizes
        sizes = told
        context.say(
            f"snapshot.format = {recipe.format}: images take {told.raw / 2**20:,.1f} MiB raw, "
            f"about {told.encoded / 2**20:,.1f} MiB encoded"
        )

    written = snapshot.write(context.tables, versions, recipe, context.files, on_sizes)
    items = written.meta["items"]
    result = Snapshotted(
        uri=written.uri,
        seen=written.meta["seen"],
        train=items["train"],
        validation=items["validation"],
        left_out=written.meta["left_out"],
        classes=len(written.meta["classes"]),
        blocks=len(written.meta["blocks"]["train"]),
        size=sum(entry.size for entry in written.manifest.files),
        format=recipe.format,
        raw_size=sizes.raw,
        encoded_size=sizes.encoded,
    )
    if result.seen != result.train + result.validation + result.left_out:
        raise LookalikeError(
            f"items were lost: {result.words}",
            remedy="A row of `contents` is missing: ingest into a new warehouse",
        )
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def pinned(decided: dict[str, Any]) -> dict[str, int]:
    """Versions of the tables that training takes, from what `duplicates` committed."""
    return {table: decided[f"{table}_version"] for table in ("items", "splits")}


def newest_matching(context: Context) -> dict[str, Any]:
    """Outputs of the newest snapshot.

    One of older tables is said, and taken: no item has changed its split since, and a training that
    was killed can go on, though items were ingested meanwhile.

    Raises:
        DataError: there is none, or it is of other images, or has its classes in other groups,
            than the recipe says.
    """
    config = context.config
    found: dict[str, Any] = context.ledger.need(STEP).outputs
    meta = artifacts.open_artifact(found["uri"], retention.SNAPSHOT).meta
    recipe = meta["recipe"]
    has = recipe["preprocessing"] | {"group_by": recipe.get("group_by")}
    wanted = asdict(config.images.preprocessing) | {"group_by": config.train.group_by}
    if others := [f"{k} = {has[k]!r}, not {wanted[k]!r}" for k in wanted if has[k] != wanted[k]]:
        raise DataError(
            f"the newest snapshot has {' and '.join(others)}",
            remedy="Run `lookalike snapshot` first, with this recipe",
        )
    decided = context.ledger.last("duplicates")
    if decided is not None and (newest := pinned(decided.outputs)) != meta["versions"]:
        context.say(
            f"The newest snapshot is of {_named(meta['versions'])}, the newest tables are "
            f"{_named(newest)}: run `lookalike snapshot` first to take those"
        )
    return found


def _named(versions: dict[str, int]) -> str:
    return " and ".join(f"{table} version {version}" for table, version in versions.items())
