"""The HTTP API of workers: what an attempt fetches, reports and delivers. Every call is fenced by the attempt's lease."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, Row

from hub import catalog
from hub.intake import check_kept
from hub.objects import stream_verified
from infra.auth import Credentials, bearer_of
from infra.bodies import holds_tensors, reads_whole_files, streams_body, takes_reports, waits_for_store
from infra.database import reading, writing
from infra.description import BINARY
from infra.http import API_PREFIX
from orchestrator import ledger
from orchestrator.conversions import attach_result
from orchestrator.publishing import check_blobs, publish_result
from orchestrator.services import OrchestratorServices
from wegeft.contracts.adapter import check_digest
from wegeft.contracts.conversion import AttemptTask, ConversionResult, ConversionTask
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import BlobNotFound, ErrorBody, ResultMismatch, Unauthenticated
from wegeft.contracts.job_kinds import read_spec
from wegeft.contracts.training import (
    BlobView,
    Checkpoint,
    EventBatch,
    Heartbeat,
    HeartbeatReply,
    JobState,
    PublishedVersion,
    TrainingResult,
    TrainingTask,
)

Number = Annotated[int, Path(ge=1, le=2**31 - 1)]
_PATH = re.compile(rf"{API_PREFIX}/attempts/(?P<job>[^/]+)/(?P<attempt>[0-9]{{1,9}})/")


class _Desk:
    """Where workers are served: authenticates them and notes that they were heard."""

    def __init__(self, services: OrchestratorServices) -> None:
        self.services = services

    def lease(self, job_id: str, attempt: Number, credentials: Credentials) -> ledger.Lease:
        """Return the caller's lease, current or not; a FastAPI dependency."""
        token = bearer_of(credentials)
        with reading(self.services.engine) as connection:
            return ledger.authenticate(connection, job_id, attempt, token)

    @contextmanager
    def heard(self, lease: ledger.Lease, step: int | None = None) -> Iterator[tuple[Connection, Row[Any]]]:
        """Open a transaction in which the lease is renewed, and give the job's row as it was; refuse a stale caller."""
        services = self.services
        with writing(services.engine) as connection:
            yield connection, ledger.contact(connection, lease, services.clock(), services.limits.lease_seconds, step)

    def delivered(self, lease: ledger.Lease, *digests: str) -> frozenset[str]:
        """Return those of ``digests`` whose bytes the caller's job has delivered."""
        with self.heard(lease) as (connection, _):
            return ledger.find_delivered(connection, lease, digests)

    def task(self, lease: ledger.Lease) -> TrainingTask | ConversionTask:
        """Return what the caller is to train or to convert."""
        with self.heard(lease) as (_, row):
            spec, limits = read_spec(row.spec), self.services.limits
            told: dict[str, Any] = {"job_id": lease.job_id, "attempt": lease.attempt}
            told |= {"heartbeat_seconds": limits.heartbeat_seconds, "lease_seconds": limits.lease_seconds}
            if isinstance(spec, ConversionSpec):
                return ConversionTask(spec=spec, **told)
            resume_from = Checkpoint.model_validate(row.resume_from) if row.resume_from else None
            return TrainingTask(spec=spec, resume_from=resume_from, **told)


def check_attempt(connection: Connection, token: str, path: str) -> None:
    """Raise :class:`Unauthenticated` unless the path is of the token's attempt, current or not."""
    found = _PATH.match(path)
    if found is None:
        raise Unauthenticated("this token is not of this address")
    ledger.authenticate(connection, found["job"], int(found["attempt"]), token)


def make_router(services: OrchestratorServices) -> APIRouter:
    """Return the routes under ``/attempts/{job_id}/{attempt}``."""
    desk = _Desk(services)
    router = APIRouter(prefix="/attempts/{job_id}/{attempt}", tags=["attempts"])
    router.include_router(_report_router(desk))
    router.include_router(_delivery_router(desk))
    router.include_router(_blob_router(desk))
    router.include_router(_input_router(desk))
    return router


def _report_router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    services = desk.services

    @router.get("/task", summary="What to train or to convert")
    def get_task(lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> AttemptTask:
        return AttemptTask(desk.task(lease))

    @router.post("/heartbeat", summary="Say that the worker lives")
    def post_heartbeat(body: Heartbeat, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> HeartbeatReply:
        with desk.heard(lease, body.step) as (_, row):
            return HeartbeatReply(should_stop=row.state == JobState.CANCELLING)

    @router.post("/events", status_code=204, summary="Add to the job's log")
    @takes_reports
    def post_events(body: EventBatch, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> None:
        with desk.heard(lease) as (connection, _):
            ledger.record_events(connection, lease, body, services.clock())

    @router.post("/failure", status_code=204, summary="End the attempt without a result")
    def post_failure(body: ErrorBody, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> None:
        with writing(services.engine) as connection:
            ledger.record_failure(connection, lease, body, services.clock())

    return router


def _delivery_router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    services = desk.services

    @router.post("/checkpoints", status_code=204, summary="Let a later attempt go on from here")
    @takes_reports
    @reads_whole_files
    def post_checkpoint(
        body: Checkpoint,
        lease: Annotated[ledger.Lease, Depends(desk.lease)],
        request: Request,  # noqa: ARG001 - whose share
    ) -> None:
        check_blobs(services.store, body.files, desk.delivered(lease, *(entry.digest for entry in body.files)))
        with desk.heard(lease) as (connection, row):
            if isinstance(read_spec(row.spec), ConversionSpec):
                raise ResultMismatch("a conversion has no checkpoints", path="step", value=body.step, hint="its result is the formats")
            ledger.save_checkpoint(connection, lease, body, services.clock())

    @router.post("/result", summary="Publish the adapter and end the job")
    @takes_reports
    @reads_whole_files
    def post_result(
        body: TrainingResult,
        lease: Annotated[ledger.Lease, Depends(desk.lease)],
        request: Request,  # noqa: ARG001 - whose share
    ) -> PublishedVersion:
        return publish_result(services, lease, body)

    @router.post("/conversion", summary="Attach the formats that a conversion has made, and end the job")
    @takes_reports
    @holds_tensors
    def post_conversion(
        request: Request,  # noqa: ARG001 - says whose turn it is
        body: ConversionResult,
        lease: Annotated[ledger.Lease, Depends(desk.lease)],
    ) -> PublishedVersion:
        return attach_result(services, lease, body)

    return router


def _blob_router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    services = desk.services

    @router.head("/blobs/{digest}", summary="Whether the job has delivered the bytes", response_class=Response)
    @waits_for_store
    def head_blob(digest: str, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> Response:
        with desk.heard(lease) as (connection, _):
            is_kept = ledger.renew_delivered(connection, lease, check_digest(digest), services.intake.keep_until)
        size = services.store.has(digest) if is_kept else None
        if size is None:
            raise BlobNotFound(path=digest)
        return Response(headers={"Content-Length": str(size), "ETag": f'"{digest}"'})

    @router.put(
        "/blobs/{digest}",
        status_code=201,
        summary="Store bytes; 200 where the job has delivered them before",
        openapi_extra={"requestBody": BINARY},
        responses={200: {"description": "The job has delivered them before", "model": BlobView}},
    )
    @streams_body
    def put_blob(digest: str, request: Request, response: Response, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> BlobView:
        with desk.heard(lease) as (connection, row):
            # Of a full namespace no version is ever published, so its bytes are not taken in either.
            spec = read_spec(row.spec)
            catalog.check_room(connection, spec.adapter, versions=0 if isinstance(spec, ConversionSpec) else 1)
        size = services.intake.receive(digest, request)
        with desk.heard(lease) as (connection, _):
            is_kept = services.intake.own(connection, digest, size, ledger.delivery_of(lease.job_id))
            if is_kept and not ledger.note_blob(connection, lease, digest):
                response.status_code = 200
        check_kept(digest, is_kept=is_kept)
        return BlobView(digest=digest, size=size)

    return router


def _input_router(desk: _Desk) -> APIRouter:
    router = APIRouter()
    store = desk.services.store

    @router.get(
        "/blobs/{digest}",
        summary="Bytes that the task names: data sets and the checkpoint to go on from, or the version to convert",
        response_class=Response,
        responses={200: BINARY},
    )
    @waits_for_store
    def get_blob(digest: str, lease: Annotated[ledger.Lease, Depends(desk.lease)]) -> Response:
        task = desk.task(lease)
        if digest not in _named_by(task):
            raise BlobNotFound("the task names no such blob", path=digest)
        chunks = stream_verified(store, digest)
        # What is wrong at once is told before the answer begins; only then the size, which what was set aside has none of.
        first = next(chunks, b"")
        size = store.has(digest)
        if size is None:
            raise BlobNotFound(path=digest)
        return StreamingResponse(
            chain([first], chunks), media_type="application/octet-stream", headers={"Content-Length": str(size), "ETag": f'"{digest}"'}
        )

    return router


def _named_by(task: TrainingTask | ConversionTask) -> set[str]:
    if isinstance(task, ConversionTask):
        return ledger.data_of(task.spec)
    return ledger.data_of(task.spec) | {entry.digest for entry in (task.resume_from.files if task.resume_from else ())}
