"""Uploads in parts, as they count: by what has come of them, and by a little more, so that nobody takes the room for their next parts.

How long a file is that somebody would send is only a promise: whoever sends nothing must not keep others from sending. So an upload keeps
room for as much again as has come of it, within bounds and for minutes. One that is larger than what is left is refused when it begins.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import Connection, delete, exists, literal, select, update

from hub.catalog.holds import PARTS
from hub.catalog.staged import STAGED, Sender, find_room, hold_account, no_room
from hub.catalog.tables import UPLOADS, upsert
from hub.catalog.uploads import Upload, close_upload, forget_expired_direct, hold_upload

LEAST_AHEAD_BYTES = 64 << 20
"""That an upload keeps room for of which nothing has come."""
MOST_AHEAD_BYTES = 512 << 20
"""That any upload keeps room for, beside what has come of it."""
AHEAD_SECONDS = 1200.0
"""How long it does, from when its sender last went on; longer than an address of the store is good."""


def bytes_ahead(come: int, whole: int) -> int:
    """Return how many bytes that have not come an upload keeps room for."""
    return min(whole - come, max(LEAST_AHEAD_BYTES, min(come, MOST_AHEAD_BYTES)))


def reserve(connection: Connection, sender: Sender, upload: Upload, come: int, now: datetime) -> None:
    """Count an upload as it will be once ``come`` of its bytes have; none has come where it is about to begin.

    Raises :class:`QuotaExceeded` where there is no room for them; where none has come, for the whole.
    """
    hold_account(connection, sender.caller.account)
    needed, room = come or upload.size, find_room(connection, sender, _row_of(upload.id), now)
    if needed > room:
        raise no_room(sender, room, needed)
    row = {
        "account": sender.caller.account,
        "token_id": sender.caller.token_id,
        "digest": _row_of(upload.id),
        "size": come,
        "namespace": sender.namespace,
        "until": upload.expires_at,
        "ahead": bytes_ahead(come, upload.size),
        "ahead_until": now + timedelta(seconds=AHEAD_SECONDS),
    }
    key = list(STAGED.primary_key)
    connection.execute(upsert(connection, STAGED).values(row).on_conflict_do_update(index_elements=key, set_=row))


def end_reservation(connection: Connection, upload: Upload, now: datetime) -> None:
    """Count an upload no more that is whole and counts as such; where the whole does not, its parts do until they are gone."""
    whole = STAGED.alias()
    is_counted = exists().where(whole.c.account == STAGED.c.account, whole.c.digest == upload.digest)
    connection.execute(delete(STAGED).where(STAGED.c.digest == _row_of(upload.id), is_counted))
    _leave(connection, upload, now)


def give_up(connection: Connection, upload_id: str, now: datetime) -> None:
    """Forget an upload that does not become whole; what has come of it counts until it is gone from the store. Harmless to repeat."""
    upload = hold_upload(connection, upload_id)
    if upload is not None:
        close_upload(connection, upload, now)
        _leave(connection, upload, now)


def forget_direct(connection: Connection, upload_id: str, now: datetime) -> None:
    """Forget an upload to the store itself, and count it no more: it has expired and is gone there; unless it was begun again since."""
    if forget_expired_direct(connection, upload_id, now):
        connection.execute(delete(STAGED).where(STAGED.c.digest == _row_of(upload_id)))


def _leave(connection: Connection, upload: Upload, now: datetime) -> None:
    is_it = STAGED.c.digest == _row_of(upload.id)
    if upload.parts:
        connection.execute(update(STAGED).where(is_it).values(size=upload.offset, ahead=0, until=now))
    else:
        connection.execute(delete(STAGED).where(is_it))


def list_unmeasured(connection: Connection, now: datetime, limit: int) -> Iterator[Upload]:
    """Give up to ``limit`` uploads to the store itself that count by what may have come of them, whose addresses are good no more."""
    is_direct = UPLOADS.c.multipart.is_not(None)
    joined = select(UPLOADS).join(STAGED, STAGED.c.digest == literal(PARTS) + UPLOADS.c.id)
    for row in connection.execute(joined.where(is_direct, STAGED.c.ahead_until <= now).limit(limit)).mappings():
        yield Upload(parts=(), **row)


def note_measured(connection: Connection, upload_id: str, come: int, now: datetime) -> None:
    """Count an upload by what has come of it, unless its sender goes on with it since; it is to be measured again later.

    For what a request brings that began while its address was good may come much later.
    """
    is_it = (STAGED.c.digest == _row_of(upload_id)) & (STAGED.c.ahead_until <= now)
    connection.execute(update(STAGED).where(is_it).values(size=come, ahead=0, ahead_until=now + timedelta(seconds=AHEAD_SECONDS)))


def _row_of(upload_id: str) -> str:
    """Return what stands in the place of a digest: the parts may be anything before the whole is held against its own."""
    return f"{PARTS}{upload_id}"
