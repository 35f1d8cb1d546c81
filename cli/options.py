"""Options that many commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import rich_click as click

from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.job import seconds_of

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add ``--json``, which the command receives as ``is_json``."""
    text = "Print JSON on standard output, and errors as JSON on standard error."
    return click.option("--json", "is_json", is_flag=True, help=text)(command)


def override_option(command: Command) -> Command:
    """Add ``-o key=value``, which the command receives as ``overrides``."""
    text = "Set a field of the job file, for example -o learning_rate=1e-3 or -o datasets.0.path=other.jsonl; may be given again."
    return click.option("-o", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help=text)(command)


def job_file_argument(command: Command) -> Command:
    """Add the job file as an argument, ``-`` being standard input; the command receives it as ``job_file``."""
    return click.argument("job_file", type=click.Path(path_type=Path, allow_dash=True))(command)


def parse_duration(text: str, option: str) -> timedelta:
    """Return the time that ``text`` names, ``90s``, ``5m``, ``12h`` or ``7d``; raise :class:`InvalidSetting` where it names none."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise InvalidSetting("not a duration", path=option, value=text, hint="a number and s, m, h or d, for example 90d")
    return timedelta(seconds=seconds_of(text))


def example(text: str) -> str:
    """Return an epilog that shows how a command is called."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])
