"""How ``wgctl federation`` shows federations, their sites and their rounds to people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cli.output import note, print_fields, print_table, say, show_age, show_time
from wegeft.contracts.enrolment import FederationView, RoundView, SiteView
from wegeft.contracts.federation import Exclusion, Member
from wegeft.contracts.rollback import Rollback

if TYPE_CHECKING:
    from cli.round_checks import RoundChecks


def print_federation(view: FederationView) -> None:
    """Print all about a federation."""
    print_fields([*state_fields(view), ("", "")])
    if view.sites:
        print_sites(view.sites)
    if view.rollbacks:
        say("")
        rows = [(show_time(one.at) or "-", one.person, one.reason, describe_rollback(one)) for one in view.rollbacks]
        print_table(["went back", "who", "why", "what"], rows)


def print_sites(sites: tuple[SiteView, ...]) -> None:
    """Print sites as a table, and below it what stood in the way of each."""
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
    for view in sites:
        for problem in view.problems:
            say(f"{view.site.name} ({view.last_problem}): {problem}")


def names_of(view: FederationView) -> dict[str, str]:
    """Return what members call each site, by its pseudonym."""
    return {entry.site.pseudonym: entry.site.name for entry in view.sites}


def state_fields(view: FederationView) -> list[tuple[str, str | None]]:
    """Return where a federation is, as names and values."""
    now = view.current
    return [
        ("job", view.job_id),
        ("state", str(view.state)),
        ("rounds", f"{view.rounds_committed} of {view.rounds_total} committed"),
        ("now", None if now is None else describe_round(now)),
        ("waiting for", view.waiting_for),
        ("published", view.published),
        ("went back", f"{describe_rollback(view.rollbacks[-1])}, by {view.rollbacks[-1].person}" if view.rollbacks else None),
    ]


def describe(view: FederationView) -> str:
    """Return where a federation is, on one line."""
    now = describe_round(view.current) if view.current else f"{len(view.sites)} sites have enrolled"
    waits = f"; waits for {view.waiting_for}" if view.waiting_for else ""
    return f"{view.state}, {view.rounds_committed}/{view.rounds_total} rounds; {now}{waits}"


def describe_round(view: RoundView) -> str:
    """Return where a round is, on one line."""
    attempt = f", try {view.attempt}" if view.attempt > 1 else ""
    closes = f", until {show_time(view.closes_at)}" if view.closes_at else ""
    have = f"{view.accepted} of {view.asked} sites have sent"
    if view.buffer_size is not None:
        have = f"{view.accepted} of {view.buffer_size} updates are in the buffer"
    return f"round {view.round}{attempt}: {view.state}, {have}{closes}"


def _name_state(view: RoundView) -> str:
    failure = view.record.failure if view.record else None
    why = "undone" if view.is_undone else failure
    return f"{view.state} ({why})" if why else str(view.state)


def round_row(view: RoundView, names: dict[str, str]) -> tuple[str, ...]:
    """Return a round as a row of a table."""
    number = f"{view.round}.{view.attempt}" if view.attempt > 1 else str(view.round)
    record = view.record
    if record is None:
        return (number, str(view.state), f"{view.accepted}/{view.asked}", "-", "-", "-")
    left_out = ", ".join(f"{names.get(one.site, one.site)} ({one.reason})" for one in record.left_out) or "-"
    residual = record.measures.get("aggregation_residual")
    sent = f"{view.accepted}/{view.asked}"
    return (number, _name_state(view), sent, "-" if residual is None else f"{residual:.2%}", left_out, record.published or "-")


def print_round(view: RoundView, names: dict[str, str]) -> None:
    """Print one round, its members and who was left out."""
    record = view.record
    print_fields([("round", str(view.round)), ("try", str(view.attempt)), ("state", _name_state(view))])
    if record is None:
        print_fields([("now", describe_round(view))])
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
        columns = ["member", "#examples", "#weight", "#agreement", "#contribution", "#staleness", "update"]
        print_table(columns, [_member_row(member, names) for member in record.members])
    if record.left_out:
        say("")
        print_table(["left out", "reason", "problems"], [_exclusion_row(one, names) for one in record.left_out])


def _member_row(member: Member, names: dict[str, str]) -> tuple[str, ...]:
    return (
        names.get(member.site, member.site),
        f"{member.examples:,}",
        f"{member.weight:.4f}",
        _optional(member.agreement),
        _optional(member.contribution),
        "-" if member.staleness is None else str(member.staleness),
        member.update,
    )


def _exclusion_row(one: Exclusion, names: dict[str, str]) -> tuple[str, ...]:
    return (names.get(one.site, one.site), str(one.reason), "; ".join(str(problem) for problem in one.problems))


def _optional(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def describe_rollback(done: Rollback) -> str:
    """Return what going back has done, on one line."""
    if done.opened_round is None:
        moved = ", ".join(f"{one.alias} from version {one.before} to {one.after}" for one in done.aliases)
        return f"back to round {done.to_round}: {moved}"
    cancelled = f"; round {done.cancelled.round}, try {done.cancelled.attempt} was cancelled" if done.cancelled else ""
    return f"back to round {done.to_round}: round {done.opened_round} starts from it{cancelled}"


def print_checks(found: RoundChecks) -> None:
    """Print what a round's evidence proves."""
    say(f"round {found.round}")
    for check in found.checks:
        mark = {True: "ok", False: "FAILED", None: "-"}[check.is_ok]
        say(f"  {mark:<6}  {check.name:<10}  {check.found}", style="red" if check.is_ok is False else None)


def note_unproved(found: Sequence[RoundChecks]) -> None:
    """Say of how many rounds not all was proved, whatever else was found."""
    unproved = [one for one in found if one.unproved]
    if unproved:
        names = dict.fromkeys(name for one in unproved for name in one.unproved)
        note(f"not everything was proved of {len(unproved)} of {len(found)} rounds: {', '.join(names)}")
