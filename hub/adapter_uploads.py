"""Long files of an adapter, before a commit names them: by parts through the hub, or put by the client to the store itself.

Either way only the sender's own bytes, and those that it may read, count as there already: who knows no more than a digest learns nothing
from it. What goes to the store directly lies apart until the hub has read it back; other bytes than the digest names are deleted then.
"""

from __future__ import annotations

import math
import secrets
from dataclasses import dataclass

from sqlalchemy import Connection
from starlette.requests import Request

from hub import catalog
from hub.catalog import Sender, Upload, bytes_ahead
from hub.intake import check_kept
from hub.objects import Staging
from hub.services import HubServices
from hub.serving import DIRECT_SECONDS
from hub.uploads import Uploads, end_direct, view_of
from infra.auth import Principal
from infra.database import reading, writing
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import Conflict, InvalidRequest, StorageUnavailable
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import AdapterUploadRequest, AdapterUploadView, PartAddress

DIRECT_PART_BYTES = 16 << 20
"""Of each part that goes to the store directly, but the last; S3 takes ten thousand of 5 MiB and more."""
MOST_DIRECT_BYTES = 5 << 30
"""That an S3 server copies in one request; longer files go through the hub."""
MOST_UPLOADS = 8
"""That one token may have under way."""


@dataclass(frozen=True, kw_only=True)
class AdapterUploads:
    """Takes one caller's files in for one adapter."""

    services: HubServices
    adapter: AdapterName
    caller: Principal

    def open(self, request: AdapterUploadRequest) -> tuple[AdapterUploadView, bool]:
        """Begin an upload, or go on with the caller's own of the same bytes; return it, and whether it is new.

        Raises :class:`QuotaExceeded` where the namespace has no room for it, before a byte is sent, and what :meth:`Uploads.open` does.
        """
        stored = find_sent(self.services, self.caller, request.digest) == request.size
        with reading(self.services.engine) as connection:
            catalog.check_room(connection, self.adapter, 0 if stored else request.size)
        if stored:
            return _shown(self._uploads.stored(request.size)), False
        staging = self._staging(request)
        if staging is None:
            view, is_new = self._uploads.open(self._owner, request)
            found = self._find(view.id)
            return (_shown(view) if found.multipart is None else self._direct_view(self._begun(found))), is_new
        wanted = Upload(
            id=secrets.token_hex(16),
            owner=self._owner,
            digest=request.digest,
            size=request.size,
            part_bytes=DIRECT_PART_BYTES,
            expires_at=self.services.intake.keep_until,
            parts=(),
            multipart="",
        )
        with writing(self.services.engine) as connection:
            upload, is_new = self._uploads.begin(connection, wanted)
        return self._view(upload), is_new

    def look(self, upload_id: str) -> AdapterUploadView:
        """Return how far an upload is; raise :class:`NotFound` for one that is over, expired or another's."""
        return self._view(self._find(upload_id))

    def receive(self, upload_id: str, place: tuple[int, str], request: Request) -> AdapterUploadView:
        """Store a request's body as the next part; raises as :meth:`Uploads.receive` does."""
        if self._find(upload_id).multipart is not None:
            raise Conflict("this upload goes to the store itself", path="upload", value=upload_id, hint="put its parts to its addresses")
        return _shown(self._uploads.receive(self._owner, upload_id, place, request))

    def finish(self, upload_id: str) -> BlobView:
        """Verify the whole and store it under its digest, as bytes that the caller has sent.

        Raises :class:`Conflict` where parts are missing, and :class:`InvalidRequest` for other bytes than the digest names, which are gone
        then.
        """
        upload = self._find(upload_id)
        if upload.multipart is not None:
            return self._finish_direct(upload)

        def keep(connection: Connection, digest: str, size: int) -> bool:
            is_kept = self.services.intake.own_staged(connection, digest, size, self._sender)
            if is_kept:
                catalog.end_reservation(connection, upload, self.services.clock())
            return is_kept

        digest, size = self._uploads.finish(self._owner, upload_id, keep)
        return BlobView(digest=digest, size=size)

    def _stage(self, connection: Connection, upload: Upload, come: int) -> None:
        catalog.reserve(connection, self._sender, upload, come, self.services.clock())

    def _leave(self, connection: Connection, digest: str, size: int) -> None:
        self.services.intake.leave(connection, (digest, size), self._sender, self.services.clock())

    @property
    def _sender(self) -> Sender:
        return self.services.sender(self.caller, self.adapter.namespace)

    def abandon(self, upload_id: str) -> None:
        """Forget an upload; what has come of it goes with the next collection, and counts until then."""
        upload, staging, now = self._find(upload_id), self.services.store.staging(), self.services.clock()
        if upload.multipart is not None and staging is not None:
            end_direct(self.services.engine, staging, upload.id, now)
            return
        with writing(self.services.engine) as connection:
            catalog.give_up(connection, upload.id, now)

    @property
    def _owner(self) -> str:
        return catalog.uploader_of(self.caller.token_id)

    @property
    def _uploads(self) -> Uploads:
        return Uploads(intake=self.services.intake, most=MOST_UPLOADS, stage=self._stage, leave=self._leave)

    def _find(self, upload_id: str) -> Upload:
        with reading(self.services.engine) as connection:
            return catalog.find_upload(connection, self._owner, upload_id, self.services.clock())

    def _staging(self, request: AdapterUploadRequest) -> Staging | None:
        """Return where the bytes can go directly; None where they cannot, shall not, or are too few or too many."""
        least, most = self.services.direct_from_bytes, min(MOST_DIRECT_BYTES, self.services.max_blob_bytes)
        if not request.may_be_direct or least is None or not least <= request.size <= most:
            return None
        return self.services.store.staging()

    def _view(self, upload: Upload) -> AdapterUploadView:
        return _shown(view_of(upload)) if upload.multipart is None else self._direct_view(self._begun(upload))

    # To the store itself

    def _must_stage(self) -> Staging:
        staging = self.services.store.staging()
        if staging is None:
            raise StorageUnavailable("the store of this hub takes no direct uploads any more", path="upload", hint="delete it, begin again")
        return staging

    def _begun(self, upload: Upload) -> Upload:
        """Return an upload that is under way in the store, begun there where it is not, or not any more."""
        staging = self._must_stage()
        if upload.multipart and (staging.parts(upload.id, upload.multipart) is not None or staging.size(upload.id) == upload.size):
            return upload
        multipart = staging.begin(upload.id)
        with writing(self.services.engine) as connection:
            catalog.name_multipart(connection, upload, multipart)
        return self._find(upload.id)  # of two that begin it at once, one has named it

    def _direct_view(self, upload: Upload) -> AdapterUploadView:
        staging, multipart = self._must_stage(), upload.multipart or ""
        come = staging.parts(upload.id, multipart)
        if any((come or {}).get(number, 0) > size for number, size in _places(upload)):  # an address bounds no length
            self.abandon(upload.id)
            raise InvalidRequest("a part is longer than was announced", path="upload", value=upload.id, hint="begin it again")
        missing = [] if come is None else [(number, size) for number, size in _places(upload) if come.get(number) != size]
        arrived = upload.size - sum(size for _, size in missing)
        given = missing[: math.ceil(bytes_ahead(arrived, upload.size) / upload.part_bytes)]
        with writing(self.services.engine) as connection:  # before the addresses are given: what comes by them nobody counts at once
            catalog.find_upload(connection, self._owner, upload.id, self.services.clock(), is_held=True)
            self._stage(connection, upload, (arrived if come is None else sum(come.values())) + sum(size for _, size in given))
        addresses = [
            PartAddress(
                offset=(number - 1) * upload.part_bytes, size=size, url=staging.address(upload.id, multipart, number, DIRECT_SECONDS)
            )
            for number, size in given
        ]
        shown = _shown(view_of(upload))
        return shown.model_copy(update={"offset": arrived, "is_direct": True, "addresses": tuple(addresses)})

    def _finish_direct(self, upload: Upload) -> BlobView:
        staging, intake, sender = self._must_stage(), self.services.intake, self._sender
        self._complete(upload, staging)
        with intake.expecting(upload.digest, upload.size, transfer=sender.transfer):
            found = staging.adopt(upload.id, upload.digest)
            if found != upload.digest:
                self.abandon(upload.id)
                raise InvalidRequest(
                    "the bytes are not those that the digest names", path=upload.digest, value=found, hint="send them again"
                )
        with writing(self.services.engine) as connection:
            is_kept = intake.own_staged(connection, upload.digest, upload.size, sender)
        check_kept(upload.digest, is_kept=is_kept)
        self.abandon(upload.id)
        return BlobView(digest=upload.digest, size=upload.size)

    def _complete(self, upload: Upload, staging: Staging) -> None:
        """Let the store put the parts together; refuse and delete those whose sizes are not as announced, before a byte is read."""
        come = self._view(upload).offset
        if come != upload.size:
            raise _missing(come)
        is_as_announced = staging.complete(upload.id, self._find(upload.id).multipart or "", dict(_places(upload)))
        size = staging.size(upload.id)
        if is_as_announced and size is None:
            raise _missing(0)  # another process has ended the upload meanwhile
        if not is_as_announced or size != upload.size:
            self.abandon(upload.id)
            raise InvalidRequest("other parts came than were announced", path="size", value=upload.size, hint="send them again")


def find_sent(services: HubServices, caller: Principal, digest: str) -> int | None:
    """Return the size of a blob that is stored and that the caller may know of, and let it stay long enough to be named."""
    holder, intake = catalog.upload_of(caller.token_id), services.intake
    with reading(services.engine) as connection:
        may_know = digest in catalog.find_had(connection, holder, [digest], caller)
        is_kept = may_know and catalog.is_kept(connection, holder, digest, intake.renewed_before)
    if may_know and not is_kept:
        with writing(services.engine) as connection:
            is_kept = not catalog.hold(connection, holder, [digest], intake.keep_until)
            if is_kept:
                catalog.restage(connection, services.sender(caller), digest, services.clock(), intake.keep_until)
    return services.store.has(digest) if is_kept else None


def _missing(offset: int) -> Conflict:
    return Conflict("parts are missing", path="offset", value=offset, hint="look where they are to be put")


def _places(upload: Upload) -> list[tuple[int, int]]:
    """Return the numbers of an upload's parts, from 1 on, and their sizes."""
    starts = range(0, upload.size, upload.part_bytes)
    return [(number, min(upload.part_bytes, upload.size - start)) for number, start in enumerate(starts, 1)]


def _shown(view: object) -> AdapterUploadView:
    return AdapterUploadView.model_validate(view, from_attributes=True)
