"""Measure encoder and index on the test split; of images, beside raw pixels on the same ones."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa

from lookalike import artifacts, metrics
from lookalike.columns import TEST
from lookalike.encoder import Encoder
from lookalike.errors import DataError
from lookalike.images import Preprocessing
from lookalike.index import Index
from lookalike.steps import report, train
from lookalike.steps.context import Context, Result
from lookalike.steps.protocols import PROTOCOLS, Evaluation, Sample
from lookalike.tracking import Run

STEP = "evaluate"
REPORT = "report"
PICTURE = "neighbours.png"
_RAW_SIZE = 32  # raw pixels are compared at this size at most
_LARGEST = 256  # pixels of a side of the photos that are shown, where the encoder takes no larger


class Evaluated(Result):
    """Figures by protocol, then by what was measured: 'raw_pixels' (of images), 'encoder', 'index'.

    A catalogue without labels has no figures, but the index's recall. `queries` are the test items
    in the sample, `picture` shows some with their neighbours, where items are images.
    """

    encoder: str
    index: str
    items_version: int
    queries: int
    gallery: int
    figures: dict[str, dict[str, dict[str, float]]]
    by_class: dict[str, dict[str, dict[str, float]]]
    index_recall: float
    report: str
    run_id: str
    picture: str | None = None

    @property
    def words(self) -> str:
        shown = "no labels that items share, so no figures but the index's"
        if self.figures:
            protocol, measured = next(iter(self.figures.items()))
            raw = measured.get("raw_pixels")
            beside = f", raw pixels {raw['p_at_1']:.3f}" if raw else ""
            shown = f"P@1 {measured['encoder']['p_at_1']:.3f} (protocol {protocol}{beside})"
        return (
            f"{shown}, index recall@10 {self.index_recall:.3f}; {self.queries:,} test items, "
            f"{self.gallery:,} in the gallery"
        )


def run(context: Context) -> Evaluated:
    """Evaluate the newest index with its encoder."""
    config, ledger = context.config, context.ledger
    indexed = ledger.need("index").outputs
    trained = train.of(context, indexed["encoder"], "index")
    decided = ledger.need("duplicates").outputs
    versions = {"items": indexed["items_version"], "splits": decided["splits_version"]}
    inputs = {
        "encoder": indexed["encoder"],
        "index": indexed["version"],
        "versions": versions,
        "evaluate": config.evaluate.model_dump(),
        "sampled": "in pairs",  # so that none of before is compared with one of now
    }
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["report"], REPORT)):
        return Evaluated(**last.outputs | {"unchanged": True})
    encoder = Encoder.open(trained["uri"])
    found = sample(context, encoder, versions)
    evaluation = Evaluation.measured(found, Index.open(context.indexes, indexed["version"]))
    with artifacts.workbench() as folder:
        _keep_queries(context, found, folder, versions["items"])
        figures = {"figures": evaluation.figures, "by_class": evaluation.by_class}
        content = json.dumps({"protocols": PROTOCOLS} | figures, indent=1)
        (folder / "figures.json").write_text(content)
        committed = artifacts.commit(context.reports, REPORT, folder, {"inputs": inputs})
    run = context.tracking.going_on(trained["run_id"])
    result = Evaluated(
        encoder=indexed["encoder"],
        index=indexed["version"],
        items_version=indexed["items_version"],
        queries=int(found.test.sum()),
        gallery=int((~found.test).sum()),
        **asdict(evaluation),
        report=committed.uri,
        run_id=run.run_id,
        picture=None if found.pixels is None else artifacts.join(committed.uri, PICTURE),
    )
    _log(run, result)
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def sample(
    context: Context, encoder: Encoder, versions: dict[str, int], pixels: bool = True
) -> Sample:
    """The sample that quality is measured on, as an encoder sees it.

    Args:
        context: whose catalogue.
        encoder: whose vectors the items have.
        versions: of the tables 'items' and 'splits'.
        pixels: whether raw pixels are wanted too, where items are images.

    Raises:
        DataError: no item has a vector, or all or none are test items.
    """
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    limits = (context.config.evaluate.queries, context.config.evaluate.gallery)
    preprocessing = encoder.specification.preprocessing if pixels else None
    raw = None
    if preprocessing is not None:
        raw = Preprocessing(min(preprocessing.size, _RAW_SIZE), preprocessing.channels)
    for labelled in (True, False):
        rows = catalogue.sample(
            context.tables, encoder.fingerprint, versions, limits, labelled, raw
        )
        with record_batches(rows, context.files) as batches:
            found = [batch for batch in batches if batch.num_rows]
        if found:
            return _checked(pa.Table.from_batches(found), labelled)
    raise DataError("no item has a vector", remedy="Run `lookalike embed` first")


def _checked(table: pa.Table, labelled: bool) -> Sample:
    test = np.array(table["split"].to_pylist()) == TEST
    if not test.any() or test.all():
        raise DataError(
            f"of {len(test):,} {'labelled items' if labelled else 'items'} {int(test.sum()):,} are "
            "test items",
            allowed="some of them, not all",
            remedy="Give the recipe test data",
        )
    pixels = None
    if "pixels" in table.column_names:
        pixels = np.stack([np.frombuffer(p.as_py(), np.uint8) for p in table["pixels"]])
    return Sample(
        item_ids=np.array(table["item_id"].to_pylist()),
        labels=np.array([label or "" for label in table["label"].to_pylist()]),
        test=test,
        unseen=test & np.array(table["unseen"].to_pylist()),
        vectors=table["vector"].combine_chunks().flatten().to_numpy().reshape(len(test), -1),
        pixels=pixels,
        labelled=labelled,
    )


def _keep_queries(context: Context, sample: Sample, folder: Path, items_version: int) -> None:
    """Keep some test items as `lookalike query` takes them; of images, draw their neighbours."""
    rows = report.chosen_queries(sample.labels, sample.test, context.config.evaluate.pictured)
    names = {row: report.file_name(str(sample.item_ids[row])) for row in rows}
    queries = folder / "queries"
    queries.mkdir()
    if sample.pixels is None:
        for row, name in names.items():
            (queries / f"{name}.json").write_text(json.dumps(sample.vectors[row].tolist()))
        return
    path = folder / PICTURE
    pictures = _draw(context, sample, sample.pixels, rows, items_version, path)
    for row, name in names.items():
        (queries / f"{name}.png").write_bytes(pictures[int(row)])


def _draw(
    context: Context,
    sample: Sample,
    pixels: np.ndarray,
    rows: np.ndarray,
    items_version: int,
    path: Path,
) -> dict[int, bytes]:
    """Draw the neighbours of some rows. Returns the image file of each row that is shown."""
    from lookalike.lake import catalogue

    gallery = np.flatnonzero(~sample.test)
    columns: dict[str, np.ndarray] = {}
    for what, x in (("lookalike", sample.vectors), ("raw pixels", pixels)):
        units = metrics.unit(x[rows]), metrics.unit(x[gallery])
        (found,) = metrics.nearest(*units, report.NEIGHBOURS)
        columns[what] = gallery[found[1]]
    shown = np.unique(np.concatenate([rows, *(c.ravel() for c in columns.values())]))
    ids = sample.item_ids[shown].tolist()
    largest = max(_LARGEST, context.config.images.size)
    files = catalogue.pictures(context.tables, ids, items_version, largest)
    pictures = {int(row): files[sample.item_ids[row]] for row in shown}
    report.draw_neighbours(rows, columns, pictures, sample.labels, path)
    return pictures


def _log(run: Run, result: Evaluated) -> None:
    for protocol, measured in result.figures.items():
        for what, values in measured.items():
            run.metrics({f"test_{protocol}/{what}/{name}": v for name, v in values.items()})
    run.metrics({"index_recall_at_10": result.index_recall})
    protocols = {f"protocol {p}": PROTOCOLS[p] for p in result.figures}
    run.tags({"index": result.index, **protocols})
    artifact = artifacts.open_artifact(result.report, REPORT)
    with artifacts.workbench() as folder:
        local = artifacts.fetch(artifact, folder)
        run.file(local / "figures.json", "evaluate")
        if result.picture is not None:
            run.file(local / PICTURE, "evaluate")
