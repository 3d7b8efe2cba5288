"""What goes and what stays, decided on plain values; and removing an artefact."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lookalike import artifacts, encoder, retention
from lookalike.errors import ArtifactError
from lookalike.index.build import PART, VERSION
from lookalike.retention import Plan, Thing, decide

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
    manifest.write_text(json.dumps(json.loads(raw) | {"format": 2}))
    with pytest.raises(ArtifactError, match="has format 2"):
        surveyed(str(tmp_path / "x"))


def test_names_tell_when_they_were_given() -> None:
    at = artifacts.made_at(artifacts.new_name())
    assert at is not None
    assert timedelta(0) <= datetime.now(UTC) - at < timedelta(minutes=1)
    assert artifacts.made_at("20260231T000000-00000000") is None
    assert artifacts.made_at("part-0000.parquet") is None
