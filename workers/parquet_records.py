"""Records of a Parquet file, in bounded memory: a few bytes of one can say the same long text a million times."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from wegeft.contracts.errors import InvalidData, shorten
from workers.located import RECORD_BYTES_LIMIT, Located

ROW_GROUP_BYTES_LIMIT = 4 << 30
"""Of a row group's columns that are read, decompressed."""
DECODED_BYTES_LIMIT = 1 << 30
EXPANSION_LIMIT = 100
"""All rows may have ``DECODED_BYTES_LIMIT`` bytes and so many times the bytes of the file."""
_ROWS_AT_ONCE = 1024
_BYTES_AT_ONCE = 64 << 20


def parquet_records(path: Path, expected: Collection[str]) -> Iterator[Located]:
    """Yield the records of a file: those of its columns that are ``expected``, or all where none is.

    Raises ``InvalidData`` if it is no Parquet file, or its rows are larger than they may be.
    """
    import pyarrow as pa
    from pyarrow import parquet

    allowed = DECODED_BYTES_LIMIT + EXPANSION_LIMIT * path.stat().st_size
    decoded = 0
    try:
        with parquet.ParquetFile(path) as probe:
            names = probe.schema_arrow.names
            columns = [name for name in names if name in expected] or names
            leaves = _leaves(probe, columns)
        # Texts stay in their dictionary until a row is taken, so that a batch is no larger than what its pages hold.
        with parquet.ParquetFile(path, read_dictionary=leaves) as file:
            _check_row_groups(file, columns)
            for row, record in enumerate(_records(file, columns), 1):
                size = _size_of(record)
                decoded += size
                _check_size(row, size, decoded, allowed)
                yield Located(record, row)
    except pa.ArrowException as error:
        raise InvalidData(f"not a readable Parquet file: {shorten(str(error))}") from error


def _leaves(file: Any, columns: Collection[str]) -> list[str]:
    """Return the paths of the texts and bytes under ``columns``."""
    leaves = (file.schema.column(index) for index in range(len(file.schema)))
    return [leaf.path for leaf in leaves if leaf.path.split(".")[0] in columns and leaf.physical_type == "BYTE_ARRAY"]


def _check_row_groups(file: Any, columns: Collection[str]) -> None:
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        chunks = (group.column(number) for number in range(group.num_columns))
        size = sum(chunk.total_uncompressed_size for chunk in chunks if chunk.path_in_schema.split(".")[0] in columns)
        if size > ROW_GROUP_BYTES_LIMIT:
            message = f"row group {index + 1} has {size >> 20} MiB, and may have {ROW_GROUP_BYTES_LIMIT >> 20}"
            raise InvalidData(message, hint="write the file with smaller row groups")


def _records(file: Any, columns: list[str]) -> Iterator[dict[str, object]]:
    for batch in _batches(file, columns):
        # No row is larger than the batch, so this many are no larger than _BYTES_AT_ONCE together.
        rows = max(1, _BYTES_AT_ONCE // max(1, batch.nbytes))
        for start in range(0, len(batch), rows):
            yield from batch.slice(start, rows).to_pylist()


def _batches(file: Any, columns: list[str]) -> Iterator[Any]:
    # A batch of two row groups would need two dictionaries, which Arrow cannot put into one nested column.
    for index in range(file.metadata.num_row_groups):
        yield from file.iter_batches(batch_size=_ROWS_AT_ONCE, row_groups=[index], columns=columns)


def _size_of(value: object) -> int:
    match value:
        case str() | bytes():
            return len(value)
        case dict():
            return sum(_size_of(part) for part in value.values())
        case list():
            return sum(_size_of(part) for part in value)
        case _:
            return 8


def _check_size(row: int, size: int, decoded: int, allowed: int) -> None:
    if size > RECORD_BYTES_LIMIT:
        raise InvalidData(f"row {row} is larger than {RECORD_BYTES_LIMIT >> 20} MiB")
    if decoded > allowed:
        message = f"its first {row} rows have {decoded >> 20} MiB, more than {EXPANSION_LIMIT} times the file and 1 GiB"
        raise InvalidData(message, hint="is the same long text written in every row? If so, write JSONL")
