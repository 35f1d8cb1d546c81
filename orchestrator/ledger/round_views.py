"""Rounds and sites as people see them: pages of rounds, and what became of each site's work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, Row, Select, func, select

from orchestrator.ledger.federation_tables import ARRIVALS, OFFERS, ROUNDS
from orchestrator.rounds import Closing
from wegeft.contracts.enrolment import RoundView
from wegeft.contracts.errors import NotFound, Problem
from wegeft.contracts.federation import Exclusion, ReasonCode, RoundRecord, RoundState

_WAITING = frozenset({RoundState.SELECTING, RoundState.COLLECTING})
_RECORDS_LOOKED_AT = 20


def list_rounds(connection: Connection, job_id: str, closing: Closing, before: int | None, limit: int) -> tuple[RoundView, ...]:
    """Return every try at up to ``limit`` rounds below number ``before``, newest first."""
    is_theirs = ROUNDS.c.job_id == job_id
    below = is_theirs if before is None else is_theirs & (ROUNDS.c.number < before)
    numbers = select(ROUNDS.c.number).where(below).distinct().order_by(ROUNDS.c.number.desc()).limit(limit)
    wanted = connection.execute(numbers).scalars().all()
    rows = connection.execute(_newest_first(job_id).where(ROUNDS.c.number.in_(wanted)))
    return tuple(_view(row, closing) for row in rows)


def find_round(connection: Connection, job_id: str, number: int, closing: Closing) -> RoundView:
    """Return the newest try at a round; raise :class:`NotFound`."""
    row = connection.execute(_newest_first(job_id).where(ROUNDS.c.number == number).limit(1)).one_or_none()
    if row is None:
        raise NotFound("there is no such round yet", path="round", value=str(number))
    return _view(row, closing)


def count_joined(connection: Connection, job_id: str) -> dict[str, int]:
    """Return in how many committed rounds each site's update was accepted, by pseudonym."""
    is_same = (ROUNDS.c.job_id == ARRIVALS.c.job_id) & (ROUNDS.c.number == ARRIVALS.c.number) & (ROUNDS.c.attempt == ARRIVALS.c.attempt)
    query = (
        select(ARRIVALS.c.pseudonym, func.count().label("rounds"))
        .join(ROUNDS, is_same)
        .where(ROUNDS.c.job_id == job_id, ROUNDS.c.state == RoundState.COMMITTED.value, ARRIVALS.c.reason.is_(None))
        .group_by(ARRIVALS.c.pseudonym)
    )
    return {row.pseudonym: row.rounds for row in connection.execute(query)}


def list_records(connection: Connection, job_id: str, limit: int = _RECORDS_LOOKED_AT) -> tuple[RoundRecord, ...]:
    """Return the records of the newest rounds that are over, newest first."""
    query = select(ROUNDS.c.record).where(ROUNDS.c.job_id == job_id, ROUNDS.c.record.is_not(None))
    rows = connection.execute(query.order_by(ROUNDS.c.number.desc(), ROUNDS.c.attempt.desc()).limit(limit)).scalars()
    return tuple(RoundRecord.model_validate_json(text) for text in rows)


def last_published(connection: Connection, job_id: str) -> str | None:
    """Return the last version that a round published; None where none has yet."""
    is_over = (ROUNDS.c.job_id == job_id) & (ROUNDS.c.state == RoundState.COMMITTED.value)
    text = connection.execute(select(ROUNDS.c.record).where(is_over).order_by(ROUNDS.c.number.desc()).limit(1)).scalar_one_or_none()
    return None if text is None else RoundRecord.model_validate_json(text).published


def last_exclusions(connection: Connection, job_id: str) -> dict[str, Exclusion]:
    """Return why each site has no part in the open round, or was left out of the newest closed one that left it out, by pseudonym."""
    found = {exclusion.site: exclusion for exclusion in _open_exclusions(connection, job_id)}
    for record in list_records(connection, job_id):
        for exclusion in record.left_out:
            found.setdefault(exclusion.site, exclusion)
    return found


def _open_exclusions(connection: Connection, job_id: str) -> Iterator[Exclusion]:
    """Yield who has declined or was refused in the round that collects, the last answer of each last."""
    newest = connection.execute(_newest_first(job_id).limit(1)).one_or_none()
    if newest is None or newest.state != RoundState.COLLECTING.value:
        return
    is_of_it = (ARRIVALS.c.job_id == job_id) & (ARRIVALS.c.number == newest.number) & (ARRIVALS.c.attempt == newest.attempt)
    answered = select(ARRIVALS.c.pseudonym).where(is_of_it, ARRIVALS.c.reason.is_(None))
    query = select(ARRIVALS).where(is_of_it, ARRIVALS.c.reason.is_not(None), ARRIVALS.c.pseudonym.not_in(answered))
    for row in connection.execute(query.order_by(ARRIVALS.c.received_at)):
        problems = tuple(Problem.model_validate(problem) for problem in json.loads(row.problems))
        yield Exclusion(site=row.pseudonym, reason=ReasonCode(row.reason), problems=problems)


def _newest_first(job_id: str) -> Select[Any]:
    def count(table: Any, *where: Any) -> Any:
        is_same = (table.c.job_id == ROUNDS.c.job_id) & (table.c.number == ROUNDS.c.number) & (table.c.attempt == ROUNDS.c.attempt)
        return select(func.count()).select_from(table).where(is_same, *where).scalar_subquery()

    used = select(func.coalesce(func.max(ROUNDS.c.consumed), 0)).where(ROUNDS.c.job_id == job_id).scalar_subquery()
    waiting = select(func.count()).select_from(ARRIVALS).where(ARRIVALS.c.job_id == job_id, ARRIVALS.c.position > used).scalar_subquery()
    counts = count(OFFERS).label("asked"), count(ARRIVALS, ARRIVALS.c.reason.is_(None)).label("accepted"), waiting.label("waiting")
    return select(ROUNDS, *counts).where(ROUNDS.c.job_id == job_id).order_by(ROUNDS.c.number.desc(), ROUNDS.c.attempt.desc())


def _count_accepted(row: Row[Any]) -> int:
    """Return how many updates a round has: its members, or what waits in the buffer for one that is open, whatever round asked for it."""
    if row.members is not None:
        return len(json.loads(row.members))
    return max(row.accepted, row.waiting) if RoundState(row.state) in _WAITING else int(row.accepted)


def _view(row: Row[Any], closing: Closing) -> RoundView:
    state = RoundState(row.state)
    return RoundView(
        round=row.number,
        attempt=row.attempt,
        state=state,
        asked=row.asked,
        accepted=_count_accepted(row),
        buffer_size=closing.buffer_size,
        record=RoundRecord.model_validate_json(row.record) if row.record else None,
        opened_at=row.since,
        closes_at=row.since + closing.deadline if state in _WAITING else None,
    )
