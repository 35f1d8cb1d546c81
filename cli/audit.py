"""``wgctl audit``: the log of every change."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import rich_click as click

from cli.connection import connect, require_service
from cli.home import Home
from cli.noted_heads import NotedHeads
from cli.options import example, json_option
from cli.output import note, print_json, say
from infra.settings import load_settings
from wegeft.contracts.audit import AuditEnd, AuditHead, check_export
from wegeft.contracts.errors import DigestMismatch, InvalidData, Problem, UnexpectedAnswer


@click.group(no_args_is_help=True)
def audit() -> None:
    """Export the log of every change, and check that nobody touched it.

    For administrators. Each entry carries a hash of itself and of the one before. Note the hash of the last entry somewhere else from time
    to time: it shows even a log that was written anew from its beginning.
    """


@audit.command("export", epilog=example("wgctl audit export > audit.jsonl"))
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="File to write; by default standard output.")
@json_option
def export(output: Path | None, is_json: bool) -> None:
    """Write the whole log as JSON lines, an entry a line; the last line says where it ends.

    With --output, --json says which file was written.
    """
    if output is None:
        for line in _lines():
            click.echo(line)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in _lines())
    except OSError as error:
        raise InvalidData("the file cannot be written", path=str(output), hint=error.strerror) from error
    if is_json:
        print_json({"output": str(output)})
    else:
        note(f"the log is in {output}")


@audit.command("verify", epilog=example("wgctl audit verify audit.jsonl\nwgctl audit verify --head 2c26b46b68ffc68f"))
@click.argument("file", required=False, type=click.Path(path_type=Path, dir_okay=False))
@click.option("--head", "noted", metavar="HASH", help="A hash that you noted before; the log must still hold it.")
@json_option
def verify(file: Path | None, noted: str | None, is_json: bool) -> None:
    """Find entries that were changed, removed, inserted or moved, in an export or in the service itself.

    With a file nothing else is asked, so it works anywhere. Without one, the log must also still hold the entry that it ended with when it
    was last verified from here: a log whose end was cut off is found by that. Exit status 7 where something is wrong.
    """
    head, problems = _check_file(file, noted) if file else _check_service(noted)
    if problems:
        count = len(problems)
        raise DigestMismatch(f"the audit log is not whole: {count} problem{'s' if count != 1 else ''}", problems=problems)
    if is_json:
        print_json(head)
    else:
        say(f"{head.sequence} entries, none of them touched; the last has the hash {head.hash}")


def _check_service(noted: str | None) -> tuple[AuditHead, tuple[Problem, ...]]:
    """Check the service's log, which must hold ``noted``, or else the last entry that was seen from here before."""
    heads, server = NotedHeads(Home(load_settings().home)), require_service().server
    before = heads.find(server) if noted is None else None
    seen = before.hash if before is not None and before.sequence else None
    head, problems = check_export(_lines(), noted or seen)
    if not problems:
        heads.note(server, head)
    elif before is not None:
        problems = tuple(_explained(problem, before, heads) if problem.value == seen else problem for problem in problems)
    return head, problems


def _explained(problem: Problem, before: AuditHead, heads: NotedHeads) -> Problem:
    message = f"entry {before.sequence}, the last one when the log was last verified from here, is not in it any more"
    return problem.model_copy(update={"message": message, "hint": f"delete {heads.path} if an older state was restored on purpose"})


def _check_file(file: Path, noted: str | None) -> tuple[AuditHead, tuple[Problem, ...]]:
    try:
        with file.open(encoding="utf-8") as lines:
            return check_export((line for line in lines if line.strip()), noted)
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidData("the file cannot be read", path=str(file), hint="an export of wgctl audit export") from error


def _lines() -> Iterator[str]:
    """Yield the service's log as an export has it."""
    after = 0
    with connect() as client:
        while True:
            page = client.audit(after=after)
            for entry in page.entries:
                yield entry.model_dump_json()
            last = page.entries[-1].sequence if page.entries else after
            if not page.entries or page.head.sequence <= last:
                yield AuditEnd(head=page.head).model_dump_json()
                return
            if last <= after:
                raise UnexpectedAnswer("the log's numbers do not grow", path="audit", value=last)
            after = last
