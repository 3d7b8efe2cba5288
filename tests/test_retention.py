"""What goes and what stays, decided on plain values; and removing an artefact."""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mlflow.entities import LoggedModel
from mlflow.exceptions import MlflowException
from support import ROOT

from lookalike import artifacts, cli, config, encoder, retention
from lookalike.errors import ArtifactError
from lookalike.index.build import PART, VERSION
from lookalike.lake.ledger import Commit
from lookalike.retention import Plan, Thing, decide
from lookalike.steps import clean
from lookalike.steps.context import Context

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)


def thing(kind: str, name: str, days: float = 9, needs: str = "", names: str = "") -> Thing:
    return Thing(
        kind=kind,
        name=name,
        at=NOW - timedelta(days=days),
        size=1,
        names=frozenset({name, *names.split()}),
        needs=frozenset(needs.split()),
    )


def going(plan: Plan) -> list[str]:
    return [str(thing) for thing in plan.going]


def reasons(plan: Plan) -> dict[str, tuple[str, ...]]:
    return {str(kept.thing): kept.reasons for kept in plan.staying}


WAREHOUSE = [
    thing("snapshot", "s1", 9),
    thing("snapshot", "s2", 5),
    thing("encoder", "e1", 8, "s1 v1", "f1"),
    thing("encoder", "e2", 4, "s2 v2", "f2"),
    thing("embeddings", "f1", 8, names="v1"),
    thing("embeddings", "f2", 4, names="v2"),
    thing("index-part", "p1", 7),
    thing("index-part", "p2", 3),
    thing("index", "i1", 7, "f1 p1"),
    thing("index", "i2", 3, "f2 p2"),
    thing("report", "r1", 6),
    thing("report", "r2", 2),
    thing("release", "m/1", 5, "f1 i1 r1 m-1"),
    thing("release", "m/2", 1, "f2 i2 r2 m-2"),
    thing("model", "m-1", 5),
    thing("model", "m-2", 1),
]


def test_what_is_replaced_goes_with_all_that_it_alone_needed() -> None:
    plan = decide(WAREHOUSE, {}, 1, NOW)
    assert going(plan) == [
        "release m/1",
        "model m-1",
        "report r1",
        "index i1",
        "index-part p1",
        "embeddings f1",
        "encoder e1",
        "snapshot s1",
    ]
    assert reasons(plan)["encoder e2"] == (
        "the newest",
        "needed by index i2",
        "needed by release m/2",
    )
    assert going(decide(WAREHOUSE, {}, 2, NOW)) == []


def test_a_live_release_keeps_what_it_is_made_of() -> None:
    plan = decide(WAREHOUSE, {"m/1": ["alias champion"]}, 1, NOW)
    assert going(plan) == []
    assert reasons(plan)["release m/1"] == ("alias champion",)
    assert reasons(plan)["snapshot s1"] == ("needed by encoder e1",)
    assert reasons(plan)["index-part p1"] == ("needed by index i1",)


def test_a_commit_keeps_what_it_names_and_no_more() -> None:
    plan = decide(WAREHOUSE, {"i1": ["the newest index names it"]}, 1, NOW)
    assert going(plan) == ["release m/1", "model m-1", "report r1"]


def test_of_equal_encoders_the_newest_is_meant() -> None:
    things = [*WAREHOUSE, thing("encoder", "e3", 6, "s1 v1", "f1")]
    plan = decide(things, {"i1": ["pinned"]}, 1, NOW)
    assert "encoder e1" in going(plan)
    assert "needed by index i1" in reasons(plan)["encoder e3"]
    assert "embeddings f1" in reasons(plan)


def test_what_nobody_names_waits_a_day() -> None:
    young, old = 0.9, 1.1
    for kind in ("index-part", "embeddings", "model", "leftover"):
        assert going(decide([thing(kind, "x", young)], {}, 1, NOW)) == []
        assert going(decide([thing(kind, "x", old)], {}, 1, NOW)) == [f"{kind} x"]
    # A part of a version that goes is nobody's work in progress.
    things = [
        thing("index", "i1", 0.2, "p1"),
        thing("index", "i2", 0.1, "p2"),
        thing("index-part", "p1", 0.2),
        thing("index-part", "p2", 0.1),
    ]
    assert going(decide(things, {}, 1, NOW)) == ["index i1", "index-part p1"]


def test_only_what_a_person_has_seen_goes() -> None:
    seen = decide(WAREHOUSE, {"i1": ["pinned"]}, 1, NOW)
    later = decide(WAREHOUSE, {"m/1": ["alias champion"]}, 1, NOW)
    assert going(decide(WAREHOUSE, {}, 1, NOW).within(seen)) == going(seen)
    assert going(later.within(seen)) == []


KINDS = [kind for kind in retention.ORDER if kind != "leftover"]


@st.composite
def warehouses(draw: st.DrawFn) -> tuple[list[Thing], dict[str, list[str]], int]:
    count = draw(st.integers(0, 12))
    names = [f"n{i}" for i in range(count)]
    some = st.lists(st.sampled_from([*names, "nothing"]), max_size=3)
    things = [
        thing(
            draw(st.sampled_from(KINDS)),
            name,
            draw(st.floats(0, 40)),
            " ".join(draw(some)),
            draw(st.sampled_from(["", "same"])),
        )
        for name in names
    ]
    pins = {name: ["pinned"] for name in draw(some)}
    return things, pins, draw(st.integers(1, 4))


@given(warehouses())
def test_nothing_goes_that_is_needed_pinned_or_new(
    drawn: tuple[list[Thing], dict[str, list[str]], int],
) -> None:
    things, pins, keep = drawn
    plan = decide(things, pins, keep, NOW)
    stays = [kept.thing for kept in plan.staying]
    assert sorted(map(str, [*plan.going, *stays])) == sorted(map(str, things))
    assert all(kept.reasons for kept in plan.staying)
    needs = {name for kept in stays for name in kept.needs} | set(pins)
    for gone in plan.going:
        assert gone.name not in needs
    for kind in retention.COUNTED:
        ours = sorted((t for t in things if t.kind == kind), key=lambda t: (t.at, t.name))
        assert set(ours[-keep:]) <= set(stays)
    places = [retention.ORDER.index(gone.kind) for gone in plan.going]
    assert places == sorted(places)
    # What is left, looked at again, stays: nothing was kept for the sake of what went.
    again = decide(stays, pins, keep, NOW)
    assert [gone for gone in again.going if gone.kind in retention.COUNTED] == []


@given(warehouses(), st.data())
def test_more_pins_keep_more(
    drawn: tuple[list[Thing], dict[str, list[str]], int], data: st.DataObject
) -> None:
    things, pins, keep = drawn
    more = {**pins, data.draw(st.sampled_from([*(t.name for t in things), "x"])): ["pinned"]}
    fewer = set(decide(things, more, keep, NOW).going)
    assert fewer <= set(decide(things, pins, keep, NOW).going)


def test_kinds_are_the_artefacts_own() -> None:
    from lookalike.lake import snapshot
    from lookalike.serving import release
    from lookalike.steps import evaluate

    assert retention.SNAPSHOT == snapshot.KIND
    assert retention.ENCODER == encoder.KIND
    assert (retention.INDEX, retention.PART) == (VERSION, PART)
    assert retention.REPORT == evaluate.REPORT
    assert retention.RELEASE == release.KIND


def test_names_and_versions_are_found_in_commits_and_manifests() -> None:
    commit = {
        "uri": "s3://bucket/wh/encoders/20260101T000000-00000000/",
        "items": 619,
        "items_version": 3,
        "versions": {"items": 2, "splits": 1, "pillow": "10.3"},
        "inner": [{"index": "i1", "splits_version": 4}],
    }
    assert {"20260101T000000-00000000", "i1"} <= set(retention.names_in(commit))
    found = set(retention.versions_in(commit, ("items", "splits")))
    assert found == {("items", 3), ("items", 2), ("splits", 1), ("splits", 4)}


@pytest.fixture(params=["local", "memory"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and a store that has no folders."""
    if request.param == "local":
        return str(tmp_path / "a folder é")
    return f"memory://{tmp_path.name}"


@pytest.fixture
def built(tmp_path: Path) -> Path:
    folder = tmp_path / "built"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.bin").write_bytes(b"12345")
    (folder / "inner" / "b.bin").write_bytes(b"123")
    return folder


def surveyed(root: str) -> Mapping[str, artifacts.Manifest | None]:
    return {uri.rsplit("/", 1)[-1]: m for uri, m in artifacts.survey(root, "report")}


def test_remove_leaves_nothing_and_touches_nothing_else(root: str, built: Path) -> None:
    assert surveyed(root) == {}
    first, second = (artifacts.commit(root, "report", built, {}) for _ in range(2))
    assert set(surveyed(root)) == {first.name, second.name}
    size, written = artifacts.footprint(first.uri)
    assert size == 8 + len(first.manifest.to_json())
    if artifacts.local_path(root) is not None:
        assert written is not None
        assert abs(datetime.now(UTC) - written) < timedelta(minutes=5)
    artifacts.remove(first.uri)
    assert surveyed(root) == {second.name: second.manifest}
    artifacts.verify(second)
    artifacts.remove(first.uri)  # it is not there: nothing to do


class Killed(BaseException):
    """The process ends here."""


def test_killed_after_the_manifest_it_does_not_exist(
    root: str, built: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = artifacts.commit(root, "report", built, {})
    real = artifacts.filesystem

    class Dying:
        def __init__(self, uri: str):
            self.inner, self.path = real(uri)

        def __getattr__(self, name: str) -> object:
            if name == "delete_dir":
                raise Killed
            return getattr(self.inner, name)

    with monkeypatch.context() as patch:
        patch.setattr(artifacts, "filesystem", lambda uri: ((d := Dying(uri)), d.path))
        with pytest.raises(Killed):
            artifacts.remove(made.uri)
    assert not artifacts.exists(made.uri, "report")
    assert surveyed(root) == {made.name: None}
    assert artifacts.footprint(made.uri)[0] == 8
    artifacts.remove(made.uri)
    assert surveyed(root) == {}


def test_a_manifest_that_breaks_off_is_none_and_another_format_is_refused(
    tmp_path: Path, built: Path
) -> None:
    made = artifacts.commit(str(tmp_path / "x"), "report", built, {})
    manifest = Path(made.uri) / "manifest.json"
    raw = manifest.read_text()
    for part in ("", raw[: len(raw) // 2]):
        manifest.write_text(part)
        assert surveyed(str(tmp_path / "x")) == {made.name: None}
    manifest.write_text(json.dumps(json.loads(raw) | {"format": 3}))
    with pytest.raises(ArtifactError, match="has format 3"):
        surveyed(str(tmp_path / "x"))


def test_names_tell_when_they_were_given() -> None:
    at = artifacts.made_at(artifacts.new_name())
    assert at is not None
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=1)
    assert artifacts.made_at("20260231T000000-00000000") is None
    assert artifacts.made_at("part-0000.parquet") is None


def test_keep_is_at_least_one(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["clean", "--conf", "conf/demo.yaml", "--keep", "0"])
    assert ended.value.code == 2
    assert "--keep" in capfd.readouterr().err


class Registry:
    """Releases as MLflow keeps them, without what makes them large."""

    def __init__(self, context: Context):
        self.tracking = context.tracking
        self.client = context.tracking.client
        self.experiment = context.tracking.experiment_id()

    def log(self) -> LoggedModel:
        run = self.tracking.start("model")
        run.metrics({"p_at_1": 0.5})
        model = self.client.create_logged_model(
            self.experiment, name="model", source_run_id=run.run_id
        )
        files = Path(model.artifact_location)
        (files / "artifacts" / "release").mkdir(parents=True)
        (files / "MLmodel").write_text("flavors: {}")
        (files / "artifacts" / "release" / "manifest.json").write_text("{}")
        return model

    def register(self, name: str, model: LoggedModel, **tags: str) -> str:
        with suppress(MlflowException):  # it is there
            self.client.create_registered_model(name)
        made = self.client.create_model_version(
            name, f"models:/{model.model_id}", model.source_run_id, tags=tags
        )
        # As `mlflow.register_model` does.
        registered = json.dumps([{"name": name, "version": made.version}])
        self.client.set_logged_model_tags(model.model_id, {"mlflow.modelVersions": registered})
        return f"{name}/{made.version}"


def test_releases_with_what_others_need_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    recipe = config.load(
        ROOT / "conf" / "demo.yaml",
        [f"warehouse.tables={tmp_path}/tables", f"warehouse.files={tmp_path}", "name=small"],
    )
    context = Context(recipe)
    with context.tracking.connected():  # SQLite's registry asks whichever is set
        logs = Registry(context)
        ours = [logs.log() for _ in range(3)]
        theirs, other, never, foreign = (logs.log() for _ in range(4))
        shutil.rmtree(foreign.artifact_location)  # somebody else's, in the same experiment
        for number, model in enumerate(ours, start=1):
            report = f"{context.reports}/r{number}"
            logs.register("small", model, encoder="f1", index=f"i{number}", report=report)
        logs.register("small", theirs, encoder="f2", index="i4", report="/other/reports/r4")
        logs.register("other", other, encoder="f3", index="i5", report=f"{context.reports}/r5")
        logs.client.copy_model_version("models:/small/1", "copied")
        logs.client.set_registered_model_alias("small", "champion", "3")
        logs.client.set_registered_model_alias("other", "champion", "1")
        logs.client.delete_model_version("small", "2")  # killed before its model went

    where = artifacts.fingerprint(context.tracking.uri)
    commit = Commit("release", 1, {"registry": where}, {"name": "other", "number": 1})
    elsewhere = Commit("release", 1, {"registry": "x"}, {"name": "small", "number": 2})
    pins: dict[str, list[str]] = defaultdict(list)
    found = {str(thing): thing for thing in clean._released(context, [commit, elsewhere], pins)}
    models = [*ours, never]
    assert set(found) == {"release small/1", "release small/3"} | {
        f"model {model.model_id}" for model in models
    } | {f"model {model.model_id}" for model in (theirs, other)}
    assert found["release small/3"].needs == {"f1", "i3", "r3", ours[2].model_id}
    assert found[f"model {never.model_id}"].size == len("flavors: {}") + 2
    assert pins["small/1"] == ["registered as copied/1"]
    assert pins["small/3"] == ["alias champion"]
    assert pins["small/2"] == []
    assert pins[theirs.model_id] == pins["i4"] == pins["r4"] == ["release small/4 needs it"]
    assert pins["i5"] == ["release other/1 needs it"]
    assert set(pins[other.model_id]) == {"release other/1 needs it", "registered as other/1"}
    plan = decide([*found.values()], pins, 1, datetime.now(UTC) + timedelta(days=2))
    assert {str(thing) for thing in plan.going} == {
        f"model {model.model_id}" for model in (ours[1], never)
    }
    young = decide([*found.values()], pins, 1, datetime.now(UTC))
    assert young.going == ()

    for thing in plan.going:
        clean._remove(context, thing)
        assert not list(Path(tmp_path).rglob(f"{thing.name}/**/*.*"))
        clean._remove(context, thing)  # it is not there: nothing to do
    assert logs.client.get_run(never.source_run_id).data.metrics == {"p_at_1": 0.5}
    assert (Path(ours[0].artifact_location) / "MLmodel").exists()
