"""What every HTTP exchange is wrapped in: an id, a trace, a limit, safe headers, a line in the log, a measure, and no traceback."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Callable
from time import perf_counter
from urllib.parse import quote

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from infra.bodies import LimitedBody
from infra.calling import calling
from infra.gate import Gate
from wegeft.contracts.errors import Broken, ErrorBody, InvalidRequest, WegeftError, shorten
from wegeft.contracts.trace import HEADER, TraceContext, parse_trace

ErrorPage = Callable[[Scope, ErrorBody], Response | None]
"""Gives what shows an error to a browser; None where the caller is none, and gets it as RFC 9457 has it."""

REQUEST_ID = "wegeft.request_id"
"""Where in the ASGI scope the request's id is."""
PROBLEM_MEDIA_TYPE = "application/problem+json"

_RETRY_AFTER_SECONDS = 1
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_QUIET_ROUTES = frozenset({"/healthz", "/readyz", "/metrics"})
_CLIENT_GONE = 499
_SAFE_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"cache-control", b"no-store"),
)
_LOG = structlog.get_logger("http")


class Meter:
    """Counts and times requests; labels are route templates and known methods, so that they stay few whatever is asked."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._count = Counter("wegeft_http_requests", "HTTP requests answered.", ("method", "route", "status"), registry=registry)
        self._seconds = Histogram("wegeft_http_request_seconds", "Time to answer.", ("method", "route"), registry=registry)
        self._templates: dict[object, str] = {}

    def note(self, scope: Scope, status: int, seconds: float) -> str:
        """Count one answered request; return the template of its route, or ``unmatched``."""
        method = scope["method"] if scope["method"] in _METHODS else "OTHER"
        endpoint = scope.get("endpoint")
        route = "unmatched" if endpoint is None else self._templates.get(endpoint)
        if route is None:
            # Made once for an endpoint, so that there are never more templates than endpoints.
            route = self._templates.setdefault(endpoint, template_of(scope))
        self._count.labels(method, route, str(status)).inc()
        self._seconds.labels(method, route).observe(seconds)
        return route


def template_of(scope: Scope) -> str:
    """Return the request's path with the names of its parameters for their values, such as ``/api/v1/jobs/{job_id}``.

    The route itself knows only its own part of the path where routers are nested.
    """
    path, end = str(scope["path"]), len(scope["path"])
    for name, value in reversed(scope.get("path_params", {}).items()):
        start = path.rfind(f"/{value}", 0, end)
        while start >= 0 and path[start + 1 + len(str(value)) :][:1] not in ("", "/"):
            start = path.rfind(f"/{value}", 0, start + len(str(value)))
        if start >= 0:
            path, end = f"{path[: start + 1]}{{{name}}}{path[start + 1 + len(str(value)) :]}", start
    return path


def page_of(scope: Scope, body: ErrorBody) -> Response | None:
    """Return what shows an error to a browser, where the application has pages and the caller is one."""
    make_page: ErrorPage | None = getattr(scope["app"].state, "error_page", None) if "app" in scope else None
    return make_page(scope, body) if make_page else None


def problem_bytes(body: ErrorBody) -> bytes:
    """Return an error as RFC 9457 has it."""
    members = {"type": f"urn:wegeft:error:{body.code}", **body.model_dump(mode="json", exclude_none=True)}
    return json.dumps(members, ensure_ascii=True).encode()


def problem_headers(status: int) -> dict[str, str]:
    """Return what an error's headers say beside its body."""
    match status:
        case 401:
            return {"WWW-Authenticate": "Bearer"}
        case 503:
            return {"Retry-After": str(_RETRY_AFTER_SECONDS)}
        case _:
            return {}


class Envelope:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, *, meter: Meter, gate: Gate) -> None:
        self._app = app
        self._meter = meter
        self._gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, wrapped."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = scope[REQUEST_ID] = _request_id(scope)
        started = perf_counter()
        trace = _trace(scope)
        bound = structlog.contextvars.bound_contextvars(request_id=request_id, trace_id=trace.trace_id, span_id=trace.span_id)
        with bound, calling(request_id):
            body = LimitedBody(scope, receive, self._gate.body_seconds)
            status = await _Exchange(scope, send, request_id).run(self._app, body, self._gate)
            seconds = perf_counter() - started
            route = self._meter.note(scope, status, seconds)
            _log_line(scope, route, status, seconds)


def _request_id(scope: Scope) -> str:
    given = next((value for key, value in scope["headers"] if key == b"x-request-id"), b"")
    return given.decode() if _REQUEST_ID.match(given) else secrets.token_hex(8)


def _trace(scope: Scope) -> TraceContext:
    given = [value for key, value in scope["headers"] if key == HEADER.encode()]
    parent = parse_trace(given[0].decode("latin-1")) if len(given) == 1 else None
    return TraceContext(parent.trace_id if parent else secrets.token_hex(16), secrets.token_hex(8))


def _log_line(scope: Scope, route: str, status: int, seconds: float) -> None:
    # The path without its query: queries hold cursors and labels of users, paths hold identifiers only. Quoted as it came, so
    # that it cannot write lines of its own.
    path = shorten(quote(scope["path"]), 200)
    log = _LOG.debug if route in _QUIET_ROUTES else _LOG.info
    log("request", method=shorten(scope["method"], 20), path=path, status=status, milliseconds=round(seconds * 1000, 1))


class _Exchange:
    """One request: remembers whether its answer began, and sees that it gets one."""

    def __init__(self, scope: Scope, send: Send, request_id: str) -> None:
        self._scope = scope
        self._send = send
        self._request_id = request_id
        self._status: int | None = None

    async def run(self, app: ASGIApp, receive: Receive, gate: Gate) -> int:
        """Run the application, unless the gate refuses; return the status that was answered."""
        if "\0" in self._scope["path"] or b"%00" in self._scope["query_string"]:
            # No name of ours holds a NUL, and databases stumble over it.
            await self._send_problem(InvalidRequest("a NUL cannot be part of an address", path="path").body(self._request_id))
            return self._status or _CLIENT_GONE
        try:
            await gate.check(self._scope)
            await app(self._scope, receive, self._send_wrapped)
        except ClientDisconnect:
            return _CLIENT_GONE
        except asyncio.CancelledError:
            # The server is told to end and waits no longer; whoever still waits for news may ask again.
            await self._answer(Broken("the service is shutting down", hint="try again"))
        except Exception as error:  # noqa: BLE001 - the last door: whatever comes is logged, and never shown
            await self._answer(error)
        return self._status or _CLIENT_GONE

    async def _send_wrapped(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            headers = list(message.get("headers", []))
            given = {key.lower() for key, _ in headers}
            headers += [pair for pair in _SAFE_HEADERS if pair[0] not in given]
            headers.append((b"x-request-id", self._request_id.encode()))
            message = {**message, "headers": headers}
        await self._send(message)

    async def _answer(self, error: Exception) -> None:
        if self._status is not None:
            # Too late for another answer: returning without the end of this one makes the server cut the connection,
            # so that the peer cannot take half a body for the whole.
            _LOG.error("answer cut short", path=quote(self._scope["path"]), reason=str(error), exc_info=_unless_expected(error))
            return
        if not isinstance(error, WegeftError):
            _LOG.error("unexpected error", path=quote(self._scope["path"]), exc_info=error)
            error = WegeftError("an unexpected error; the server's log has more under this request id")
        await self._send_problem(error.body(self._request_id))

    async def _send_problem(self, body: ErrorBody) -> None:
        page = page_of(self._scope, body)
        if page is not None:
            await page(self._scope, _nothing_more, self._send_wrapped)
            return
        content = problem_bytes(body)
        headers = [(b"content-type", PROBLEM_MEDIA_TYPE.encode()), (b"content-length", str(len(content)).encode())]
        headers += [(name.lower().encode(), value.encode()) for name, value in problem_headers(body.status).items()]
        await self._send_wrapped({"type": "http.response.start", "status": body.status, "headers": headers})
        await self._send({"type": "http.response.body", "body": content})


async def _nothing_more() -> Message:
    return {"type": "http.disconnect"}


def _unless_expected(error: Exception) -> Exception | None:
    return None if isinstance(error, WegeftError) or isinstance(error.__cause__, WegeftError) else error
