# Databricks notebook source
# MAGIC %md
# MAGIC # lookalike, step by step
# MAGIC From a catalogue of images to a released model that finds similar items. Each cell below is
# MAGIC one step; it reads what the step before committed. Run again, a step finds its work done.
# MAGIC
# MAGIC As a script: `python notebooks/walkthrough.py [CONF] [KEY=VALUE ...]`. Paths in the recipe
# MAGIC and in the settings are relative to the repository.

# COMMAND ----------

# MAGIC %md
# MAGIC On Databricks (Runtime 15.4 LTS ML), this puts the package on driver and workers. The file's
# MAGIC constraints leave the runtime's TensorFlow, Spark and Horovod as they are.

# COMMAND ----------

# MAGIC %pip install --quiet -r ../conf/databricks-15.4-requirements.txt ..

# COMMAND ----------

# MAGIC %restart_python

# COMMAND ----------

# MAGIC %md
# MAGIC ## Recipe
# MAGIC On Databricks the next cell makes widgets at the top: run it, set them, run it again. They
# MAGIC say which recipe, and where tables, files, data and MLflow's experiment are. Make the schema
# MAGIC and the volume first. For a recipe of another source than `idx` let `data` be empty.

# COMMAND ----------

import os
import re
import sys
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

from lookalike import artifacts, config
from lookalike.steps import (
    duplicates,
    embed,
    evaluate,
    index,
    ingest,
    query,
    release,
    snapshot,
    train,
    tune,
)
from lookalike.steps.context import Context

if "REPOSITORY" not in globals():  # once: below, the working folder becomes another
    HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
    REPOSITORY = HERE.parent
IN_NOTEBOOK = "get_ipython" in globals()

if dbutils := globals().get("dbutils"):
    from pyspark.sql import SparkSession

    ((user,),) = SparkSession.builder.getOrCreate().sql("SELECT current_user()").collect()
    # A ledger of one's own: what somebody tries changes nobody else's champion.
    mine = "lookalike_" + re.sub(r"\W+", "_", user.split("@")[0].lower())
    asked = {
        "conf": "conf/demo.yaml",
        "tables": f"main.{mine}",
        "files": f"/Volumes/main/{mine}/files",
        "data": f"file:{REPOSITORY}/data/fashion-mnist-sample",
        "experiment": f"/Users/{user}/lookalike-walkthrough",
        "settings": "",
    }
    for name, default in asked.items():
        dbutils.widgets.text(name, default)
        asked[name] = dbutils.widgets.get(name)
    arguments = [
        str(REPOSITORY / asked["conf"]),
        "spark.master=null",  # the cluster's own session
        f"warehouse.tables={asked['tables']}",
        f"warehouse.files={asked['files']}",
        f"mlflow.experiment={asked['experiment']}",
        f"mlflow.model={asked['tables']}.lookalike",
    ]
    if asked["data"]:
        arguments += [
            f"data.train.images={asked['data']}/train-images-idx3-ubyte.gz",
            f"data.train.labels={asked['data']}/train-labels-idx1-ubyte.gz",
            f"data.test.images={asked['data']}/t10k-images-idx3-ubyte.gz",
            f"data.test.labels={asked['data']}/t10k-labels-idx1-ubyte.gz",
        ]
    arguments += asked["settings"].split()
else:
    arguments = [] if IN_NOTEBOOK else sys.argv[1:]
if not arguments or "=" in arguments[0]:
    arguments = [str(REPOSITORY / "conf/demo.yaml"), *arguments]

conf, *settings = arguments
recipe = config.load(Path(conf), settings)
os.chdir(REPOSITORY)
opened = ExitStack()
context = opened.enter_context(Context(recipe))
print(f"{recipe.name}: tables in {recipe.warehouse.tables}, files in {recipe.warehouse.files}")

# COMMAND ----------

# MAGIC %md
# MAGIC ## Ingest
# MAGIC Loads what is new or changed in the source into the Delta tables. Each item that came is in
# MAGIC `items` or, with the reason, in `rejects`.

# COMMAND ----------

ingested = ingest.run(context)
print(ingested.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Duplicates
# MAGIC Finds pictures that are in the catalogue twice, byte for byte or nearly, and decides which
# MAGIC split each new item is in: copies of a picture, and photos of a product, stay on one side.

# COMMAND ----------

deduplicated = duplicates.run(context)
print(deduplicated.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Snapshot
# MAGIC Decodes that version of the tables once, into Parquet packs that all trials and ranks read.

# COMMAND ----------

taken = snapshot.run(context)
print(taken.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Tune
# MAGIC Searches the recipe's `tune.space` with Hyperopt: a short training a trial, several at once
# MAGIC on the workers. Out come the best trial's values; MLflow has a run for each trial.

# COMMAND ----------

tuned = tune.run(context)
print(tuned.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Train
# MAGIC Trains the encoder with those values on several Horovod ranks. It comes out as an ONNX file.

# COMMAND ----------

trained = train.run(context)
print(trained.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Embed
# MAGIC Gives each distinct image its vector, on the workers. Vectors that are there are kept.

# COMMAND ----------

embedded = embed.run(context)
print(embedded.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Index
# MAGIC Builds the nearest-neighbour index of the vectors, as a new version of files.

# COMMAND ----------

indexed = index.run(context)
print(indexed.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Evaluate
# MAGIC Measures encoder and index on the test items, beside raw pixels. The picture shows queries
# MAGIC with their nearest neighbours; a green frame says that the class is the same.

# COMMAND ----------

evaluated = evaluate.run(context)
print(evaluated.words)

picture = evaluated.picture  # None where items are vectors
if IN_NOTEBOOK and picture is not None:
    from IPython.display import Image, display

    files, path = artifacts.filesystem(picture)
    with files.open_input_stream(path) as stream:
        display(Image(data=stream.read()))
elif picture is not None:
    print(picture)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Release
# MAGIC Registers encoder and index as one MLflow model and makes it the champion, if the gate lets
# MAGIC it pass. A refusal stops here, and the champion stays.

# COMMAND ----------

released = release.run(context)
print(released.words)

# COMMAND ----------

# MAGIC %md
# MAGIC ## Query
# MAGIC Asks the champion for items like the evaluation's sample images: ids, labels, distances.

# COMMAND ----------

answered = query.run(context, k=5)
print(answered.words)

table = pd.DataFrame(
    [
        {"query": Path(name).stem, **found.model_dump()}
        for name, answer in answered.answers.items()
        for found in answer
    ]
).round(4)
if IN_NOTEBOOK:
    display(table)
else:
    print(table.to_string(index=False))

# COMMAND ----------

# MAGIC %md
# MAGIC ## The end
# MAGIC Stops the Spark session that this notebook started. Databricks' own stays.

# COMMAND ----------

opened.close()
