"""Bounded samples of items: by hash, and so that a query has something to find.

Of a catalogue of a few photos a product, items drawn one by one would hardly ever be of one class.
"""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F


def by_hash(items: DataFrame, limit: int) -> DataFrame:
    """At most `limit` of the items."""
    return items.orderBy(*_shuffled()).limit(limit)


def in_pairs(items: DataFrame, limit: int) -> DataFrame:
    """At most `limit` of the labelled items, two or three of a class at a time.

    A class is drawn as often as it has pairs, so large ones keep their share. Items that are alone
    in their class come last: within the sample they find nothing.

    Args:
        items: item_id and label, none of them null, among its columns.
        limit: how many at most.
    """
    of_class = Window.partitionBy("label")
    place = F.row_number().over(of_class.orderBy(*_shuffled())) - 1
    pairs = F.floor(F.count("*").over(of_class) / 2)
    # An odd class's last item goes with the pair before it; the pair of one that is alone is -1.
    pair = F.least(F.floor(place / 2), pairs - 1)
    order = (F.col("pair") < 0, F.xxhash64("label", "pair"), "label", "pair", *_shuffled())
    return items.withColumn("pair", pair).orderBy(*order).limit(limit).drop("pair")


def with_answers(items: DataFrame, queries: DataFrame, limit: int) -> DataFrame:
    """At most `limit` of the items, those of the queries' classes first.

    Args:
        items: item_id and label among its columns.
        queries: label among its columns; few enough for each worker to hold.
        limit: how many at most.
    """
    asked = queries.select("label").distinct().withColumn("asked", F.lit(1))
    order = (F.col("asked").isNull(), *_shuffled())
    found = items.join(F.broadcast(asked), "label", "left").orderBy(*order).limit(limit)
    return found.select(items.columns)


def _shuffled() -> tuple[Column, Column]:
    """An order that depends on nothing but the ids."""
    return F.xxhash64("item_id"), F.col("item_id")
