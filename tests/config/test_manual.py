"""What `lookalike keys` lists is what a recipe may say."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from lookalike import cli, config
from lookalike.config.manual import Key, keys
from lookalike.errors import ConfigError

CONF = Path(__file__).parents[2] / "conf"


def flat(raw: dict[str, Any], prefix: str = "") -> set[str]:
    found: set[str] = set()
    for name, value in raw.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name}
    return found


@pytest.mark.parametrize("recipe", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_what_the_recipes_say_is_listed(recipe: Path) -> None:
    listed = {key.name for key in keys()}
    said = flat(yaml.safe_load(recipe.read_text(encoding="utf-8")))
    # What stands below these has names of the user's own.
    free = tuple(f"{key.name}." for key in keys() if key.allowed.startswith("keys"))
    assert {name for name in said - listed if not name.startswith(free)} == set()


def test_defaults_are_those_of_a_recipe_that_says_no_more_than_it_must(tmp_path: Path) -> None:
    least = {
        "name": "least",
        "warehouse": {"tables": "tables", "files": "files"},
        "data": {"source": "folder", "root": "photos"},
    }
    conf = tmp_path / "least.yaml"
    conf.write_text(yaml.safe_dump(least), encoding="utf-8")
    recipe = config.load(conf, ["tune.trials=0"]).model_dump()
    listed = {
        key.name: key.default for key in keys() if "source: folder" in key.only or not key.only
    }
    compared = 0
    for name, default in listed.items():
        value: Any = recipe
        for part in name.split("."):
            value = value[part]
        if default is None:
            assert name in flat(least)
        elif name != "tune.trials":
            assert json.loads(default) == json.loads(json.dumps(value)), name
            compared += 1
    assert compared > 100


def test_a_key_is_listed_with_those_below_it_once() -> None:
    found = keys("train.loss")
    names = [key.name for key in found]
    assert names[:2] == ["train.loss.name", "train.loss.alpha"]
    assert len(set(names)) == len(names)
    only = {key.name: key.only for key in found}
    assert only["train.loss.name"] == ()
    assert only["train.loss.margin"] == ("name: triplet",)
    assert keys("train.epochs") == [Key("train.epochs", "an integer, 1 or more", "10", "")]
    (source,) = keys("data.source")
    assert source == Key("data.source", "folder | idx | manifest | text | vectors", None, "")
    assert [key.only for key in keys("data.test_share")] == [()]  # under every source


def test_a_key_that_is_none_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"no key 'train.epoch'.*Allowed: train.ranks, train.threads"
    ):
        keys("train.epoch")
    with pytest.raises(ConfigError, match=r"no key 'trian.epochs'.*Allowed: name, seed, warehouse"):
        keys("trian.epochs")
    with pytest.raises(ConfigError, match=r"Allowed: train.loss.name, train.loss.alpha"):
        keys("train.loss.gamma")


def test_the_command_prints_a_line_a_key(capfd: pytest.CaptureFixture[str]) -> None:
    cli.main(["keys", "train.loss"])
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == len(keys("train.loss"))
    assert "train.loss.beta: 10.0  # a number, above 0; name: multi_similarity" in lines
    with pytest.raises(SystemExit) as ended:
        cli.main(["keys", "tarin"])
    assert ended.value.code == 2
    assert "no key 'tarin'" in capfd.readouterr().err
