"""The same steps, in the same order, wherever they are listed; the same packages, too."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from lookalike import cli, config
from lookalike.steps import STEPS

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "notebooks" / "walkthrough.py"
NOT_STEPS = {
    "check", "clean", "inspect", "keys", "promote", "releases", "rollback", "run", "serve"
}  # fmt: skip
JOB = '''"""The `{step}` step, as a cluster's scheduler runs it."""

import sys

from lookalike.cli import main

{why}main(["{step}", {flags}*sys.argv[1:]])
'''
FLAGS = {
    "tune": {
        "why": "# On a schedule the snapshot changes, and with it the search.\n",
        "flags": '"--fresh", ',
    }
}
"""What a job asks for that a person does not."""


def _yaml(path: Path) -> dict[str, Any]:
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict), path
    return content


@pytest.fixture(scope="module")
def bundle() -> dict[str, Any]:
    return _yaml(ROOT / "databricks.yml")


@pytest.fixture(scope="module")
def included(bundle: dict[str, Any]) -> list[Path]:
    return sorted(path for pattern in bundle["include"] for path in ROOT.glob(pattern))


@pytest.fixture(scope="module")
def job(included: list[Path]) -> dict[str, Any]:
    jobs = [job for path in included for job in _yaml(path)["resources"]["jobs"].values()]
    assert len(jobs) == 1
    (found,) = jobs
    assert isinstance(found, dict)
    return found


def test_commands_are_the_steps() -> None:
    commands = typer.main.get_command(cli.app).commands
    assert tuple(name for name in commands if name not in NOT_STEPS) == STEPS
    assert set(commands) >= NOT_STEPS


def test_each_step_has_its_module() -> None:
    folder = ROOT / "src" / "lookalike" / "steps"
    for step in STEPS:
        assert f'STEP = "{step}"' in (folder / f"{step}.py").read_text(encoding="utf-8")


def test_jobs_are_the_steps() -> None:
    assert {path.stem for path in (ROOT / "jobs").glob("*.py")} == set(STEPS)


@pytest.mark.parametrize("step", STEPS)
def test_a_job_only_calls_its_command(step: str) -> None:
    script = (ROOT / "jobs" / f"{step}.py").read_text(encoding="utf-8")
    assert script == JOB.format(step=step, **FLAGS.get(step, {"why": "", "flags": ""}))


def test_tasks_are_the_steps(job: dict[str, Any]) -> None:
    assert tuple(task["task_key"] for task in job["tasks"]) == STEPS


def test_a_task_waits_for_the_step_before(job: dict[str, Any]) -> None:
    waits = [
        tuple(other["task_key"] for other in task.get("depends_on", ())) for task in job["tasks"]
    ]
    assert waits == [(), *((step,) for step in STEPS[:-1])]


def test_a_task_runs_its_script(job: dict[str, Any]) -> None:
    for task in job["tasks"]:
        script = ROOT / "resources" / task["spark_python_task"]["python_file"]
        assert script.resolve() == ROOT / "jobs" / f"{task['task_key']}.py"
        assert script.is_file()


def test_tasks_share_cluster_libraries_and_recipe(job: dict[str, Any]) -> None:
    (cluster,) = job["job_clusters"]
    for task in job["tasks"]:
        assert task["job_cluster_key"] == cluster["job_cluster_key"]
        assert task["libraries"] == job["tasks"][0]["libraries"]
        assert (
            task["spark_python_task"]["parameters"]
            == job["tasks"][0]["spark_python_task"]["parameters"]
        )


def test_the_tasks_recipe_is_one(bundle: dict[str, Any], job: dict[str, Any]) -> None:
    defaults = {f"var.{name}": str(v["default"]) for name, v in bundle["variables"].items()}
    known = {
        **defaults,
        "workspace.file_path": str(ROOT),
        "workspace.current_user.userName": "someone@example.com",
        "bundle.name": bundle["bundle"]["name"],
        "bundle.target": "dev",
    }

    def filled(text: str) -> str:
        while (done := re.sub(r"\$\{([\w.]+)\}", lambda found: known[found[1]], text)) != text:
            text = done
        return text

    parameters = [filled(p) for p in job["tasks"][0]["spark_python_task"]["parameters"]]
    options, values = parameters[::2], parameters[1::2]
    assert options == ["--conf", *["--set"] * (len(values) - 1)]

    recipe = config.load(Path(values[0]), values[1:])

    assert recipe.spark.master is None
    assert re.fullmatch(r"\w+\.\w+", recipe.warehouse.tables)
    assert re.fullmatch(r"/Volumes/\w+/\w+/\w+", recipe.warehouse.files)
    assert recipe.experiment_name == "/Users/someone@example.com/lookalike-dev"
    assert recipe.model_name == f"{recipe.warehouse.tables}.lookalike"
    for files in (recipe.data.train, recipe.data.test):
        for path in (files.images, files.labels):
            assert Path(path.removeprefix("file:")).is_file()


@pytest.fixture(scope="module")
def requirements(job: dict[str, Any]) -> Path:
    """What the job installs beside the wheel, and before it."""
    first, wheel = job["tasks"][0]["libraries"]
    assert wheel == {"whl": "../dist/*.whl"}
    return (ROOT / "resources" / first["requirements"]).resolve()


def _lines(path: Path) -> list[str]:
    lines = (line.partition("#")[0].strip() for line in path.read_text("utf-8").splitlines())
    return [line for line in lines if line]


def _names(lines: list[str]) -> set[str]:
    return {re.split(r"[<>=]", line)[0] for line in lines}


def test_the_job_installs_under_constraints(
    bundle: dict[str, Any], job: dict[str, Any], requirements: Path
) -> None:
    (cluster,) = job["job_clusters"]
    assert cluster["new_cluster"]["spark_version"] == "${var.runtime}"
    (runtime,) = re.findall(r"^\d+\.\d+", bundle["variables"]["runtime"]["default"])
    named, *packages = _lines(requirements)
    constraints = requirements.parent / named.removeprefix("-c ")

    assert named == f"-c {constraints.name}"
    assert constraints.is_file()
    assert requirements.name.startswith(f"databricks-{runtime}-")
    assert constraints.name.startswith(f"databricks-{runtime}-")
    pinned = _lines(constraints)
    assert all("==" in pin for pin in pinned)
    theirs = {"tensorflow", "tf-keras", "pyspark", "horovod", "hyperopt", "petastorm"}
    assert _names(pinned) >= theirs | {"protobuf", "pyarrow"}
    assert _names(packages).isdisjoint(theirs)


def test_the_job_installs_what_the_wheel_needs(requirements: Path) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert set(project["dependencies"]) <= set(_lines(requirements))


def test_all_that_the_bundle_includes_exists(bundle: dict[str, Any]) -> None:
    for pattern in bundle["include"]:
        assert list(ROOT.glob(pattern)), f"databricks.yml includes {pattern}: there is no such file"


def test_variables_are_declared_and_used(bundle: dict[str, Any], included: list[Path]) -> None:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "databricks.yml", *included)]
    used = {name for text in texts for name in re.findall(r"\$\{var\.(\w+)", text)}
    declared = set(bundle["variables"])
    assert used == declared
    for target in bundle["targets"].values():
        assert set(target.get("variables", ())) <= declared


def test_notebook_cells_are_the_steps() -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")
    assert source.startswith("# Databricks notebook source\n")
    cells = re.split(r"^# COMMAND -+$", source, flags=re.MULTILINE)
    called = [_steps_called(cell) for cell in cells]
    assert tuple(step for steps in called for step in steps) == STEPS
    assert max(len(steps) for steps in called) == 1


def _steps_called(cell: str) -> list[str]:
    return [
        node.func.value.id
        for node in ast.walk(ast.parse(cell))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "run"
        and isinstance(node.func.value, ast.Name)
        and any(
            isinstance(argument, ast.Name) and argument.id == "context" for argument in node.args
        )
    ]


def test_notebook_installs_and_sets_what_the_job_does(
    job: dict[str, Any], requirements: Path
) -> None:
    source = NOTEBOOK.read_text(encoding="utf-8")
    (installed,) = re.findall(r"^# MAGIC %pip install .*-r (\S+)", source, flags=re.MULTILINE)
    assert (NOTEBOOK.parent / installed).resolve() == requirements

    parameters = job["tasks"][0]["spark_python_task"]["parameters"]
    in_job = {value.partition("=")[0] for value in parameters if "=" in value}
    assert set(re.findall(r'^ +f?"([\w.]+)=.*",', source, flags=re.MULTILINE)) == in_job


def test_notebook_takes_its_steps_from_the_package() -> None:
    imported = [
        alias.name
        for node in ast.walk(ast.parse(NOTEBOOK.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module == "lookalike.steps"
        for alias in node.names
        if alias.asname is None
    ]
    assert sorted(imported) == sorted(STEPS)
