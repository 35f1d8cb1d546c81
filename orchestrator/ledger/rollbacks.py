"""Each time that a federation went back to an earlier round, in SQL; and which of its rounds count since."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, Row, insert, select

from orchestrator.ledger.federation_tables import ROLLBACKS, ROUNDS
from wegeft.contracts.federation import RoundState
from wegeft.contracts.rollback import CancelledTry, MovedAlias, Rollback


def add_rollback(connection: Connection, job_id: str, rollback: Rollback) -> None:
    """Write a rollback down, in the transaction that does it; the caller holds the job's row, so that no two have one number."""
    row = {
        "job_id": job_id,
        "number": rollback.number,
        "to_round": rollback.to_round,
        "start_digest": rollback.start,
        "opened_round": rollback.opened_round,
        "cancelled": rollback.cancelled.model_dump_json() if rollback.cancelled else None,
        "aliases": json.dumps([moved.model_dump() for moved in rollback.aliases]),
        "person": rollback.person,
        "reason": rollback.reason,
        "rolled_back_at": rollback.at,
    }
    connection.execute(insert(ROLLBACKS).values(row))


def list_rollbacks(connection: Connection, job_id: str) -> tuple[Rollback, ...]:
    """Return every rollback of a federation, oldest first."""
    rows = connection.execute(select(ROLLBACKS).where(ROLLBACKS.c.job_id == job_id).order_by(ROLLBACKS.c.number))
    return tuple(_rollback(row) for row in rows)


def list_committed(connection: Connection, job_id: str) -> tuple[int, ...]:
    """Return the numbers of all committed rounds, lowest first, undone or not."""
    is_committed = (ROUNDS.c.job_id == job_id) & (ROUNDS.c.state == RoundState.COMMITTED.value)
    return tuple(connection.execute(select(ROUNDS.c.number).where(is_committed).order_by(ROUNDS.c.number)).scalars())


def list_counting(connection: Connection, job_id: str) -> tuple[int, ...]:
    """Return the numbers of the committed rounds that the federation goes on from, lowest first."""
    newest = connection.execute(select(ROUNDS.c.number).where(ROUNDS.c.job_id == job_id).order_by(ROUNDS.c.number.desc()).limit(1))
    return counting(list_committed(connection, job_id), newest.scalar_one_or_none() or 0, list_rollbacks(connection, job_id))


def counting(committed: Collection[int], newest: int, rollbacks: Sequence[Rollback]) -> tuple[int, ...]:
    """Return which of the ``committed`` rounds round ``newest`` descends from, itself included, lowest first."""
    went_back = {rollback.opened_round: rollback.to_round for rollback in rollbacks if rollback.opened_round is not None}
    found, number = [], newest
    while number > 0:
        if number in committed:
            found.append(number)
        number = went_back.get(number, number - 1)
    return tuple(reversed(found))


def parent_of(number: int, rollbacks: Sequence[Rollback]) -> int:
    """Return the number of the round from whose result a round started; 0 where it started from the federation's beginning."""
    return next((rollback.to_round for rollback in rollbacks if rollback.opened_round == number), number - 1)


def _rollback(row: Row[Any]) -> Rollback:
    return Rollback(
        number=row.number,
        to_round=row.to_round,
        start=row.start_digest,
        opened_round=row.opened_round,
        cancelled=CancelledTry.model_validate_json(row.cancelled) if row.cancelled else None,
        aliases=tuple(MovedAlias.model_validate(moved) for moved in json.loads(row.aliases)),
        person=row.person,
        reason=row.reason,
        at=row.rolled_back_at,
    )
