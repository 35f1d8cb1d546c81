"""A record of a data file and where it was."""

from __future__ import annotations

from dataclasses import dataclass

from wegeft.contracts.errors import Problem

RECORD_BYTES_LIMIT = 64 << 20
"""A larger record is taken for a file that is not what it says, and not read into memory."""


@dataclass(frozen=True, slots=True)
class Located:
    """A record and where it was, or what kept it from being read."""

    record: object | Problem
    row: int
    """1-based."""
    line: int | None = None
    """1-based; None where the format has no lines."""
    name: str | None = None
    """Of the file in an archive."""

    def place(self, where: str) -> str:
        """Return where the record is, in the data set called ``where``; its line is told apart."""
        if self.name is not None:
            return f"{where}: {self.name}"
        return where if self.line is not None else f"{where} row {self.row}"
