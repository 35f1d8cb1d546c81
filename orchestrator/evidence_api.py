"""The HTTP API of what a round was made of: its evidence for everybody who may look, and its bytes for administrators."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Request, Response
from sqlalchemy import Connection

from hub.serving import BLOB_ANSWERS, ServedBlob, answer_blob
from infra.auth import Guard, Role
from infra.bodies import waits_for_store
from infra.database import reading
from orchestrator.federation_round import closing_of
from orchestrator.ids import check_job_id
from orchestrator.ledger import buffers, federations, rollbacks, round_views, rounds, site_keys, sites
from orchestrator.ledger.federations import FederatedJob
from orchestrator.ledger.rounds import KeptRound, RoundKey
from orchestrator.services import OrchestratorServices
from orchestrator.update_intake import make_receipt
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.errors import BlobNotFound, NotFound
from wegeft.contracts.federation import Offer, RoundRecord, RoundState, SignedUpdate, Site
from wegeft.contracts.federation_rules import Buffered
from wegeft.contracts.round_evidence import KeySpan, RoundEvidence
from wegeft.contracts.signatures import public_key_of

JobId = Annotated[str, Path(description="Of a federated job.")]
Number = Annotated[int, Path(ge=1, le=2**31 - 1)]


def make_router(services: OrchestratorServices, guard: Guard, key: bytes) -> APIRouter:
    """Return the routes under ``/jobs/{job_id}/rounds/{number}``; ``key`` is the server's private key."""
    router = APIRouter(prefix="/jobs/{job_id}/rounds/{number}", tags=["federation"])

    @router.get("/evidence", summary="From what a committed round can be checked", dependencies=[Depends(guard.require(Role.READ))])
    def get_evidence(job_id: JobId, number: Number) -> RoundEvidence:
        with reading(services.engine) as connection:
            job = federations.find_federated(connection, check_job_id(job_id))
            return _evidence(connection, job, _committed(connection, job, number), key)

    @router.get(
        "/blobs/{digest}",
        summary="Bytes that a committed round was made of: states and updates",
        dependencies=[Depends(guard.require(Role.ADMIN))],
        response_class=Response,
        responses=BLOB_ANSWERS,
    )
    @waits_for_store
    def get_blob(job_id: JobId, number: Number, digest: str, request: Request) -> Response:
        with reading(services.engine) as connection:
            job = federations.find_federated(connection, check_job_id(job_id))
            record = _committed(connection, job, number)
        named = {record.start, record.result, *(digest for member in record.members for digest in (member.tensors, member.start))}
        size = services.store.has(digest) if check_digest(digest) in named else None
        if size is None:
            raise BlobNotFound("the round names no such bytes, or they are gone", path="digest", value=digest)
        name = f"{digest.partition(':')[2]}.safetensors"
        served = ServedBlob(digest=digest, size=size, media_type="application/octet-stream", file_name=name, is_immutable=True, tag=digest)
        return answer_blob(services.store, served, request)

    return router


def _committed(connection: Connection, job: FederatedJob, number: int) -> RoundRecord:
    view = round_views.find_round(connection, job.id, number, closing_of(job.section))
    if view.state is not RoundState.COMMITTED or view.record is None:
        raise NotFound("the round is not committed", path="round", value=str(number))
    return view.record


def _evidence(connection: Connection, job: FederatedJob, record: RoundRecord, key: bytes) -> RoundEvidence:
    round_key = RoundKey(job_id=job.id, number=record.round, attempt=record.attempt)
    kept = rounds.load_round(connection, round_key, closing_of(job.section))
    enrolled = sites.list_sites(connection, job.id)
    members = {one.signed.update.site: one for one in _members(connection, job, record, kept)}
    return RoundEvidence(
        record=record,
        parent=rollbacks.parent_of(record.round, rollbacks.list_rollbacks(connection, job.id)),
        spec=job.spec,
        pseudonyms={site.name: site.pseudonym for site in enrolled},
        offers={site: one.offer for site, one in members.items()},
        updates=tuple(one.signed for one in members.values()),
        receipts=tuple(make_receipt(key, one.signed.update, one.received_at) for one in members.values()),
        keys=_keys(connection, job.id, [site for site in enrolled if site.pseudonym in members]),
        server_key=public_key_of(key),
    )


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What is kept of a member's part in a round."""

    signed: SignedUpdate
    received_at: datetime
    offer: Offer


def _members(connection: Connection, job: FederatedJob, record: RoundRecord, kept: KeptRound) -> Iterator[_Kept]:
    """Yield what is kept of each member, by pseudonym; in buffered mode it may have been asked in an earlier round."""
    if isinstance(job.section.mode, Buffered):
        for late in sorted(buffers.load_members(connection, job.id, kept), key=lambda one: one.update.site):
            yield _Kept(signed=late.signed, received_at=late.received_at, offer=late.offer)
        return
    received = {arrival.digest: arrival.received_at for arrival in kept.arrivals}
    for member in record.members:
        yield _Kept(signed=kept.updates[member.update], received_at=received[member.update], offer=kept.offers[member.site])


def _keys(connection: Connection, job_id: str, members: list[Site]) -> dict[str, tuple[KeySpan, ...]]:
    former = site_keys.list_former_keys(connection, job_id)
    return {
        site.pseudonym: (
            *(KeySpan(public_key=public_key, until=until) for public_key, until in former.get(site.pseudonym, ())),
            KeySpan(public_key=site.public_key, until=None),
        )
        for site in members
    }
