"""Deleting the bytes that nobody needs: blob by blob, safely against whoever names or sends them at the same moment.

First a blob is chosen and that is committed, so that nobody can name it any more; then its row is locked, its bytes are deleted and
the row is forgotten. Whoever sends the same bytes meanwhile waits for that lock. A collector that dies at any step leaves a chosen
blob, with its bytes or without: the next collection, or whoever sends them again, takes it up from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Engine

from hub import catalog
from hub.catalog import Upload
from hub.objects import ObjectStore, Staging
from hub.uploads import end_direct
from infra import audit
from infra.database import reading, writing
from wegeft.contracts.collection import Collected, CollectionPlan, UnheldBlob
from wegeft.contracts.errors import StorageUnavailable

LISTED = 100
"""Blobs that a plan names."""
_UPLOADS, _STAGED = 100, 500
"""Uploads that nobody goes on with, and rows of what was sent, that one collection looks at."""
_REFUSALS = 3
"""Blobs that a store may refuse to delete in one collection before it is taken not to answer at all."""


@dataclass(frozen=True, kw_only=True)
class Collector:
    """Deletes what nobody needs; several may work at once, in any processes."""

    engine: Engine
    store: ObjectStore

    def plan(self, now: datetime) -> CollectionPlan:
        """Return what a collection would delete; nothing is changed."""
        with reading(self.engine) as connection:
            stock = catalog.take_stock(connection, now)
            first = catalog.list_unheld(connection, now, LISTED)
            formats, format_bytes, unused_formats = catalog.count_formats(connection, now)
        return CollectionPlan(
            stored_blobs=stock.blobs,
            stored_bytes=stock.size,
            unheld_blobs=stock.unheld_blobs,
            unheld_bytes=stock.unheld_size,
            first=tuple(UnheldBlob(digest=digest, size=size) for digest, size in first),
            formats=formats,
            format_bytes=format_bytes,
            unused_formats=unused_formats,
        )

    def collect(self, now: datetime, limit: int, *, spares_formats: bool = True) -> Collected:
        """Delete up to ``limit`` blobs that nobody needs; return how many, how large they were, and whether others are left.

        First go derived formats, which can be made again: those that nobody has fetched for long, or, to make room, all.
        Raises :class:`StorageUnavailable` or :class:`DatabaseUnavailable` where that stops it; it goes on with the next call. A blob that
        the store does not delete stops nothing else, and is told at the end.
        """
        self._discard_abandoned(now, limit)
        self._measure_direct(now, limit)
        with writing(self.engine) as connection:
            catalog.forget_expired_uploads(connection, now, _UPLOADS)
        with writing(self.engine) as connection:
            catalog.drop_formats(connection, now, only_unused=spares_formats)
            chosen = catalog.choose_leaving(connection, now, limit)
            catalog.forget_departed(connection, now)
        sizes, refusals = self._delete_all(chosen)
        if sizes:
            with writing(self.engine) as connection:
                audit.note(connection, "blobs.collect", "", now, blobs=len(sizes), bytes=sum(sizes))
        # While the store deletes nothing, what others have would be forgotten before what nobody has.
        is_done = len(refusals) < _REFUSALS and len(chosen) < limit and self._forget_staged(now)
        if refusals:
            raise refusals[0]
        return Collected(blobs=len(sizes), bytes=sum(sizes), is_done=is_done)

    def _delete_all(self, chosen: Sequence[str]) -> tuple[list[int], list[StorageUnavailable]]:
        """Return the sizes of what is deleted, and why what is not was refused."""
        sizes: list[int] = []
        refusals: list[StorageUnavailable] = []
        for digest in chosen:
            try:
                size = self._delete(digest)
            except StorageUnavailable as error:
                refusals.append(error)
                if len(refusals) == _REFUSALS:
                    break
            else:
                sizes += [] if size is None else [size]
        return sizes, refusals

    def _forget_staged(self, now: datetime) -> bool:
        with writing(self.engine) as connection:
            return catalog.forget_staged(connection, now, _STAGED)

    def _discard_abandoned(self, now: datetime, limit: int) -> None:
        """End the uploads to the store itself that nobody goes on with; what came of them has no digest, so it is nobody's."""
        staging = self.store.staging()
        if staging is None:
            return
        with reading(self.engine) as connection:
            expired = catalog.list_expired_direct(connection, now, limit)
        for upload_id in expired:
            staging.discard(upload_id)
            with writing(self.engine) as connection:
                catalog.forget_direct(connection, upload_id, now)

    def _measure_direct(self, now: datetime, limit: int) -> None:
        """Count uploads to the store itself by what has come of them, once nothing more can by the addresses that were given."""
        staging = self.store.staging()
        if staging is None:
            return
        with reading(self.engine) as connection:
            unmeasured = tuple(catalog.list_unmeasured(connection, now, limit))
        for upload in unmeasured:
            come = _bytes_of(staging, upload)
            if come > upload.size:  # an address bounds no length
                end_direct(self.engine, staging, upload.id, now)
                continue
            with writing(self.engine) as connection:
                catalog.note_measured(connection, upload.id, come, now)

    def _delete(self, digest: str) -> int | None:
        # Asked first without a lock: while the store does not answer, nobody else should wait for it.
        self.store.has(digest)
        with writing(self.engine) as connection:
            size = catalog.seize(connection, digest)
            if size is None:
                return None
            self.store.delete(digest)
            catalog.forget(connection, digest)
        return size


def _bytes_of(staging: Staging, upload: Upload) -> int:
    """Return how many bytes of an upload lie in the store."""
    if not upload.multipart:
        return 0  # not begun there
    return staging.size(upload.id) or sum((staging.parts(upload.id, upload.multipart) or {}).values())
