"""Bounded samples in which queries find something, by real Spark."""

from collections import Counter
from itertools import pairwise

import pytest
from pyspark.sql import DataFrame, SparkSession

from lookalike.lake.samples import by_hash, in_pairs, with_answers

SIZES = {f"product {n:03d}": 5 for n in range(100)} | {"shirts": 400, "socks": 100, "odd": 3}
ALONE = [f"alone {n:03d}" for n in range(100)]


@pytest.fixture(scope="module")
def items(spark: SparkSession) -> DataFrame:
    """1,003 items of classes of several, 100 that are alone in theirs."""
    sizes = SIZES | dict.fromkeys(ALONE, 1)
    rows = [(f"{label}/{n}", label) for label, count in sizes.items() for n in range(count)]
    return spark.createDataFrame(rows, "item_id string, label string")


def labels(items: DataFrame) -> Counter[str]:
    return Counter(row["label"] for row in items.collect())


def test_whatever_the_limit_items_are_of_a_class_with_another(items: DataFrame) -> None:
    drawn = [(limit, in_pairs(items, limit)) for limit in (2, 50, 51, 300, 1003, 1050, 2000)]
    chosen = [(limit, {row["item_id"] for row in sample.collect()}) for limit, sample in drawn]
    for limit, ids in chosen:
        assert len(ids) == min(limit, 1103)
        of_class = Counter(item_id.split("/")[0] for item_id in ids)
        single = [label for label, count in of_class.items() if count == 1]
        # One pair may be cut by the limit; who is alone comes after all that are not.
        assert len([label for label in single if label not in ALONE]) <= 1
        assert len([label for label in single if label in ALONE]) == max(0, len(ids) - 1003)
    assert all(fewer < more for (_, fewer), (_, more) in pairwise(chosen))
    # By hash an item at a time, most photos would be without another of their product.
    alone = [label for label, count in labels(by_hash(items, 300)).items() if count == 1]
    assert len(alone) > 50


def test_large_classes_keep_their_share(items: DataFrame) -> None:
    of_class = labels(in_pairs(items, 400))
    # 200, 50, and 201 of some 451 pairs.
    assert 0.3 < of_class["shirts"] / 400 < 0.55
    assert 0.05 < of_class["socks"] / 400 < 0.2


def test_the_same_whatever_the_order_of_items(items: DataFrame) -> None:
    one, other = (in_pairs(frame, 77).collect() for frame in (items, items.repartition(5, "label")))
    assert one == other


def test_answers_come_first(items: DataFrame) -> None:
    queries = items.where("item_id IN ('product 007/0', 'product 008/1', 'socks/3')")
    mates = {"product 007": 5, "product 008": 5, "socks": 100}
    found = with_answers(items, queries, 200)
    assert found.columns == items.columns
    of_class = labels(found)
    assert of_class.total() == 200
    assert {label: of_class[label] for label in mates} == mates
    assert len(of_class) > 30  # the rest is of the whole catalogue
    few = labels(with_answers(items, queries, 40))
    assert few.total() == 40
    assert few.keys() <= mates.keys()
    assert few["socks"] > 25
