"""A recipe's space is checked against what training takes."""

from pathlib import Path

import pytest

from lookalike import config
from lookalike.errors import ConfigError

DEMO = Path(__file__).parents[2] / "conf" / "demo.yaml"


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{loss.alhpa: {uniform: [1, 2]}}", "'loss.alhpa' is no key of train. Allowed: alpha"),
        ("{loss.alpha: {uniform: [-1, 2]}}", "greater than 0"),
        ("{loss.alpha: {unifrom: [1, 2]}}", "none of choice, int, log_uniform, normal, uniform"),
        ("{loss.alpha: {uniform: [2, 1]}}", "from 2 to 1, not upwards"),
        ("{loss.alpha: {uniform: [1, 2, 3]}}", "not two numbers"),
        ("{loss.alpha: {normal: [2, 1]}}", "alpha = -1"),
        ("{learning_rate: {log_uniform: [0, 0.1]}}", "begins at 0"),
        ("{network: {choice: [simple_cnn, resnet99]}}", "network = 'resnet99'"),
        ("{embedding_size: {choice: []}}", "Name at least 1"),
        ("{embedding_size: {uniform: [64, 128]}}", "embedding_size = 103.55"),
        ("{embedding_size: {int: [64, 5000]}}", "embedding_size = 5000"),
        ("{ranks: {int: [1, 2]}}", "'ranks' is not searched"),
        ("{classes_per_batch: {choice: [8, 12]}}", "classes_per_batch = 12 is more than the 10"),
        ("{images_per_class: {choice: [4, 16]}}", "images_per_class = 16.*Allowed: 2 to 8"),
        ("{loss: {choice: [{name: triplet, margin: {uniform: [0.1, 9]}}]}}", "margin = 9"),
        ("{loss: {choice: [{name: tripel}]}}", "loss.name = 'tripel'"),
        ("{loss: {choice: [{name: triplet}]}, loss.alpha: {uniform: [1, 2]}}", "lies within loss"),
    ],
)
def test_a_search_space_is_checked_against_what_it_searches(space: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("(", r"\(")):
        config.load(DEMO, [f"tune.space={space}"])


def test_best_values_replace_the_recipes() -> None:
    train = config.load(DEMO).train
    found = config.with_values(train, {"loss.alpha": 3.5, "embedding_size": 32})
    assert (found.loss.alpha, found.embedding_size) == (3.5, 32)
    assert found.loss.beta == train.loss.beta


def test_a_training_without_detail_is_that_of_before_there_was_one() -> None:
    """What names encoders, checkpoints and searches must stay what it was."""
    train = config.load(DEMO).train
    train = train.model_copy(update={"detail": 0.0})
    assert "detail" not in train.mathematics()
    assert train.model_copy(update={"detail": 0.3}).mathematics()["detail"] == 0.3


def test_any_part_of_a_training_can_be_searched() -> None:
    """Every word, and parts that exist only under a choice."""
    space = (
        "{learning_rate: {log_uniform: [0.001, 0.01]}, weight_decay: {normal: [0.02, 0.005]},"
        " embedding_size: {int: [16, 64]}, warmup: {uniform: [0, 0.5]},"
        " augment.flip: {choice: [true, false]}, clip_norm: {choice: [null, 1.0]},"
        " images_per_class: {choice: [4, 8]}, network: {choice: [simple_cnn, compact_resnet]},"
        " loss: {choice: [{name: triplet, mining: {choice: [hard, semi_hard]}},"
        " {alpha: {uniform: [1, 4]}, beta: 20}]}}"
    )
    tune = config.load(DEMO, [f"tune.space={space}"]).tune
    assert len(tune.parts) == 9
    assert tune.parallelism == 2
    assert config.load(DEMO, ["tune.parallelism=null"]).tune.at_most == 2


def test_vectors_are_searched_for_nothing(tmp_path: Path) -> None:
    """A recipe of vectors need not name a search, nor turn it off."""
    recipe = tmp_path / "vectors.yaml"
    recipe.write_text(
        "name: v\nwarehouse: {tables: t, files: f}\n"
        "data: {source: vectors, table: items.parquet, dim: 4}\n"
    )
    assert config.load(recipe).data.source == "vectors"
    with pytest.raises(ConfigError, match=r"tune\.space names nothing"):
        config.load(recipe, ["data={source: folder, root: photos}"])
