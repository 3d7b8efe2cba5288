"""Show what a catalogue holds and how clean it is. Changes nothing in its tables."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Final

import pyarrow as pa
from pyarrow import csv
from pydantic import BaseModel

from lookalike import artifacts
from lookalike.columns import TEST, TRAIN, VALIDATION
from lookalike.lake import inspection, specimens
from lookalike.lake.inspection import (
    Cluster,
    Clusters,
    LabelCount,
    Labels,
    Rejects,
    Sizes,
)
from lookalike.lake.specimens import Reject, Specimen
from lookalike.lake.staging import record_batches
from lookalike.lake.tiles import Tile
from lookalike.steps.contact_sheet import COLUMNS, Group, Section, Shown, draw, printable, shortened
from lookalike.steps.context import Context, Result

STEP = "inspect"
KIND: Final = "inspection"
FIGURES, SHEET, LEAKS = "inspection.json", "contact-sheet.png", "leaks.csv"

_RANDOM = 3 * COLUMNS
_CLUSTERS = 6
_REJECTS, _REJECT_COLUMNS = 12, 4
_LEAKS = 20
_NAMED = 3
_KINDS = {"exact": "equal bytes", "near": "near", "both": "equal bytes and near"}
_UNKNOWN = "run `lookalike duplicates` to know"
_SPLITS = (TRAIN, VALIDATION, TEST)

Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]
"""Title, heads and rows, as a terminal shows them."""


class Leak(BaseModel):
    """A cluster or group in several splits, with its items by split."""

    kind: str
    id: str
    between: str
    train: int
    validation: int
    test: int


class Leaks(BaseModel):
    """Clusters and groups in several splits, see `lake.splits.leaks`.

    `test` of them lie in test and in another split, `validation` others in training and
    validation. `first` are the largest of test, then of the others.
    """

    clusters: int
    groups: int
    test: int
    validation: int
    first: list[Leak]


class Inspected(Result):
    """What the catalogue holds; `clusters` and `leaks` are None before `lookalike duplicates`.

    `versions` are of the tables; `duplicates_of` is the version of items that duplicates were
    looked for in. Where no splits are decided yet, those that the source gives are counted.
    """

    versions: dict[str, int]
    duplicates_of: int | None
    labels: Labels
    sizes: Sizes
    rejects: Rejects
    clusters: Clusters | None
    leaks: Leaks | None
    uri: str = ""

    @property
    def words(self) -> str:
        said = (
            f"{self.labels.total.items:,} items of {self.labels.number:,} labels; "
            f"{self.rejects.number:,} rejects; "
        )
        if self.clusters is None or self.leaks is None:
            return f"{said}duplicates and leaks: {_UNKNOWN}"
        old = ", of an older version of the items: run `lookalike duplicates` again"
        return (
            f"{said}{self.clusters.number:,} clusters of duplicates; "
            f"{self.leaks.test:,} clusters and groups on both sides of test"
            + ("" if self.duplicates_of == self.versions["items"] else old)
        )

    @property
    def files(self) -> dict[str, str]:
        """Where what was written is, by what it is."""
        names = {"Contact sheet": SHEET, "All figures": FIGURES}
        if self.leaks is not None:
            names["All leaks"] = LEAKS
        return {what: artifacts.join(self.uri, name) for what, name in names.items()}


def run(context: Context) -> Inspected:
    """Inspect the newest items, and commit figures, contact sheet and leaks as one artefact.

    Raises:
        DataError: nothing was ingested yet.
    """
    ledger, tables = context.ledger, context.tables
    versions = {
        "items": ledger.need("ingest").outputs["items_version"],
        "rejects": tables.version("rejects"),
    }
    if decided := ledger.last("duplicates"):
        versions |= {t: decided.outputs[f"{t}_version"] for t in ("duplicates", "splits")}
    with artifacts.workbench() as folder:
        result = Inspected(
            versions=versions,
            duplicates_of=decided.outputs["items_version"] if decided else None,
            labels=inspection.labels(tables, versions),
            sizes=inspection.sizes(tables, versions["items"]),
            rejects=inspection.rejects(tables, versions["rejects"]),
            clusters=inspection.clusters(tables, versions) if decided else None,
            leaks=_leaks(context, versions, folder / LEAKS) if decided else None,
        )
        title = f"{context.config.name}, {result.labels.total.items:,} items"
        draw(title, _sections(context, result), folder / SHEET)
        figures = result.model_dump_json(indent=1, exclude={"unchanged", "uri"})
        (folder / FIGURES).write_text(figures, encoding="utf-8")
        committed = artifacts.commit(context.inspections, KIND, folder, {"versions": versions})
    return result.model_copy(update={"uri": committed.uri})


def _leaks(context: Context, versions: dict[str, int], path: Path) -> Leaks:
    """Write all leaks, as they come, and keep a few."""
    rows = inspection.leaks(context.tables, versions)
    schema = pa.schema([(c, pa.int64() if c in _SPLITS else pa.string()) for c in rows.columns])
    counts: Counter[str] = Counter()
    first: list[Leak] = []
    with record_batches(rows, context.files) as batches, csv.CSVWriter(path, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
            for column in ("kind", "between"):
                counts.update(batch.column(column).to_pylist())
            head = batch.slice(0, _LEAKS - len(first)).select(list(Leak.model_fields))
            first += [Leak(**row) for row in head.to_pylist()]
    return Leaks(
        clusters=counts["cluster"],
        groups=counts["group"],
        test=counts["test"],
        validation=counts["validation"],
        first=first,
    )


def _sections(context: Context, result: Inspected) -> list[Section]:
    tables, versions = context.tables, result.versions
    chosen = specimens.random_ids(tables, versions["items"], context.config.seed, _RANDOM)
    largest = result.clusters.largest[:_CLUSTERS] if result.clusters else ()
    members = [item_id for cluster in largest for item_id in cluster.members]
    found = specimens.look_at(tables, versions, list({*chosen, *members}))
    random = tuple(_shown(item_id, found) for item_id in chosen)
    worst = specimens.worst_rejects(tables, versions["rejects"], _REJECTS)
    return [
        Section("Random items", (Group(random),) if random else (), "no items"),
        Section(
            "The largest clusters of duplicates",
            tuple(_cluster_group(cluster, found) for cluster in largest),
            _UNKNOWN if result.clusters is None else "no duplicates",
        ),
        Section(
            "Rejects",
            (Group(tuple(map(_shown_reject, worst))),) if worst else (),
            "no rejects",
            _REJECT_COLUMNS,
        ),
    ]


def _shown(item_id: str, found: dict[str, Specimen]) -> Shown:
    if (item := found.get(item_id)) is None:
        return Shown(Tile(None, "no longer in the catalogue"), (), item_id)
    return Shown(item.tile, (item.label or "no label", item.split or "no split"), item_id)


def _cluster_group(cluster: Cluster, found: dict[str, Specimen]) -> Group:
    shown = tuple(_shown(item_id, found) for item_id in cluster.members)
    more = cluster.items - len(shown)
    heading = (
        f"{cluster.items:,} items ({_KINDS[cluster.kind]})"
        + (f", {more:,} of them not shown" if more else "")
        + (f", in {' and '.join(cluster.between)}" if cluster.between else "")
        + f": {cluster.cluster_id}"
    )
    return Group(shown, heading, alarming=len(cluster.between) > 1)


def _shown_reject(reject: Reject) -> Shown:
    return Shown(Tile(None, reject.detail), (reject.reason,), reject.item_id)


def shown(result: Inspected) -> Iterator[Table]:
    """An inspection's figures as tables to read; of long ids the middle is left out."""
    yield from _shown_labels(result)
    yield from _shown_sizes(result.sizes)
    if result.rejects.number:
        yield _shown_rejects(result.rejects)
    if result.clusters is not None:
        yield from _shown_clusters(result.clusters)
    if result.leaks is not None and result.leaks.first:
        yield _shown_leaks(result.leaks)


def _shown_labels(result: Inspected) -> Iterator[Table]:
    labels = result.labels
    rows = [_counts(_name(one.label or ""), one) for one in labels.largest]
    if labels.left_out:
        rows.append((f"({labels.left_out:,} others)", *[""] * 5))
    rows += [_counts(_name(one.label or ""), one) for one in labels.smallest]
    if labels.unlabelled.items:
        rows.append(_counts("(without label)", labels.unlabelled))
    rows.append(_counts("(all)", labels.total))
    given = "" if result.clusters is not None else ", as the source gives them"
    title = f"{labels.number:,} labels, by split{given}"
    yield title, ("label", "items", *_SPLITS, "no split"), rows


def _counts(name: str, count: LabelCount) -> tuple[str, ...]:
    numbers = (count.items, count.train, count.validation, count.test, count.without_split)
    return (name, *(f"{number:,}" for number in numbers))


def _shown_sizes(sizes: Sizes) -> Iterator[Table]:
    columns = {"width": sizes.width, "height": sizes.height, "bytes": sizes.bytes}
    rows = [
        (name, *(f"{value:,}" for value in asdict(quantiles).values()))
        for name, quantiles in columns.items()
        if quantiles is not None
    ]
    media = ", ".join(f"{count:,} {name}" for name, count in sizes.media.items())
    unknown = sizes.contents - sizes.measured
    title = f"{sizes.contents:,} distinct contents: {media}"
    if sizes.measured and unknown:
        title += f"; width and height of {unknown:,} are not known"
    yield title, ("", "least", "5%", "25%", "median", "75%", "95%", "most"), rows
    extremes = {"smallest": sizes.smallest, "largest": sizes.largest}
    named = [
        (
            what,
            _name(one.item_id),
            "" if one.width is None else f"{one.width:,} x {one.height:,}",
            f"{one.bytes:,}",
            one.media or "unknown",
        )
        for what, one in extremes.items()
        if one is not None
    ]
    if named:
        yield "Smallest and largest", ("", "item_id", "pixels", "bytes", "media"), named


def _shown_rejects(rejects: Rejects) -> Table:
    rows = [
        (one.reason, f"{one.count:,}", _name(one.item_id), _start(one.detail, 90))
        for one in rejects.reasons
    ]
    return f"{rejects.number:,} rejects", ("reason", "items", "for example", "detail"), rows


def _shown_clusters(clusters: Clusters) -> Iterator[Table]:
    kinds = ", ".join(
        f"{count:,} {_KINDS[kind]}" for kind, count in clusters.kinds.items() if count
    )
    title = f"{clusters.number:,} clusters of duplicates, of {clusters.items:,} items"
    if not clusters.number:
        yield title, ("items", "clusters"), []
        return
    rows = [
        (
            f"{size.least:,}" if size.least == size.most else f"{size.least:,} to {size.most:,}",
            f"{size.clusters:,}",
        )
        for size in clusters.sizes
    ]
    yield f"{title}: {kinds}", ("items", "clusters"), rows
    heads = ("cluster", "items", "kind", "in", "members")
    largest = [
        (
            _name(one.cluster_id, 40),
            f"{one.items:,}",
            _KINDS[one.kind],
            ", ".join(f"{getattr(one, split):,} {split}" for split in one.between),
            ", ".join(_name(item_id, 20) for item_id in one.members[:_NAMED])
            + (", ..." if one.items > _NAMED else ""),
        )
        for one in clusters.largest
    ]
    yield "The largest clusters", heads, largest


def _shown_leaks(leaks: Leaks) -> Table:
    title = (
        f"{leaks.clusters:,} clusters and {leaks.groups:,} groups in several splits: "
        f"{leaks.test:,} on both sides of test, {leaks.validation:,} in training and validation"
    )
    left_out = leaks.clusters + leaks.groups - len(leaks.first)
    rows = [
        (
            one.kind,
            _name(one.id),
            *(f"{number:,}" for number in (one.train, one.validation, one.test)),
        )
        for one in leaks.first
    ]
    if left_out:
        rows.append((f"({left_out:,} others)", *[""] * 4))
    return title, ("kind", "id", *_SPLITS), rows


def _start(text: str, length: int) -> str:
    return textwrap.shorten(printable(text), length, placeholder="…")


def _name(text: str, length: int = 48) -> str:
    return shortened(printable(text), length)
