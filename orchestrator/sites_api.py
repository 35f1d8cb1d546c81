"""The HTTP API of sites: enrolment, offers, their files and answers. Every request is signed by the site's own key; there are no tokens."""

import hashlib
import re
from collections.abc import Awaitable
from dataclasses import replace
from datetime import datetime
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool

from hub.intake import check_kept
from hub.serving import BLOB_ANSWERS, ServedBlob, answer_blob
from infra import audit
from infra.bodies import SENDER, reads_whole_files, streams_body, waits_for_store
from infra.database import reading, writing
from infra.description import BINARY
from infra.gate import SITES_PREFIX
from orchestrator import ledger
from orchestrator.ledger import buffers, federations, rounds, site_keys, sites
from orchestrator.services import OrchestratorServices
from orchestrator.site_uploads import SiteUploads, key_of
from orchestrator.update_intake import Caller, UpdateIntake, longest_upload
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.enrolment import Enrolment, EnrolmentRequest, InvitationLook, Terms, enrolment_content
from wegeft.contracts.errors import (
    BlobNotFound,
    FederationOver,
    Forbidden,
    Problem,
    StaleRound,
    Unauthenticated,
)
from wegeft.contracts.federation import Decline, Offer, SignedReceipt, SignedUpdate, Site, SiteState
from wegeft.contracts.federation_rules import Buffered
from wegeft.contracts.rotation import RotationRequest, rotation_content
from wegeft.contracts.signatures import check_freshness, is_signed, public_key_of, upload_content
from wegeft.contracts.training import BlobView, JobState
from wegeft.contracts.uploads import LENGTH_HEADER, OFFSET_HEADER, UploadRequest, UploadView

LONGEST_WAIT_SECONDS = 30
MOST_UPLOADS = 8
"""Files that a site may send in one try at a round."""

_LOOK_AGAIN_SECONDS = 1.0
"""How soon a waiting site looks again where it heard nothing; another server may have opened the round."""
_SITE = re.compile(r"(?P<job>[A-Za-z0-9._:-]{1,128})/(?P<pseudonym>[A-Za-z0-9._:-]{1,128})\Z")
_NONCE = re.compile(r"[0-9a-f]{32,64}\Z")
_PSEUDONYM_DIGITS = 24


def make_router(services: OrchestratorServices, key: bytes) -> APIRouter:
    """Return the routes under ``/api/v1/federation``; ``key`` is the server's private key."""
    desk = _Desk(services, key)
    router = APIRouter(prefix=SITES_PREFIX.rstrip("/"), tags=["federation"])
    router.include_router(_enrolment_router(desk))
    router.include_router(_offer_router(desk))
    router.include_router(_blob_router(desk))
    router.include_router(_upload_router(desk))
    router.include_router(_answer_router(desk, UpdateIntake(services, key)))
    return router


class _Desk:
    """Where sites are served: knows them by their signatures."""

    def __init__(self, services: OrchestratorServices, key: bytes) -> None:
        self.services = services
        self._server_key = public_key_of(key)

    async def caller(self, request: Request) -> Caller:
        """Return the site that signed a request; a FastAPI dependency. The body is read first, and is short."""
        caller = await self._admit(request, hashlib.sha256(await request.body()).hexdigest())
        request.scope[SENDER] = caller.site.pseudonym
        return caller

    async def sender(self, request: Request, digest: str) -> Caller:
        """Return the site that signed an upload, by what its path says of the body, which is not read yet; a FastAPI dependency."""
        caller = await self._admit(request, check_digest(digest).partition(":")[2])
        request.scope[SENDER] = caller.site.pseudonym
        return caller

    def _admit(self, request: Request, body_sha256: str) -> Awaitable[Caller]:
        headers, scope = request.headers, request.scope
        stamp = (headers.get("wegeft-timestamp", ""), headers.get("wegeft-nonce", ""))
        query = scope["query_string"].decode("latin-1")
        path = scope.get("raw_path", scope["path"].encode()).decode("latin-1").partition("?")[0] + (f"?{query}" if query else "")
        content = upload_content(request.method, path, body_sha256, stamp)
        return run_in_threadpool(self._check, headers.get("wegeft-site", ""), stamp, content, headers.get("wegeft-signature", ""))

    def _check(self, who: str, stamp: tuple[str, str], content: bytes, signature: str) -> Caller:
        now, match = self.services.clock(), _SITE.match(who)
        problems = [] if match else [Problem(path="wegeft-site", message="not a site of a federation", hint="<job>/<pseudonym>")]
        if not _NONCE.match(stamp[1]):
            problems.append(Problem(path="wegeft-nonce", message="not a nonce", hint="32 to 64 hex digits, new for each request"))
        if stale := check_freshness(stamp[0], now):
            problems.append(stale.model_copy(update={"path": "wegeft-timestamp"}))
        if problems or match is None:
            raise Unauthenticated("the request is not signed as it should be", problems=problems)
        with reading(self.services.engine) as connection:
            site = sites.find_member(connection, match["job"], match["pseudonym"])
        if site is None or not is_signed(site.public_key, content, signature):
            message = "the signature is not that of an enrolled site over this request"
            raise Unauthenticated(message, path="wegeft-signature", hint="sign method, path with query, body digest, time and nonce")
        with writing(self.services.engine) as connection:
            sites.use_nonce(connection, site.pseudonym, stamp[1], now)
        if site.state is SiteState.REVOKED:
            raise Forbidden("the site was revoked", path="site", value=site.pseudonym, hint="ask the federation's owner")
        return Caller(job_id=match["job"], site=site)

    def enrolment(self, job_id: str, site: Site) -> Enrolment:
        """Return what a site has agreed to, and where it stands."""
        with reading(self.services.engine) as connection:
            spec = federations.find_federated(connection, job_id).spec
        return Enrolment(job_id=job_id, site=site, server_key=self._server_key, spec=spec)

    def enrol(self, body: EnrolmentRequest, now: datetime) -> Enrolment:
        """Use an invitation up; the same token and key again get the same answer."""
        if not is_signed(body.public_key, enrolment_content(body.token, body.public_key, body.max_examples), body.proof):
            raise Unauthenticated("the proof is not a signature by this key", path="proof", hint="sign token, key and max_examples with it")
        with reading(self.services.engine) as connection:
            job_id = sites.find_invited_job(connection, body.token)
            job = federations.find_federated(connection, job_id) if job_id else None
        if job is not None:
            _check_going_on(job.id, job.state)
        pseudonym = hashlib.sha256(f"{job_id}\n{body.public_key}".encode()).hexdigest()[:_PSEUDONYM_DIGITS]
        with writing(self.services.engine) as connection:
            candidate = (f"s-{pseudonym}", body.public_key, body.max_examples)
            found, site = sites.enrol(connection, body.token, candidate, now)
        self.services.bells.arrived.set()
        return self.enrolment(found, site)

    def look(self, token: str, now: datetime) -> Terms:
        """Return what an invitation asks for; nothing is changed."""
        with reading(self.services.engine) as connection:
            job_id, name, is_approval = sites.find_invitation(connection, token, now)
            job = federations.find_federated(connection, job_id)
        _check_going_on(job.id, job.state)
        return Terms(job_id=job.id, name=name, approve=is_approval, server_key=self._server_key, spec=job.spec)

    def rotate(self, body: RotationRequest) -> Enrolment:
        """Let a site have a new key; the same token and key again get the same answer."""
        if not is_signed(body.public_key, rotation_content(body.token, body.public_key), body.proof):
            raise Unauthenticated("the proof is not a signature by this key", path="proof", hint="sign token and key with it")
        with writing(self.services.engine) as connection:
            pseudonym = site_keys.hold_ordered(connection, body.token, body.public_key)
            # Only now that nothing of the old key can come in between: what came before this moment was signed with it.
            now = self.services.clock()
            is_new = site_keys.bind_key(connection, pseudonym, body.public_key, now)
            job_id, site = sites.find_job_of(connection, pseudonym), sites.find_site(connection, pseudonym)
            if is_new:
                audit.note(connection, "site.key", f"{job_id}/{site.name}", now, site=pseudonym, public_key=body.public_key)
                federations.tell(connection, job_id, f"{site.name} has a new key", now)
        return self.enrolment(job_id, site)

    def find_offer(self, caller: Caller) -> Offer | None:
        """Return what a site is asked now, if anything; raise :class:`FederationOver` where it never will be again."""
        with reading(self.services.engine) as connection:
            job = federations.find_federated(connection, caller.job_id)
            _check_going_on(job.id, job.state)
            find = buffers.find_open_offer if isinstance(job.section.mode, Buffered) else rounds.find_open_offer
            return find(connection, caller.job_id, caller.site.pseudonym)

    def must_find_offer(self, caller: Caller) -> Offer:
        """Return what a site may be answering; raise :class:`StaleRound` where it is nothing."""
        offer = self.find_offer(caller) or self._find_unanswered(caller)
        if offer is None:
            raise StaleRound("the site is asked nothing now, or has answered", path="round", hint="ask for the next offer")
        return offer

    def _find_unanswered(self, caller: Caller) -> Offer | None:
        """Return the newest offer that a site of a buffered federation has not answered, of whatever round."""
        with reading(self.services.engine) as connection:
            job = federations.find_federated(connection, caller.job_id)
            if not isinstance(job.section.mode, Buffered):
                return None
            return buffers.find_unanswered_offer(connection, caller.job_id, caller.site.pseudonym)


def _check_going_on(job_id: str, state: JobState) -> None:
    if state.is_final:
        raise FederationOver(f"job {job_id} has {state}", path="job", value=str(state))


def _enrolment_router(desk: _Desk) -> APIRouter:
    router = APIRouter()

    @router.post("/enrolments", status_code=201, summary="Enrol with an invitation and a new key")
    def post_enrolment(body: EnrolmentRequest) -> Enrolment:
        return desk.enrol(body, desk.services.clock())

    @router.post("/invitations", summary="Read an invitation without taking it up")
    def look_at_invitation(body: InvitationLook) -> Terms:
        return desk.look(body.token, desk.services.clock())

    @router.post("/rotations", status_code=201, summary="Bind a new key with a token for it; the old one is refused from then on")
    def post_rotation(body: RotationRequest) -> Enrolment:
        return desk.rotate(body)

    @router.get("/site", summary="What the site has agreed to, and where it stands")
    def get_site(caller: Annotated[Caller, Depends(desk.caller)]) -> Enrolment:
        return desk.enrolment(caller.job_id, caller.site)

    return router


def _offer_router(desk: _Desk) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/offer",
        summary="What the site is asked; waits for it where asked to",
        response_model=Offer,
        responses={204: {"description": "Nothing yet"}},
    )
    async def get_offer(
        request: Request,
        caller: Annotated[Caller, Depends(desk.caller)],
        wait: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS, description="Seconds.")] = 0,
    ) -> Response:
        until, asked = anyio.current_time() + wait, desk.services.bells.asked
        while True:
            heard = asked.count
            offer = await run_in_threadpool(desk.find_offer, caller)
            left = until - anyio.current_time()
            if offer is not None:
                return Response(offer.to_bytes(), media_type="application/json")
            if left <= 0 or await request.is_disconnected():
                return Response(status_code=204)
            # Meanwhile no thread and no connection to the database is held, so that many sites can wait.
            await asked.wait(heard, min(left, _LOOK_AGAIN_SECONDS))

    return router


def _blob_router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    services = desk.services

    @router.get("/blobs/{digest}", summary="What an offer says to start from", response_class=Response, responses=BLOB_ANSWERS)
    @waits_for_store
    def get_blob(digest: str, request: Request, caller: Annotated[Caller, Depends(desk.caller)]) -> Response:
        with reading(services.engine) as connection:
            is_theirs = rounds.is_start_of(connection, caller.job_id, caller.site.pseudonym, check_digest(digest))
        size = services.store.has(digest) if is_theirs else None
        if size is None:
            raise BlobNotFound("no offer to this site names such bytes", path="digest", value=digest)
        return answer_blob(services.store, _served(digest, size), request)

    @router.put(
        "/blobs/{digest}",
        status_code=201,
        summary="Send an update's tensors",
        openapi_extra={"requestBody": BINARY},
        responses={200: {"description": "The site has sent them before", "model": BlobView}},
    )
    @streams_body
    def put_blob(digest: str, request: Request, response: Response, caller: Annotated[Caller, Depends(desk.sender)]) -> BlobView:
        offer = desk.must_find_offer(caller)
        intake = replace(services.intake, max_blob_bytes=longest_upload(offer))
        key = key_of(caller, offer)
        with reading(services.engine) as connection:
            # Before a byte is stored: what is one file too many would stay there for a day.
            rounds.check_blob(connection, key, caller.site.pseudonym, digest, MOST_UPLOADS)
        size = intake.receive(digest, request)
        with writing(services.engine) as connection:
            is_kept = ledger.keep_for_rounds(connection, key.job_id, digest, size, intake.keep_until)
            is_new = is_kept and rounds.note_blob(connection, key, caller.site.pseudonym, digest, MOST_UPLOADS)
        check_kept(digest, is_kept=is_kept)
        response.status_code = 201 if is_new else 200
        return BlobView(digest=digest, size=size)

    return router


def _upload_router(desk: _Desk) -> APIRouter:
    router = APIRouter(prefix="/uploads")
    uploads = SiteUploads(desk.services, desk.must_find_offer, MOST_UPLOADS)

    @router.post(
        "",
        status_code=201,
        summary="Begin to send an update's tensors in parts, or go on; 200 where it was begun before",
        responses={200: {"description": "It was begun before", "model": UploadView}},
    )
    @waits_for_store
    def post_upload(body: UploadRequest, caller: Annotated[Caller, Depends(desk.caller)], response: Response) -> UploadView:
        view, is_new = uploads.open(caller, body)
        response.status_code = 201 if is_new else 200
        return view

    @router.head("/{upload_id}", summary="How far an upload is", response_class=Response)
    def head_upload(upload_id: str, caller: Annotated[Caller, Depends(desk.caller)]) -> Response:
        view = uploads.look(caller, upload_id)
        return Response(headers={OFFSET_HEADER: str(view.offset), LENGTH_HEADER: str(view.size)})

    @router.put("/{upload_id}/parts/{offset}/{digest}", summary="Send the next part", openapi_extra={"requestBody": BINARY})
    @streams_body
    def put_part(
        upload_id: str, offset: Annotated[int, Path(ge=0)], digest: str, request: Request, caller: Annotated[Caller, Depends(desk.sender)]
    ) -> UploadView:
        return uploads.receive(caller, upload_id, (offset, digest), request)

    @router.post("/{upload_id}/finish", status_code=201, summary="Put the parts together, and verify the whole")
    @reads_whole_files
    def finish_upload(
        upload_id: str,
        caller: Annotated[Caller, Depends(desk.caller)],
        request: Request,  # noqa: ARG001 - whose share
    ) -> BlobView:
        return uploads.finish(caller, upload_id)

    return router


def _served(digest: str, size: int) -> ServedBlob:
    name = f"{digest.partition(':')[2]}.safetensors"
    return ServedBlob(digest=digest, size=size, media_type="application/octet-stream", file_name=name, is_immutable=True, tag=digest)


def _answer_router(desk: _Desk, intake: UpdateIntake) -> APIRouter:
    router = APIRouter()

    @router.post("/updates", status_code=201, summary="Submit an update whose tensors were sent; answers a signed receipt")
    @reads_whole_files
    def post_update(
        body: SignedUpdate,
        caller: Annotated[Caller, Depends(desk.caller)],
        request: Request,  # noqa: ARG001 - whose share
    ) -> SignedReceipt:
        return intake.take_update(caller, body)

    @router.post("/declines", status_code=204, summary="Say that the site will not, or could not")
    def post_decline(body: Decline, caller: Annotated[Caller, Depends(desk.caller)]) -> None:
        intake.take_decline(caller, body)

    return router
