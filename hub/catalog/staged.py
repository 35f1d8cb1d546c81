"""What accounts have sent, or are sending, that no version names yet: counted before its first byte is accepted.

Bytes count from then on until a version of their sender names them, or they are gone from the store: what was given up, refused or kept
for long enough counts until it is collected, unless others need it. Two who send at the same moment cannot both take the last room. What
is locked is locked in one order, so that nobody waits in a circle: uploads, blobs, the account's row of :data:`STAGERS`, the quota of the
namespace, rows of :data:`STAGED`. Of bytes that come in parts, :mod:`hub.catalog.reservations` says how they count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Index,
    Row,
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

from hub.catalog.holds import find_had, is_unclaimed, upload_of
from hub.catalog.quotas import find_limits, measure
from hub.catalog.tables import BLOBS, HOLDS, UPLOADS, upsert
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
_LEFT_BEHIND = "-"
"""In the place of a token, of bytes that no token of the account can take back."""
_PARTS = "parts:"


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
    _keep_what_lies_there(connection, sender, coming.digest, now)
    room = find_room(connection, sender, coming.digest, now)
    if room <= 0 if coming.may_be_fewer else coming.size > room:
        raise no_room(sender, room, coming.size)
    size, had = min(coming.size, room), _find_had(connection, sender, coming.digest)
    _note(connection, sender, coming.digest, max(size, had.size or 0) if had else size, coming.until)
    return size


def _find_had(connection: Connection, sender: Sender, digest: str) -> Row[Any, Any] | None:
    """Return how long bytes are, and until when they are kept, that the token has sent before and that are here still."""
    is_theirs = (HOLDS.c.digest == digest) & (HOLDS.c.holder == upload_of(sender.caller.token_id))
    query = select(BLOBS.c.size, HOLDS.c.until).join(HOLDS, HOLDS.c.digest == BLOBS.c.digest).where(is_theirs)
    return connection.execute(query).one_or_none()


def _note(connection: Connection, sender: Sender, digest: str, size: int, until: datetime) -> None:
    row = {"account": sender.caller.account, "token_id": sender.caller.token_id, "digest": digest, "namespace": sender.namespace}
    added = upsert(connection, STAGED).values({**row, "size": size, "until": until})
    # Whoever sends or asks for the same bytes without saying for which namespace does not take them out of its sum.
    namespace = func.coalesce(added.excluded.namespace, STAGED.c.namespace)
    told = {"size": size, "until": until, "namespace": namespace}
    connection.execute(added.on_conflict_do_update(index_elements=list(STAGED.primary_key), set_=told))


def _keep_what_lies_there(connection: Connection, sender: Sender, digest: str, now: datetime) -> None:
    """Let bytes count that the sender has sent before and that may not be collected yet, whatever becomes of those that come now."""
    for row in connection.execute(select(STAGED).where(*_is(sender, digest), STAGED.c.until <= now)).all():
        leave(connection, (row.account, row.namespace), {digest: row.size}, now)


def leave(connection: Connection, whose: tuple[str, str | None], sizes: Mapping[str, int], now: datetime) -> None:
    """Count bytes, by digest and size, that are stored and that nobody wants, until they are gone from the store or others need them.

    ``whose``: the account that has sent them, and the namespace that it sent them for.
    """
    account, namespace = whose
    row = {"account": account, "token_id": _LEFT_BEHIND, "namespace": namespace, "until": now}
    rows = [{**row, "digest": digest, "size": size} for digest, size in sorted(sizes.items())]
    if rows:
        added = upsert(connection, STAGED)
        told = {"namespace": func.coalesce(added.excluded.namespace, STAGED.c.namespace), "until": now}
        connection.execute(added.on_conflict_do_update(index_elements=list(STAGED.primary_key), set_=told), rows)


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
    each = select(func.max(counted).label("size")).where(_counts(now), *conditions).group_by(STAGED.c.account, STAGED.c.digest).subquery()
    return int(connection.execute(select(func.coalesce(func.sum(each.c.size), 0))).scalar_one())


def _counts(now: datetime) -> ColumnElement[bool]:
    """Return what holds for what is on its way or wanted, for uploads that nobody has ended, and for what nobody wants that lies there."""
    lies_there = exists().where(BLOBS.c.digest == STAGED.c.digest, BLOBS.c.size.is_not(None), is_unclaimed(now))
    is_open = exists().where(STAGED.c.digest.startswith(_PARTS), UPLOADS.c.id == func.substr(STAGED.c.digest, len(_PARTS) + 1))
    return or_(STAGED.c.until > now, lies_there, is_open)


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


def unstage(connection: Connection, sender: Sender, digest: str) -> None:
    """Count bytes no more that do not come, but what the sender has here before, as long as that is kept, and until it is gone."""
    had = _find_had(connection, sender, digest)
    if had is None:
        connection.execute(delete(STAGED).where(*_is(sender, digest)))
    else:
        connection.execute(update(STAGED).where(*_is(sender, digest)).values(size=had.size or 0, until=had.until))


def _is(sender: Sender, digest: str) -> tuple[ColumnElement[bool], ...]:
    caller = sender.caller
    return STAGED.c.account == caller.account, STAGED.c.token_id == caller.token_id, STAGED.c.digest == digest


def release(connection: Connection, account: str, digests: Iterable[str]) -> None:
    """Count an account's bytes no more as staged: a version, or something of one, names them."""
    connection.execute(delete(STAGED).where(STAGED.c.account == account.lower(), STAGED.c.digest.in_(list(digests))))


def forget_staged(connection: Connection, now: datetime) -> None:
    """Forget what counts no more: its time is over, and it is gone from the store or others need it."""
    key = list(STAGED.primary_key)
    # Whoever has locked one may go on to another that we have.
    over = select(*key).where(~_counts(now)).with_for_update(skip_locked=True, of=STAGED)
    connection.execute(delete(STAGED).where(tuple_(*key).in_(over)))


def reservation_of(upload_id: str) -> str:
    """Return what stands for an upload in the place of a digest: its parts may be anything before the whole is held against its own."""
    return f"{_PARTS}{upload_id}"


def end_reservation(connection: Connection, upload_id: str) -> None:
    """Count an upload no more: it is whole, and counts as such, or given up."""
    connection.execute(delete(STAGED).where(STAGED.c.digest == reservation_of(upload_id)))


def count_staged(connection: Connection, name: str, now: datetime) -> int:
    """Return the bytes that are staged for a namespace, or by the account of its name."""
    is_theirs = or_(STAGED.c.namespace == name.lower(), STAGED.c.account == name.lower())
    return _sum(connection, now, is_theirs)
