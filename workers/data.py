"""Rows of a data set from a JSONL, JSON, CSV or Parquet file, or a zip of images, each checked; it needs no torch.

Files are read as streams: JSONL, CSV and Parquet of any size in bounded memory, one JSON array of up to ``JSON_BYTES_LIMIT``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from wegeft.contracts.errors import InvalidData, Problem
from wegeft.contracts.job import DatasetSpec
from workers.labelled_rows import ANY_TEXT, RowRules
from workers.located import Located
from workers.records import read_records
from workers.rows import AnyRow, explain_columns, infer_type, make_row

PROBLEMS_SHOWN = 20
"""Problems listed one by one; the others are counted."""


@dataclass
class _Complaints:
    """What is wrong with the rows, in the order of the files; keeps the first ones and counts the rest."""

    kept: list[Problem] = field(default_factory=list)
    count: int = 0
    bad_rows: int = 0

    def add(self, problem: Problem) -> None:
        self.count += 1
        if len(self.kept) < PROBLEMS_SHOWN:
            self.kept.append(problem)

    def add_row(self, where: str, located: Located, problems: Iterable[Problem]) -> None:
        self.bad_rows += 1
        place = located.place(where)
        for problem in problems:
            path = f"{place}: {problem.path}" if problem.path else place
            self.add(problem.model_copy(update={"path": path, "line": located.line}))

    def raise_any(self) -> None:
        if not self.count:
            return
        more = self.count - len(self.kept)
        tail = [Problem(message=f"and {more} more problem{'s' if more > 1 else ''}")] if more else []
        rows = f" in {self.bad_rows} row{'s' if self.bad_rows > 1 else ''}" if self.bad_rows else ""
        raise InvalidData(f"{self.count} problem{'s' if self.count > 1 else ''}{rows} of the data", problems=[*self.kept, *tail])


def read_rows(path: Path, spec: DatasetSpec, where: str | None = None, rules: RowRules = ANY_TEXT) -> list[AnyRow]:
    """Return the rows of one file; ``where`` names it in messages instead of its file name.

    Raises ``InvalidData`` with every bad row: its line or number, column, value, and what would be right.
    """
    return read_datasets([(path, spec, where or path.name)], rules)


def read_datasets(files: Sequence[tuple[Path, DatasetSpec, str]], rules: RowRules = ANY_TEXT) -> list[AnyRow]:
    """Return the rows of several files, in order; each comes with the name that messages give it.

    Raises ``InvalidData`` with the problems of all files.
    """
    complaints = _Complaints()
    rows = [row for path, spec, where in files for row in _rows(path, spec, where, (rules, complaints))]
    complaints.raise_any()
    return rows


def count_rows(path: Path, spec: DatasetSpec, where: str | None = None, rules: RowRules = ANY_TEXT) -> int:
    """Check one file as ``read_rows`` does, keeping no row, and return how many there are."""
    complaints = _Complaints()
    count = sum(1 for _ in _rows(path, spec, where or path.name, (rules, complaints)))
    complaints.raise_any()
    return count


def _rows(path: Path, spec: DatasetSpec, where: str, asked: tuple[RowRules, _Complaints]) -> Iterator[AnyRow]:
    rules, complaints = asked
    kind, is_empty = spec.type, True
    try:
        for located in read_records(path, spec):
            is_empty = False
            if isinstance(located.record, Problem):
                complaints.add_row(where, located, [located.record])
                continue
            if kind is None and isinstance(located.record, dict):
                kind = infer_type(located.record, spec, rules)
                if kind is None:
                    complaints.add_row(where, located, [explain_columns(located.record, spec)])
                    return
            row = make_row(located.record, spec, kind, rules) if kind else [Problem(message="a row must be a mapping of columns")]
            if isinstance(row, list):
                complaints.add_row(where, located, row)
            else:
                yield row
    except InvalidData as error:
        for problem in error.problems:
            complaints.add(problem.model_copy(update={"path": where}))
        return
    if is_empty:
        complaints.add(Problem(path=where, message="the data set has no rows"))
