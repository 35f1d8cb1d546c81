"""Who needs which bytes, and until when: what nobody holds any more is collected.

A blob has a row from before its first byte comes until after its last is gone, and whoever names it holds that row's lock while it
does. So a blob is either named in time, and stays, or chosen to leave first, and then cannot be named before it is sent anew.
A holder is a kind and a name, such as ``version:job:…``; a hold that is over stays as the proof that its holder had the bytes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Select, delete, exists, func, literal, or_, select, union, update

from hub.catalog.tables import ADAPTERS, BLOBS, HOLDS, VERSIONS, upsert
from hub.catalog.visibility import seen_by
from infra.principals import Principal

ARRIVAL = "arrival"
"""The holder of what comes from nobody in particular, for a while; that of each transfer with a name of its own begins so."""
UPLOAD = "upload:"
"""What the holders begin with that stand for senders."""
PARTS = "parts:"
"""What the holders begin with that stand for uploads in parts."""
_VERSION = "version:"


def upload_of(token_id: str) -> str:
    """Return the holder that stands for what a token has sent."""
    return f"{UPLOAD}{token_id}"


def version_of(source: str) -> str:
    """Return the holder that stands for what a source has published."""
    return f"{_VERSION}{source}"


def name_transfer() -> str:
    """Return a new name for a transfer: whatever becomes of it, what others send and keep of the same bytes stays as it is."""
    return f"~{secrets.token_hex(5)}"


def expect(connection: Connection, digest: str, until: datetime, transfer: str = "") -> int | None:
    """Note that bytes are about to come, so that they stay at least ``until`` then; commit it before the first is stored.

    Returns how many they are, where they have come before. Waits for a collector that is just deleting them, and forgets who had them
    before that; not how many they are, for they may be there still. With the name of a ``transfer``, :func:`withdraw` ends it.
    """
    row = upsert(connection, BLOBS).values(digest=digest, is_leaving=False)
    locked = row.on_conflict_do_update(index_elements=[BLOBS.c.digest], set_={"digest": BLOBS.c.digest})
    found = connection.execute(locked.returning(BLOBS.c.is_leaving, BLOBS.c.size)).one()
    if found.is_leaving:
        connection.execute(delete(HOLDS).where(HOLDS.c.digest == digest))
        connection.execute(update(BLOBS).where(BLOBS.c.digest == digest).values(is_leaving=False))
    _put_holds(connection, _arrival_of(transfer), [digest], until)
    size: int | None = found.size
    return size


def withdraw(connection: Connection, digest: str, transfer: str) -> None:
    """Keep bytes no more for a transfer's sake: they do not come, or others keep them now; harmless to repeat."""
    if transfer:
        connection.execute(delete(HOLDS).where(HOLDS.c.digest == digest, HOLDS.c.holder == _arrival_of(transfer)))


def _arrival_of(transfer: str) -> str:
    return f"{ARRIVAL}:{transfer}" if transfer else ARRIVAL


def arrive(connection: Connection, digest: str, size: int, holder: str, until: datetime) -> bool:
    """Note that the bytes have all come, from ``holder``, who keeps them ``until`` then.

    Return False where they were so long on their way that they were collected meanwhile: they must be sent again.
    """
    if hold(connection, holder, [digest], until):
        expect(connection, digest, until)  # what is left of them must be found by the next collection
        return False
    connection.execute(update(BLOBS).where(BLOBS.c.digest == digest).values(size=size))
    return True


def hold(connection: Connection, holder: str, digests: Iterable[str], until: datetime | None) -> frozenset[str]:
    """Keep blobs for ``holder`` until a moment, None for ever, once the transaction commits; return those that are not there."""
    asked = set(digests)
    # In one order, so that two who hold the same blobs wait for each other and never in a circle.
    query = select(BLOBS.c.digest).where(BLOBS.c.digest.in_(asked), ~BLOBS.c.is_leaving).order_by(BLOBS.c.digest).with_for_update()
    there = connection.execute(query).scalars().all()
    _put_holds(connection, holder, there, until)
    return frozenset(asked.difference(there))


def is_kept(connection: Connection, holder: str, digest: str, until: datetime) -> bool:
    """Whether a holder keeps a blob at least until then."""
    is_theirs = (HOLDS.c.holder == holder) & (HOLDS.c.digest == digest) & or_(HOLDS.c.until.is_(None), HOLDS.c.until >= until)
    query = select(HOLDS.c.digest).join(BLOBS, BLOBS.c.digest == HOLDS.c.digest).where(is_theirs, ~BLOBS.c.is_leaving)
    return connection.execute(query).first() is not None


def note_sizes(connection: Connection, sizes: Mapping[str, int]) -> None:
    """Note the sizes, in bytes, of blobs that were checked and of which nobody has noted it yet: quotas count them."""
    for digest, size in sorted(sizes.items()):
        connection.execute(update(BLOBS).where(BLOBS.c.digest == digest, BLOBS.c.size.is_(None)).values(size=size))


def _put_holds(connection: Connection, holder: str, digests: Iterable[str], until: datetime | None) -> None:
    rows = [{"digest": digest, "holder": holder, "until": until} for digest in digests]
    if rows:
        added = upsert(connection, HOLDS)
        renewed = added.on_conflict_do_update(index_elements=list(HOLDS.primary_key), set_={"until": added.excluded.until})
        connection.execute(renewed, rows)


def let_go(connection: Connection, holder: str, until: datetime, *, but: Iterable[str] = (), only: Iterable[str] | None = None) -> None:
    """Let the holder's blobs, ``but`` for some or ``only`` some, go at a moment, unless they go before it."""
    is_later = or_(HOLDS.c.until.is_(None), HOLDS.c.until > until)
    gone = update(HOLDS).where(HOLDS.c.holder == holder, HOLDS.c.digest.not_in(set(but)), is_later)
    if only is not None:
        gone = gone.where(HOLDS.c.digest.in_(set(only)))
    connection.execute(gone.values(until=until))


def find_had(connection: Connection, holder: str, digests: Iterable[str], reader: Principal | None = None) -> frozenset[str]:
    """Return those blobs whose bytes the holder has had, and those of published versions that ``reader`` may see; None sees the public."""
    asked = set(digests)
    theirs = select(HOLDS.c.digest).join(BLOBS, BLOBS.c.digest == HOLDS.c.digest).where(HOLDS.c.digest.in_(asked), ~BLOBS.c.is_leaving)
    published = (
        theirs.join(VERSIONS, HOLDS.c.holder == literal(_VERSION) + VERSIONS.c.source)
        .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
        .where(seen_by(reader))
    )
    return frozenset(connection.execute(union(theirs.where(HOLDS.c.holder == holder), published)).scalars())


@dataclass(frozen=True, kw_only=True)
class Stock:
    """How much is stored, and how much of it nobody needs."""

    blobs: int
    size: int
    """Bytes."""
    unheld_blobs: int
    unheld_size: int


def take_stock(connection: Connection, now: datetime) -> Stock:
    """Count what is stored; bytes of which nobody knows the size yet count as none."""
    blobs, size = connection.execute(_totals()).one()
    unheld_blobs, unheld_size = connection.execute(_totals().where(is_unheld(now))).one()
    return Stock(blobs=blobs, size=int(size), unheld_blobs=unheld_blobs, unheld_size=int(unheld_size))


def _totals() -> Select[Any]:
    return select(func.count(), func.coalesce(func.sum(BLOBS.c.size), 0)).select_from(BLOBS)


def list_unheld(connection: Connection, now: datetime, limit: int) -> tuple[tuple[str, int | None], ...]:
    """Return up to ``limit`` blobs that nobody needs, by digest and size."""
    query = select(BLOBS.c.digest, BLOBS.c.size).where(is_unheld(now)).order_by(BLOBS.c.digest).limit(limit)
    return tuple((row.digest, row.size) for row in connection.execute(query))


def is_unheld(now: datetime) -> ColumnElement[bool]:
    """Return what holds for blobs that nobody needs."""
    is_held = exists().where(HOLDS.c.digest == BLOBS.c.digest, or_(HOLDS.c.until.is_(None), HOLDS.c.until > now))
    return or_(BLOBS.c.is_leaving, ~is_held)


def choose_leaving(connection: Connection, now: datetime, limit: int) -> tuple[str, ...]:
    """Choose up to ``limit`` blobs that nobody needs; from the commit on, nobody can name them before they are sent anew.

    What was chosen before, by a collector that has died perhaps, is among them.
    """
    seen = [digest for digest, _ in list_unheld(connection, now, limit)]
    locked = select(BLOBS.c.digest).where(BLOBS.c.digest.in_(seen)).order_by(BLOBS.c.digest).with_for_update(skip_locked=True)
    ours = connection.execute(locked).scalars().all()
    # Asked again now that nobody can name them: PostgreSQL shows each statement what others have committed before it.
    query = select(BLOBS.c.digest).where(BLOBS.c.digest.in_(ours), is_unheld(now)).order_by(BLOBS.c.digest)
    chosen = connection.execute(query).scalars().all()
    connection.execute(update(BLOBS).where(BLOBS.c.digest.in_(chosen)).values(is_leaving=True))
    return tuple(chosen)


def seize(connection: Connection, digest: str) -> int | None:
    """Hold a blob that was chosen to leave, until the transaction ends, and return its size, 0 where that is not known.

    None where somebody sends it again meanwhile, or another collector has it.
    """
    query = select(BLOBS.c.size).where(BLOBS.c.digest == digest, BLOBS.c.is_leaving).with_for_update(skip_locked=True)
    row = connection.execute(query).one_or_none()
    return None if row is None else row.size or 0


def forget(connection: Connection, digest: str) -> None:
    """Forget a blob that was seized and whose bytes are gone."""
    connection.execute(delete(HOLDS).where(HOLDS.c.digest == digest))
    connection.execute(delete(BLOBS).where(BLOBS.c.digest == digest))
