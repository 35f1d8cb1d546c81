"""Records of a JSONL, JSON, CSV or Parquet file, or of a zip of images, with the place of each."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from wegeft.contracts.errors import InvalidData, Problem, shorten
from wegeft.contracts.job import DatasetSpec, FileFormat
from workers.image_archive import archive_records
from workers.located import RECORD_BYTES_LIMIT, Located
from workers.parquet_records import parquet_records
from workers.rows import expected_columns

JSON_BYTES_LIMIT = 512 << 20
"""A JSON array is read whole; a larger one must become JSONL."""
_UTF8_HINT = "save the file as UTF-8"


def read_records(path: Path, spec: DatasetSpec) -> Iterator[Located]:
    """Yield the records of a file, a ``Problem`` in place of each that cannot be read.

    Raises ``InvalidData`` where nothing more of the file can be read.
    """
    reader = _READERS[spec.inferred_format() or FileFormat.JSONL]
    try:
        yield from reader(path, spec)
    except FileNotFoundError as error:
        raise InvalidData("there is no such file", value=str(path)) from error
    except OSError as error:
        raise InvalidData(f"the file cannot be read: {error.strerror or error}", value=str(path)) from error


def _jsonl_records(path: Path, _spec: DatasetSpec) -> Iterator[Located]:
    row = 0
    with path.open("rb") as file:
        for number, line in _lines(file):
            if isinstance(line, Problem) or line.strip():
                row += 1
                yield Located(line if isinstance(line, Problem) else _parse_json(line), row, number)


def _lines(file: BinaryIO) -> Iterator[tuple[int, str | Problem]]:
    """Yield each line with its number, without a byte order mark, or the problem of one that is not UTF-8."""
    number = 0
    while raw := file.readline(RECORD_BYTES_LIMIT + 1):
        number += 1
        if len(raw) > RECORD_BYTES_LIMIT:
            message = f"line {number} is longer than {RECORD_BYTES_LIMIT >> 20} MiB"
            raise InvalidData(message, hint="is the file in the format that it says?")
        try:
            yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            start = max(0, error.start - 10)
            yield (
                number,
                Problem(message=f"not UTF-8 at byte {error.start + 1} of the line", value=shorten(raw[start:][:30]), hint=_UTF8_HINT),
            )


def _parse_json(text: str) -> object | Problem:
    try:
        record: object = json.loads(text)
    except json.JSONDecodeError as error:
        around = text[max(0, error.pos - 20) :][:40]
        return Problem(message=f"broken JSON at column {error.pos + 1}: {error.msg}", value=shorten(around) or "nothing")
    except (ValueError, RecursionError) as error:
        return Problem(message=f"broken JSON: {error}")
    return record


def _json_records(path: Path, spec: DatasetSpec) -> Iterator[Located]:
    with path.open("rb") as file:
        content = file.read(JSON_BYTES_LIMIT + 1)
    if len(content) > JSON_BYTES_LIMIT:
        raise InvalidData(
            f"a JSON array may have {JSON_BYTES_LIMIT >> 20} MiB", hint="write JSONL, one row a line, which may have any size"
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidData(f"not UTF-8 at byte {error.start + 1}", hint=_UTF8_HINT) from error
    if _is_json_lines(text):
        yield from _jsonl_records(path, spec)
        return
    yield from (Located(record, row) for row, record in enumerate(_parse_array(text), 1))


def _is_json_lines(text: str) -> bool:
    """Whether a ``.json`` file holds one object a line, as many tools write it."""
    first = text.lstrip().partition("\n")[0]
    return first.startswith("{") and isinstance(_parse_json(first), dict)


def _parse_array(text: str) -> list[object]:
    if not text.strip():
        return []
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise InvalidData(f"broken JSON at line {error.lineno}, column {error.colno}: {error.msg}") from error
    except (ValueError, RecursionError) as error:
        raise InvalidData(f"broken JSON: {error}") from error
    if not isinstance(rows, list):
        raise InvalidData("a JSON file must hold an array of rows, or one row a line", value=text[:40])
    return rows


def _csv_records(path: Path, _spec: DatasetSpec) -> Iterator[Located]:
    csv.field_size_limit(RECORD_BYTES_LIMIT)
    broken: list[tuple[int, Problem]] = []
    with path.open("rb") as file:
        reader = csv.reader(_csv_lines(file, broken), strict=True)
        header = _read_header(reader, broken)
        yield from _csv_rows(reader, header, broken)


class _CsvReader(Protocol):
    line_num: int

    def __next__(self) -> list[str]: ...


def _csv_rows(reader: _CsvReader, header: list[str], broken: list[tuple[int, Problem]]) -> Iterator[Located]:
    row = 0
    while True:
        line = reader.line_num + 1
        values = _next_csv(reader)
        if broken:
            row += 1
            yield Located(broken[0][1], row, broken[0][0])
            broken.clear()
        elif isinstance(values, Problem):
            yield Located(values, row + 1, line)
            return
        elif values:
            row += 1
            yield Located(_as_record(header, values), row, line)
        if values is None:
            return


def _csv_lines(file: BinaryIO, broken: list[tuple[int, Problem]]) -> Iterator[str]:
    for number, line in _lines(file):
        if isinstance(line, Problem):
            broken.append((number, line))
        yield "" if isinstance(line, Problem) else line


def _next_csv(reader: _CsvReader) -> list[str] | Problem | None:
    try:
        return next(reader)
    except StopIteration:
        return None
    except csv.Error as error:
        return Problem(
            message=f"broken CSV: {error}", hint='a field with a comma, quote or line break must stand in "…", a quote in it as ""'
        )


def _read_header(reader: _CsvReader, broken: list[tuple[int, Problem]]) -> list[str]:
    """Return the names of the columns, none for an empty file."""
    header = _next_csv(reader)
    problem = broken[0][1] if broken else header
    if isinstance(problem, Problem):
        raise InvalidData(f"in the header: {problem.message}", value=problem.value, hint=problem.hint)
    names = header if isinstance(header, list) else []
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise InvalidData("a column appears twice in the header", value=", ".join(doubled))
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        raise InvalidData("columns must be separated by commas", value=names[0])
    return names


def _as_record(header: list[str], values: list[str]) -> dict[str, str] | Problem:
    if len(values) != len(header):
        return Problem(message=f"{len(values)} fields where the header has {len(header)}", value=shorten(", ".join(values)))
    return dict(zip(header, values, strict=True))


def _parquet_records(path: Path, spec: DatasetSpec) -> Iterator[Located]:
    yield from parquet_records(path, expected_columns(spec))


_READERS: dict[FileFormat, Callable[[Path, DatasetSpec], Iterator[Located]]] = {
    FileFormat.JSONL: _jsonl_records,
    FileFormat.JSON: _json_records,
    FileFormat.CSV: _csv_records,
    FileFormat.PARQUET: _parquet_records,
    FileFormat.ZIP: archive_records,
}
