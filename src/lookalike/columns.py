"""Names of the columns of the Delta tables and of the files made from them."""

from __future__ import annotations

from typing import Final

ITEM_ID: Final = "item_id"
GROUP_ID: Final = "group_id"
SHA256: Final = "sha256"
LABEL: Final = "label"
ATTRIBUTES: Final = "attributes"
SOURCE: Final = "source"
SOURCE_VERSION: Final = "source_version"
UPDATED_AT: Final = "updated_at"

MEDIA: Final = "media"
BYTES: Final = "bytes"
WIDTH: Final = "width"
HEIGHT: Final = "height"
PHASH: Final = "phash"

SPLIT: Final = "split"
DECIDED_BY: Final = "decided_by"
TRAIN: Final = "train"
VALIDATION: Final = "validation"
TEST: Final = "test"

REASON: Final = "reason"
DETAIL: Final = "detail"
SEEN_AT: Final = "seen_at"

ENCODER: Final = "encoder"
VECTOR: Final = "vector"

# The training snapshot: a row is a pack of images of one class.
CLASS_ID: Final = "class_id"
COUNT: Final = "count"
PIXELS: Final = "pixels"
ITEM_IDS: Final = "item_ids"
