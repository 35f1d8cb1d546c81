"""The HTTP application that every service of ours is: one error shape, health, metrics, and the routers it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.middleware import Middleware
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from infra.envelope import PROBLEM_MEDIA_TYPE, REQUEST_ID, Envelope, ErrorPage, Meter, page_of, problem_bytes
from infra.gate import PREFIX, Gate
from wegeft.contracts.errors import Broken, ErrorBody, InvalidRequest, NotFound, Problem, WegeftError, shorten

API_PREFIX = PREFIX
"""Every router of our own API carries it itself: ``APIRouter(prefix=API_PREFIX)``."""

Check = Callable[[], None]
"""Raises where a part that the service stands on does not work."""

_OPEN_GATE = Gate()
_SECRET_WORDS = ("token", "secret", "password", "authorization", "credential")
_RETRY_AFTER_SECONDS = 1
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
        responses={
            "default": {"description": "Any error, as RFC 9457 has it", "content": {PROBLEM_MEDIA_TYPE: {"schema": _error_schema()}}}
        },
    )
    app.add_exception_handler(WegeftError, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_validation)
    app.add_exception_handler(HTTPException, _answer_http)
    # First, so that no page of a namespace stands in their way.
    for router in (_plain_router(version, checks or {}, metrics), *routers):
        app.include_router(router)
    return app


def show_errors(app: FastAPI, page: ErrorPage) -> None:
    """Let browsers see errors as pages; everybody else gets them as before."""
    app.state.error_page = page


def _error_schema() -> dict[str, object]:
    """Return the schema of an error, whole in itself: references into it would lead nowhere from within the API's description."""
    schema = ErrorBody.model_json_schema()
    schema["properties"]["problems"]["items"] = schema.pop("$defs")["Problem"]
    return schema


def problem_response(error: WegeftError, request: Request, status: int | None = None) -> Response:
    """Return the answer that tells ``error`` to the caller."""
    body = error.body(request.scope.get(REQUEST_ID))
    if status is not None:
        body = body.model_copy(update={"status": status})
    headers: dict[str, str] = {}
    if body.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if body.status == 503:
        headers["Retry-After"] = str(_RETRY_AFTER_SECONDS)
    return Response(problem_bytes(body), status_code=body.status, media_type=PROBLEM_MEDIA_TYPE, headers=headers)


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


def _plain_router(version: str, checks: Mapping[str, Check], registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["service"])

    @router.get("/healthz", summary="Whether the process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": version}

    @router.get("/readyz", summary="Whether the database and the object store answer")
    def readyz() -> dict[str, str]:
        problems = [problem for name, check in checks.items() if (problem := _try(name, check))]
        if problems:
            raise Broken("not ready", problems=problems)
        return {"status": "ready"}

    @router.get("/metrics", summary="Prometheus metrics")
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _try(name: str, check: Check) -> Problem | None:
    try:
        check()
    except WegeftError as error:
        return Problem(path=name, message=error.message)
    except Exception as error:  # noqa: BLE001 - whatever is wrong with a part, the answer is that it is not ready
        return Problem(path=name, message=type(error).__name__)
    return None
