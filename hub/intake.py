"""How bytes from outside come into the store: under their digest, verified, and kept for a while before anybody names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, Engine
from starlette.requests import Request

from hub import catalog
from hub.objects import ObjectStore, Readable
from infra.bodies import BodyReader
from infra.database import writing
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import DigestMismatch, InvalidRequest, StorageUnavailable

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

    def receive(self, digest: str, request: Request) -> int:
        """Store a request's body and return its size; whose it is, :meth:`own` says.

        Bytes that are there already are read and stored again: whoever knows a digest must not pass for one who has its bytes, the
        sender is half way through them, and rot is mended by it. Raises :class:`InvalidRequest` for other bytes than ``digest`` names.
        """
        try:
            with BodyReader(request, self.max_blob_bytes) as body:
                return self.store_bytes(digest, body, body.length)
        except DigestMismatch as error:
            # Between a store and us this is rot; from a caller it is a wrong request.
            raise InvalidRequest("the bytes are not those that the digest names", problems=error.problems) from error

    def store_bytes(self, digest: str, source: Readable, size: int | None = None) -> int:
        """Store bytes of any source and return their size; raises what :meth:`ObjectStore.put` does."""
        with writing(self.engine) as connection:
            catalog.expect(connection, check_digest(digest), self.keep_until)
        return self.store.put(digest, source, size)

    def own(self, connection: Connection, digest: str, size: int, holder: str) -> bool:
        """Note that ``holder`` has sent bytes that are stored; return False where they were collected meanwhile."""
        return catalog.arrive(connection, digest, size, holder, self.keep_until)


def check_kept(digest: str, *, is_kept: bool) -> None:
    """Raise :class:`StorageUnavailable` where bytes came so slowly that they were not kept."""
    if not is_kept:
        raise StorageUnavailable("the bytes came too slowly and were not kept", path=digest, hint="send them again")
