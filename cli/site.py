"""``wgctl site``: take part in a federation with data that stays on this machine."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from cli.options import example, json_option, parse_duration
from cli.output import note, print_fields, print_json, print_json_line, say
from wegeft.contracts.enrolment import Enrolment, Terms
from wegeft.contracts.errors import InvalidSetting, JobCancelled, JobFailed
from wegeft.contracts.job import DatasetSpec, DatasetType, JobSpec
from wegeft.contracts.training import EventRecord, JobState, WorkerEvent

if TYPE_CHECKING:
    from workers.site_home import SiteHome
    from workers.site_inputs import SiteOptions
    from workers.site_patience import Around

Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(no_args_is_help=True)
def site() -> None:
    """Take part in a federation with data that stays here.

    A site connects outward only. Its private key and its rows never leave its machine; what leaves it is how far the shared generators
    have moved. Its policy.yaml says what it lets itself be asked.
    """


_KIND_HELP = "How rows say what to learn; by default told from their columns."
_EXAMPLES_HELP = "Rows that this site has at most: the most that it can weigh."


def _home_option(command: Command) -> Command:
    text = "The site's own folder: key, enrolment, policy.yaml and receipts; by default site/ in WEGEFT_HOME."
    return click.option("--home", type=click.Path(path_type=Path, file_okay=False), help=text)(command)


def _data_options(command: Command) -> Command:
    options = (
        click.option("--data", "data", multiple=True, required=True, metavar="FILE", help="Rows to train on; may be given again."),
        click.option("--type", "kind", type=click.Choice([kind.value for kind in DatasetType]), help=_KIND_HELP),
        click.option("--base-model", metavar="PATH", help="This site's own copy of the base model, a folder or a .gguf file."),
        click.option("--threads", type=click.IntRange(1, 1024), help="Threads to train with; by default one a core."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@site.command("enrol", epilog=example("wgctl site enrol --server https://hub.example.org --token wgi_0123456789ab_… --max-examples 5000"))
@click.option("--server", required=True, metavar="URL", help="The federation's server.")
@click.option("--token", required=True, metavar="TOKEN", help="The invitation's token; `-` reads it from standard input.")
@click.option("--max-examples", type=click.IntRange(1, 1_000_000_000), default=1_000_000, show_default=True, help=_EXAMPLES_HELP)
@_home_option
@click.option("-y", "--yes", "is_agreed", is_flag=True, help="Agree without being asked.")
@json_option
def enrol(server: str, token: str, max_examples: int, home: Path | None, is_agreed: bool, is_json: bool) -> None:
    """Show what an invitation asks of this site, and once it is agreed to, make the site's own key and enrol.

    Until then nothing is made and the invitation stays unused. The same command with the same token can be given again after an
    interruption.
    """
    from wegeft.client import site as site_client
    from workers.site_home import SiteRecord, agreed_policy

    secret = _read_token(token)
    terms = site_client.read_invitation(server, secret)
    if not is_agreed:
        _show_terms(terms, server, max_examples)
        if not click.confirm("Agree, and take part?", err=True):
            raise JobCancelled("not agreed: nothing was made and nothing was sent, and the invitation can still be used")
    folder = _home(home)
    folder.prepare()
    with folder.locked():
        enrolment = site_client.enrol(server, secret, folder.ensure_key(), max_examples)
        _check_agreed(terms, enrolment)
        folder.keep_record(SiteRecord(server=server, enrolment=enrolment))
        folder.keep_policy(agreed_policy(enrolment.spec))
    if is_json:
        print_json(enrolment)
        return
    say(f"{enrolment.site.name} of {enrolment.job_id}: {enrolment.site.state}")
    note(f"what it lets itself be asked is in {folder.policy_file}")
    note(f"next: wgctl site preflight --home {folder.folder} --data FILE, then the same with run")


def _check_agreed(terms: Terms, enrolment: Enrolment) -> None:
    """Raise where the server has enrolled the site in something else than what was shown."""
    from wegeft.contracts.errors import UnexpectedAnswer

    shown, got = (terms.job_id, terms.server_key, terms.spec), (enrolment.job_id, enrolment.server_key, enrolment.spec)
    if shown != got:
        raise UnexpectedAnswer("the server enrols for something else than it has shown", path="--server", hint="ask who runs it")


@site.command("rotate", epilog=example("wgctl site rotate --token wgr_0123456789ab_…"))
@click.option("--token", required=True, metavar="TOKEN", help="From `wgctl federation rotate`; `-` reads it from standard input.")
@_home_option
@json_option
def rotate(token: str, home: Path | None, is_json: bool) -> None:
    """Make a new key for this site in place of the old one, which the server refuses from then on.

    Stop `wgctl site run` first. The same command with the same token can be given again after an interruption.
    """
    from wegeft.client import site as site_client

    folder = _home(home)
    record = folder.read_record()
    with folder.locked():
        enrolment = site_client.bind_key(record.server, _read_token(token), folder.ensure_new_key())
        folder.take_new_key(enrolment)
    if is_json:
        print_json(enrolment)
        return
    say(f"{enrolment.site.name} of {enrolment.job_id} has a new key: {enrolment.site.public_key}")
    note("what it has trained and not sent yet is signed with the new key; go on with wgctl site run")


def _home(folder: Path | None) -> SiteHome:
    from infra.settings import load_settings
    from workers.site_home import SiteHome

    return SiteHome((folder or load_settings().home / "site").expanduser().absolute())


def _read_token(given: str) -> str:
    return sys.stdin.readline().strip() if given == "-" else given


def _show_terms(terms: Terms, server: str, max_examples: int) -> None:
    spec = terms.spec
    federation = spec.federation
    assert federation is not None  # noqa: S101 - an invitation is to a federated job
    note("The federation asks this site to train, again and again, and to send how far the generators have moved:")
    print_fields(
        [
            ("server", server),
            ("its key", terms.server_key),
            ("job", f"{terms.job_id} ({spec.name})"),
            ("publishes", str(spec.adapter)),
            ("base model", f"{spec.base_model}{f' at {spec.base_model_revision}' if spec.base_model_revision else ''}"),
            ("generators", f"rank {spec.effective_rank}, {_targets(spec)}"),
            ("rounds", f"{federation.rounds}, each open for {federation.deadline} at most"),
            ("steps a round", f"{spec.max_steps:,} at most" if spec.max_steps else f"{spec.num_epochs:g} passes over this site's rows"),
            ("rule", f"{federation.rule.name}, {federation.server_optimizer.name}, defence {federation.defence.name}"),
            ("update's norm", f"{federation.max_update_norm:g} at most"),
            ("this site", f"{terms.name}, {'asked at once' if terms.approve else 'asked once somebody has approved it'}"),
            ("rows", f"{max_examples:,} at most"),
        ]
    )


def _targets(spec: JobSpec) -> str:
    return spec.target_modules if isinstance(spec.target_modules, str) else ", ".join(spec.target_modules)


@site.command("preflight", epilog=example("wgctl site preflight --data private.jsonl"))
@_data_options
@_home_option
@json_option
def preflight(home: Path | None, is_json: bool, **inputs: Any) -> None:
    """Check everything that could stop this site in a round: server, clock, disk, data, model, one step, memory.

    Exit status 1 where a check failed; each says what would be right.
    """
    from wegeft.client.site import SiteClient
    from workers.site_preflight import Check, Preflight, failure_of

    folder = _home(home)
    options = _options(**inputs)
    around = _around(lambda _event: None)
    checks: list[Check] = []
    with SiteClient(folder.read_record().server, folder.credentials(), around.clock) as client:
        for check in Preflight(folder, client, options, around).run():
            checks.append(check)
            if not is_json:
                say(f"{'ok' if check.is_ok else 'FAILED':<6}  {check.name:<10}  {check.found}", style=None if check.is_ok else "red")
    if is_json:
        print_json(checks)
    failure = failure_of(checks)
    if failure is not None:
        raise failure


@site.command("run", epilog=example("wgctl site run --data private.jsonl\nwgctl site run --data private.jsonl --once --patience 10m"))
@_data_options
@_home_option
@click.option("--once", "is_once", is_flag=True, help="End after one round.")
@click.option(
    "--patience", metavar="DURATION", default="24h", show_default=True, help="How long to wait for a server that does not answer."
)
@json_option
def run(home: Path | None, is_once: bool, patience: str, is_json: bool, **inputs: Any) -> None:
    """Take part until the federation is over: wait for rounds, train on these rows, send signed updates, keep the receipts.

    It can be stopped at any time, and goes on where it was. Exit status 0: the federation succeeded; 1: it failed; 3: it was cancelled.
    """
    from dataclasses import replace

    from wegeft.client.site import SiteClient
    from workers.site import SiteRunner

    folder = _home(home)
    options = replace(_options(**inputs), is_once=is_once, patience=parse_duration(patience, "--patience"))
    record = folder.read_record()
    with _telling(is_json=is_json) as tell, _told_to_come_back(), folder.locked():
        around = _around(tell)
        with SiteClient(record.server, folder.credentials(), around.clock) as client:
            state = SiteRunner(folder, client, options, around).run()
    _end_like(state, record.enrolment.job_id, is_json=is_json)


def _quieten() -> None:
    """Keep what PEFT asks transformers under an old name from the site's log."""
    import warnings

    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)


def _options(data: tuple[str, ...], kind: str | None, base_model: str | None, threads: int | None) -> SiteOptions:
    """Return what the data options say, and let torch use as many threads as they do."""
    from pydantic import ValidationError

    from workers.processor import use_threads
    from workers.site_inputs import SiteOptions

    use_threads(threads)
    _quieten()

    try:
        files = [DatasetSpec.model_validate_json(_json(path, kind)) for path in data]
    except ValidationError as error:
        hint = "a file that ends in .jsonl, .json, .csv or .parquet"
        raise InvalidSetting("not a data set", path="--data", value=", ".join(data), hint=hint) from error
    return SiteOptions(data=files, base_model=str(Path(base_model).expanduser().absolute()) if base_model else None)


def _json(path: str, kind: str | None) -> str:
    import json

    return json.dumps({"path": str(Path(path).expanduser().absolute()), "type": kind})


def _around(tell: Callable[[WorkerEvent], None]) -> Around:
    from random import random
    from time import monotonic, sleep

    from workers.site_patience import Around

    return Around(clock=lambda: datetime.now(UTC), monotonic=monotonic, sleep=sleep, chance=random, tell=tell)


@contextmanager
def _telling(*, is_json: bool) -> Iterator[Callable[[WorkerEvent], None]]:
    """Give what tells one event: to a script or to a person."""
    from cli.narration import narrator

    count = 0

    def record(event: WorkerEvent) -> EventRecord:
        nonlocal count
        count += 1
        return EventRecord(sequence=count, attempt=1, at=datetime.now(UTC), event=event)

    if is_json:
        yield lambda event: print_json_line(record(event))
        return
    with narrator() as told:
        yield lambda event: told.tell(record(event))


@contextmanager
def _told_to_come_back() -> Iterator[None]:
    """Let SIGTERM end the block as Ctrl-C does, and say that nothing is lost."""

    def interrupt(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    except KeyboardInterrupt:
        note("\nthis site stops here; what it has done is kept, and the same command goes on with it")
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_like(state: JobState | None, job_id: str, *, is_json: bool) -> None:
    match state:
        case None:
            return
        case JobState.FAILED:
            raise JobFailed(f"the federation {job_id} failed")
        case JobState.CANCELLED:
            raise JobCancelled(f"the federation {job_id} was cancelled")
        case _ if not is_json:
            say(f"the federation {job_id} {state}", style="green")
