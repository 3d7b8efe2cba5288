"""Names of columns that more than one room reads, and of the splits."""

from __future__ import annotations

from typing import Final

ITEM_ID: Final = "item_id"
LABEL: Final = "label"
ATTRIBUTES: Final = "attributes"
FAMILY: Final = "lookalike.family"
"""The attribute, in an index, that photos of one product and copies have in common. A catalogue's
own attributes are named by its source."""

TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"
UNSEEN: Final = "unseen_class"
"""What decided the split of a test item whose class is kept out of training."""

ENCODER: Final = "encoder"
VECTOR: Final = "vector"

# The training snapshot: a row is a pack of images of one class, side by side in PIXELS: decoded, or
# the files as they came, whose LENGTHS are uint32, little-endian.
CLASS_ID: Final = "class_id"
COUNT: Final = "count"
PIXELS: Final = "pixels"
LENGTHS: Final = "lengths"
ITEM_IDS: Final = "item_ids"

# Media types of contents that are no image files.
TEXT_MEDIA: Final = "text/plain"
VECTOR_MEDIA: Final = "application/x-float32"  # little-endian, one after the other
