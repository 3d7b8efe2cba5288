import importlib
import re
from pathlib import Path

import pytest

from lookalike import config
from lookalike.config import Train
from lookalike.errors import ConfigError

RECIPES = sorted((Path(__file__).parents[2] / "conf").glob("*.yaml"))
DEMO = Path(__file__).parents[2] / "conf" / "demo.yaml"


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_shipped_recipes_are_valid_and_open_with_what_they_cost(recipe: Path) -> None:
    assert config.load(recipe).name
    head = recipe.read_text().split("\n\n")[0]
    assert head.startswith(f"# lookalike run --conf conf/{recipe.name}")
    for word in ("hardware", "time", "score"):
        (line,) = re.findall(rf"^# {word}: (.+)$", head, re.MULTILINE)
        assert re.search(r"\d|not measured yet", line)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.rank=2", r"unknown key 'train.rank'.*ranks"),
        ("train.learning_rate=fast", r"train.learning_rate = 'fast'.*number"),
        ("train.learning_rate=2", r"train.learning_rate = 2: .*less than or equal to 1"),
        ("images.channels=2", r"images.channels = 2: .*1 or 3"),
        ("data.source=fodler", r"data.source = 'fodler'. Allowed: idx, folder, manifest, text"),
        ("data={table: t.csv}", "data.source is missing. Allowed: idx"),
        ("data={source: folder, root: r, labl: 1}", "unknown key 'data.labl'. Allowed.*label"),
        ("data={source: folder, root: r, label: 0}", "data.label = 0: levels count from 1"),
        ("data={source: folder, root: r, pattern: '((('}", "no regular expression"),
        ("data={source: folder, root: r, pattern: 'a.*'}", "no named group"),
        ("data={source: folder, root: r, check: false}", "phash decodes every image"),
        ("data={source: manifest, table: t.csv}", "none of path, url and bytes is given"),
        ("data={source: manifest, table: t.csv, path: p, url: u}", "path and url of path, url"),
        ("data={source: manifest, table: t.csv, url: u, root: r}", "root is where paths lie"),
        ("data={source: vectors, table: t.csv}", "'data.dim' is missing"),
        (
            "tune.parallelism=3,tune.trials=9",
            r"tune.parallelism = 3 is more than the 2 tasks.*1 to 2",
        ),
        ("mlflow.model=shop/boots", r"no model of the name 'shop/boots'.*without / and :"),
        ("train.ranks=3", r"train.ranks = 3 is more than the 2 tasks.*1 to 2"),
        ("train.classes_per_batch=11", r"train.classes_per_batch = 11 .*10 classes.*2 to 10"),
        ("tune.parallelism=2,tune.trials=5", r"parallelism = 2 for trials = 5: tpe learns.*1 to 1"),
        (
            "tune.trials=1,tune.algorithm=random",
            r"parallelism = 2 for trials = 1: there are no more",
        ),
        ("tune.budget={epochs: 2, minutes: 1}", r"exactly one of epochs, steps and minutes"),
        ("tune.budget={}", r"exactly one of epochs, steps and minutes"),
        ("tune.objective=loss", r"tune.objective = 'loss'.*'map_at_r'"),
        ("tune.space={}", r"tune.space names nothing"),
        ("index.kind=annoy", r"index.kind = 'annoy'.*'auto', 'exact'"),
        ("index.recall=1.5", r"index.recall = 1.5: .*less than or equal to 1"),
        ("index.ef_search=50", r"kind = 'auto' does not take ef_search. Allowed .*recall, k, mem"),
        ("index={kind: hnsw, recall: 0.9}", r"kind = 'hnsw' does not take recall.*ef_search"),
        ("index={kind: exact, nlist: 9}", r"kind = 'exact' does not take nlist.*nothing"),
        ("warehouse={}", r"'warehouse.tables' is missing"),
    ],
)
def test_what_is_refused_is_named_with_what_is_allowed(setting: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        config.load(DEMO, _settings(setting))


def _settings(text: str) -> list[str]:
    """Several, apart by commas before a key."""
    return re.split(r",(?=tune\.)", text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        ("a: [", "is not YAML"),
        ("[1, 2]", "holds list"),
        ("name: x", "'warehouse' is missing"),
        ("name: ${NOWHERE_TO_BE_FOUND}", "NOWHERE_TO_BE_FOUND.*environment does not have"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, content: str | None, said: str) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=said):
        config.load(path)


def test_settings_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLACE", "/somewhere")
    loaded = config.load(
        DEMO, ["train.epochs=3", "warehouse.files=${PLACE}", "warehouse.tables=${NO_SUCH:-there/t}"]
    )
    assert loaded.train.epochs == 3
    assert loaded.warehouse.files == "/somewhere"
    assert loaded.warehouse.tables == "there/t"


def test_what_may_hold_secrets_is_not_recorded() -> None:
    loaded = config.load(
        DEMO,
        ["mlflow.tracking_uri=https://user:hunter2@host", "spark.conf={a.secret.key: hunter2}"],
    )
    assert "hunter2" in str(loaded)
    assert "hunter2" not in str(loaded.recorded())
    remote = config.load(DEMO, ["warehouse.tables=s3://key:hunter2@bucket/t"]).recorded()
    assert remote["warehouse"]["tables"] == "s3://***@bucket/t"


def test_where_training_starts_from_is_recorded_without_secrets() -> None:
    addresses = [f"s3://key:{secret}@shop/encoders/1" for secret in ("hunter2", "other")]
    one, other = (Train(init_from=address) for address in addresses)
    for kept in (one.recorded(), one.mathematics()):
        assert kept["init_from"] == "s3://***@shop/encoders/1"
    assert one.mathematics() == other.mathematics()  # a new key trains nothing anew
    assert one.init_from == addresses[0]


def test_what_may_hold_secrets_is_not_echoed() -> None:
    for setting in ("mlflow=https://user:hunter2@host", "spark.conf=hunter2", "spark=hunter2"):
        with pytest.raises(ConfigError) as raised:
            config.load(DEMO, [setting])
        assert "hunter2" not in str(raised.value)


def test_sparks_own_keys_can_be_set_one_by_one() -> None:
    loaded = config.load(DEMO, ["spark.conf.spark.hadoop.fs.s3a.endpoint=there"])
    assert loaded.spark.conf == {"spark.hadoop.fs.s3a.endpoint": "there"}


def test_another_network_behind_the_same_name_is_another_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    file = tmp_path / "my_network.py"
    train = config.load(DEMO, ("train.network=my_network:body",)).train
    assert "network_source" not in train.mathematics()  # it may be the workers' alone
    hashes = []
    for words in ("first", "second"):
        file.write_text(f"# {words}")
        importlib.invalidate_caches()
        hashes.append(train.mathematics()["network_source"])
    assert hashes[0] != hashes[1]
    assert "network_source" not in train.model_copy(update={"network": "simple_cnn"}).mathematics()
