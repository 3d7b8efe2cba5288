"""`lookalike check` beside a warehouse that is damaged, a file at a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from naive import Item, Naive, indexed
from support import ROOT

from lookalike import artifacts, cli, config
from lookalike.index import Index, Plan
from lookalike.steps import check
from lookalike.steps.context import Context


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One for all tests: MLflow takes seconds to make it."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/models.db"


@pytest.fixture
def context(tmp_path: Path, registry: str) -> Context:
    recipe = yaml.safe_load((ROOT / "conf" / "demo.yaml").read_text())
    recipe["warehouse"] = {"tables": str(tmp_path / "tables"), "files": str(tmp_path / "wh")}
    recipe["mlflow"] = {"tracking_uri": registry}
    conf = tmp_path / "recipe.yaml"
    conf.write_text(yaml.safe_dump(recipe))
    found = Context(config.load(conf))
    random = np.random.default_rng(0)
    for label in ("a", "b"):
        items = {f"item {i:02d}": Item(random.normal(size=4), label) for i in range(40)}
        index = indexed(Naive("cosine", items), Path(found.indexes), Plan("ivf_sq8", nlist=2))
        index.delete(["item 01"])
        index.add([f"new {label}"], random.normal(size=(1, 4)))
        index.commit()
    return found


FILES = ("vectors.faiss", "items.arrow", "originals.npy", "tombstones.arrow", "manifest.json")


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    place = data.index(b'"kind"') if path.suffix == ".json" else len(data) // 2
    data[min(place + 10, len(data) - 1)] ^= 1
    path.write_bytes(data)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "flip": flip,
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "zero": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "delete": Path.unlink,
}


def test_all_is_as_committed(context: Context) -> None:
    found = check.run(context)
    versions = len(list(Path(context.indexes, "versions").iterdir()))
    parts = len(list(Path(context.indexes, "parts").iterdir()))
    assert (found.artefacts, found.damaged, found.unfinished) == (versions + parts, (), ())
    assert found.files == sum(
        path.name != "manifest.json" for path in Path(context.indexes).rglob("*") if path.is_file()
    )


def test_searches_and_checkpoints_are_read_too(context: Context, tmp_path: Path) -> None:
    before = check.run(context).artefacts
    search = artifacts.join(context.searches, "main", "1")
    artifacts.seal(search, "search", {}, ())
    trials = [artifacts.join(search, "trials", str(i)) for i in range(3)]
    for uri in trials:
        artifacts.seal(uri, "trial", {"value": 0.5}, ())
    built = tmp_path / "built"
    built.mkdir()
    (built / "variables").write_bytes(b"weights")
    kept = artifacts.commit(f"{context.checkpoints}/a training", "checkpoint", built, {})
    assert (check.run(context).artefacts, check.run(context).damaged) == (before + 5, ())
    flip(Path(kept.uri) / "variables")
    manifest = Path(trials[1], "manifest.json")
    manifest.write_text(manifest.read_text().replace("0.5", "0.6"))
    found = check.run(context)
    assert [kept.uri in said or trials[1] in said for said in found.damaged] == [True, True]


@pytest.mark.parametrize(
    ("name", "damage"),
    # Whether a manifest that is not there was committed, tables know.
    [pair for pair in itertools.product(FILES, DAMAGE) if pair != ("manifest.json", "delete")],
)
def test_any_damage_is_found_and_named(context: Context, name: str, damage: str) -> None:
    for root in ("parts", "versions"):
        for file in sorted(Path(context.indexes, root).glob(f"*/{name}")):
            before = file.read_bytes()
            DAMAGE[damage](file)
            found = check.run(context)
            assert any(name in said and file.parent.name in said for said in found.damaged)
            file.write_bytes(before)
    assert check.run(context).damaged == ()


@pytest.mark.parametrize("root", ["parts", "versions"])
@pytest.mark.parametrize("name", FILES)
def test_files_of_two_versions_that_changed_places_are_found(
    context: Context, name: str, root: str
) -> None:
    found = sorted(Path(context.indexes, root).glob(f"*/{name}"))
    for one, other in itertools.pairwise(found):
        mine, theirs = one.read_bytes(), other.read_bytes()
        assert mine != theirs
        one.write_bytes(theirs)
        other.write_bytes(mine)
        said = check.run(context).damaged
        for file in (one, other):
            # A manifest is that of other files: the first of them is named.
            named = "" if name == "manifest.json" else name
            assert any(file.parent.name in words and named in words for words in said)
        one.write_bytes(mine)
        other.write_bytes(theirs)


def test_the_command_ends_with_what_is_damaged(
    context: Context, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["check", "--conf", str(tmp_path / "recipe.yaml")]
    cli.main(command)
    assert "all as committed" in capfd.readouterr().err
    file = next(Path(context.indexes, "parts").glob("*/items.arrow"))
    flip(file)
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert ended.value.code == 3
    assert "items.arrow is not the file that was committed" in capfd.readouterr().err


def test_what_is_damaged_may_still_open_and_is_told_apart_by_check(context: Context) -> None:
    """Opening checks what is cheap: a flipped vector is found by reading all of the file."""
    version = min(Path(context.indexes, "versions").iterdir()).name
    part = artifacts.open_artifact(f"{context.indexes}/versions/{version}", "index").meta["parts"]
    flip(Path(context.indexes, "parts", part[0], "originals.npy"))
    assert len(Index.open(context.indexes, version)) > 0
    assert part[0] in check.run(context).damaged[0]
