"""Options that many commands share."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_args

import rich_click as click

from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.formats import DerivedFormat
from wegeft.contracts.job import seconds_of
from wegeft.contracts.methods import Method
from wegeft.contracts.native_formats import NativeFormat

Command = TypeVar("Command", bound=Callable[..., Any])


def json_option(command: Command) -> Command:
    """Add ``--json``, which the command receives as ``is_json``."""
    text = "Print JSON on standard output, and errors as JSON on standard error."
    return click.option("--json", "is_json", is_flag=True, help=text)(command)


def override_option(command: Command) -> Command:
    """Add ``--set key=value``, ``-o`` in short, which the command receives as ``overrides``."""
    text = "Set a field of the job file, for example --set learning_rate=1e-3 or --set datasets.0.path=other.jsonl; may be given again."
    return click.option("-o", "--set", "--override", "overrides", multiple=True, metavar="KEY=VALUE", help=text)(command)


def job_file_argument(command: Command) -> Command:
    """Add the job file as an argument, ``-`` being standard input; the command receives it as ``job_file``."""
    return click.argument("job_file", type=click.Path(path_type=Path, allow_dash=True))(command)


_WANTED: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--namespace", {"metavar": "NAME", "help": "Only adapters of this namespace."}),
    ("--base-model", {"metavar": "MODEL", "help": "Only adapters of this base model; with @ and its revision, of exactly that."}),
    (
        "--method",
        {"type": click.Choice([method.value for method in Method]), "metavar": "METHOD", "help": "For example wegeft or lora."},
    ),
    ("--rank", {"type": click.IntRange(1), "metavar": "NUMBER", "help": "Only adapters of this rank."}),
    ("--task", {"metavar": "TASK", "help": "For example causal_lm or sequence_classification."}),
    ("--license", {"metavar": "NAME", "help": "As the card says, for example apache-2.0."}),
    (
        "--format",
        {
            "type": click.Choice(get_args(NativeFormat)),
            "metavar": "FORMAT",
            "help": "What it is stored as: wegeft, lora as engines read it, or peft for what PEFT alone reads.",
        },
    ),
    ("--signed/--unsigned", {"default": None, "help": "Only adapters that the hub has signed, or only others."}),
    ("--tag", {"metavar": "TAG", "multiple": True, "help": "A tag of the card; again for more, all of which it must have."}),
    ("--metric", {"metavar": "BOUND", "multiple": True, "help": "A bound such as 'eval_loss<=0.5'; again for more."}),
    ("--attached", {"type": click.Choice(get_args(DerivedFormat)), "help": "Only adapters with this derived format attached."}),
    (
        "--order",
        {
            "type": click.Choice(["name", "updated", "created", "size"]),
            "default": "name",
            "show_default": True,
            "help": "By name; the last published to, the last made, or the largest first.",
        },
    ),
    ("--limit", {"type": click.IntRange(1, 100), "default": 50, "show_default": True, "help": "Adapters to show at most."}),
    ("--after", {"metavar": "CURSOR", "help": "Go on behind an earlier page: its next_cursor."}),
)
"""Which adapters to list, under the names that the service takes."""
_ALSO = {"--limit": "-n", "--license": "--licence"}
"""Second names of some."""


def wanted_options(command: Command) -> Command:
    """Give a command the options that say which adapters to list, under the names that the service takes."""
    for name, settings in reversed(_WANTED):
        names = (name, _ALSO[name]) if name in _ALSO else (name,)
        command = click.option(*names, **settings)(command)
    return command


def parse_duration(text: str, option: str) -> timedelta:
    """Return the time that ``text`` names, ``90s``, ``5m``, ``12h`` or ``7d``; raise :class:`InvalidSetting` where it names none."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}[smhd]", text):
        raise InvalidSetting("not a duration", path=option, value=text, hint="a number and s, m, h or d, for example 90d")
    return timedelta(seconds=seconds_of(text))


def example(text: str) -> str:
    """Return an epilog that shows how a command is called."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return "\n\n".join(["Examples:", *(f"$ {line}" for line in lines)])
