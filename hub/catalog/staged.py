"""What accounts have sent, or are sending, that no version names yet: counted before its first byte is accepted.

Bytes count from then on until a version of their sender names them, or until they are gone from the store: also those that were given up,
or kept for long enough, and wait to be collected. Each transfer has a row of its own, and of the rows of the same bytes the largest counts:
so none makes another count for less, and one that fails takes back what it has added itself. What counts is asked of these rows alone, so
nobody learns from it what others have.

Two who send at the same moment cannot both take the last room. What is locked is locked in one order, so that nobody waits in a circle:
an upload in parts, blobs, the account's row of :data:`STAGERS`, the quota of the namespace, rows of :data:`STAGED`. Of bytes that come in
parts, :mod:`hub.catalog.reservations` says how they count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    String,
    Table,
    and_,
    case,
    delete,
    exists,
    func,
    or_,
    select,
    tuple_,
    update,
)

from hub.catalog.holds import PARTS, find_had, is_unheld, name_transfer
from hub.catalog.quotas import find_limits, measure
from hub.catalog.tables import BLOBS, HOLDS, UPLOADS, upsert
from infra.database import METADATA, UtcTime
from infra.principals import Principal
from wegeft.contracts.errors import QuotaExceeded

STAGED = Table(
    "staged",
    METADATA,
    Column("account", String(64), primary_key=True),  # in lower case
    Column("token_id", String(12), primary_key=True),  # or the name of a transfer that is under way
    Column("digest", String(71), primary_key=True),  # or what stands for an upload in parts, which may be anything
    Column("size", BigInteger, nullable=False),
    Column("namespace", String(96), nullable=True),  # that they are sent for, in lower case, where that is known
    Column("until", UtcTime, nullable=False),  # from when on a collection looks whether they are gone
    Column("ahead", BigInteger, nullable=False, server_default="0"),  # bytes besides, of an upload in parts, that room is kept for
    Column("ahead_until", UtcTime, nullable=True),
    Index(None, "namespace"),
    Index(None, "until"),
)

STAGERS = Table("stagers", METADATA, Column("account", String(64), primary_key=True))
"""A row for each account that has staged anything, which whoever stages for it holds until the commit."""

_HINT = "publish what was sent, give uploads up, or wait until they and deleted bytes go (WEGEFT_KEEP_SECONDS); an admin raises the limit"
_NOBODY = ""
"""A holder that never had anything."""


@dataclass(frozen=True, kw_only=True)
class Sender:
    """Who sends bytes, and how many may wait."""

    caller: Principal
    most_bytes: int
    """That no version names yet, of all that the account sends."""
    namespace: str | None = None
    """That it sends them for."""
    transfer: str = field(default_factory=name_transfer)
    """How this sending is called; each has a name of its own."""


@dataclass(frozen=True, kw_only=True)
class Coming:
    """Bytes that are about to come."""

    digest: str
    size: int
    until: datetime
    """How long they are kept, once they have come."""
    may_be_fewer: bool = False
    """Whether ``size`` is only the most that may come."""


def stage(connection: Connection, sender: Sender, coming: Coming, now: datetime) -> int:
    """Count bytes that are about to come, and return how many may.

    Bytes of a version that the sender may read count as none. Raises :class:`QuotaExceeded` where there is no room.
    """
    caller = sender.caller
    if find_had(connection, _NOBODY, [coming.digest], caller):
        return coming.size
    hold_account(connection, caller.account)
    room = find_room(connection, sender, coming.digest, now)
    if room <= 0 if coming.may_be_fewer else coming.size > room:
        raise no_room(sender, room, coming.size)
    size = min(coming.size, room)
    note_staged(connection, sender, replace(coming, size=size))
    return size


def note_staged(connection: Connection, sender: Sender, coming: Coming) -> None:
    """Count bytes for a sender's transfer, whether or not there is room for them."""
    row = {"account": sender.caller.account, "token_id": sender.transfer, "digest": coming.digest, "namespace": sender.namespace}
    told = {"size": coming.size, "until": coming.until}
    added = upsert(connection, STAGED).values({**row, **told})
    # Whoever sends or asks for the same bytes without saying for which namespace does not take them out of its sum.
    namespace = func.coalesce(added.excluded.namespace, STAGED.c.namespace)
    connection.execute(added.on_conflict_do_update(index_elements=list(STAGED.primary_key), set_={**told, "namespace": namespace}))


def _as_sent(sender: Sender) -> Sender:
    """Return a sender of bytes that have come: those of all its transfers count as one."""
    return replace(sender, transfer=sender.caller.token_id)


def restage(connection: Connection, sender: Sender, digest: str, now: datetime, until: datetime) -> None:
    """Count bytes again that were sent before and are kept longer now; raises as :func:`stage` does."""
    size = connection.execute(select(BLOBS.c.size).where(BLOBS.c.digest == digest)).scalar_one_or_none()
    stage(connection, _as_sent(sender), Coming(digest=digest, size=size or 0, until=until), now)


def hold_account(connection: Connection, account: str) -> None:
    """Let nobody else stage for the account before the transaction ends."""
    added = upsert(connection, STAGERS).values(account=account)
    connection.execute(added.on_conflict_do_update(index_elements=[STAGERS.c.account], set_={"account": account}))


def find_room(connection: Connection, sender: Sender, digest: str, now: datetime) -> int:
    """Return how many bytes more the sender may stage, these ones not counted; hold the quota that says so until the transaction ends."""
    caller = sender.caller
    own = find_limits(connection, caller.account).bytes
    most = sender.most_bytes if own is None else min(own, sender.most_bytes)
    others = ~and_(STAGED.c.account == caller.account, STAGED.c.digest == digest)  # for all its tokens they are one blob
    room = most - _sum(connection, now, STAGED.c.account == caller.account, others)
    limit = find_limits(connection, sender.namespace, is_locking=True).bytes if sender.namespace else None
    if limit is not None and sender.namespace:
        waiting = _sum(connection, now, STAGED.c.namespace == sender.namespace.lower(), others)
        room = min(room, limit - measure(connection, sender.namespace).counted_bytes - waiting)
    return room


def _sum(connection: Connection, now: datetime, *conditions: ColumnElement[bool]) -> int:
    counted = STAGED.c.size + case((STAGED.c.ahead_until > now, STAGED.c.ahead), else_=0)
    # Several tokens and transfers of an account that send the same bytes make one blob.
    each = select(func.max(counted).label("size")).where(*conditions).group_by(STAGED.c.account, STAGED.c.digest).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(each.c.size), 0))).scalar_one())


def no_room(sender: Sender, room: int, size: int) -> QuotaExceeded:
    """Return what to raise where ``size`` bytes are more than there is room for."""
    whose = f"the account {sender.caller.name}" + (f" or the namespace {sender.namespace}" if sender.namespace else "")
    message = f"{whose} has no room for more that no version names yet"
    return QuotaExceeded(f"{message}: {max(0, room)} bytes are left", path="bytes", value=str(size), hint=_HINT)


def settle(connection: Connection, sender: Sender, digest: str, size: int, until: datetime) -> None:
    """Count bytes that have come, as long as they are, until then; those of a version that the sender may read count no more."""
    unstage(connection, sender, digest)
    if find_had(connection, _NOBODY, [digest], sender.caller):
        unstage(connection, _as_sent(sender), digest)
    else:
        note_staged(connection, _as_sent(sender), Coming(digest=digest, size=size, until=until))


def unstage(connection: Connection, sender: Sender, digest: str) -> None:
    """Take back what a transfer has added: its bytes do not come, or count otherwise."""
    is_it = (STAGED.c.account == sender.caller.account) & (STAGED.c.token_id == sender.transfer) & (STAGED.c.digest == digest)
    connection.execute(delete(STAGED).where(is_it))


def release(connection: Connection, account: str, digests: Iterable[str]) -> None:
    """Count an account's bytes no more as staged: a version, or something of one, names them."""
    connection.execute(delete(STAGED).where(STAGED.c.account == account.lower(), STAGED.c.digest.in_(list(digests))))


def forget_staged(connection: Connection, now: datetime, limit: int) -> bool:
    """Look at up to ``limit`` of what was given up or kept for long enough, and forget what is gone from the store, or theirs who need it.

    Asked when a collection has deleted all that nobody needs, so that both are forgotten at once: when something counts no more tells
    nobody whether others have it. Returns False where there may be more to forget.
    """
    key = list(STAGED.primary_key)
    over = select(*key, _lies_there(now).label("lies_there")).where(STAGED.c.until <= now).order_by(STAGED.c.until).limit(limit)
    # Whoever has locked one may wait for another that is locked here.
    found = connection.execute(over.with_for_update(skip_locked=True, of=STAGED)).all()
    gone = [tuple(row[:3]) for row in found if not row.lies_there]
    if gone:
        connection.execute(delete(STAGED).where(tuple_(*key).in_(gone)))
    if waiting := [tuple(row[:3]) for row in found if row.lies_there]:
        # Looked at last the next time, so that none keeps others from being looked at.
        connection.execute(update(STAGED).where(tuple_(*key).in_(waiting)).values(until=now))
    return len(gone) < limit


def _lies_there(now: datetime) -> ColumnElement[bool]:
    """Return what holds for bytes that wait to be collected, parts of an upload too, and for uploads that nobody has ended."""
    theirs = HOLDS.alias()
    waits = exists().where(BLOBS.c.digest == STAGED.c.digest, is_unheld(now))
    has_parts = exists().where(theirs.c.holder == STAGED.c.digest, BLOBS.c.digest == theirs.c.digest, is_unheld(now))
    is_open = exists().where(STAGED.c.digest.startswith(PARTS), UPLOADS.c.id == func.substr(STAGED.c.digest, len(PARTS) + 1))
    return or_(waits, has_parts, is_open)


def count_staged(connection: Connection, name: str, now: datetime) -> int:
    """Return the bytes that are staged for a namespace, or by the account of its name."""
    is_theirs = or_(STAGED.c.namespace == name.lower(), STAGED.c.account == name.lower())
    return _sum(connection, now, is_theirs)
