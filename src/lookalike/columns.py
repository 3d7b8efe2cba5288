"""Names of columns that more than one room reads, and of the splits."""

from __future__ import annotations

from typing import Final

ITEM_ID: Final = "item_id"
LABEL: Final = "label"

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"

ENCODER: Final = "encoder"
VECTOR: Final = "vector"

# The training snapshot: a row is a pack of images of one class.
CLASS_ID: Final = "class_id"
COUNT: Final = "count"
PIXELS: Final = "pixels"
ITEM_IDS: Final = "item_ids"
