"""The HTTP API of jobs: submit, look, follow and cancel; with what their workers say in :mod:`orchestrator.attempts_api`."""

import secrets
from datetime import datetime
from typing import Annotated

import anyio
from fastapi import APIRouter, Depends, Header, Path, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from pydantic import BaseModel, ConfigDict, JsonValue
from sqlalchemy import Connection

from hub import catalog
from infra import audit
from infra.auth import Guard, Principal, Role
from infra.database import reading, writing
from infra.http import API_PREFIX
from infra.routers import Gathering
from orchestrator import attempts_api, conversion_api, evidence_api, federation_api, ledger, sites_api
from orchestrator.admission import check_submission, explain_missing
from orchestrator.federation_start import start_problems
from orchestrator.ids import ENTROPY_BYTES, check_job_id, make_job_id
from orchestrator.services import OrchestratorServices
from wegeft.contracts.errors import InvalidRequest, JobNotFound
from wegeft.contracts.job import JobSpec, parse_spec
from wegeft.contracts.training import EventPage, JobPage, JobState, JobView, MetricPage

LONGEST_WAIT_SECONDS = 30
MAX_PAGE = 200
MAX_EVENTS = 1000
MAX_LABELS = 16
"""Of a list; a query of very many conditions is one that a database gives up."""

_LOOK_AGAIN_SECONDS = 0.25
_LAST_NUMBER = 2**31 - 1

JobId = Annotated[str, Path(description="As `POST /jobs` answered it.")]
Key = Annotated[
    str | None,
    Header(alias="Idempotency-Key", max_length=255, pattern=r"^[\x21-\x7e]+$", description="The same key and spec give the same job."),
]


class Submission(BaseModel):
    """A job to be queued."""

    model_config = ConfigDict(extra="forbid")

    spec: dict[str, JsonValue]
    """The fields of job.yaml."""


def make_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    """Return the orchestrator's routes, each under its full path."""
    guard = guard.checking(ledger.check_path)
    router = Gathering()
    router.include_router(_queue_router(services, guard))
    router.include_router(_jobs_router(services, guard))
    router.include_router(_log_router(services, guard))
    router.include_router(_metric_router(services, guard))
    router.include_router(attempts_api.make_router(services))
    router.include_router(conversion_api.make_router(services, guard))
    router.include_router(federation_api.make_router(services, guard))
    if services.federation_key is not None:
        router.include_router(evidence_api.make_router(services, guard, services.federation_key))
    whole = Gathering()
    whole.include_router(router, prefix=API_PREFIX)
    if services.federation_key is not None:
        whole.include_router(sites_api.make_router(services, services.federation_key))
    return whole


def _queue_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter(tags=["jobs"])
    writer = guard.require(Role.WRITE)

    @router.post(
        "/jobs",
        status_code=201,
        summary="Queue a job; 200 where the key was used for it before",
        responses={200: {"description": "The job that the key was used for", "model": JobView}},
    )
    def post_job(body: Submission, caller: Annotated[Principal, Depends(writer)], response: Response, key: Key = None) -> JobView:
        now, spec = services.clock(), parse_spec({**body.spec})
        job = ledger.NewJob(
            id=make_job_id(now, secrets.token_bytes(ENTROPY_BYTES)),
            owner=caller.name,
            token_id=caller.token_id,
            spec=spec,
            idempotency_key=key,
        )
        view, is_new = _queue(services, job, spec, caller, now)
        response.status_code = 201 if is_new else 200
        response.headers["Location"] = f"{API_PREFIX}/jobs/{view.id}"
        return view

    @router.post("/jobs/{job_id}/cancel", dependencies=[Depends(writer)], summary="Ask a job to stop")
    def cancel_job(job_id: JobId) -> JobView:
        with writing(services.engine) as connection:
            audit.note(connection, "job.cancel", job_id)
            return ledger.cancel(connection, check_job_id(job_id), services.clock())

    return router


def _jobs_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter(tags=["jobs"])
    reader = guard.require(Role.READ)

    @router.get("/jobs", summary="Jobs, newest first")
    def get_jobs(
        caller: Annotated[Principal, Depends(reader)],
        state: JobState | None = None,
        label: Annotated[
            list[str] | None, Query(max_length=MAX_LABELS, description="key=value; a job must have all that are given")
        ] = None,
        federated: Annotated[bool | None, Query(description="Only federated jobs, or only others")] = None,
        limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 50,
        after: Annotated[str | None, Query(description="next_cursor of the page before")] = None,
    ) -> JobPage:
        labels = tuple(_parse_label(text) for text in label or [])
        wanted = ledger.JobFilter(state=state, labels=labels, is_federated=federated, reader=caller)
        with reading(services.engine) as connection:
            return ledger.list_jobs(connection, wanted, limit, _check_cursor(after), services.clock())

    @router.get("/jobs/{job_id}", dependencies=[Depends(reader)], summary="A job")
    def get_job(job_id: JobId) -> JobView:
        with reading(services.engine) as connection:
            return ledger.find(connection, check_job_id(job_id), services.clock())

    return router


def _queue(services: OrchestratorServices, job: ledger.NewJob, spec: JobSpec, caller: Principal, now: datetime) -> tuple[JobView, bool]:
    """Return the job, and whether it is new; a repeated request gets its job even where the policy has changed since."""
    with reading(services.engine) as connection:
        known = ledger.find_same(connection, job, now)
        had = catalog.find_had(connection, catalog.upload_of(job.token_id), ledger.data_of(spec), caller)
        if known is None:
            catalog.check_publisher(connection, caller, spec.adapter)
            catalog.check_room(connection, spec.adapter)
    if known is not None:
        return known, False
    # What others have sent is told apart from nothing by nobody who knows its digest alone.
    wrong_start = start_problems(spec, services.store, had) if spec.federation is not None else ()
    check_submission(spec, services.policy, lambda digest: services.store.has(digest) if digest in had else None, wrong_start)
    with writing(services.engine) as connection:
        _take_place(connection, services, spec, caller, now)
        view, is_new = ledger.add(connection, job, now)
        missing = ledger.hold_data(connection, view.id, spec) if is_new else frozenset()
        if missing:
            raise explain_missing(spec, missing)
        if is_new:
            audit.note(connection, "job.submit", view.id, now, adapter=str(spec.adapter))
    return view, is_new


def _take_place(connection: Connection, services: OrchestratorServices, spec: JobSpec, caller: Principal, now: datetime) -> None:
    """Give the job's namespace to its author where nobody has it; refuse the job where somebody else has got it meanwhile."""
    adapter = spec.adapter
    catalog.claim(connection, adapter.namespace, caller, now, is_private_by_default=services.policy.is_private_by_default)
    catalog.check_publisher(connection, caller, adapter)
    catalog.refuse_protected(connection, adapter, spec.output.aliases)
    catalog.starts_private(connection, adapter.namespace, spec.output.visibility)


def _parse_label(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (key and equals and value and text.isprintable()):
        raise InvalidRequest("not a label", path="label", value=text, hint="key=value, for example team=support")
    return key, value


def _check_cursor(after: str | None) -> str | None:
    try:
        return None if after is None else check_job_id(after)
    except JobNotFound:
        raise InvalidRequest("not a cursor of this list", path="after", value=after, hint="pass next_cursor of the page before") from None


def _log_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter(tags=["jobs"], dependencies=[Depends(guard.require(Role.READ))])

    def read(job_id: str, after: int, limit: int) -> EventPage:
        with reading(services.engine) as connection:
            return ledger.read_events(connection, check_job_id(job_id), after, limit)

    def read_last(job_id: str, count: int) -> EventPage:
        with reading(services.engine) as connection:
            return ledger.read_tail(connection, check_job_id(job_id), count)

    @router.get("/jobs/{job_id}/events", summary="A job's log from a number on, or its end; waits for more where asked")
    async def get_events(
        request: Request,
        job_id: JobId,
        after: Annotated[int, Query(ge=0, le=_LAST_NUMBER)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 500,
        wait_seconds: Annotated[float, Query(ge=0, le=LONGEST_WAIT_SECONDS)] = 0,
        last: Annotated[
            int | None, Query(ge=1, le=MAX_EVENTS, description="The last events, so many; the others do not count then")
        ] = None,
    ) -> EventPage:
        if last is not None:
            return await run_in_threadpool(read_last, job_id, last)
        # Between two looks no thread and no connection to the database is held, so that many readers can wait.
        page = await run_in_threadpool(read, job_id, after, limit)
        with anyio.move_on_after(wait_seconds):
            while not page.records and not page.state.is_final and not await request.is_disconnected():
                await anyio.sleep(_LOOK_AGAIN_SECONDS)
                page = await run_in_threadpool(read, job_id, after, limit)
        return page

    return router


def _metric_router(services: OrchestratorServices, guard: Guard) -> APIRouter:
    router = APIRouter(tags=["jobs"], dependencies=[Depends(guard.require(Role.READ))])

    @router.get("/jobs/{job_id}/metrics/{name}", summary="A metric's values, one a step")
    def get_metric(
        job_id: JobId,
        name: Annotated[str, Path(pattern=r"^[a-z0-9_]{1,64}$")],
        after: Annotated[int, Query(ge=-1, le=_LAST_NUMBER, description="The last step seen")] = -1,
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
    ) -> MetricPage:
        with reading(services.engine) as connection:
            return ledger.read_metric(connection, check_job_id(job_id), name, after, limit)

    return router
