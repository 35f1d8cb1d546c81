"""Going back to an earlier round of a federation: all of it in one transaction, so that it is done or not.

A federation that runs goes on in a new round from the state after the earlier one; its numbers only grow, and what was in flight comes
to nothing. Of one that has ended, the aliases that the job has moved are moved back.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection

from hub import catalog
from orchestrator.federation_round import closing_of, record_failure
from orchestrator.ledger import buffers, federations, rollbacks, round_views, rounds, sites, troubles
from orchestrator.ledger.federations import FederatedJob
from orchestrator.ledger.rounds import RoundKey
from orchestrator.round_steps import federation_of
from wegeft.contracts.adapter import AdapterRef, AliasMove, VersionView
from wegeft.contracts.errors import AliasMoved, Conflict, IllegalTransition, InvalidRequest, NotFound, Problem
from wegeft.contracts.federation import FailureCode, RoundState
from wegeft.contracts.rollback import CancelledTry, MovedAlias, Rollback, RollbackRequest
from wegeft.contracts.training import JobState


@dataclass(frozen=True, kw_only=True)
class _Goal:
    """Where to go back to."""

    round: int
    start: str
    """Digest of the state after it."""
    published: str | None
    """The version that it published."""


def roll_back(connection: Connection, job_id: str, request: RollbackRequest, person: str, now: datetime) -> tuple[Rollback, bool]:
    """Go back to an earlier round of a federation; return the record of it, and whether anything was done.

    The same again changes nothing until a round has been committed since. Raises :class:`NotFound` for a round or version that is not this
    federation's, :class:`AliasMoved` where somebody else has moved an alias meanwhile, :class:`Forbidden` where one of an ended job's is
    protected, :class:`InvalidRequest` where an ended job moves none, and :class:`IllegalTransition` for a job that is neither running nor
    over.
    """
    job = federations.hold_federated(connection, job_id)
    goal = _find_goal(connection, job, request.to)
    known = rollbacks.list_rollbacks(connection, job_id)
    if known and _is_done(connection, job, goal, known[-1]):
        return known[-1], False
    opened, cancelled, aliases = None, None, tuple[MovedAlias, ...]()
    if job.state is JobState.RUNNING:
        opened, cancelled = _open_from(connection, job, goal, now)
    elif job.state.is_final:
        aliases = _move_aliases(connection, job, goal, now)
    else:
        raise IllegalTransition(f"a federation that is {job.state} cannot go back", path="state", value=str(job.state))
    done = Rollback(
        number=len(known) + 1,
        to_round=goal.round,
        start=goal.start,
        opened_round=opened,
        cancelled=cancelled,
        aliases=aliases,
        person=person,
        reason=request.reason,
        at=now,
    )
    rollbacks.add_rollback(connection, job_id, done)
    troubles.forget_trouble(connection, job_id)
    federations.tell(connection, job_id, _describe(done), now)
    return done, True


def _describe(done: Rollback) -> str:
    moved = ", ".join(f"{one.alias} points to version {one.after}" for one in done.aliases)
    what = f"round {done.opened_round} starts from it" if done.opened_round else moved
    return f"{done.person} went back to round {done.to_round}: {done.reason}; {what}"


def _is_done(connection: Connection, job: FederatedJob, goal: _Goal, last: Rollback) -> bool:
    if last.to_round != goal.round:
        return False
    if last.opened_round is None:
        return all(moved.after == _current(connection, job, moved.alias) for moved in last.aliases)
    newest = rounds.last_round(connection, job.id)
    return newest is not None and newest[0].number == last.opened_round and newest[1] is not RoundState.COMMITTED


def _find_goal(connection: Connection, job: FederatedJob, to: int | str) -> _Goal:
    number = to if isinstance(to, int) else _round_of(job, catalog.resolve(connection, AdapterRef.parse(to)))
    if number == 0:
        return _Goal(round=0, start=rounds.find_start(connection, RoundKey(job_id=job.id, number=1)), published=None)
    record = round_views.find_round(connection, job.id, number, closing_of(job.section)).record
    if record is None or record.result is None:
        raise NotFound("the round is not committed", path="to", value=str(number), hint="wgctl federation rounds lists those that are")
    return _Goal(round=number, start=record.result, published=record.published)


def _round_of(job: FederatedJob, version: VersionView) -> int:
    kind, _, number = version.source.rpartition(":")
    if kind != f"round:{job.id}" or not number.isdigit():
        raise NotFound("the version was not published by this federation", path="to", value=version.ref, hint=f"by {version.source}")
    return int(number)


def _open_from(connection: Connection, job: FederatedJob, goal: _Goal, now: datetime) -> tuple[int, CancelledTry | None]:
    """Open the next round from the goal's state; return its number, and what was in flight before."""
    newest = rounds.last_round(connection, job.id)
    assert newest is not None  # noqa: S101 - the goal is one of its rounds
    key, state = newest
    cancelled = None
    if not state.is_final:
        rounds.hold_round(connection, key)
        kept = rounds.load_round(connection, key, closing_of(job.section))
        federation = federation_of(job, sites.list_sites(connection, job.id))
        record = record_failure(federation, kept.round, key.attempt, kept.start_digest, FailureCode.ROLLED_BACK, now)
        rounds.fail_round(connection, key, kept.round.state, record)
        cancelled = CancelledTry(round=key.number, attempt=key.attempt)
    buffers.leave_waiting_out(connection, job.id)
    rounds.open_round(connection, RoundKey(job_id=job.id, number=key.number + 1), goal.start, now)
    federations.note_wait(connection, job.id, None)
    return key.number + 1, cancelled


def _move_aliases(connection: Connection, job: FederatedJob, goal: _Goal, now: datetime) -> tuple[MovedAlias, ...]:
    """Let the job's aliases point to the goal's version again; nothing is moved where one of them cannot be."""
    if goal.published is None:
        raise InvalidRequest("nothing was published before the first round", path="to", value=goal.round, hint="name a committed round")
    adapter, target = job.spec.adapter, AdapterRef.parse(goal.published).number
    if not job.spec.output.aliases or target is None:
        hint = f"wgctl adapters alias set lets one point to {goal.published}"
        raise InvalidRequest("the job has ended and moves no alias; `latest` follows the newest version", path="output.aliases", hint=hint)
    catalog.refuse_protected(connection, adapter, job.spec.output.aliases)
    currents = {alias: _current(connection, job, alias) for alias in job.spec.output.aliases}
    problems = [problem for alias, current in currents.items() if (problem := _foreign(connection, job, alias, current))]
    if problems:
        raise AliasMoved("somebody else has moved what this job had moved", problems=problems)
    away = {alias: current for alias, current in currents.items() if current is not None and current != target}
    moved = tuple(MovedAlias(alias=alias, before=current, after=target) for alias, current in away.items())
    if not moved:
        raise Conflict(f"every alias of the job points to {goal.published} already", path="to", value=goal.round)
    for one in moved:
        catalog.set_alias(connection, adapter, one.alias, AliasMove(version=target, expected=one.before), now)
    return moved


def _current(connection: Connection, job: FederatedJob, alias: str) -> int | None:
    return catalog.find_adapter(connection, job.spec.adapter).aliases.get(alias)


def _foreign(connection: Connection, job: FederatedJob, alias: str, current: int | None) -> Problem | None:
    """Return what is wrong with an alias that does not point to a version of this federation."""
    if current is None:
        return Problem(path=alias, message="points nowhere now", hint="wgctl adapters alias set")
    version = catalog.resolve(connection, AdapterRef(adapter=job.spec.adapter, selector=str(current)))
    if version.source.startswith(f"round:{job.id}:"):
        return None
    return Problem(path=alias, message=f"points to version {current}, of {version.source}", hint="wgctl adapters alias set")
