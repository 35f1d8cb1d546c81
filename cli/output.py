"""What a command prints: tables and lines for a person, JSON for a script."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from pydantic import BaseModel
    from rich.console import Console

_WIDE = 10_000
"""Columns where nobody looks on: a table in a pipe is never cut."""


def is_terminal(stream: TextIO) -> bool:
    """Whether a person looks at the stream."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console() -> Console:
    """Return standard output: coloured on a terminal unless NO_COLOR is set, and otherwise plain and as wide as need be."""
    return _make_console(sys.stdout)


def error_console() -> Console:
    """Return standard error, where progress and problems go."""
    return _make_console(sys.stderr)


def _make_console(stream: TextIO) -> Console:
    from rich.console import Console

    if is_terminal(stream):
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=_WIDE, color_system=None, force_terminal=False)


def say(text: str, style: str | None = None) -> None:
    """Print one line to standard output, as it is."""
    console().print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def printable(text: str) -> str:
    """Return ``text`` with control characters written out: what a model or a file says must not steer the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else f"\\x{ord(char):02x}" for char in text)


def note(text: str) -> None:
    """Print one line to standard error: something to know that is not the answer."""
    error_console().print(text, style="dim", markup=False, highlight=False, soft_wrap=True)


def print_json(value: BaseModel | Sequence[BaseModel] | dict[str, object]) -> None:
    """Print one JSON document: of a model, a list of models, or plain data."""
    from pydantic import BaseModel

    if isinstance(value, BaseModel):
        text = value.model_dump_json(indent=2)
    elif isinstance(value, dict):
        text = json.dumps(value, indent=2, ensure_ascii=False)
    else:
        text = json.dumps([item.model_dump(mode="json") for item in value], indent=2, ensure_ascii=False)
    sys.stdout.write(text + "\n")


def print_json_line(value: BaseModel) -> None:
    """Print one line of JSON, at once."""
    sys.stdout.write(value.model_dump_json() + "\n")
    sys.stdout.flush()


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a table with a heading; columns whose name starts with ``#`` hold numbers."""
    from rich.table import Table
    from rich.text import Text

    cells = [[Text(printable(cell), style=state_style(cell)) for cell in row] for row in rows]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, name in enumerate(columns):
        # What comes first names the row, so it is never cut; the rest gives way on a narrow terminal.
        width = max((len(row[0]) for row in cells), default=0) if index == 0 else None
        justify: Literal["left", "right"] = "right" if name.startswith("#") else "left"
        table.add_column(name.lstrip("#").upper(), justify=justify, no_wrap=True, min_width=width)
    for row in cells:
        table.add_row(*row)
    console().print(table)


def print_fields(fields: Iterable[tuple[str, str | None]]) -> None:
    """Print ``name  value`` lines, leaving out what has no value."""
    known = [(name, value) for name, value in fields if value is not None]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        first, *rest = value.splitlines() or [""]
        say(f"{name:<{width}}  {first}")
        for line in rest:
            say(f"{'':<{width}}  {line}")


def state_style(word: str) -> str:
    """Return the colour of a job's state; none for any other word."""
    return {"succeeded": "green", "failed": "red", "cancelled": "yellow", "running": "cyan", "cancelling": "yellow"}.get(word, "")


def show_time(moment: datetime | None) -> str | None:
    """Return a moment in local time, to the second."""
    return None if moment is None else moment.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def show_age(moment: datetime, now: datetime | None = None) -> str:
    """Return how long ago a moment was, in its largest unit."""
    return show_duration(((now or datetime.now(UTC)) - moment).total_seconds()) + " ago"


def show_duration(seconds: float) -> str:
    """Return a time in one or two units: ``42 s``, ``3 min 5 s``, ``2 h 10 min``, ``3 d``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86_400} d"


def show_bytes(size: int) -> str:
    """Return a size in the largest unit that leaves a number above 1."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"
