"""``wgctl federation``: invite and approve the sites of a federated job, and follow its rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from cli.connection import Service, require_service
from cli.federation_views import (
    describe,
    describe_rollback,
    names_of,
    note_unproved,
    print_checks,
    print_federation,
    print_round,
    print_sites,
    round_row,
    state_fields,
)
from cli.options import example, json_option, parse_duration
from cli.output import note, print_fields, print_json, print_json_line, print_table, say, show_time
from cli.simulate import simulate
from wegeft.contracts.enrolment import InvitationRequest, SiteView
from wegeft.contracts.federation import RoundState
from wegeft.contracts.rollback import RollbackRequest
from wegeft.contracts.rotation import RotationOrder

if TYPE_CHECKING:
    from wegeft.client.federation import FederationClient

WATCH_SECONDS = 2.0
"""Between two looks at a federation."""


@click.group(no_args_is_help=True)
def federation() -> None:
    """Invite sites into a federated job, and follow its rounds.

    A federated job has a federation: section and no data sets of its own: sites train on data that never leaves them, and send how far
    the shared generators have moved.
    """


@contextmanager
def _connected() -> Iterator[tuple[FederationClient, Service]]:
    from wegeft.client.federation import FederationClient

    service = require_service()
    with FederationClient(service.server, service.token) as client:
        yield client, service


@federation.command(
    "invite",
    epilog=example("wgctl federation invite JOB_ID --name site-a\nwgctl federation invite JOB_ID --name site-b --approve --expires 24h"),
)
@click.argument("job_id")
@click.option("--name", required=True, help="What the federation's members call the site.")
@click.option("--approve", "is_approved", is_flag=True, help="Ask the site as soon as it has enrolled, without another approval.")
@click.option("--expires", metavar="DURATION", default="7d", show_default=True, help="How long the invitation can be used: 1h, 7d.")
@json_option
def invite(job_id: str, name: str, is_approved: bool, expires: str, is_json: bool) -> None:
    """Make an invitation for one site, and print the command that takes it up; its token is never shown again.

    It works once. Another one for the same name replaces it while it is unused.
    """
    seconds = int(parse_duration(expires, "--expires").total_seconds())
    request = _checked_request(name, seconds, is_approved=is_approved)
    with _connected() as (client, service):
        made = client.invite(job_id, request)
    if is_json:
        print_json(made)
        return
    note(f"{name} enrols with this command until {show_time(made.expires_at)}; it works once:")
    say(f"wgctl site enrol --server {service.server} --token {made.token}")
    if not is_approved:
        note(f"then let it take part: wgctl federation approve {job_id} {name}")


def _checked_request(name: str, seconds: int, *, is_approved: bool) -> InvitationRequest:
    from pydantic import ValidationError

    from wegeft.contracts.errors import InvalidSetting, Problem

    options = {"name": ("--name", name), "expires_in_seconds": ("--expires", f"{seconds} s")}
    try:
        return InvitationRequest(name=name, expires_in_seconds=seconds, approve=is_approved)
    except ValidationError as error:
        problems = [
            Problem(path=options[str(item["loc"][0])][0], message=item["msg"], value=options[str(item["loc"][0])][1])
            for item in error.errors()
        ]
        raise InvalidSetting("the invitation cannot be made", problems=problems) from error


@federation.command("ls", epilog=example("wgctl federation ls JOB_ID"))
@click.argument("job_id")
@json_option
def list_sites(job_id: str, is_json: bool) -> None:
    """List the sites that have enrolled."""
    with _connected() as (client, _):
        view = client.view(job_id)
    if is_json:
        print_json(view.sites)
    elif view.sites:
        print_sites(view.sites)
    else:
        note(f"no site has enrolled yet; invite one: wgctl federation invite {job_id} --name site-a")


@federation.command("approve", epilog=example("wgctl federation approve JOB_ID site-a"))
@click.argument("job_id")
@click.argument("name")
@json_option
def approve(job_id: str, name: str, is_json: bool) -> None:
    """Let an enrolled site take part in rounds."""
    with _connected() as (client, _):
        _show_site(client.approve(job_id, name), is_json=is_json)


@federation.command("revoke", epilog=example("wgctl federation revoke JOB_ID site-a"))
@click.argument("job_id")
@click.argument("name")
@json_option
def revoke(job_id: str, name: str, is_json: bool) -> None:
    """Never ask a site again, or withdraw its unused invitation; neither can be undone."""
    from wegeft.contracts.errors import JobNotFound, NotFound

    with _connected() as (client, _):
        try:
            _show_site(client.revoke(job_id, name), is_json=is_json)
        except JobNotFound:
            raise
        except NotFound:
            client.withdraw(job_id, name)
            print_json({"withdrawn": name}) if is_json else say(f"the invitation of {name} is withdrawn")


@federation.command("rotate", epilog=example("wgctl federation rotate JOB_ID --name site-a"))
@click.argument("job_id")
@click.option("--name", required=True, help="The site that is to have a new key, as the federation's members call it.")
@click.option("--expires", metavar="DURATION", default="24h", show_default=True, help="How long the token can be used: 1h, 7d.")
@json_option
def rotate(job_id: str, name: str, expires: str, is_json: bool) -> None:
    """Let a site make a new key, and print the command that does; its token is never shown again.

    The old key is refused from the moment the new one is bound. What the site has a receipt for stays accepted; what it has trained and not
    sent yet, it signs with the new key.
    """
    from pydantic import ValidationError

    from wegeft.contracts.errors import InvalidSetting

    seconds = int(parse_duration(expires, "--expires").total_seconds())
    try:
        order = RotationOrder(expires_in_seconds=seconds)
    except ValidationError as error:
        raise InvalidSetting("not a time that a token may last", path="--expires", value=expires, hint="1 minute to 90 days") from error
    with _connected() as (client, _):
        made = client.rotate(job_id, name, order)
    if is_json:
        print_json(made)
        return
    note(f"{name} stops its `wgctl site run`, makes its new key with this command until {show_time(made.expires_at)}, and runs again:")
    say(f"wgctl site rotate --token {made.token}")


@federation.command(
    "rollback",
    epilog=example(
        'wgctl federation rollback JOB_ID --to 3 --reason "site-b sent nonsense"\n'
        'wgctl federation rollback JOB_ID --to team/sums@3 --reason "worse on our test rows"'
    ),
)
@click.argument("job_id")
@click.option(
    "--to", "target", required=True, metavar="ROUND|VERSION", help="A committed round, 0 for the beginning, or what it published."
)
@click.option("--reason", required=True, help="Why; it stands in the federation's record, with your token's name.")
@json_option
def rollback(job_id: str, target: str, reason: str, is_json: bool) -> None:
    """Go back to an earlier round: what is in flight is cancelled, and the next round starts from there.

    Rounds and versions after it stay in the record, and their numbers are not used again. Of a federation that has ended, the job's aliases
    point to the earlier version again. The same command again changes nothing until another round has been committed.
    """
    request = _rollback_request(target, reason)
    with _connected() as (client, _):
        done = client.roll_back(job_id, request)
    print_json(done) if is_json else say(describe_rollback(done))


def _rollback_request(target: str, reason: str) -> RollbackRequest:
    from pydantic import ValidationError

    from wegeft.contracts.errors import InvalidSetting, Problem

    try:
        return RollbackRequest.model_validate({"to": target, "reason": reason})
    except ValidationError as error:
        given = {"to": ("--to", target), "reason": ("--reason", reason)}
        found = {str(item["loc"][0]): item["msg"] for item in error.errors()}
        hints = {"to": "a round's number, or namespace/name@version", "reason": "1 to 500 characters on one line"}
        problems = [Problem(path=given[name][0], message=told, value=given[name][1], hint=hints[name]) for name, told in found.items()]
        raise InvalidSetting("the federation cannot go back as asked", problems=problems) from error


def _show_site(view: SiteView, *, is_json: bool) -> None:
    if is_json:
        print_json(view)
    else:
        say(f"{view.site.name} {view.site.state}")


@federation.command("show", epilog=example("wgctl federation show JOB_ID\nwgctl federation show JOB_ID --round 3"))
@click.argument("job_id")
@click.option("--round", "number", type=click.IntRange(1), help="One round instead: its members, weights, digests and who was left out.")
@json_option
def show(job_id: str, number: int | None, is_json: bool) -> None:
    """Show all about a federation, or about one of its rounds."""
    with _connected() as (client, _):
        if number is None:
            found = client.view(job_id)
            print_json(found) if is_json else print_federation(found)
        else:
            one = client.round(job_id, number)
            print_json(one) if is_json else print_round(one, names_of(client.view(job_id)))


@federation.command("rounds", epilog=example("wgctl federation rounds JOB_ID"))
@click.argument("job_id")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Rounds to show at most, newest first.")
@json_option
def list_rounds(job_id: str, limit: int, is_json: bool) -> None:
    """List rounds, newest first: who took part, who was left out and why, and what was published."""
    from itertools import islice

    with _connected() as (client, _):
        found = tuple(islice(client.rounds(job_id), limit))
        names = names_of(client.view(job_id))
    if is_json:
        print_json(found)
    elif found:
        print_table(["round", "state", "#sent", "#residual", "left out", "published"], [round_row(view, names) for view in found])
    else:
        note("no round has begun yet")


@federation.command("verify", epilog=example("wgctl federation verify JOB_ID\nwgctl federation verify JOB_ID --round 3 --json"))
@click.argument("job_id")
@click.option("--round", "number", type=click.IntRange(1), help="One round instead of all that are committed.")
@json_option
def verify(job_id: str, number: int | None, is_json: bool) -> None:
    """Check committed rounds from their evidence, and compute them again: whose updates, signed, receipted, and what came of them.

    All is computed here, from what the service has stored; only an administrator's token may read updates, and others are told what could
    not be looked at. The result is compared bit for bit, which holds on the same kind of machine. Exit status 7 where something is wrong.
    """
    from pathlib import Path
    from tempfile import TemporaryDirectory

    from cli.round_checks import Verifier
    from wegeft.client import Client
    from wegeft.contracts.errors import DigestMismatch

    found = []
    with _connected() as (client, service), Client(service.server, service.token) as hub, TemporaryDirectory() as folder:
        committed = [view.round for view in client.rounds(job_id) if view.state is RoundState.COMMITTED]
        for one in Verifier(client, hub, job_id, Path(folder)).verify([number] if number else committed):
            found.append(one)
            if not is_json:
                print_checks(one)
    if is_json:
        print_json(found)
    elif not found:
        note("no round is committed yet")
    note_unproved(found)
    failed = [one for one in found if one.failed]
    if failed:
        numbers = ", ".join(str(one.round) for one in failed)
        raise DigestMismatch(
            f"{len(failed)} of {len(found)} rounds are not what their records say: {numbers}",
            problems=[problem for one in failed for problem in one.problems()],
        )


@federation.command("status", epilog=example("wgctl federation status JOB_ID --watch"))
@click.argument("job_id")
@click.option("--watch", "is_watching", is_flag=True, help="Go on until the federation has ended. Ctrl-C ends the looking, not the job.")
@json_option
def status(job_id: str, is_watching: bool, is_json: bool) -> None:
    """Say where a federation is; with --watch, a line for each change, and with --json, one document a line."""
    with _connected() as (client, _):
        if not is_watching:
            view = client.view(job_id)
            print_json(view) if is_json else print_fields(state_fields(view))
            return
        _watch(client, job_id, is_json=is_json)


def _watch(client: FederationClient, job_id: str, *, is_json: bool) -> None:
    from time import sleep

    told = ""
    while True:
        view = client.view(job_id)
        line = view.model_dump_json(exclude={"sites": {"__all__": {"last_seen_at"}}})
        if line != told:
            print_json_line(view) if is_json else say(describe(view))
            told = line
        if view.state.is_final:
            return
        sleep(WATCH_SECONDS)


federation.add_command(simulate)
