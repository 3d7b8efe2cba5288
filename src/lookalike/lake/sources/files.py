"""Files below a folder, as Spark's own reader finds and reads them: on any path it can."""

from __future__ import annotations

import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from pyspark.errors import AnalysisException
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F

from lookalike import artifacts
from lookalike.errors import DataError
from lookalike.lake.session import OPEN_COST
from lookalike.lake.sources import sent

SCHEME = "^[A-Za-z][A-Za-z0-9+.-]*:/+"
"""How an absolute path begins that says of which file system it is; in Python and in Spark."""
_FEW = 5_000
"""So many files are read by their names; more by a look through the folder."""

MANY_SMALL_FILES = {OPEN_COST: "65536"}
"""Settings under which files are read. With Spark's 4 MiB, a task reads 30 photos: 20,000 of them
are 600 tasks, which take longer than the reading."""


@dataclass(frozen=True)
class Files:
    """Files of certain suffixes below a folder, at any depth.

    Spark passes over files and folders whose names begin with '.' or '_', and over empty files.

    Attributes:
        spark: the session.
        root: folder or URI.
        suffixes: such as '.jpg', in any case; none: all files.
    """

    spark: SparkSession
    root: str
    suffixes: tuple[str, ...] = ()

    @property
    def location(self) -> str:
        """The root, whatever the working folder."""
        return located(self.root)

    def listing(self) -> DataFrame:
        """path, relative (the path below the root), version (time and size), size; all unread.

        Raises:
            DataError: there is no such folder.
        """
        return self._listed.select(
            "path",
            self.relative().alias("relative"),
            version().alias("version"),
            F.col("length").alias("size"),
        )

    def relative(self) -> Column:
        """The column `path` below the root."""
        # Spark writes a root in its own way ('file:/a' for '/a'), but ends it as we do.
        root = re.sub(SCHEME, "/", self.location)
        inner = root.rstrip("/") + "/"
        start = F.instr("path", inner)
        said = F.concat(F.lit(f"{self.location} is written otherwise in "), "path")
        rest = F.col("path").substr(start + len(inner), F.length("path"))
        return F.when(start > 0, rest).otherwise(F.raise_error(said).cast("string"))

    def read(self, wanted: DataFrame) -> DataFrame:
        """path, content of the files whose `path` is in `wanted`.

        A file that is gone by now, or cannot be read, has no row.
        """
        some = [row["path"] for row in wanted.select("path").limit(_FEW + 1).collect()]
        if len(some) <= _FEW:
            with suppress(DataError):  # one of them is gone: those that are left, by the long way
                return self._reader(some).select("path", "content")
        oldest = self._listed.join(wanted, "path", "left_semi").agg(F.min("modificationTime"))
        # Spark's reader opens no file that this filter leaves out.
        newer = self._reader(self.location).where(F.col("modificationTime") >= oldest.first()[0])  # type: ignore[index]
        whole = wanted.count() == self._listed.count()
        kept = newer if whole else newer.join(sent(wanted.select("path")), "path")
        return kept.select("path", "content")

    def beside(self) -> tuple[dict[str, str], dict[str, int]]:
        """What the listing of a local folder leaves out, where its files can be walked.

        Returns:
            Reasons by path below the root: 'hidden_name' for names with a leading '_', 'empty' for
            files of 0 bytes and 'broken_link' for links that lead nowhere, all of which Spark
            passes over without a word; and the number of files of other suffixes, by suffix.
        """
        local = artifacts.local_path(self.location)
        suffixes = tuple(suffix.lower() for suffix in self.suffixes)
        lost: dict[str, str] = {}
        others: Counter[str] = Counter()
        for folder, inner, names in os.walk(local) if local is not None else ():
            inner[:] = [name for name in inner if not name.startswith(".")]
            below = PurePosixPath(Path(folder).relative_to(local or "").as_posix())
            for name in names:
                if name.startswith("."):
                    continue
                path = below / name
                if self.suffixes and not name.lower().endswith(suffixes):
                    others[path.suffix.lower() or "none"] += 1
                elif any(part.startswith("_") and "=" not in part for part in path.parts):
                    lost[str(path)] = "hidden_name"
                elif not (size := _size(f"{folder}/{name}")):
                    if size is not None:
                        lost[str(path)] = "empty"
                    elif (Path(folder) / name).is_symlink():  # else it was deleted meanwhile
                        lost[str(path)] = "broken_link"
        return lost, dict(others.most_common())

    @cached_property
    def _listed(self) -> DataFrame:
        return self._reader(self.location)

    def _reader(self, paths: str | list[str]) -> DataFrame:
        reader = (
            self.spark.read.format("binaryFile")
            .option("recursiveFileLookup", "true")
            .option("ignoreMissingFiles", "true")
            .option("ignoreCorruptFiles", "true")
            # A folder may be named 'a [1]': names are names, not patterns.
            .option("__globPaths__", "false")
        )
        if self.suffixes and isinstance(paths, str):
            reader = reader.option("pathGlobFilter", f"*{{{','.join(map(_any, self.suffixes))}}}")
        try:
            return reader.load(paths)
        except AnalysisException as error:
            if "PATH_NOT_FOUND" in str(error):
                raise missing(self.root) from error
            raise


def located(path: str) -> str:
    """A folder or file as Spark writes it: absolute, without '..' and doubled slashes."""
    if (local := artifacts.local_path(path)) is not None:
        scheme = "file:" if path.startswith("file:") else ""
        return scheme + os.path.normpath(local)
    scheme, _, rest = path.partition(":")
    # Between the second and the third slash is a host: 'hdfs:///a' has none, 'hdfs://a' is one.
    slashes = min(len(rest) - len(rest.lstrip("/")), 3) or 1
    return f"{scheme}:{'/' * slashes}" + re.sub("/+", "/", rest).strip("/")


def _size(path: str) -> int | None:
    """Bytes of a file; None where there is none."""
    try:
        return os.path.getsize(path)  # noqa: PTH202  for each file
    except OSError:
        return None


def version() -> Column:
    """A file's version: the time it was written and its size."""
    written = F.unix_millis("modificationTime").cast("string")
    return F.concat_ws("-", written, F.col("length").cast("string"))


def unfit(size: int, limit: int) -> dict[str, str]:
    """reason and detail of a file that need not be read to be rejected; empty for others."""
    if size > limit:
        said = f"the file has {size:,} bytes. Allowed: at most {limit:,} (data.max_bytes)"
        return {"reason": "too_many_bytes", "detail": said}
    return {}


def missing(path: str) -> DataError:
    """The error for a path that is not there."""
    return DataError(f"there is no {path}", remedy="Check the paths under `data` in the recipe")


def _any(suffix: str) -> str:
    """A glob for a suffix in upper and lower case."""
    return "".join(f"[{c.lower()}{c.upper()}]" if c.isalpha() else c for c in suffix)
