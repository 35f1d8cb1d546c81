"""Uploads in parts, in SQL: who sends what, and which parts have come; the parts are blobs of their own until the whole is there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, Select, case, delete, func, insert, select, update

from hub.catalog.holds import PARTS, arrive, let_go
from hub.catalog.tables import UPLOAD_PARTS, UPLOADS, upsert
from wegeft.contracts.errors import InvalidRequest, NotFound, TooLarge

_IS_OURS = UPLOADS.c.multipart.is_(None)


@dataclass(frozen=True, kw_only=True)
class Part:
    """Some bytes of an upload, in the store under their own digest."""

    digest: str
    size: int


@dataclass(frozen=True, kw_only=True)
class Upload:
    """An upload under way."""

    id: str
    owner: str
    digest: str
    """Of the whole."""
    size: int
    part_bytes: int
    """Of each part but the last."""
    expires_at: datetime
    parts: tuple[Part, ...]
    """Those that have come, in order; of one that goes to the store directly, the store itself knows."""
    multipart: str | None = None
    """The store's own name of one that goes there directly, empty before it is begun there; None where it goes through us."""

    @property
    def offset(self) -> int:
        """Bytes that have come."""
        return sum(part.size for part in self.parts)

    @property
    def next_size(self) -> int:
        """Bytes of the next part."""
        return min(self.part_bytes, self.size - self.offset)


def uploader_of(token_id: str) -> str:
    """Return the owner of the uploads in parts that come with a token."""
    return f"token:{token_id}"


def open_upload(connection: Connection, wanted: Upload, most: int, now: datetime) -> tuple[Upload, bool]:
    """Begin an upload, or return the one that its owner has begun for the same bytes; and whether it is new.

    Raises :class:`TooLarge` where the owner has ``most`` others under way, and :class:`InvalidRequest` where the size is another one than
    before.
    """
    is_theirs = UPLOADS.c.owner == wanted.owner
    _forget_expired(connection, select(UPLOADS.c.id).where(is_theirs), now)
    is_new = connection.execute(select(UPLOADS.c.id).where(is_theirs, UPLOADS.c.digest == wanted.digest)).first() is None
    under_way = select(func.count()).select_from(UPLOADS).where(is_theirs, UPLOADS.c.expires_at > now)
    if is_new and connection.execute(under_way).scalar_one() >= most:
        raise TooLarge(f"there are {most} uploads under way", path="digest", value=wanted.digest, hint="finish one of them first")
    names = ("id", "owner", "digest", "size", "part_bytes", "expires_at", "multipart")
    added = upsert(connection, UPLOADS).values({name: getattr(wanted, name) for name in names})
    # An update even where nothing changes, so that the row is held: else its owner may end the upload before it is read.
    until = case((_IS_OURS, UPLOADS.c.expires_at), else_=added.excluded.expires_at)
    held = added.on_conflict_do_update(
        index_elements=[UPLOADS.c.owner, UPLOADS.c.digest], set_={"owner": UPLOADS.c.owner, "expires_at": until}
    )
    row = connection.execute(held.returning(*UPLOADS.c)).one()
    if row.size != wanted.size:
        raise InvalidRequest("these bytes have another size in an upload under way", path="size", value=wanted.size, hint=str(row.size))
    return _upload(connection, row), row.id == wanted.id


def name_multipart(connection: Connection, upload: Upload, multipart: str) -> bool:
    """Note how the store calls an upload from now on; return False where another process has done so meanwhile."""
    is_unchanged = (UPLOADS.c.id == upload.id) & (UPLOADS.c.multipart == upload.multipart)
    return bool(connection.execute(update(UPLOADS).where(is_unchanged).values(multipart=multipart)).rowcount)


def find_upload(connection: Connection, owner: str, upload_id: str, now: datetime, *, is_held: bool = False) -> Upload:
    """Return an upload, held until the transaction ends where asked to; raise :class:`NotFound` for a foreign or expired one too."""
    query = select(UPLOADS).where(UPLOADS.c.id == upload_id, UPLOADS.c.owner == owner, UPLOADS.c.expires_at > now)
    row = connection.execute(query.with_for_update() if is_held else query).one_or_none()
    if row is None:
        raise NotFound("there is no such upload under way", path="upload", value=upload_id, hint="begin it again; what is stored stays")
    return _upload(connection, row)


def add_part(connection: Connection, upload: Upload, part: Part, until: datetime) -> bool:
    """Note the next part of a held upload, whose bytes are stored; return False where they were collected meanwhile."""
    if not arrive(connection, part.digest, part.size, _holder_of(upload.id), until):
        return False
    values = {"upload_id": upload.id, "position": len(upload.parts), "digest": part.digest, "size": part.size}
    connection.execute(insert(UPLOAD_PARTS).values(values))
    connection.execute(update(UPLOADS).where(UPLOADS.c.id == upload.id).values(expires_at=until))
    return True


def hold_upload(connection: Connection, upload_id: str) -> Upload | None:
    """Hold an upload until the transaction ends, so that no part of it comes meanwhile; None where it is over."""
    row = connection.execute(select(UPLOADS).where(UPLOADS.c.id == upload_id).with_for_update()).one_or_none()
    return None if row is None else _upload(connection, row)


def close_upload(connection: Connection, upload: Upload, now: datetime) -> None:
    """Forget an upload, and let its parts go; harmless to repeat."""
    let_go(connection, _holder_of(upload.id), now)
    _forget(connection, [upload.id])


def list_expired_direct(connection: Connection, now: datetime, limit: int) -> tuple[str, ...]:
    """Return up to ``limit`` uploads to the store itself that nobody has gone on with; they are ended there first."""
    query = select(UPLOADS.c.id).where(~_IS_OURS, UPLOADS.c.expires_at <= now).limit(limit)
    return tuple(connection.execute(query).scalars())


def expire_upload(connection: Connection, upload_id: str, now: datetime) -> None:
    """Let nobody go on with an upload, but who begins it again; commit it before its bytes are deleted from the store."""
    connection.execute(update(UPLOADS).where(UPLOADS.c.id == upload_id, UPLOADS.c.expires_at > now).values(expires_at=now))


def forget_expired_direct(connection: Connection, upload_id: str, now: datetime) -> bool:
    """Forget an upload whose bytes are gone from the store; return False where its owner has begun it again since."""
    gone = connection.execute(delete(UPLOADS).where(UPLOADS.c.id == upload_id, UPLOADS.c.expires_at <= now))
    return bool(gone.rowcount)


def forget_expired_uploads(connection: Connection, now: datetime, limit: int) -> int:
    """Forget up to ``limit`` uploads that nobody has gone on with in time, whose parts go by themselves; return how many."""
    return _forget_expired(connection, select(UPLOADS.c.id).limit(limit), now)


def _forget_expired(connection: Connection, uploads: Select[Any], now: datetime) -> int:
    # Held, so that none is forgotten whose next part has come meanwhile; one that somebody else holds is left to them.
    expired = uploads.where(_IS_OURS, UPLOADS.c.expires_at <= now).with_for_update(skip_locked=True)
    ids = [row.id for row in connection.execute(expired)]
    _forget(connection, ids)
    return len(ids)


def _forget(connection: Connection, ids: Iterable[str]) -> None:
    connection.execute(delete(UPLOAD_PARTS).where(UPLOAD_PARTS.c.upload_id.in_(list(ids))))
    connection.execute(delete(UPLOADS).where(UPLOADS.c.id.in_(list(ids))))


def _holder_of(upload_id: str) -> str:
    return f"{PARTS}{upload_id}"


def _upload(connection: Connection, row: Row[Any]) -> Upload:
    found = connection.execute(select(UPLOAD_PARTS).where(UPLOAD_PARTS.c.upload_id == row.id).order_by(UPLOAD_PARTS.c.position))
    parts = tuple(Part(digest=part.digest, size=part.size) for part in found)
    return Upload(
        id=row.id,
        owner=row.owner,
        digest=row.digest,
        size=row.size,
        part_bytes=row.part_bytes,
        expires_at=row.expires_at,
        parts=parts,
        multipart=row.multipart,
    )
