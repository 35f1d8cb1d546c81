"""Rows of results in a file, a line each, appended as they are done: a bench that was killed goes on behind the last whole one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def kept_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the rows that were written whole, none where there is no file; a line that was cut by a kill is no row."""
    for line in path.read_bytes().splitlines() if path.exists() else []:
        try:
            yield json.loads(line)
        except ValueError:
            continue


def append_row(path: Path, row: Mapping[str, Any]) -> None:
    """Write a row behind the others, on a line of its own where the last one was cut."""
    with path.open("ab+") as file:
        if file.seek(0, os.SEEK_END):
            file.seek(-1, os.SEEK_END)
            is_cut = file.read(1) != b"\n"
        else:
            is_cut = False
        file.write(b"\n" * is_cut + json.dumps(row).encode() + b"\n")
