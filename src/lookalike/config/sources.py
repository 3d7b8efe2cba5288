"""Where a catalogue comes from: a model for each `data.source`."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from lookalike.config.fields import Model, Positive, Share

Split = Literal["train", "validation", "test"]


class _Data(Model):
    """What every source has.

    A split that the source gives an item is kept, except that validation is cut from what is given
    for training where the source gives none; what has no split gets one by hash.
    """

    validation_share: Share = Field(0.1, description="where the source gives no validation split")
    test_share: Share = Field(0.1, description="of items without a split, where it gives no test")
    unseen_classes: Share | tuple[str, ...] = Field(
        0.0, description="share, or names, of the classes kept out of training, to test on"
    )
    max_reject_share: Share = 0.05
    repeated_ids: Literal["refuse", "first", "last"] = Field(
        "refuse", description="of rows of one item_id: refuse the load, or take the one"
    )
    check: bool = Field(True, description="decode every image once, to reject what is damaged")
    phash: bool = Field(True, description="perceptual hashes, by which near duplicates are found")
    max_bytes: Positive = Field(64 * 2**20, description="larger files are rejected unread")

    @model_validator(mode="after")
    def _hashed_is_checked(self) -> _Data:
        if self.phash and not self.check:
            raise ValueError("check = False, but phash decodes every image too: set it to False")
        return self


class _Named(_Data):
    """A source that may name splits."""

    split_names: Annotated[dict[str, Split], Field(min_length=1)] = {
        **dict.fromkeys(("train", "training"), "train"),
        **dict.fromkeys(("validation", "val", "valid", "dev"), "validation"),
        **dict.fromkeys(("test", "testing"), "test"),
    }

    @field_validator("split_names", mode="before")
    @classmethod
    def _whatever_the_case(cls, names: Any) -> Any:
        if isinstance(names, dict):
            return {str(name).strip().lower(): split for name, split in names.items()}
        return names


class IdxFiles(Model):
    """Images and their labels, as IDX files, gzipped or not."""

    images: str
    labels: str


class IdxData(_Data):
    """A catalogue in IDX files, the format of MNIST and its kin."""

    source: Literal["idx"]
    train: IdxFiles
    test: IdxFiles
    label_names: tuple[str, ...] | None = Field(None, description="names of labels 0, 1, 2 ...")


Level = Annotated[
    int, Field(description="a folder between root and file: 1 the outermost, -1 the innermost")
]


class FolderData(_Named):
    """Image files in folders; an item's id is its path below the root."""

    source: Literal["folder"]
    root: str
    suffixes: tuple[str, ...] = Field(
        (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        description="files of other names are passed over, and counted; empty: none is",
    )
    label: Level | None = -1
    split: Level | None = None
    attributes: dict[str, Level] = {}
    pattern: str | None = Field(
        None,
        description="regular expression on the path below the root; its named groups label, "
        "group_id and split are these, others are attributes; they come before the levels",
    )

    @field_validator("label", "split", "attributes")
    @classmethod
    def _no_level_zero(cls, value: Any) -> Any:
        if 0 in (value.values() if isinstance(value, dict) else (value,)):
            raise ValueError("levels count from 1, or from -1 backwards")
        return value

    @field_validator("pattern")
    @classmethod
    def _with_groups(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                groups = re.compile(pattern).groupindex
            except re.error as error:
                raise ValueError(f"no regular expression: {error}") from error
            if not groups:
                raise ValueError("it has no named group, such as (?P<label>...)")
        return pattern


class Fetch(Model):
    """How images are fetched from their URLs."""

    connections: Positive = Field(16, description="open at once, in all")
    timeout: Annotated[float, Field(gt=0)] = Field(10, description="seconds without an answer")
    deadline: Annotated[float, Field(gt=0)] = Field(60, description="seconds for one URL in all")
    retries: Annotated[int, Field(ge=0)] = 3
    backoff: Annotated[float, Field(ge=0)] = Field(0.5, description="seconds, doubled each time")


class _Table(_Named):
    """A table of items. Keys of roles name its columns; what has no role is an attribute."""

    table: str = Field(description="CSV, JSON lines or Parquet files, a Delta folder or table name")
    format: Literal["csv", "json", "parquet", "delta"] | None = Field(
        None, description="else by the name: .csv, .tsv, .json, .jsonl, .ndjson, .parquet; or delta"
    )
    delimiter: Annotated[str, Field(min_length=1, max_length=1)] | None = Field(
        None, description="of CSV; else a tab for .tsv, a comma for others"
    )
    item_id: str = "item_id"
    label: str = "label"
    group_id: str = "group_id"
    split: str = "split"
    version: str | None = Field(
        None,
        description="column that changes when the content does; else a file's time and size, and "
        "what the row itself holds: the same URL is not fetched again",
    )


class ManifestData(_Table):
    """A table of items whose images lie at a path, at a URL, or in the table itself."""

    source: Literal["manifest"]
    path: str | None = Field(None, description="column of paths below `root`, absolute or not")
    url: str | None = Field(None, description="column of http:// or https:// addresses")
    bytes: str | None = Field(None, description="column of image files, binary or base64")
    root: str | None = Field(None, description="folder that holds the paths; else the table's own")
    fetch: Fetch = Fetch()

    @model_validator(mode="after")
    def _one_content(self) -> ManifestData:
        named = [key for key in ("path", "url", "bytes") if getattr(self, key) is not None]
        if len(named) != 1:
            raise ValueError(
                f"{' and '.join(named) or 'none'} of path, url and bytes is given. Name the column "
                "of one of them"
            )
        if self.root is not None and self.path is None:
            raise ValueError("root is where paths lie: give the column `path`, or leave root out")
        return self


class TextData(_Table):
    """A table of texts, such as titles."""

    source: Literal["text"]
    text: str = "text"


class VectorsData(_Table):
    """A table of items with vectors of their own: nothing is trained, the index takes them."""

    source: Literal["vectors"]
    vector: str = "vector"
    dim: Annotated[int, Field(ge=1, le=65_536)] = Field(description="length of a vector")


Data = Annotated[
    IdxData | FolderData | ManifestData | TextData | VectorsData, Field(discriminator="source")
]
TableData = ManifestData | TextData | VectorsData


SOURCES: dict[str, type[_Data]] = {
    "idx": IdxData,
    "folder": FolderData,
    "manifest": ManifestData,
    "text": TextData,
    "vectors": VectorsData,
}
