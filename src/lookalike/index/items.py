"""What is known of a part's items, by row: ids, labels and attributes, as mapped Arrow columns.

`items.arrow` is one record batch, so that a row is found without a search through batches:

| column | type |
|---|---|
| item_id | large_string, ascending in each of the part's runs |
| label | dictionary<int32, string>, null where there is none; large_string from 2 GiB on |
| attribute:KEY | the same, a column for each key that an item of the part has |

An attribute's value is kept as its text; see `lookalike.index.where` for how texts are compared
with numbers.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lookalike.columns import ATTRIBUTES, ITEM_ID, LABEL
from lookalike.errors import ArtifactError, DataError

ITEMS_FILE: Final = "items.arrow"
_KEY: Final = "attribute:"
_ONE_BY_ONE: Final = 50
"""Rows whose texts are read faster one by one than by a call of Arrow's."""
_LARGE: Final = 2**31  # bytes of text that offsets of int32 do not reach
_NUMBER: Final = r"^[+-]?([0-9]{1,200}(\.[0-9]{0,200})?|\.[0-9]{1,200})([eE][+-]?[0-9]{1,2})?$"

UNREADABLE: Final = (pa.ArrowException, OSError, KeyError, ValueError, TypeError, AttributeError)
"""What reading a damaged Arrow file raises: something is not there, or is of another type."""

Attributes = Mapping[str, str] | None


class Items:
    """The items of some rows.

    Args:
        columns: item_id, label, and 'attribute:KEY' for each key; one chunk each.
        runs: (first row, row after the last) of stretches in which ids ascend.
    """

    def __init__(self, columns: dict[str, pa.Array], runs: Sequence[tuple[int, int]] = ()):
        self.ids = columns[ITEM_ID]
        self.labels = columns[LABEL]
        self._columns = columns
        self._runs = runs
        self._id_texts = _Texts(self.ids)
        self._label_texts = _Texts(self.labels.dictionary)
        self._label = lru_cache(2**16)(self._label_of)
        # Of a column, what comparing needs beside it; made when a filter first names it.
        self._codes = lru_cache(maxsize=None)(self._codes_of)
        self._numbers = lru_cache(maxsize=None)(self._numbers_of)

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def of(
        cls,
        ids: Sequence[str],
        labels: Sequence[str | None],
        attributes: Sequence[Attributes],
    ) -> Items:
        """Items from Python's values."""
        maps = pa.array([None if a is None else list(a.items()) for a in attributes], _MAPS)
        return cls.gathered(
            [pa.record_batch([pa.array(ids, pa.string()), pa.array(labels, pa.string()), maps],
                             [ITEM_ID, LABEL, ATTRIBUTES])]
        )  # fmt: skip

    @classmethod
    def gathered(cls, batches: Sequence[pa.RecordBatch]) -> Items:
        """Items from record batches with item_id, label and, where there are any, attributes."""
        columns: dict[str, pa.Array] = {
            ITEM_ID: _whole([b.column(ITEM_ID) for b in batches], pa.large_string()),
            LABEL: _encoded([b.column(LABEL) for b in batches]),
        }
        found: dict[str, list[tuple[np.ndarray, pa.Array]]] = {}
        begin = 0
        for batch in batches:
            if ATTRIBUTES in batch.schema.names:
                for key, rows, values in _by_key(batch.column(ATTRIBUTES)):
                    found.setdefault(key, []).append((rows + begin, values))
            begin += batch.num_rows
        for key in sorted(found):
            rows = np.concatenate([rows for rows, _ in found[key]])
            texts = _encoded([values for _, values in found[key]])
            codes = np.full(begin, -1, np.int32)
            codes[rows] = pc.fill_null(texts.indices, -1).to_numpy(zero_copy_only=False)
            indices = pa.array(codes, mask=codes < 0)
            columns[_KEY + key] = pa.DictionaryArray.from_arrays(indices, texts.dictionary)
        return cls(columns, [(0, begin)])

    def reordered(self, rows: np.ndarray, runs: Sequence[tuple[int, int]]) -> Items:
        """The items in another order of rows."""
        taken = pa.array(rows)
        return Items({name: c.take(taken) for name, c in self._columns.items()}, runs)

    def write(self, folder: Path) -> None:
        """Write what `read` maps."""
        names = list(self._columns)
        batch = pa.record_batch(list(self._columns.values()), names)
        with (
            pa.OSFile(str(folder / ITEMS_FILE), "wb") as sink,
            pa.ipc.new_file(sink, batch.schema) as file,
        ):
            file.write_batch(batch)

    @classmethod
    def read(cls, folder: Path, runs: Sequence[tuple[int, int]] | None) -> Items:
        """Map what `write` wrote.

        Args:
            folder: of the part.
            runs: as committed; None for parts of format 1, which are one run.

        Raises:
            ArtifactError: naming the file that cannot be read.
        """
        file = folder / ITEMS_FILE
        try:
            table = pa.ipc.open_file(pa.memory_map(str(file))).read_all()
            columns = {name: _one_chunk(table[name]) for name in table.column_names}
            if columns[LABEL].type == pa.string():  # format 1
                columns[LABEL] = columns[LABEL].dictionary_encode()
            return cls(columns, runs or [(0, table.num_rows)])
        except UNREADABLE as error:
            raise ArtifactError(
                f"{file} cannot be read ({str(error).splitlines()[0]})",
                remedy="Run `lookalike index` again",
            ) from error

    @property
    def keys(self) -> list[str]:
        """Keys that attributes have."""
        return [name.removeprefix(_KEY) for name in self._columns if name.startswith(_KEY)]

    def find(self, item_id: str) -> int | None:
        """The row of an item, or None; by halving each run, so nothing is read but what it asks."""
        for begin, end in self._runs:
            row = bisect_left(self._id_texts, item_id, begin, end)
            if row < end and self._id_texts[row] == item_id:
                return row
        return None

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """Ids of some rows."""
        if len(rows) <= _ONE_BY_ONE:
            return self._id_texts.of(rows)
        return _listed(self.ids.take(pa.array(rows)))

    def labels_of(self, rows: np.ndarray) -> list[str | None]:
        """Labels of some rows; None where there is none."""
        if len(rows) <= _ONE_BY_ONE:
            return [self._label(code) for code in self._codes(LABEL)[rows].tolist()]
        return _listed(self.labels.dictionary.take(self.labels.indices.take(pa.array(rows))))

    def attributes(self, rows: np.ndarray) -> list[dict[str, str] | None]:
        """Attributes of some rows; None for those without any."""
        taken = pa.array(rows)
        texts = {key: self._columns[_KEY + key].take(taken).to_pylist() for key in self.keys}
        found = [{k: t[i] for k, t in texts.items() if t[i] is not None} for i in range(len(rows))]
        return [one or None for one in found]

    def attribute(self, rows: np.ndarray, key: str) -> list[str | None]:
        """One attribute's value of some rows; None where there is none."""
        column = self._columns.get(_KEY + key)
        if column is None:
            return [None] * len(rows)
        values: list[str | None] = column.take(pa.array(rows)).to_pylist()
        return values

    def among(self, ids: pa.Array) -> np.ndarray:
        """bool (rows,): whether the item is one of these."""
        found = pc.is_in(self.ids, value_set=ids.cast(pa.large_string()))
        return found.to_numpy(zero_copy_only=False)

    def texts(self, name: str) -> tuple[pa.Array, np.ndarray] | None:
        """The different texts of a column, and by row which it has; their number for none.

        Args:
            name: item_id, label, or 'attribute:KEY'; None comes back where no item has the key.
        """
        column = self._columns.get(name)
        if column is None:
            return None
        return (column.dictionary if name != ITEM_ID else column), self._codes(name)

    def numbers(self, name: str) -> np.ndarray:
        """float64, of each text of `texts`: the number that it is, or NaN."""
        return self._numbers(name)

    def _label_of(self, code: int) -> str | None:
        return None if code == len(self._label_texts) else self._label_texts[code]

    def _codes_of(self, name: str) -> np.ndarray:
        column = self._columns[name]
        if name == ITEM_ID:
            return np.arange(len(column))
        codes = column.indices
        codes = pc.fill_null(codes, len(column.dictionary)) if codes.null_count else codes
        return codes.to_numpy(zero_copy_only=False)

    def _numbers_of(self, name: str) -> np.ndarray:
        column = self._columns[name]
        texts = column if name == ITEM_ID else column.dictionary
        is_number = pc.match_substring_regex(texts, _NUMBER)
        numbers = pc.if_else(is_number, texts, pa.scalar(None, texts.type)).cast(pa.float64())
        return pc.fill_null(numbers, np.nan).to_numpy(zero_copy_only=False)


_MAPS: Final = pa.map_(pa.string(), pa.string())


def column_of(key: str) -> str:
    """The column of an attribute."""
    return _KEY + key


class _Texts:
    """A column's texts one by one, read where they lie: Arrow's own calls are made for many."""

    def __init__(self, column: pa.Array):
        _, offsets, data = column.buffers()
        begin, end = column.offset, column.offset + len(column) + 1
        self._offsets: Sequence[int] = [0]
        if len(column):  # a number of it is read faster than one of an array of numpy
            wide = memoryview(offsets).cast("q" if column.type == pa.large_string() else "i")
            self._offsets = wide[begin:end]
        self._data = memoryview(data if data is not None else b"")

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, row: int) -> str:
        return str(self._data[self._offsets[row] : self._offsets[row + 1]], "utf-8")

    def of(self, rows: np.ndarray) -> list[str]:
        """Those of some rows."""
        data, limits = self._data, self._offsets
        return [str(data[limits[row] : limits[row + 1]], "utf-8") for row in rows.tolist()]


def _listed(texts: pa.Array) -> list[Any]:
    # By way of numpy, which is many times as fast as Arrow's own way to Python.
    found: list[Any] = texts.to_numpy(zero_copy_only=False).tolist()
    return found


def ascending(last: str, ids: pa.Array) -> str:
    """The last of some ids that must come after `last` and ascend.

    Raises:
        DataError: naming the first that does not.
    """
    before = pa.concat_arrays([pa.array([last], ids.type), ids[:-1]])
    later = pc.greater(ids, before).to_numpy(zero_copy_only=False)
    if not later.all():
        place = int(np.argmin(later))
        raise DataError(
            f"item {ids[place].as_py()!r} came to the index after {before[place].as_py()!r}: "
            "twice, or out of order",
            remedy="Run `lookalike ingest` and `lookalike index` again",
        )
    return str(ids[-1].as_py())


def _whole(parts: Sequence[pa.Array], kind: pa.DataType) -> pa.Array:
    return _one_chunk(pa.chunked_array([part.cast(kind) for part in parts], kind))


def _encoded(parts: Sequence[pa.Array]) -> pa.DictionaryArray:
    """Texts by number: all together may be longer than 2 GiB, of different ones as few are."""
    found = _whole(parts, pa.large_string()).dictionary_encode()
    if found.dictionary.nbytes >= _LARGE:
        return found
    return pa.DictionaryArray.from_arrays(found.indices, found.dictionary.cast(pa.string()))


def _one_chunk(column: pa.ChunkedArray) -> pa.Array:
    return column.chunk(0) if column.num_chunks == 1 else pa.concat_arrays(
        column.chunks or [pa.array([], column.type)]
    )  # fmt: skip


def _by_key(maps: pa.Array) -> list[tuple[str, np.ndarray, pa.Array]]:
    """By key: the rows that have it, and their values."""
    maps = maps.cast(_MAPS)
    lists = pa.ListArray.from_arrays(
        maps.offsets, pa.StructArray.from_arrays([maps.keys, maps.items], ["key", "value"])
    )
    # The lengths of the maps, for a null among them may have entries that nobody sees.
    rows = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
    pairs = lists.flatten()
    keys, values = pairs.field(0).dictionary_encode(), pairs.field(1)
    seen = np.ones(len(maps), bool) if not maps.null_count else ~np.asarray(maps.is_null())
    found = []
    codes = keys.indices.to_numpy(zero_copy_only=False)
    for code, key in enumerate(keys.dictionary.to_pylist()):
        places = np.flatnonzero((codes == code) & seen[rows])
        found.append((key, rows[places].astype(np.int64), values.take(pa.array(places))))
    return found
