"""The API's description, OpenAPI 3.1: what FastAPI reads from the routes, and what all of them have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from fastapi import FastAPI

from infra.envelope import PROBLEM_MEDIA_TYPE
from infra.gate import SITES_ENTRANCES, SITES_PREFIX
from wegeft.contracts.errors import ErrorBody

BINARY = {"content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}}
"""A body of bytes, as a request's or an answer's."""
Operation = dict[str, Any]

_ERROR = ErrorBody.__name__
_MEANINGS = {
    401: "Nobody is known by what the request brings",
    403: "The caller may not do this",
    404: "It is not there, or the caller may not see it",
    409: "It does not go with what is there now",
    413: "The body is too long, or there is no room for it",
    422: "The request is wrong; every problem is listed",
    503: "A part that the service stands on does not answer; try again",
}
_SITES_SCHEME = "SiteSignature"
_SITES_SECURITY = {"type": "apiKey", "in": "header", "name": "wegeft-signature", "description": "By the site's own key, over the request."}


def describing(app: FastAPI) -> Callable[[], dict[str, Any]]:
    """Return what describes an application, to stand in the place of its own ``openapi``."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = FastAPI.openapi(app)
            _add_errors(document)
        assert app.openapi_schema is not None  # noqa: S101 - FastAPI keeps what it has made
        return app.openapi_schema

    return describe


def _add_errors(document: dict[str, Any]) -> None:
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    error = ErrorBody.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= error.pop("$defs") | {_ERROR: error}
    for foreign in ("HTTPValidationError", "ValidationError"):
        schemas.pop(foreign, None)
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if path.startswith(SITES_PREFIX) and path not in SITES_ENTRANCES:
                operation["security"] = [{_SITES_SCHEME: []}]
                components.setdefault("securitySchemes", {})[_SITES_SCHEME] = _SITES_SECURITY
            _complete(operation, method, path)


def _complete(operation: Operation, method: str, path: str) -> None:
    answers = operation["responses"]
    answers.pop("422", None)  # FastAPI's own shape, which we never answer with
    for status in _statuses(operation, method, path):
        answers.setdefault(str(status), {"description": _MEANINGS[status]})
    answers["default"] = {"description": "Any other error"}
    for name, answer in answers.items():
        if method == "head" or name in ("204", "304"):
            answer.pop("content", None)
        elif name == "default" or name >= "400":
            answer["content"] = {PROBLEM_MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{_ERROR}"}}}


def _statuses(operation: Operation, method: str, path: str) -> Iterator[int]:
    """Give the errors that an operation has by what it is; it may say of itself that it has others."""
    if "security" in operation:
        yield from (401, 403)
    if "{" in path:
        yield 404
    if method not in ("get", "head"):
        yield 409
    if "requestBody" in operation:
        yield 413
    if operation.get("parameters") or "requestBody" in operation:
        yield 422
    yield 503
