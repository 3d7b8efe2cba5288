"""What is instant stays so, and what serves does not bring what trains."""

import subprocess
import sys

TRAINING = ("tensorflow", "pyspark", "delta", "horovod", "hyperopt", "petastorm")


def run(code: str) -> str:
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr
    return said.stdout.strip()


def without(modules: tuple[str, ...], statement: str) -> str:
    """Run a statement where importing any of the modules fails."""
    return run(f"import sys; sys.modules.update(dict.fromkeys({modules})); {statement}")


def test_importing_lookalike_imports_nothing_else() -> None:
    assert run("import sys, lookalike; print('numpy' in sys.modules)") == "False"


def test_serving_needs_nothing_that_trains() -> None:
    without(TRAINING, "import lookalike.serving.model, lookalike.serving.client")


def test_steps_that_serve_need_nothing_that_trains() -> None:
    without(TRAINING, "import lookalike.cli, lookalike.steps.query, lookalike.steps.serve")


def test_the_driver_of_a_training_imports_no_tensorflow() -> None:
    driver = "import lookalike.model.launch, lookalike.model.tune, horovod.spark"
    assert run(f"import sys; {driver}; print('tensorflow' in sys.modules)") == "False"
