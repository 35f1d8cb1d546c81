"""The HTTP application that every service of ours is: one error shape, health, metrics, and the routers it is given."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.description import describing
from infra.envelope import PROBLEM_MEDIA_TYPE, REQUEST_ID, Envelope, ErrorPage, Meter, page_of, problem_bytes, problem_headers
from infra.gate import PREFIX, Gate
from infra.readiness import Check, PartGauges, Question, Readiness
from infra.routers import Gathering
from wegeft.contracts.errors import Broken, InvalidRequest, NotFound, Problem, WegeftError, shorten

API_PREFIX = PREFIX
"""Every router of our own API carries it itself: ``APIRouter(prefix=API_PREFIX)``."""

_OPEN_GATE = Gate()
_SECRET_WORDS = ("token", "secret", "password", "authorization", "credential")
_METRICS: dict[int | str, dict[str, Any]] = {200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}}
_MAX_PROBLEMS = 100
"""A reader has enough of them, and an answer must not be many times as long as its request."""


def create_app(
    routers: Iterable[APIRouter],
    *,
    title: str,
    version: str,
    checks: Mapping[str, Check] | None = None,
    registry: CollectorRegistry | None = None,
    gate: Gate = _OPEN_GATE,
) -> FastAPI:
    """Return the application that serves ``routers``, each of which carries its own prefix.

    ``checks`` are what ``/readyz`` tries, by name; ``registry`` is what ``/metrics`` shows, beside the requests themselves;
    ``gate`` is what a request has to pass before any of them.
    """
    metrics = registry or CollectorRegistry()
    app = FastAPI(
        title=title,
        version=version,
        openapi_url=f"{API_PREFIX}/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        middleware=[Middleware(Envelope, meter=Meter(metrics), gate=gate)],
    )
    app.openapi = describing(app)  # type: ignore[method-assign]  # FastAPI's own way to extend it
    app.add_exception_handler(WegeftError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    # First, so that no page of a namespace stands in their way.
    readiness = Readiness(checks or {})
    metrics.register(PartGauges(readiness))
    whole = Gathering()
    for router in (_plain_router(version, readiness, metrics), *routers):
        whole.include_router(router)
    app.router.routes.extend(whole.routes)
    return app


def show_errors(app: FastAPI, page: ErrorPage) -> None:
    """Let browsers see errors as pages; everybody else gets them as before."""
    app.state.error_page = page


def problem_response(error: WegeftError, request: Request, status: int | None = None) -> Response:
    """Return the answer that tells ``error`` to the caller."""
    body = error.body(request.scope.get(REQUEST_ID))
    if status is not None:
        body = body.model_copy(update={"status": status})
    return Response(problem_bytes(body), status_code=body.status, media_type=PROBLEM_MEDIA_TYPE, headers=problem_headers(body.status))


async def _answer_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, WegeftError)  # noqa: S101 - registered for this class only
    return _shown(error, request)


def _shown(error: WegeftError, request: Request, status: int | None = None) -> Response:
    """Return the answer that tells ``error`` to a program, or shows it to a person."""
    body = error.body(request.scope.get(REQUEST_ID))
    page = page_of(request.scope, body if status is None else body.model_copy(update={"status": status}))
    return problem_response(error, request, status) if page is None else page


async def _answer_validation(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for this class only
    found = error.errors()
    problems = [_problem(dict(item)) for item in found[:_MAX_PROBLEMS]]
    count = len(found)
    return problem_response(InvalidRequest(f"{count} problem{'s' if count != 1 else ''} in the request", problems=problems), request)


def _problem(item: Mapping[str, object]) -> Problem:
    steps = item["loc"] if isinstance(item["loc"], tuple) else ()
    path = ".".join(str(step) for step in steps)
    is_secret = any(word in path.lower() for word in _SECRET_WORDS)
    has_value = "input" in item and item.get("type") != "missing" and not is_secret
    return Problem(path=path, message=str(item["msg"]), value=shorten(item["input"]) if has_value else None)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for this class only
    cause = error.__cause__
    if isinstance(cause, WegeftError):
        # FastAPI turns whatever stops it from reading a body into a 400; ours says what it was.
        return problem_response(cause, request)
    if isinstance(cause, ClientDisconnect):
        raise cause
    kind = NotFound if error.status_code == 404 else InvalidRequest
    message = "there is nothing at this address" if error.status_code == 404 else str(error.detail)
    answer = _shown(kind(message, path="path", value=request.url.path), request, error.status_code)
    answer.headers.update(error.headers or {})
    return answer


def _plain_router(version: str, readiness: Readiness, registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["service"])
    counted = Question(lambda: generate_latest(registry))

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": version}

    # Neither waits for a thread of those that serve requests: these may all hang with the part that is asked about.
    @router.get("/readyz", summary="Whether the database and the object store answer")
    async def readyz() -> dict[str, str]:
        problems = await readiness.problems()
        if problems:
            raise Broken("not ready", problems=problems)
        return {"status": "ready"}

    @router.get("/metrics", summary="Prometheus metrics", response_class=Response, responses=_METRICS)
    async def metrics() -> Response:
        return Response(await asyncio.wrap_future(counted.begin()), media_type=CONTENT_TYPE_LATEST)

    return router
