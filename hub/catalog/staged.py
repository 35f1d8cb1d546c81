"""What accounts have sent, or are sending, that no version names yet: counted before its first byte is accepted.

Bytes count from then on until a version of their sender names them, the sender gives them up, or the time is over for which they are kept.
Two who send at the same moment cannot both take the last room. What is locked is locked in one order, so that nobody waits in a circle:
blobs, the account's row of :data:`STAGERS`, the quota of the namespace, rows of :data:`STAGED`. Of bytes that come in parts,
:mod:`hub.catalog.reservations` says how they count.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
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
    update,
)

from hub.catalog.holds import find_had, upload_of
from hub.catalog.quotas import find_limits, measure
from hub.catalog.tables import BLOBS, HOLDS, upsert
from infra.database import METADATA, UtcTime
from infra.principals import Principal
from wegeft.contracts.errors import QuotaExceeded

STAGED = Table(
    "staged",
    METADATA,
    Column("account", String(64), primary_key=True),  # in lower case
    Column("token_id", String(12), primary_key=True),
    Column("digest", String(71), primary_key=True),  # or what stands for an upload in parts, which may be anything
    Column("size", BigInteger, nullable=False),
    Column("namespace", String(96), nullable=True),  # that they are sent for, in lower case, where that is known
    Column("until", UtcTime, nullable=False),
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
    _note(connection, sender, coming.digest, size, coming.until)
    return size


def _note(connection: Connection, sender: Sender, digest: str, size: int, until: datetime) -> None:
    row = {"account": sender.caller.account, "token_id": sender.caller.token_id, "digest": digest, "namespace": sender.namespace}
    added = upsert(connection, STAGED).values({**row, "size": size, "until": until})
    # Whoever sends or asks for the same bytes without saying for which namespace does not take them out of its sum.
    namespace = func.coalesce(added.excluded.namespace, STAGED.c.namespace)
    told = {"size": size, "until": until, "namespace": namespace}
    connection.execute(added.on_conflict_do_update(index_elements=list(STAGED.primary_key), set_=told))


def restage(connection: Connection, sender: Sender, digest: str, now: datetime, until: datetime) -> None:
    """Count bytes again that were sent before and are kept longer now; raises as :func:`stage` does."""
    size = connection.execute(select(BLOBS.c.size).where(BLOBS.c.digest == digest)).scalar_one_or_none()
    stage(connection, sender, Coming(digest=digest, size=size or 0, until=until), now)


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
    # Several tokens of an account that send the same bytes make one blob.
    each = (
        select(func.max(counted).label("size"))
        .where(STAGED.c.until > now, *conditions)
        .group_by(STAGED.c.account, STAGED.c.digest)
        .subquery()
    )
    return int(connection.execute(select(func.coalesce(func.sum(each.c.size), 0))).scalar_one())


def no_room(sender: Sender, room: int, size: int) -> QuotaExceeded:
    """Return what to raise where ``size`` bytes are more than there is room for."""
    whose = f"the account {sender.caller.name}" + (f" or the namespace {sender.namespace}" if sender.namespace else "")
    message = f"{whose} has no room for more that no version names yet"
    return QuotaExceeded(f"{message}: {max(0, room)} bytes are left", path="bytes", value=str(size), hint=_HINT)


def settle(connection: Connection, sender: Sender, digest: str, size: int, until: datetime) -> None:
    """Count bytes that have come, as long as they are, until then; those of a version that the sender may read count no more."""
    if find_had(connection, _NOBODY, [digest], sender.caller):
        connection.execute(delete(STAGED).where(*_is(sender, digest)))
    else:
        # Not an update: another transfer of the same bytes, which failed meanwhile, may have taken the row with it.
        _note(connection, sender, digest, size, until)


def unstage(connection: Connection, sender: Sender, digest: str, now: datetime) -> None:
    """Count bytes no more that do not come, but what the sender has here before."""
    owner = upload_of(sender.caller.token_id)
    is_had = exists().where(HOLDS.c.digest == digest, HOLDS.c.holder == owner, HOLDS.c.until > now)
    size = connection.execute(select(BLOBS.c.size).where(BLOBS.c.digest == digest, is_had)).scalar_one_or_none()
    if size:
        connection.execute(update(STAGED).where(*_is(sender, digest)).values(size=size))
    else:
        connection.execute(delete(STAGED).where(*_is(sender, digest), ~is_had))


def _is(sender: Sender, digest: str) -> tuple[ColumnElement[bool], ...]:
    caller = sender.caller
    return STAGED.c.account == caller.account, STAGED.c.token_id == caller.token_id, STAGED.c.digest == digest


def release(connection: Connection, account: str, digests: Iterable[str]) -> None:
    """Count an account's bytes no more as staged: a version, or something of one, names them."""
    connection.execute(delete(STAGED).where(STAGED.c.account == account.lower(), STAGED.c.digest.in_(list(digests))))


def forget_staged(connection: Connection, now: datetime) -> None:
    """Forget what counts no more, because its time is over."""
    connection.execute(delete(STAGED).where(STAGED.c.until <= now))


def count_staged(connection: Connection, name: str, now: datetime) -> int:
    """Return the bytes that are staged for a namespace, or by the account of its name."""
    is_theirs = or_(STAGED.c.namespace == name.lower(), STAGED.c.account == name.lower())
    return _sum(connection, now, is_theirs)
