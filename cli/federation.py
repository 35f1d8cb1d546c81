"""``wgctl federation``: invite and approve the sites of a federated job, and follow its rounds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import rich_click as click

from cli.connection import Service, require_service
from cli.options import example, json_option, parse_duration
from cli.output import note, print_fields, print_json, print_json_line, print_table, say, show_age, show_time
from wegeft.contracts.enrolment import FederationView, InvitationRequest, RoundView, SiteView

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
        _print_sites(view.sites)
    else:
        note(f"no site has enrolled yet; invite one: wgctl federation invite {job_id} --name site-a")


def _print_sites(sites: tuple[SiteView, ...]) -> None:
    rows = [
        (
            view.site.name,
            str(view.site.state),
            str(view.rounds_joined),
            f"{view.site.max_examples:,}",
            show_age(view.last_seen_at) if view.last_seen_at else "-",
            str(view.last_problem or "-"),
            view.site.pseudonym,
        )
        for view in sites
    ]
    print_table(["site", "state", "#rounds", "#examples", "seen", "last problem", "pseudonym"], rows)


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
            print_json(found) if is_json else _print_federation(found)
        else:
            one = client.round(job_id, number)
            print_json(one) if is_json else _print_round(one, _names(client.view(job_id)))


def _names(view: FederationView) -> dict[str, str]:
    return {entry.site.pseudonym: entry.site.name for entry in view.sites}


def _print_federation(view: FederationView) -> None:
    print_fields([*_state_fields(view), ("", "")])
    if view.sites:
        _print_sites(view.sites)


def _state_fields(view: FederationView) -> list[tuple[str, str | None]]:
    now = view.current
    return [
        ("job", view.job_id),
        ("state", str(view.state)),
        ("rounds", f"{view.rounds_committed} of {view.rounds_total} committed"),
        ("now", None if now is None else _describe_round(now)),
        ("published", view.published),
    ]


def _describe_round(view: RoundView) -> str:
    attempt = f", try {view.attempt}" if view.attempt > 1 else ""
    closes = f", until {show_time(view.closes_at)}" if view.closes_at else ""
    have = f"{view.accepted} of {view.asked} sites have sent"
    if view.buffer_size is not None:
        have = f"{view.accepted} of {view.buffer_size} updates are in the buffer"
    return f"round {view.round}{attempt}: {view.state}, {have}{closes}"


def _print_round(view: RoundView, names: dict[str, str]) -> None:
    record = view.record
    print_fields([("round", str(view.round)), ("try", str(view.attempt)), ("state", str(view.state))])
    if record is None:
        print_fields([("now", _describe_round(view))])
        return
    print_fields(
        [
            ("rule", f"{record.rule.name}, {record.server_optimizer.name}, defence {record.defence.name}"),
            ("failure", str(record.failure) if record.failure else None),
            ("published", record.published),
            ("start", record.start),
            ("result", record.result),
            *((name.replace("_", " "), f"{value:.4g}") for name, value in sorted(record.measures.items())),
        ]
    )
    if record.members:
        say("")
        rows = [
            (
                names.get(member.site, member.site),
                f"{member.examples:,}",
                f"{member.weight:.4f}",
                _optional(member.agreement),
                _optional(member.contribution),
                "-" if member.staleness is None else str(member.staleness),
                member.update,
            )
            for member in record.members
        ]
        print_table(["member", "#examples", "#weight", "#agreement", "#contribution", "#staleness", "update"], rows)
    if record.left_out:
        say("")
        excluded = [
            (names.get(one.site, one.site), str(one.reason), "; ".join(str(problem) for problem in one.problems)) for one in record.left_out
        ]
        print_table(["left out", "reason", "problems"], excluded)


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


@federation.command("rounds", epilog=example("wgctl federation rounds JOB_ID"))
@click.argument("job_id")
@click.option("-n", "--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="Rounds to show at most, newest first.")
@json_option
def list_rounds(job_id: str, limit: int, is_json: bool) -> None:
    """List rounds, newest first: who took part, who was left out and why, and what was published."""
    from itertools import islice

    with _connected() as (client, _):
        found = tuple(islice(client.rounds(job_id), limit))
        names = _names(client.view(job_id))
    if is_json:
        print_json(found)
    elif found:
        print_table(["round", "state", "#sent", "#residual", "left out", "published"], [_round_row(view, names) for view in found])
    else:
        note("no round has begun yet")


def _round_row(view: RoundView, names: dict[str, str]) -> tuple[str, ...]:
    number = f"{view.round}.{view.attempt}" if view.attempt > 1 else str(view.round)
    record = view.record
    if record is None:
        return (number, str(view.state), f"{view.accepted}/{view.asked}", "-", "-", "-")
    left_out = ", ".join(f"{names.get(one.site, one.site)} ({one.reason})" for one in record.left_out) or "-"
    residual = record.measures.get("aggregation_residual")
    state = f"{record.state} ({record.failure})" if record.failure else str(record.state)
    sent = f"{view.accepted}/{view.asked}"
    return (number, state, sent, "-" if residual is None else f"{residual:.2%}", left_out, record.published or "-")


@federation.command("status", epilog=example("wgctl federation status JOB_ID --watch"))
@click.argument("job_id")
@click.option("--watch", "is_watching", is_flag=True, help="Go on until the federation has ended. Ctrl-C ends the looking, not the job.")
@json_option
def status(job_id: str, is_watching: bool, is_json: bool) -> None:
    """Say where a federation is; with --watch, a line for each change, and with --json, one document a line."""
    with _connected() as (client, _):
        if not is_watching:
            view = client.view(job_id)
            print_json(view) if is_json else print_fields(_state_fields(view))
            return
        _watch(client, job_id, is_json=is_json)


def _watch(client: FederationClient, job_id: str, *, is_json: bool) -> None:
    from time import sleep

    told = ""
    while True:
        view = client.view(job_id)
        line = view.model_dump_json(exclude={"sites": {"__all__": {"last_seen_at"}}})
        if line != told:
            print_json_line(view) if is_json else say(_describe(view))
            told = line
        if view.state.is_final:
            return
        sleep(WATCH_SECONDS)


def _describe(view: FederationView) -> str:
    now = _describe_round(view.current) if view.current else f"{len(view.sites)} sites have enrolled"
    return f"{view.state}, {view.rounds_committed}/{view.rounds_total} rounds; {now}"
