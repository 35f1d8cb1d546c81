"""What was deleted or detached and is stored still: it counts in its namespace until it is collected, so nobody fills the store with it.

A row says of which namespace some bytes were. It ends with the bytes, or once it is over and others need them: then they count with those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from sqlalchemy import Column, Connection, Index, SelectBase, String, Table, case, delete, exists, func, or_, select

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
    connection: Connection, namespace: str, holders: Sequence[str] | SelectBase, until: datetime, *, but: Iterable[str] = ()
) -> None:
    """Count what ``holders`` of a namespace are about to let go ``until`` then, ``but`` for some, from now on as what was deleted there.

    All of them at once: rows are locked in one order, so that two who let the same bytes go wait for each other and never in a circle.
    """
    is_theirs = HOLDS.c.holder.in_(holders) & HOLDS.c.digest.not_in(set(but))
    named, sent = select(HOLDS.c.digest).where(is_theirs).distinct().subquery(), HOLDS.alias()
    is_sent = or_(*(sent.c.holder.startswith(kind, autoescape=True) for kind in (ARRIVAL, UPLOAD)))
    query = select(named.c.digest, func.max(sent.c.until).label("until")).select_from(
        named.outerjoin(sent, (sent.c.digest == named.c.digest) & is_sent)
    )
    found = connection.execute(query.group_by(named.c.digest).order_by(named.c.digest)).all()
    rows = [{"namespace": namespace.lower(), "digest": row.digest, "until": max(until, row.until or until)} for row in found]
    if rows:
        added = upsert(connection, DEPARTED)
        later = case((added.excluded.until > DEPARTED.c.until, added.excluded.until), else_=DEPARTED.c.until)
        connection.execute(added.on_conflict_do_update(index_elements=list(DEPARTED.primary_key), set_={"until": later}), rows)


def forget_departed(connection: Connection, now: datetime) -> None:
    """Forget what is collected, and what is over and needed by others: it is theirs."""
    awaits_collection = exists().where(BLOBS.c.digest == DEPARTED.c.digest, is_unheld(now))
    connection.execute(delete(DEPARTED).where(DEPARTED.c.until <= now, ~awaits_collection))
