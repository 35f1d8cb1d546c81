"""``wgctl up``, ``down`` and ``status``: a service on this machine, for the user alone, with nothing to install or to configure."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic, sleep
from typing import TYPE_CHECKING

import psutil
import rich_click as click
from pydantic import ValidationError

from cli.home import Home, ServiceRecord
from cli.options import example, json_option
from cli.output import error_console, is_terminal, note, print_fields, print_json, say
from infra.settings import PREFIX, Settings, load_settings
from wegeft.client import Client
from wegeft.contracts.errors import AlreadyRunning, ErrorBody, InvalidSetting, Problem, StartFailed, WegeftError, error_from_body

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from cli.connection import Service

START_SECONDS = 90.0
"""How long a service may take until it answers; its first start makes the database."""
LINGER_SECONDS = 10.0
"""How long what the service started may take to end behind it before it is killed."""
_FIXED = ("host", "public_url", "database_url", "store", "ray_address")
"""Settings that an embedded service does not leave open."""


@click.command(epilog=example("wgctl up --detach\nwgctl up --port 8400"))
@click.option("-d", "--detach", "is_detached", is_flag=True, help="Run it in the background, and return once it answers.")
@click.option("--port", type=int, help="TCP port on loopback; by default the one of last time, or a free one.")
@click.option("--pool", type=click.Choice(["ray", "inline"]), help="Where jobs run; before WEGEFT_POOL.")
@json_option
def up(is_detached: bool, port: int | None, pool: str | None, is_json: bool) -> None:
    """Start a service on this machine, for you alone.

    SQLite and a folder under WEGEFT_HOME, a local Ray, loopback only. The commands find it, and its token, by themselves.
    """
    settings = embedded_settings(load_settings(port=port, pool=pool))
    if not is_detached:
        from cli.serve import run_service

        run_service(settings, is_json=is_json)
        return
    record = start_in_background(settings)
    if is_json:
        print_json(record)
    else:
        say(f"serving at {record.server} (pid {record.pid}); wgctl down stops it")


@click.command(epilog=example("wgctl down"))
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=30,
    show_default=True,
    metavar="SECONDS",
    help="How long it may take to end by itself before it is killed.",
)
@json_option
def down(timeout: float, is_json: bool) -> None:
    """Stop the service on this machine.

    Jobs that run go on from their last checkpoint when it is started again. Nothing is stopped where nothing runs.
    """
    home = Home(load_settings().home)
    holder = home.holder()
    if holder is not None:
        with _busy("stopping"):
            _stop(holder, timeout)
    if is_json:
        print_json({"was_running": holder is not None})
    else:
        say("stopped" if holder else "nothing was running")


@click.command(epilog=example("wgctl status"))
@click.pass_context
@json_option
def status(context: click.Context, is_json: bool) -> None:
    """Say whether the service runs, and where.

    Exit status 4 where nothing runs, and 7 where the service that WEGEFT_SERVER names does not answer.
    """
    from cli.connection import find_service

    settings = load_settings()
    home = Home(settings.home)
    service = find_service(settings)
    if service is None:
        state = "starting" if home.is_held() else "not running"
        print_json({"state": state, "home": str(home.folder)}) if is_json else say(state)
        context.exit(4)
    facts = _facts_of(service, home)
    if is_json:
        print_json(facts)
    else:
        print_fields([(name, None if value is None else str(value)) for name, value in facts.items()])


def _facts_of(service: Service, home: Home) -> dict[str, object]:
    """Return what a service and its home say of it; raise where it does not answer."""
    with service.connect() as client:
        health, identity = client.health(), client.whoami()
    facts: dict[str, object] = {
        "state": "running",
        "server": service.server,
        "version": health.get("version"),
        "token": f"{identity.name} ({identity.role})",
    }
    record = None if service.is_remote else home.running()
    if record:
        facts |= {"pid": record.pid, "pool": record.pool, "since": record.since.isoformat(timespec="seconds")}
        facts |= {"home": str(home.folder), "log": str(home.log_file)}
    return facts


def embedded_settings(settings: Settings) -> Settings:
    """Return the settings of a service for one user; raise :class:`InvalidSetting` where they ask for anything else."""
    asked = [name for name in _FIXED if getattr(settings, name) != Settings.model_fields[name].default]
    if asked:
        hint = "unset it, or run the service as the settings say: wgctl serve"
        problems = [Problem(path=PREFIX + name.upper(), message="wgctl up decides this itself", hint=hint) for name in asked]
        raise InvalidSetting("wgctl up serves one user on one machine", problems=problems)
    return settings.model_copy(update={"allow_local_models": True})


def start_in_background(settings: Settings) -> ServiceRecord:
    """Start an embedded service that outlives this command, and return once it answers.

    Raises what kept the service from starting, :class:`AlreadyRunning` and :class:`PortTaken` among others, or :class:`StartFailed`.
    """
    embedded_settings(settings)
    home = Home(settings.home)
    home.prepare()
    if home.is_held():
        record = home.running()
        where = f"at {record.server} (pid {record.pid})" if record else "and is still starting"
        raise AlreadyRunning(f"a service runs in this home already, {where}", path=str(home.folder), hint="wgctl down stops it")
    with _busy("starting"):
        return _wait_until_ready(home, _spawn(home, settings))


def join_or_start(settings: Settings) -> ServiceRecord:
    """Start an embedded service, or wait for the one that another command is starting just now, and return once it answers."""
    try:
        return start_in_background(settings)
    except AlreadyRunning:
        home = Home(settings.home)
        end = monotonic() + START_SECONDS
        while monotonic() < end and home.is_held():
            record = home.running()
            if record and _answers(home, record):
                return record
            sleep(0.05)
        raise


@dataclass(frozen=True)
class _Child:
    process: subprocess.Popen[bytes]
    log_start: int
    """Bytes that the service's log held before."""


def _spawn(home: Home, settings: Settings) -> _Child:
    command = [sys.executable, "-P", "-m", "cli.main", "up", "--json", "--port", str(settings.port), "--pool", settings.pool]
    log = home.open_log()
    with open(log, "ab", buffering=0) as file:  # noqa: PTH123 - a descriptor, not a path
        log_start = os.fstat(file.fileno()).st_size
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=file, start_new_session=True, cwd=home.folder
        )
    return _Child(process=process, log_start=log_start)


def _wait_until_ready(home: Home, child: _Child) -> ServiceRecord:
    end = monotonic() + START_SECONDS
    while monotonic() < end:
        if child.process.poll() is not None:
            raise _why_it_ended(home, child)
        record = home.read_record()
        if record and record.pid == child.process.pid and _answers(home, record):
            return record
        sleep(0.05)
    _kill([psutil.Process(child.process.pid)])
    raise StartFailed(f"the service did not answer within {START_SECONDS:g} s", hint=f"its log is {home.log_file}")


def _answers(home: Home, record: ServiceRecord) -> bool:
    token = home.read_token()
    if token is None:
        return False
    try:
        with Client(record.server, token, patience_seconds=0, timeout_seconds=5) as client:
            client.health()
    except WegeftError:
        return False
    return True


def _why_it_ended(home: Home, child: _Child) -> WegeftError:
    code = child.process.returncode
    log = home.log_file.read_bytes()[child.log_start :]
    return last_error(log, code) or StartFailed(f"the service ended with exit status {code}", hint=f"its log is {home.log_file}")


def last_error(log: bytes, exit_status: int) -> WegeftError | None:
    """Return the last error in a service's log that ends a process with this exit status, or None.

    Services that start at once in one home share its log, so other lines may follow.
    """
    for line in reversed(log.splitlines()):
        with suppress(ValidationError):
            error = error_from_body(ErrorBody.model_validate_json(line))
            if error.exit_status == exit_status:
                return error
    return None


def _stop(holder: psutil.Process, seconds: float) -> None:
    """End a service and all that it started: gently first, and by force after ``seconds``."""
    started = _descendants(holder)
    holder.terminate()
    gone, _ = psutil.wait_procs([holder], timeout=seconds)
    if not gone:
        note("it does not end by itself: killing it")
        started = list({*started, *_descendants(holder)})
        _kill([holder])
    _, alive = psutil.wait_procs(started, timeout=LINGER_SECONDS)
    _kill(alive)


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(processes, timeout=5)


def _busy(text: str) -> AbstractContextManager[object]:
    """Give a spinner on standard error while something takes its time; nothing where nobody looks."""
    from contextlib import nullcontext

    return error_console().status(text) if is_terminal(sys.stderr) else nullcontext()
