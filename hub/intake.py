"""How bytes from outside come into the store: under their digest, verified, and kept for a while before anybody names them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine
from starlette.requests import Request

from hub import catalog
from hub.catalog import Coming, Sender
from hub.objects import ObjectStore, Readable
from infra.bodies import BodyReader
from infra.database import writing
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import DatabaseUnavailable, DigestMismatch, InvalidRequest, StorageFull, StorageUnavailable

KEEP_SECONDS = 86_400.0
"""How long bytes stay that nothing names, unless the operator says otherwise."""


@dataclass(frozen=True, kw_only=True)
class Intake:
    """Takes bytes in."""

    engine: Engine
    store: ObjectStore
    clock: Callable[[], datetime]
    max_blob_bytes: int = 4 << 30
    keep_seconds: float = KEEP_SECONDS

    @property
    def keep_until(self) -> datetime:
        """Until when that stays which comes now, if nothing names it."""
        return self.clock() + timedelta(seconds=self.keep_seconds)

    @property
    def renewed_before(self) -> datetime:
        """What is kept until then or longer need not be kept anew: half of the time is left."""
        return self.clock() + timedelta(seconds=self.keep_seconds / 2)

    def receive(self, digest: str, request: Request, sender: Sender | None = None, *, transfer: str = "") -> int:
        """Store a request's body and return its size; whose it is, :meth:`own` says.

        Bytes that are there already are read and stored again: whoever knows a digest must not pass for one who has its bytes, the
        sender is half way through them, and rot is mended by it. Raises :class:`InvalidRequest` for other bytes than ``digest`` names, and
        :class:`QuotaExceeded` before any is read where the ``sender`` has no room; without one, somebody else bounds what comes, who
        may name the ``transfer`` and must :func:`~hub.catalog.withdraw` it then.
        """
        try:
            with (
                BodyReader(request, self.max_blob_bytes) as body,
                self.expecting(check_digest(digest), body.length, sender, transfer=transfer) as most_bytes,
            ):
                body.limit(most_bytes)
                return self.store.put(digest, body, body.length)
        except DigestMismatch as error:
            # Between a store and us this is rot; from a caller it is a wrong request.
            raise InvalidRequest("the bytes are not those that the digest names", problems=error.problems) from error

    def store_bytes(
        self, digest: str, source: Readable, size: int | None = None, sender: Sender | None = None, *, transfer: str = ""
    ) -> int:
        """Store bytes of any source and return their size; raises what :meth:`ObjectStore.put` does, and :class:`QuotaExceeded`."""
        with self.expecting(check_digest(digest), size, sender, transfer=transfer):
            return self.store.put(digest, source, size)

    @contextmanager
    def expecting(self, digest: str, size: int | None, sender: Sender | None = None, *, transfer: str = "") -> Iterator[int]:
        """Note that bytes come, and give how many may; where they do not come after all, they count no more, and keep nothing there."""
        most_bytes, transfer = self.max_blob_bytes, transfer if sender is None else sender.transfer
        with writing(self.engine) as connection:
            known = catalog.expect(connection, digest, self.keep_until, transfer)
            if sender is not None:
                most_bytes = self.stage(connection, digest, size, sender)
            if known is not None and (known > most_bytes or size not in (None, known)):
                # These cannot be the bytes that lie there, so they do not keep those: else a few that come slowly keep many.
                catalog.withdraw(connection, digest, transfer)
        try:
            yield most_bytes
        except BaseException:
            with suppress(DatabaseUnavailable, StorageFull), writing(self.engine) as connection:
                catalog.withdraw(connection, digest, transfer)
                if sender is not None:
                    catalog.unstage(connection, sender, digest)
            raise

    def own(self, connection: Connection, digest: str, size: int, holder: str) -> bool:
        """Note that ``holder`` has sent bytes that are stored; return False where they were collected meanwhile."""
        return catalog.arrive(connection, digest, size, holder, self.keep_until)

    def own_staged(self, connection: Connection, digest: str, size: int, sender: Sender) -> bool:
        """Note as :meth:`own` does that the sender has sent bytes, which count as staged until a version names them."""
        is_kept = self.own(connection, digest, size, catalog.upload_of(sender.caller.token_id))
        catalog.withdraw(connection, digest, sender.transfer)
        if is_kept:
            catalog.settle(connection, sender, digest, size, self.keep_until)
        else:
            self.leave(connection, (digest, size), sender, self.keep_until)
        return is_kept

    def leave(self, connection: Connection, content: tuple[str, int], sender: Sender, until: datetime) -> None:
        """Count bytes, by digest and size, that lie in the store and that nobody has, from ``until`` on until they are found gone."""
        catalog.note_staged(connection, sender, Coming(digest=content[0], size=content[1], until=until))

    def stage(self, connection: Connection, digest: str, size: int | None, sender: Sender) -> int:
        """Count bytes that come, and return how many may; raise :class:`QuotaExceeded` where there is no room."""
        most_bytes = self.max_blob_bytes if size is None else size
        coming = Coming(digest=digest, size=most_bytes, until=self.keep_until, may_be_fewer=size is None)
        return catalog.stage(connection, sender, coming, self.clock())


def check_kept(digest: str, *, is_kept: bool) -> None:
    """Raise :class:`StorageUnavailable` where bytes came so slowly that they were not kept."""
    if not is_kept:
        raise StorageUnavailable("the bytes came too slowly and were not kept", path=digest, hint="send them again")
