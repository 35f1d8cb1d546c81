"""What keeps a federation from its next step, in SQL: how often the same error came, so that no restart begins to count anew."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, select

from hub.catalog.tables import upsert
from orchestrator.ledger.federation_tables import TROUBLES

FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 60.0
"""Between two tries at a step that fails."""


@dataclass(frozen=True, kw_only=True)
class Trouble:
    """A step that fails again and again with one error."""

    place: str
    """Which step of which round."""
    code: str
    """Of the error."""
    tries: int
    since: datetime
    next_at: datetime
    """When it is tried again."""


def find_trouble(connection: Connection, job_id: str) -> Trouble | None:
    """Return what keeps a federation from going on; None where nothing does."""
    row = connection.execute(select(TROUBLES).where(TROUBLES.c.job_id == job_id)).one_or_none()
    if row is None:
        return None
    return Trouble(place=row.place, code=row.code, tries=row.tries, since=row.since, next_at=row.next_at)


def note_trouble(connection: Connection, job_id: str, place: str, code: str, now: datetime) -> Trouble:
    """Count one more try that has failed, from 1 where the step or the error is another one than before."""
    before = find_trouble(connection, job_id)
    is_same = before is not None and (before.place, before.code) == (place, code)
    tries, since = (before.tries + 1, before.since) if before is not None and is_same else (1, now)
    pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(tries - 1, 10), LONGEST_PAUSE_SECONDS)
    trouble = Trouble(place=place, code=code, tries=tries, since=since, next_at=now + timedelta(seconds=pause))
    row = {"place": place, "code": code, "tries": tries, "since": since, "next_at": trouble.next_at}
    added = upsert(connection, TROUBLES).values(job_id=job_id, **row)
    connection.execute(added.on_conflict_do_update(index_elements=[TROUBLES.c.job_id], set_=row))
    return trouble


def forget_trouble(connection: Connection, job_id: str) -> None:
    """Forget what kept a federation from going on."""
    connection.execute(delete(TROUBLES).where(TROUBLES.c.job_id == job_id))
