"""Measure encoder and index on the test split, beside raw pixels on the same images."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from lookalike import artifacts, images, metrics
from lookalike.columns import TEST
from lookalike.encoder import Encoder
from lookalike.errors import DataError
from lookalike.images import Preprocessing
from lookalike.index import Index
from lookalike.index.search import recall
from lookalike.metrics import Scores
from lookalike.steps import report, train
from lookalike.steps.context import Context, Result

STEP = "evaluate"
REPORT = "report"
PROTOCOLS: Final = {
    "A": "queries: test items; gallery: the other labelled items; R: the gallery's items of the "
    "query's class; both at most as many as `evaluate` says, chosen by hash",
    "B": "queries and gallery: test items, the query itself left out; R: the others of its class",
}
_RAW_SIZE = 32  # raw pixels are compared at this size at most
_RECALL_AT = 10
_CHUNK = 256  # queries searched for at a time: as deep as a class is large


class Evaluated(Result):
    """Figures by protocol, then by what was measured: 'raw_pixels', 'encoder', 'index'."""

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

    @property
    def words(self) -> str:
        ours, raw = self.figures["A"]["encoder"], self.figures["A"]["raw_pixels"]
        return (
            f"P@1 {ours['p_at_1']:.3f} (raw pixels {raw['p_at_1']:.3f}), index recall@10 "
            f"{self.index_recall:.3f}; {self.queries:,} queries, {self.gallery:,} in the gallery"
        )


@dataclass(frozen=True)
class Sample:
    """A bounded sample of the catalogue.

    Attributes:
        item_ids, labels, splits: str (n,).
        vectors: float32 (n, dim).
        pixels: uint8 (n, pixels of one image).
    """

    item_ids: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    vectors: np.ndarray
    pixels: np.ndarray

    @property
    def test(self) -> np.ndarray:
        return self.splits == TEST


def run(context: Context) -> Evaluated:
    """Evaluate the newest index with its encoder."""
    config, ledger = context.config, context.ledger
    indexed = ledger.need("index").outputs
    trained = train.of(context, indexed["encoder"], "index")
    ingested = ledger.need("ingest").outputs
    versions = {"items": indexed["items_version"], "splits": ingested["splits_version"]}
    inputs = {
        "encoder": indexed["encoder"],
        "index": indexed["version"],
        "versions": versions,
        "evaluate": config.evaluate.model_dump(),
    }
    if last := ledger.find(STEP, inputs, lambda o: artifacts.exists(o["report"], REPORT)):
        return Evaluated(**last.outputs | {"unchanged": True})
    encoder = Encoder.open(trained["uri"])
    sample = _sample(context, encoder, versions)
    index = Index.open(context.indexes, indexed["version"])
    figures = _figures(sample, index)
    means = {
        protocol: {what: _means(scores) for what, scores in measured.items()}
        for protocol, measured in figures.items()
    }
    by_class = {what: scores.by_class for what, scores in figures["A"].items()}
    found = recall(*_top(sample, index))
    with artifacts.workbench() as folder:
        _draw(context, sample, folder, versions["items"])
        (folder / "figures.json").write_text(
            json.dumps(
                {"protocols": PROTOCOLS, "figures": means, "by_class": by_class},
                indent=1,
            )
        )
        committed = artifacts.commit(context.reports, REPORT, folder, {"inputs": inputs})
    result = Evaluated(
        encoder=indexed["encoder"],
        index=indexed["version"],
        items_version=indexed["items_version"],
        queries=int(sample.test.sum()),
        gallery=int((~sample.test).sum()),
        figures=means,
        by_class=by_class,
        index_recall=found,
        report=committed.uri,
        run_id=trained["run_id"],
    )
    _log(context, result)
    ledger.commit(STEP, inputs, result.model_dump(), config.recorded())
    return result


def _sample(context: Context, encoder: Encoder, versions: dict[str, int]) -> Sample:
    from lookalike.lake import catalogue
    from lookalike.lake.staging import record_batches

    limits = (context.config.evaluate.queries, context.config.evaluate.gallery)
    preprocessing = encoder.specification.preprocessing
    raw = Preprocessing(min(preprocessing.size, _RAW_SIZE), preprocessing.channels)
    rows = catalogue.sample(context.tables, encoder.fingerprint, versions, raw, limits)
    with record_batches(rows, context.files) as batches:
        table = pa.Table.from_batches(list(batches))
    if table.num_rows == 0:
        raise DataError(
            "no labelled item has a vector",
            remedy="Give labels, then run `lookalike embed`",
        )
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    pixels = np.stack([np.frombuffer(p.as_py(), np.uint8) for p in table["pixels"]])
    sample = Sample(
        item_ids=np.array(table["item_id"].to_pylist()),
        labels=np.array(table["label"].to_pylist()),
        splits=np.array(table["split"].to_pylist()),
        vectors=vectors,
        pixels=pixels,
    )
    if not sample.test.any() or sample.test.all():
        raise DataError(
            f"of {table.num_rows:,} labelled items {int(sample.test.sum()):,} are test items",
            allowed="some of them, not all",
            remedy="Give the recipe test data",
        )
    return sample


def _figures(sample: Sample, index: Index) -> dict[str, dict[str, Scores]]:
    test, labels = sample.test, sample.labels
    everyone = np.arange(int(test.sum()))
    spaces = {"raw_pixels": sample.pixels.astype(np.float32), "encoder": sample.vectors}
    return {
        "A": {
            **{
                what: metrics.exact_scores(x[test], labels[test], x[~test], labels[~test])
                for what, x in spaces.items()
            },
            "index": _index_scores(sample, index),
        },
        "B": {
            what: metrics.exact_scores(x[test], labels[test], x[test], labels[test], everyone)
            for what, x in spaces.items()
        },
    }


def _index_scores(sample: Sample, index: Index) -> Scores:
    test, labels = sample.test, sample.labels
    among = _gallery_rows(sample, index)
    depth = metrics.ranking_depth(labels[test], labels[~test])
    queries = metrics.unit(sample.vectors[test])
    # Row -1, where fewer were found, gets the last label: none.
    names = np.array([name or "" for name in index.labels.to_pylist()] + [""])

    def ranked(depth: int) -> Iterator[np.ndarray]:
        for begin in range(0, len(queries), _CHUNK):
            yield names[index.search_rows(queries[begin : begin + _CHUNK], depth, among)[1]]

    def scores(depth: int) -> Scores:
        return metrics.scores(ranked(depth), labels[test], labels[~test], self_in_gallery=False)

    # A deeper search looks harder, so what ten neighbours show is measured by asking for ten.
    found, deep = scores(metrics.NEIGHBOURS), scores(depth)
    by_class = {
        name: values | {"map_at_r": deep.by_class[name]["map_at_r"]}
        for name, values in found.by_class.items()
    }
    return replace(found, map_at_r=deep.map_at_r, by_class=by_class)


def _top(sample: Sample, index: Index) -> tuple[np.ndarray, np.ndarray]:
    test = sample.test
    gallery_ids = sample.item_ids[~test]
    queries, gallery = (
        metrics.unit(sample.vectors[test]),
        metrics.unit(sample.vectors[~test]),
    )
    parts = [best for _, best, _ in metrics.nearest(queries, gallery, _RECALL_AT)]
    exact = gallery_ids[np.concatenate(parts)]
    _, rows = index.search_rows(queries, _RECALL_AT, _gallery_rows(sample, index))
    ids = np.array([*index.item_ids.to_pylist(), ""])
    return exact, ids[rows]


def _gallery_rows(sample: Sample, index: Index) -> np.ndarray:
    wanted = pa.array(sample.item_ids[~sample.test])
    return pa.compute.is_in(index.item_ids, value_set=wanted).to_numpy()


def _means(scores: Scores) -> dict[str, float]:
    return {name: value for name, value in asdict(scores).items() if name != "by_class"}


def _draw(context: Context, sample: Sample, folder: Path, items_version: int) -> None:
    from lookalike.lake import catalogue

    rows = report.chosen_queries(sample.labels, sample.test, context.config.evaluate.pictured)
    gallery = np.flatnonzero(~sample.test)
    columns: dict[str, np.ndarray] = {}
    for what, x in (("lookalike", sample.vectors), ("raw pixels", sample.pixels)):
        units = metrics.unit(x[rows]), metrics.unit(x[gallery])
        (found,) = metrics.nearest(*units, report.NEIGHBOURS)
        columns[what] = gallery[found[1]]
    shown = np.unique(np.concatenate([rows, *(c.ravel() for c in columns.values())]))
    files = catalogue.originals(context.tables, sample.item_ids[shown].tolist(), items_version)
    pictures = {int(row): files[sample.item_ids[row]] for row in shown}
    report.draw_neighbours(rows, columns, pictures, sample.labels, folder / "neighbours.png")
    (folder / "queries").mkdir()
    for row in rows:
        data = pictures[int(row)]
        name = report.file_name(str(sample.item_ids[row]))
        (folder / "queries" / f"{name}.png").write_bytes(images.to_png(data))


def _log(context: Context, result: Evaluated) -> None:
    from lookalike.tracking import Run

    run = Run(context.tracking, result.run_id)
    for protocol, measured in result.figures.items():
        for what, values in measured.items():
            run.metrics({f"test_{protocol}/{what}/{name}": v for name, v in values.items()})
    for what, classes in result.by_class.items():
        for number, values in enumerate(classes.values()):
            # Class names may hold what MLflow's metric names may not.
            run.metrics({f"test_A_class_{number}/{what}/{n}": v for n, v in values.items()})
    run.metrics({"index_recall_at_10": result.index_recall})
    run.tags(
        {
            "index": result.index,
            "protocol A": PROTOCOLS["A"],
            "protocol B": PROTOCOLS["B"],
        }
    )
    artifact = artifacts.open_artifact(result.report, REPORT)
    with artifacts.workbench() as folder:
        local = artifacts.fetch(artifact, folder)
        run.file(local / "neighbours.png", "evaluate")
        run.file(local / "figures.json", "evaluate")
