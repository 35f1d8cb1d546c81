"""Uploads in parts: each part is stored under its own digest as it comes, and the whole is put together and verified at the end.

All that is known of an upload is in SQL and in the store, so any process of the service goes on with it. Parts that nobody needs any more
are collected as any other bytes. For sites of federations and for whoever else sends much.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import Connection, Engine
from starlette.requests import Request

from hub import catalog
from hub.catalog import Part, Upload
from hub.intake import Intake, check_kept
from hub.objects import ObjectStore, Staging
from infra.bodies import declared_length
from infra.database import reading, writing
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, Conflict, DigestMismatch, InvalidRequest, TooLarge, WegeftError
from wegeft.contracts.uploads import UploadRequest, UploadView

PART_BYTES = 4 << 20
"""Of each part but the last."""
MOST_UPLOADS = 2
"""That one owner may have under way."""

Keep = Callable[[Connection, str, int], bool]
"""Notes whose the whole is, by digest and size; False where it was collected meanwhile."""
Stage = Callable[[Connection, Upload, int], None]
"""Counts an upload as it will be once so many of its bytes have come; raises :class:`QuotaExceeded` where there is no room."""
Leave = Callable[[Connection, str, int], None]
"""Counts bytes, by digest and size, that lie in the store and are part of no upload."""


def _count_nothing(_connection: Connection, _upload: Upload, _come: int) -> None:
    """For senders whose bytes are bounded elsewhere."""


def _leave_nothing(_connection: Connection, _digest: str, _size: int) -> None:
    """For the same senders."""


@dataclass(frozen=True, kw_only=True)
class Uploads:
    """Takes bytes in by parts, each owner's apart from the others'."""

    intake: Intake
    part_bytes: int = PART_BYTES
    most: int = MOST_UPLOADS
    stage: Stage = _count_nothing
    leave: Leave = _leave_nothing

    def open(self, owner: str, request: UploadRequest) -> tuple[UploadView, bool]:
        """Begin an upload, or go on with the owner's own of the same bytes; return it, and whether it is new.

        Raises :class:`TooLarge` where it is too long, or the owner has too many under way, and :class:`QuotaExceeded`.
        """
        if request.size > self.intake.max_blob_bytes:
            raise TooLarge(f"longer than {self.intake.max_blob_bytes} bytes", path="size", value=request.size)
        wanted = Upload(
            id=secrets.token_hex(16),
            owner=owner,
            digest=request.digest,
            size=request.size,
            part_bytes=self.part_bytes,
            expires_at=self.intake.keep_until,
            parts=(),
        )
        with writing(self.intake.engine) as connection:
            upload, is_new = self.begin(connection, wanted)
        return view_of(upload), is_new

    def begin(self, connection: Connection, wanted: Upload) -> tuple[Upload, bool]:
        """Begin an upload as :meth:`open` does, in the caller's transaction."""
        upload, is_new = catalog.open_upload(connection, wanted, self.most, self.intake.clock())
        # Counted when it is known which upload it is: of two that begin the same one at once, both count that.
        if is_new or upload.multipart is None:
            self.stage(connection, upload, upload.offset)
        return upload, is_new

    def look(self, owner: str, upload_id: str) -> UploadView:
        """Return how far an upload is; raise :class:`NotFound` for one that is over, expired or another owner's."""
        return view_of(self._find(owner, upload_id))

    def receive(self, owner: str, upload_id: str, place: tuple[int, str], request: Request) -> UploadView:
        """Store a request's body as the next part; ``place``: its offset and digest. The same part again is harmless.

        Raises :class:`Conflict` with the right offset for another one, :class:`InvalidRequest` for a part of another size or other bytes
        than its digest names, :class:`QuotaExceeded` before any is read, and :class:`NotFound` as :meth:`look` does.
        """
        offset, digest = place
        check_digest(digest)
        with writing(self.intake.engine) as connection:
            # Held, so that none that is being given up is counted anew.
            upload = catalog.find_upload(connection, owner, upload_id, self.intake.clock(), is_held=True)
            if _has_part(upload, offset, digest):
                return view_of(upload)
            _check_offset(upload, offset)
            _check_length(upload, declared_length(request.scope))
            self.stage(connection, replace(upload, expires_at=self.intake.keep_until), upload.offset + upload.next_size)
        transfer = catalog.name_transfer()
        size = replace(self.intake, max_blob_bytes=upload.next_size).receive(digest, request, transfer=transfer)
        try:
            _check_length(upload, size)
            return self._add(upload, offset, Part(digest=digest, size=size), transfer)
        except WegeftError:
            self._refuse(digest, size, transfer)
            raise

    def _add(self, upload: Upload, offset: int, part: Part, transfer: str) -> UploadView:
        with writing(self.intake.engine) as connection:
            held = catalog.find_upload(connection, upload.owner, upload.id, self.intake.clock(), is_held=True)
            if not _has_part(held, offset, part.digest):
                _check_offset(held, offset)
                check_kept(part.digest, is_kept=catalog.add_part(connection, held, part, self.intake.keep_until))
            catalog.withdraw(connection, part.digest, transfer)
            return view_of(catalog.find_upload(connection, upload.owner, upload.id, self.intake.clock()))

    def _refuse(self, digest: str, size: int, transfer: str) -> None:
        """Let bytes go that have come as a part and are none: they are found by the next collection, and count until then."""
        with writing(self.intake.engine) as connection:
            catalog.expect(connection, digest, self.intake.clock(), transfer)
            catalog.note_sizes(connection, {digest: size})
            catalog.withdraw(connection, digest, transfer)
            self.leave(connection, digest, size)

    def finish(self, owner: str, upload_id: str, keep: Keep) -> tuple[str, int]:
        """Put the parts together under the digest of the whole, and return digest and size; ``keep`` notes whose it is.

        Raises :class:`Conflict` where parts are missing, and :class:`InvalidRequest` where the whole is not what its digest names, after
        which it must be sent anew.
        """
        upload, transfer = self._find(owner, upload_id), catalog.name_transfer()
        if upload.offset != upload.size:
            raise Conflict("parts are missing", path="offset", value=upload.offset, hint=f"go on from byte {upload.offset}")
        try:
            self.intake.store_bytes(upload.digest, PartsReader(self.intake.store, upload.parts), upload.size, transfer=transfer)
        except (DigestMismatch, BlobNotFound) as error:
            with writing(self.intake.engine) as connection:
                catalog.give_up(connection, upload.id, self.intake.clock())
            raise InvalidRequest("the parts are not the bytes that the digest names", problems=error.problems) from error
        with writing(self.intake.engine) as connection:
            catalog.hold_upload(connection, upload.id)  # first, as whoever begins it again does
            is_kept = keep(connection, upload.digest, upload.size)
            catalog.withdraw(connection, upload.digest, transfer)
            if is_kept:
                catalog.close_upload(connection, upload, self.intake.clock())
        check_kept(upload.digest, is_kept=is_kept)
        return upload.digest, upload.size

    def stored(self, size: int) -> UploadView:
        """Return what is told of bytes that the owner has sent before: nothing is left to do."""
        return UploadView(id="", size=size, offset=size, part_bytes=self.part_bytes, expires_at=self.intake.keep_until)

    def _find(self, owner: str, upload_id: str) -> Upload:
        with reading(self.intake.engine) as connection:
            return catalog.find_upload(connection, owner, upload_id, self.intake.clock())


def end_direct(engine: Engine, staging: Staging, upload_id: str, now: datetime) -> None:
    """End an upload to the store itself, and delete what has come of it there; whoever begins it again meanwhile has it.

    First nobody is given addresses of it any more: what came by them afterwards would count nowhere, and nobody would find it.
    """
    with writing(engine) as connection:
        catalog.expire_upload(connection, upload_id, now)
    staging.discard(upload_id)
    with writing(engine) as connection:
        catalog.forget_direct(connection, upload_id, now)


def view_of(upload: Upload) -> UploadView:
    """Return an upload as its owner sees it."""
    return UploadView(id=upload.id, size=upload.size, offset=upload.offset, part_bytes=upload.part_bytes, expires_at=upload.expires_at)


def _has_part(upload: Upload, offset: int, digest: str) -> bool:
    position, rest = divmod(offset, upload.part_bytes)
    return not rest and position < len(upload.parts) and upload.parts[position].digest == digest


def _check_offset(upload: Upload, offset: int) -> None:
    if offset != upload.offset or not upload.next_size:
        raise Conflict("the next part begins elsewhere", path="offset", value=upload.offset, hint=f"go on from byte {upload.offset}")


def _check_length(upload: Upload, size: int | None) -> None:
    if size is not None and size < upload.next_size:
        raise InvalidRequest("the part is too short", path="body", value=size, hint=f"{upload.next_size} bytes")


class PartsReader:
    """The parts of an upload as one stream; memory does not grow with their number."""

    def __init__(self, store: ObjectStore, parts: tuple[Part, ...]) -> None:
        self._chunks = _chunks(store, parts)
        self._rest = b""

    def read(self, length: int = -1) -> bytes:
        """Return the next bytes, at most ``length``; b"" at the end. Raises what reading the store does."""
        if not self._rest:
            self._rest = next(self._chunks, b"")
        count = len(self._rest) if length < 0 else length
        content, self._rest = self._rest[:count], self._rest[count:]
        return content


def _chunks(store: ObjectStore, parts: tuple[Part, ...]) -> Iterator[bytes]:
    for part in parts:
        yield from store.get(part.digest)
