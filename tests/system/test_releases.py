"""Releases of a catalogue of vectors: promoted, refused, raced, killed, rolled back."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from pyspark.sql import SparkSession
from support import QUICK, command, killed

from lookalike import artifacts, config
from lookalike.errors import ArtifactError, DataError, GateError, LookalikeError
from lookalike.serving import registry
from lookalike.serving import release as serving
from lookalike.serving.release import load_champion
from lookalike.steps import STEPS, check, evaluate, index, release, releases
from lookalike.steps.context import Context, Skipped
from lookalike.steps.release import Released

COUNT, CLASSES, DIM = 1_200, 6, 16
NAME = "releases"


def recipe(folder: Path) -> Path:
    """Six clouds of points, and a recipe for them that says little."""
    random = np.random.default_rng(8)
    centres = random.normal(size=(CLASSES, DIM))
    places = centres[np.arange(COUNT) % CLASSES] + 0.9 * random.normal(size=(COUNT, DIM))
    table = pa.table(
        {
            "item_id": [f"item {i:04d}" for i in range(COUNT)],
            "label": [f"class {i % CLASSES}" for i in range(COUNT)],
            "split": ["test" if i % 4 == 3 else "train" for i in range(COUNT)],
            "vector": pa.array(places.astype(np.float32).tolist(), pa.list_(pa.float32())),
        }
    )
    pq.write_table(table, folder / "items.parquet")
    conf = folder / "releases.yaml"
    conf.write_text(
        yaml.safe_dump(
            {
                "name": NAME,
                "warehouse": {"tables": str(folder / "wh" / "tables"), "files": str(folder / "wh")},
                "data": {"source": "vectors", "table": str(folder / "items.parquet"), "dim": DIM},
                "index": {"kind": "exact"},
            }
        )
    )
    return conf


Opened = Callable[..., Context]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, spark: SparkSession) -> Opened:  # noqa: ARG001
    """The recipe, with settings, in this process; its first release is made."""
    conf = recipe(tmp_path_factory.mktemp("releases"))

    def open_(*settings: str) -> Context:
        return Context(config.load(conf, settings))

    context = open_()
    for step in STEPS[: STEPS.index("release")]:
        __import__(f"lookalike.steps.{step}", fromlist=["run"]).run(context)
    made = release.run(context)
    assert isinstance(made, Released)
    assert made.number == 1
    return open_


def aliases(context: Context) -> dict[str, int]:
    found = context.tracking.client.get_registered_model(NAME).aliases
    return {alias: int(number) for alias, number in found.items()}


def answers(context: Context) -> list[dict[str, Any]]:
    import pandas as pd

    model = load_champion(context.tracking, NAME)
    found = model.predict(pd.DataFrame([{"item_id": "item 0001"}]), params={"k": 3, "about": True})
    rows: list[dict[str, Any]] = found.to_dict("records")
    return rows


# One after another: each test goes on from the releases of those before.


def test_the_first_is_the_champion(opened: Opened) -> None:
    context = opened()
    assert aliases(context) == {"champion": 1}
    assert len(answers(context)) == 3
    again = release.run(context)
    assert again.unchanged
    with pytest.raises(DataError, match="no release of releases came before its champion"):
        releases.rollback(context)


WORSE = ("index.kind=ivf_pq", "index.nlist=64", "index.nprobe=1", "index.pq_bytes=1",
         "index.rerank=0")  # fmt: skip


def test_a_truly_worse_index_is_refused(opened: Opened) -> None:
    context = opened(*WORSE)
    built = index.run(context)
    evaluated = evaluate.run(context)
    assert evaluated.index_recall < 0.6
    before = context.ledger.all("release")
    with pytest.raises(GateError) as raised:
        release.run(context)
    refused = {row[0] for row in raised.value.rows if row[3] == "refused"}
    assert "index recall@10" in refused
    assert "A p_at_1" not in refused  # the encoder is the same
    assert context.ledger.all("release") == before
    assert aliases(context) == {"champion": 1}
    assert answers(context)[0]["about"]["index"] != built.version
    kept = context.tracking.client.download_artifacts(evaluated.run_id, release.GATE)
    rows = json.loads(Path(kept).read_text())["gate"]
    assert {row["figure"] for row in rows if row["verdict"] == "refused"} == refused


def test_a_new_index_of_the_same_encoder_takes_its_place(opened: Opened) -> None:
    context = opened("index.kind=hnsw")
    built = index.run(context)
    evaluate.run(context)
    made = release.run(context)
    assert isinstance(made, Released)
    # The refused one was never logged.
    assert made.number == 2
    assert {row[3] for row in made.checks} == {"passed"}
    assert any(row[0] == "index recall@10" for row in made.checks)
    assert aliases(context) == {"champion": 2, "previous": 1}
    assert answers(context)[0]["about"]["index"] == built.version


def test_a_rollback_is_not_undone_by_the_next_run(opened: Opened) -> None:
    context = opened("index.kind=hnsw")
    first = releases.rollback(context)
    assert (first.number, first.instead_of) == (1, 2)
    assert aliases(context) == {"champion": 1, "previous": 2}
    kept = release.run(context)
    assert isinstance(kept, Skipped)
    assert "lookalike promote 2" in kept.why
    assert aliases(context) == {"champion": 1, "previous": 2}
    second = releases.promote(context, 2)
    assert (second.number, second.instead_of) == (2, 1)
    assert aliases(context) == {"champion": 2, "previous": 1}
    assert release.run(context).unchanged
    assert releases.promote(context, 2).unchanged
    with pytest.raises(DataError, match="version 7 of releases never passed"):
        releases.promote(context, 7)


def test_what_is_listed(opened: Opened) -> None:
    found = releases.listed(opened()).releases
    assert [(one.number, one.aliases) for one in found] == [(2, ("champion",)), (1, ("previous",))]
    assert all(one.registered for one in found)
    assert all(0 < one.figures["index recall@10"] <= 1 for one in found)


def test_of_two_at_once_one_is_released(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other has passed beside a champion that is none any more."""
    slow, quick = (opened("index.kind=hnsw", f"serving.max_k={k}") for k in (100, 200))
    log = serving.log

    def overtaken_by(other: Context) -> list[Released | Skipped]:
        """Let another release run where the next one has been logged."""
        made: list[Released | Skipped] = []

        def logged(*arguments: Any) -> int:
            number = log(*arguments)
            monkeypatch.setattr(serving, "log", log)
            made.append(release.run(other))
            return number

        monkeypatch.setattr(serving, "log", logged)
        return made

    made = overtaken_by(quick)
    with pytest.raises(LookalikeError, match="another release was committed meanwhile"):
        release.run(slow)
    (won,) = made
    assert isinstance(won, Released)
    assert aliases(slow) == {"champion": won.number, "previous": 2}
    assert release.commits(slow)[0].outputs["number"] == won.number
    # Run again it is compared with the winner.
    again = release.run(slow)
    assert isinstance(again, Released)
    assert aliases(slow) == {"champion": again.number, "previous": won.number}

    # Another model of the warehouse is no rival.
    made = overtaken_by(opened("index.kind=hnsw", "mlflow.model=another"))
    third = release.run(opened("index.kind=hnsw", "serving.max_k=250"))
    assert isinstance(third, Released)
    (beside,) = made
    assert isinstance(beside, Released)
    assert (beside.name, beside.number) == ("another", 1)
    assert aliases(slow) == {"champion": third.number, "previous": again.number}


def test_a_promotion_that_is_overtaken_is_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    context, quick = opened(), opened("index.kind=hnsw", "serving.max_k=260")
    versions = registry.versions

    def overtaken(*arguments: Any) -> Any:
        monkeypatch.setattr(registry, "versions", versions)
        release.run(quick)
        return versions(*arguments)

    monkeypatch.setattr(registry, "versions", overtaken)
    with pytest.raises(LookalikeError, match="another release was committed meanwhile"):
        releases.promote(context, 1)
    newest = release.commits(context)[0]
    assert newest.inputs["serving"]["max_k"] == 260
    assert aliases(context)["champion"] == newest.outputs["number"]


def test_what_was_rolled_back_stays_so_after_the_next_release(opened: Opened) -> None:
    context = opened("index.kind=hnsw", "serving.max_k=260")
    bad, good = aliases(context)["champion"], aliases(context)["previous"]
    assert releases.rollback(context).number == good
    new = release.run(opened("index.kind=hnsw", "serving.max_k=270"))
    assert isinstance(new, Released)
    assert isinstance(release.run(context), Skipped)
    assert releases.rollback(context).number == good != bad
    # Until somebody says otherwise.
    assert releases.promote(context, bad).number == bad
    assert release.run(context).unchanged
    assert isinstance(release.run(opened("index.kind=hnsw", "serving.max_k=270")), Skipped)


def test_a_kill_in_a_rollback_is_mended_by_the_next_run(opened: Opened) -> None:
    context = opened("index.kind=hnsw", "serving.max_k=260")
    before = aliases(context)["champion"]
    conf = Path(context.files).parent / "releases.yaml"
    dead = command(
        *("rollback", "--conf", str(conf), *QUICK), before=killed("lookalike.serving.release.point")
    )
    assert dead.returncode == -9
    assert aliases(context)["champion"] == before
    kept = release.run(context)
    assert isinstance(kept, Skipped)
    decided = release.commits(context)[0].outputs["number"]
    assert aliases(context) == {"champion": decided, "previous": before}
    assert decided != before


def test_a_champion_that_somebody_deleted(opened: Opened) -> None:
    context = opened()
    number = aliases(context)["champion"]
    registry.withdraw(context.tracking, NAME, number)
    found = {one.number: one for one in releases.listed(context).releases}
    assert not found[number].registered
    with pytest.raises(DataError, match=f"no version {number} of {NAME} any more"):
        releases.promote(context, number)
    last = release.commits(context)[0].inputs["serving"]
    again = release.run(opened("index.kind=hnsw", f"serving.max_k={last['max_k']}"))
    assert isinstance(again, Released)
    assert not again.unchanged
    assert aliases(context)["champion"] == again.number > number


@pytest.mark.parametrize(
    ("where", "decided"),
    [
        (killed("mlflow.register_model"), False),
        (killed("lookalike.lake.ledger:Ledger.commit"), False),
        # The first call mends what the release before may have left.
        (killed("lookalike.serving.release.point", call=2), True),
    ],
    ids=["register", "ledger", "alias"],
)
def test_a_kill_leaves_a_champion_and_the_next_run_finishes(
    opened: Opened, where: str, decided: bool
) -> None:
    context = opened()
    before, champion = aliases(context), answers(context)
    decisions = len(release.commits(context))
    settings = ("index.kind=hnsw", f"serving.max_k={300 + decisions}")
    conf = Path(context.files).parent / "releases.yaml"
    arguments = ["release", "--conf", str(conf), "--json", *QUICK]
    arguments += [word for setting in settings for word in ("--set", setting)]
    dead = command(*arguments, before=where)
    assert dead.returncode == -9
    assert aliases(context) == before
    assert answers(context) == champion
    assert len(release.commits(context)) - decisions == decided
    made = release.run(opened(*settings))
    assert isinstance(made, Released)
    assert made.unchanged == decided
    assert aliases(context) == {"champion": made.number, "previous": before["champion"]}
    assert len(answers(context)) == 3


def test_a_damaged_release_is_told(opened: Opened) -> None:
    context = opened()
    whole = check.run(context)
    assert whole.damaged == ()
    number = aliases(context)["champion"]
    with artifacts.workbench() as folder:
        stored = Path(serving.stored(context.tracking, NAME, number, folder).uri)
        file = next(stored.glob("index/parts/*/vectors.faiss"))
        content, place = file.read_bytes(), file.relative_to(stored)
    # Everywhere MLflow keeps it: other releases hold the same part, also some never registered.
    models = (Path(context.files) / "mlflow").rglob(f"release/{place}")
    kept = [path for path in models if path.read_bytes() == content]
    for path in kept:
        path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    found = check.run(context).damaged
    for path in kept:
        path.write_bytes(content)
    assert len(found) >= 1
    assert all("vectors.faiss" in said and f"{NAME}/" in said for said in found)


def test_a_latency_budget(opened: Opened) -> None:
    context = opened("index.kind=hnsw", "serving.max_k=50", "gate.max_latency_ms=0.0001")
    before = aliases(context)
    with pytest.raises(GateError, match="latency, ms is"):
        release.run(context)
    assert aliases(context) == before


def test_the_command_line(opened: Opened) -> None:
    context = opened()
    conf = ["--conf", str(Path(context.files).parent / "releases.yaml"), *QUICK]
    shown = command("releases", *conf)
    assert shown.returncode == 0, shown.stderr
    assert "champion" in shown.stdout
    assert "index recall@10" in shown.stdout
    back = command("rollback", *conf, "--json")
    assert back.returncode == 0, back.stderr
    assert aliases(context)["champion"] == json.loads(back.stdout)["number"]
    refused = command("promote", "99", *conf)
    assert refused.returncode == 3
    assert "never passed the gate" in refused.stderr


def test_a_champion_whose_files_are_lost_is_no_reason_to_pass(opened: Opened) -> None:
    context = opened("index.kind=hnsw", "serving.max_k=60")
    before = aliases(context)
    decided = release.commits(context)
    indexed = decided[0].outputs["index"]
    manifest = Path(context.indexes) / "versions" / indexed / artifacts.MANIFEST
    manifest.rename(manifest.with_suffix(".lost"))
    try:
        with pytest.raises(ArtifactError, match=r"champion, version \d+, cannot be compared with"):
            release.run(context)
    finally:
        manifest.with_suffix(".lost").rename(manifest)
    assert aliases(context) == before
    assert release.commits(context) == decided


def test_runs_that_mlflow_has_lost_hold_up_no_release(
    opened: Opened, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another server is named; neither the evaluation's run nor the training's is there."""
    monkeypatch.chdir(tmp_path)  # where MLflow keeps the files of such a server
    elsewhere = f"mlflow.tracking_uri=sqlite:///{tmp_path}/other.db"
    registered = f"mlflow.registry_uri={opened().tracking.models}"
    context = opened(elsewhere, registered, "evaluate.queries=200", "serving.max_k=70")
    evaluated = evaluate.run(context)
    assert context.tracking.has(evaluated.run_id)
    assert not context.tracking.has(context.ledger.need("train").outputs["run_id"])
    made = release.run(context)
    assert isinstance(made, Released)
    assert aliases(context)["champion"] == made.number
    assert len(answers(context)) == 3


def test_a_champion_that_cannot_be_measured_any_more(opened: Opened) -> None:
    """The catalogue's vectors are of another network now, and of another length."""
    table = Path(opened().files).parent / "items.parquet"
    whole = pq.read_table(table)
    half = [row[: DIM // 2] for row in whole["vector"].to_pylist()]
    column = pa.array(half, pa.list_(pa.float32()))
    shorter = whole.set_column(whole.column_names.index("vector"), "vector", column)
    pq.write_table(shorter, table.with_name("shorter.parquet"))
    context = opened(f"data.table={table.with_name('shorter.parquet')}", f"data.dim={DIM // 2}")
    before = aliases(context)["champion"]
    rejects = context.tables.read("rejects").count()
    for step in STEPS[: STEPS.index("release")]:
        __import__(f"lookalike.steps.{step}", fromlist=["run"]).run(context)
    said: list[str] = []
    context.say = said.append
    made = release.run(context)
    assert isinstance(made, Released)
    assert ("the champion", "not measured", "where it can be", "passed") in made.checks
    assert any(f"version {before}, cannot be measured" in words for words in said)
    assert context.tables.read("rejects").count() == rejects
    assert aliases(context) == {"champion": made.number, "previous": before}


@pytest.mark.soak
def test_in_an_environment_of_its_own(opened: Opened) -> None:
    """Made of the model's own requirements, from the package registry."""
    context = opened("index.kind=hnsw", "serving.max_k=77")
    made = release.run(context, check=True)
    assert isinstance(made, Released)
    assert aliases(context)["champion"] == made.number
    assert "tensorflow" not in sys.modules
