"""What was deleted or detached and is stored still: it counts in its namespace until it is collected, so nobody fills the store with it.

A row says of which namespace some bytes were. It ends with the bytes, or once it is over and others need them: then they count with those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, Index, Select, String, Table, case, delete, exists, func, or_, select

from hub.catalog.holds import ARRIVAL, UPLOAD, is_unheld
from hub.catalog.tables import BLOBS, HOLDS, upsert
from infra.database import METADATA, UtcTime

DEPARTED = Table(
    "departed",
    METADATA,
    Column("namespace", String(96), primary_key=True),  # in lower case
    Column("digest", String(71), primary_key=True),
    Column("until", UtcTime, nullable=False),  # that they are kept for their senders' sake, or in case somebody names them again
    Index(None, "until"),
)


def depart(
    connection: Connection, namespace: str, holders: Sequence[str] | Select[Any], until: datetime, *, but: Iterable[str] = ()
) -> None:
    """Count what ``holders`` of a namespace are about to let go ``until`` then, ``but`` for some, from now on as what was deleted there."""
    named = select(HOLDS.c.digest).where(HOLDS.c.holder.in_(holders), HOLDS.c.digest.not_in(set(but)))
    is_sent = or_(HOLDS.c.holder == ARRIVAL, HOLDS.c.holder.startswith(UPLOAD, autoescape=True))
    sent_until = func.max(case((is_sent, HOLDS.c.until), else_=None))
    # In one order, so that two who let the same bytes go wait for each other and never in a circle.
    query = select(HOLDS.c.digest, sent_until.label("until")).where(HOLDS.c.digest.in_(named)).group_by(HOLDS.c.digest)
    found = connection.execute(query.order_by(HOLDS.c.digest)).all()
    rows = [{"namespace": namespace.lower(), "digest": row.digest, "until": max(until, row.until or until)} for row in found]
    if rows:
        added = upsert(connection, DEPARTED)
        later = case((added.excluded.until > DEPARTED.c.until, added.excluded.until), else_=DEPARTED.c.until)
        connection.execute(added.on_conflict_do_update(index_elements=list(DEPARTED.primary_key), set_={"until": later}), rows)


def forget_departed(connection: Connection, now: datetime) -> None:
    """Forget what is collected, and what is over and needed by others: it is theirs."""
    awaits_collection = exists().where(BLOBS.c.digest == DEPARTED.c.digest, is_unheld(now))
    connection.execute(delete(DEPARTED).where(DEPARTED.c.until <= now, ~awaits_collection))
