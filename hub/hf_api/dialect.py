"""What all routes of the dialect share: how errors are told, what a name is, and who may do what."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute

from hub.services import HubServices
from infra.auth import Guard, Principal, Role
from infra.http import problem_response
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasNotFound,
    FileNotFoundInVersion,
    InvalidInput,
    InvalidReference,
    InvalidRequest,
    Problem,
    Unauthenticated,
    VersionNotFound,
    WegeftError,
)

_BAD_TOKEN = "Invalid credentials in Authorization header"  # noqa: S105 - the words that the clients look for
_MAX_LINE = 500
_MOST_PROBLEMS = 100

Handler = Callable[[Request], Coroutine[Any, Any, Response]]
Dependency = Callable[..., Principal]


class HfRoute(APIRoute):
    """A route whose errors are told as the clients expect."""

    def get_route_handler(self) -> Handler:
        """Return the route's handler; it raises nothing that a user could have caused."""
        handle = super().get_route_handler()

        async def answer(request: Request) -> Response:
            try:
                return await handle(request)
            except WegeftError as error:
                return refusal(error, request)
            except RequestValidationError as error:
                return refusal(_as_ours(error), request)

        return answer


def _as_ours(error: RequestValidationError) -> InvalidRequest:
    found = [Problem(path=".".join(str(step) for step in item["loc"]), message=str(item["msg"])) for item in error.errors()]
    return InvalidRequest("the request is malformed", problems=found[:_MOST_PROBLEMS])


def refusal(error: WegeftError, request: Request, commit: str | None = None, told: Mapping[str, Any] | None = None) -> Response:
    """Return the answer that tells ``error``: its kind and one line in headers, and every problem where clients print it.

    ``told`` is what its body says besides.
    """
    status, code = error.http_status, ""
    match error:
        case AdapterNotFound() | InvalidReference(problems=[Problem(path="name" | "namespace"), *_]):
            status, code = 404, "RepoNotFound"
        case VersionNotFound() | AliasNotFound():
            status, code = 404, "RevisionNotFound"
        case FileNotFoundInVersion():
            status, code = 404, "EntryNotFound"
        case InvalidInput():
            status = 400
        case _:
            pass
    answer = problem_response(error, request, status)
    answer.headers["X-Error-Message"] = _one_line(_BAD_TOKEN if isinstance(error, Unauthenticated) else _summary(error))
    if code:
        answer.headers["X-Error-Code"] = code
    if commit:
        answer.headers["X-Repo-Commit"] = commit  # lets a client remember that the file is not there
    return _with_lines(answer, error, told or {})


def _summary(error: WegeftError) -> str:
    return str(error) if len(error.problems) == 1 else error.message


def _one_line(text: str) -> str:
    return " ".join(text.encode("ascii", "replace").decode().split())[:_MAX_LINE]


def _with_lines(answer: Response, error: WegeftError, told: Mapping[str, Any]) -> Response:
    """Add what the clients print of a body: they know nothing of RFC 9457."""
    lines = [{"message": str(problem)} for problem in error.problems[:_MOST_PROBLEMS]]
    body = json.loads(bytes(answer.body)) | {**told, "error": answer.headers["X-Error-Message"], "errors": lines}
    kept = {name: value for name, value in answer.headers.items() if name != "content-length"}
    return Response(json.dumps(body), status_code=answer.status_code, headers=kept)


@dataclass(frozen=True, kw_only=True)
class Doors:
    """What every route stands on, and who may pass it."""

    services: HubServices
    reader: Dependency
    writer: Dependency


def make_doors(services: HubServices, guard: Guard) -> Doors:
    """Return the doors of a hub."""
    return Doors(services=services, reader=guard.require(Role.READ), writer=guard.require(Role.WRITE))


def address_of(request: Request, adapter: str) -> str:
    """Return an adapter's address as the caller reaches us."""
    return f"{str(request.base_url).rstrip('/')}/{adapter}"
