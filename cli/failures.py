"""How a command ends that did not go well: a message for a person or JSON for a script, an exit status, and never a traceback."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from datetime import UTC, datetime
from pathlib import Path

import click
from click.exceptions import Exit, NoArgsIsHelpError

from cli.output import error_console, printable
from infra.telemetry import redact_text
from wegeft.contracts.errors import ErrorBody, Problem, WegeftError

USAGE = 2
INTERNAL = 70
INTERRUPTED = 130

MEANINGS: dict[int, str] = {
    0: "it went well",
    1: "the job failed, something else went wrong, or the reader of the output went away",
    2: "the input, an option or a setting is not valid",
    3: "the job was cancelled",
    4: "there is no such thing",
    5: "the state has moved on, or something runs already",
    6: "refused: no valid token, a role or policy that does not allow it, or too large",
    7: "a service, its storage or the machine does not work",
    8: "the job has not ended yet",
    INTERNAL: "a fault of wgctl itself; it writes a file to report it with",
    INTERRUPTED: "interrupted by Ctrl-C",
}
"""What each exit status of ``wgctl`` means."""


def report(error: BaseException, *, is_json: bool = False) -> int:
    """Tell what went wrong on standard error, and return the exit status for it."""
    match error:
        case WegeftError():
            _show(error.body(), is_json=is_json)
            return error.exit_status
        case Exit():
            return error.exit_code
        case NoArgsIsHelpError():
            click.echo(error.format_message(), err=True)
            return USAGE
        case click.ClickException():
            _show_usage(error, is_json=is_json)
            return error.exit_code
        case KeyboardInterrupt() | click.Abort() | EOFError():
            return INTERRUPTED
        case BrokenPipeError():
            _close_output()
            return 1
        case SystemExit():
            return error.code if isinstance(error.code, int) else 1
        case _:
            return _report_fault(error, is_json=is_json)


def _show(body: ErrorBody, *, is_json: bool) -> None:
    if is_json:
        sys.stderr.write(redact_text(body.model_dump_json(exclude_none=True)) + "\n")
        return
    lines = [str(problem) for problem in body.problems]
    if len(body.problems) != 1 or body.problems[0].message != body.detail:
        lines.insert(0, f"{body.detail}:" if lines else body.detail)
    first, *rest = [printable(redact_text(line)) for line in lines]
    console = error_console()
    console.print(f"error: {first}", style="bold red", markup=False, highlight=False)
    for line in rest:
        console.print(f"  {line}", markup=False, highlight=False)


def _show_usage(error: click.ClickException, *, is_json: bool) -> None:
    context = getattr(error, "ctx", None)
    message = error.format_message().rstrip(".")
    problem = Problem(message=message, hint=f"see {context.command_path if context else 'wgctl'} --help")
    title = "The command is not used as it should be"
    _show(ErrorBody(code="invalid_setting", title=title, detail=message, status=422, problems=(problem,)), is_json=is_json)


def _close_output() -> None:
    # The interpreter flushes standard output once more at exit, which would print a warning about the broken pipe.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _report_fault(error: BaseException, *, is_json: bool) -> int:
    path = _write_fault(error)
    detail = f"wgctl met a fault of its own: {type(error).__name__}; please report it with {path}"
    _show(ErrorBody(code="internal", title="A fault of wgctl", detail=detail, status=500), is_json=is_json)
    return INTERNAL


def _write_fault(error: BaseException) -> Path:
    """Write the traceback, without arguments or values of variables, to a file that only the user can read."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    descriptor, name = tempfile.mkstemp(prefix=f"wgctl-{stamp}-", suffix=".log")
    text = "".join(traceback.format_exception(error))
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="replace") as file:
        file.write(redact_text(f"wgctl {json.dumps(sys.argv[1:2])} on Python {sys.version}\n\n{text}"))
    return Path(name)
