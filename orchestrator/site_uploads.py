"""Where a site sends an update's tensors in parts: the same bounds as in one request, and what has come is not asked for again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from fastapi import Request
from sqlalchemy import Connection

from hub.uploads import Uploads
from infra.database import reading
from orchestrator import ledger
from orchestrator.ledger import rounds
from orchestrator.ledger.rounds import RoundKey
from orchestrator.services import OrchestratorServices
from orchestrator.update_intake import Caller, longest_upload
from wegeft.contracts.federation import Offer
from wegeft.contracts.training import BlobView
from wegeft.contracts.uploads import UploadRequest, UploadView


@dataclass(frozen=True)
class SiteUploads:
    """Takes the parts of what open offers ask for."""

    services: OrchestratorServices
    find_offer: Callable[[Caller], Offer]
    """Returns what a site is asked now; raises :class:`StaleRound` where it is nothing."""
    most_files: int
    """That a site may send in one try at a round."""

    def open(self, caller: Caller, request: UploadRequest) -> tuple[UploadView, bool]:
        """Begin to send a file that the open offer asks for, or go on; raises as :meth:`Uploads.open` does, and as :func:`check_blob`."""
        offer = self.find_offer(caller)
        uploads = self._uploads(longest_upload(offer))
        with reading(self.services.engine) as connection:
            site = caller.site.pseudonym
            rounds.check_blob(connection, key_of(caller, offer), site, request.digest, self.most_files)
            is_delivered = rounds.has_delivered(connection, key_of(caller, offer), site, request.digest)
        if is_delivered and self.services.store.has(request.digest) == request.size:
            return uploads.stored(request.size), False
        return uploads.open(_owner_of(caller), request)

    def look(self, caller: Caller, upload_id: str) -> UploadView:
        """Return how far an upload is."""
        return self._uploads(0).look(_owner_of(caller), upload_id)

    def receive(self, caller: Caller, upload_id: str, place: tuple[int, str], request: Request) -> UploadView:
        """Take in the next part, as long as the offer is open; raises as :meth:`Uploads.receive` does."""
        offer = self.find_offer(caller)
        return self._uploads(longest_upload(offer)).receive(_owner_of(caller), upload_id, place, request)

    def finish(self, caller: Caller, upload_id: str) -> BlobView:
        """Put an upload together as a file of the open offer's round; raises as :meth:`Uploads.finish` does."""
        offer = self.find_offer(caller)
        key, site = key_of(caller, offer), caller.site.pseudonym
        uploads = self._uploads(longest_upload(offer))

        def keep(connection: Connection, digest: str, size: int) -> bool:
            is_kept = ledger.keep_for_rounds(connection, key.job_id, digest, size, uploads.intake.keep_until)
            if is_kept:
                rounds.note_blob(connection, key, site, digest, self.most_files)
            return is_kept

        digest, size = uploads.finish(_owner_of(caller), upload_id, keep)
        return BlobView(digest=digest, size=size)

    def _uploads(self, longest: int) -> Uploads:
        intake = replace(self.services.intake, max_blob_bytes=longest)
        return Uploads(intake=intake, part_bytes=self.services.part_bytes)


def key_of(caller: Caller, offer: Offer) -> RoundKey:
    """Return the round in which a site is asked."""
    return RoundKey(job_id=caller.job_id, number=offer.round, attempt=offer.attempt)


def _owner_of(caller: Caller) -> str:
    return f"site:{caller.site.pseudonym}"
