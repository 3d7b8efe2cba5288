"""Small pictures of the items, carried with a release and mapped into memory."""

from __future__ import annotations

import base64
from bisect import bisect_left
from collections.abc import Iterable
from pathlib import Path
from typing import Final

import pyarrow as pa

from lookalike.columns import ITEM_ID
from lookalike.errors import ArtifactError

FILE: Final = "thumbnails.arrow"
IMAGE: Final = "thumbnail"
_SCHEMA: Final = pa.schema([(ITEM_ID, pa.large_string()), (IMAGE, pa.large_binary())])


class Thumbnails:
    """By item, a JPEG file.

    Args:
        path: of what `write` wrote.

    Raises:
        ArtifactError: it cannot be read.
    """

    def __init__(self, path: Path):
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        except (pa.ArrowInvalid, OSError) as error:
            raise ArtifactError(
                f"{path} cannot be read ({str(error).splitlines()[0]})",
                remedy="Run `lookalike release` again",
            ) from error
        self._ids: pa.ChunkedArray = table[ITEM_ID]
        self._files: pa.ChunkedArray = table[IMAGE]

    def __len__(self) -> int:
        return len(self._ids)

    def find(self, item_id: str) -> str | None:
        """An item's picture as a data URL, or None where there is none."""
        row = bisect_left(self._ids, item_id, key=lambda text: text.as_py())
        if row == len(self._ids) or self._ids[row].as_py() != item_id:
            return None
        return "data:image/jpeg;base64," + base64.b64encode(self._files[row].as_py()).decode()


def write(folder: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write what `Thumbnails` reads: item_id, ascending, and thumbnail (a JPEG file)."""
    with (
        pa.OSFile(str(folder / FILE), "wb") as sink,
        pa.ipc.new_file(sink, _SCHEMA) as file,
    ):
        # One after another: a shop's pictures need not fit into memory.
        for batch in batches:
            columns = [batch.column(field.name).cast(field.type) for field in _SCHEMA]
            file.write_batch(pa.record_batch(columns, schema=_SCHEMA))
