"""How pages ask the API: in process, with the visitor's token, through the same gate, guards and handlers as anybody else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar
from urllib.parse import quote

import httpx2
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from infra.envelope import REQUEST_ID
from infra.http import API_PREFIX
from wegeft.contracts.errors import ErrorBody, UnexpectedAnswer, error_from_body

Answer = TypeVar("Answer", bound=BaseModel)
Params = Mapping[str, str | int | Sequence[str] | None]


def api_path(*parts: str) -> str:
    """Return a path of the API, its parts quoted."""
    return "/".join([API_PREFIX, *(quote(part, safe="") for part in parts)])


class Calls:
    """Calls of the API for one request of a visitor; an error that it answers is raised as what it is."""

    def __init__(self, request: Request, token: str | None) -> None:
        self._request = request
        self._token = token

    async def get(self, path: str, answer: type[Answer], params: Params | None = None) -> Answer:
        """Return what a GET answers."""
        return self._read(await self._send("GET", path, params=params), answer)

    async def text(self, path: str) -> str:
        """Return what a GET answers as text; bytes that are none are shown as such."""
        return (await self._send("GET", path)).content.decode(errors="replace")

    async def send(self, method: str, path: str, body: BaseModel | None = None) -> None:
        """Ask for a change."""
        await self._send(method, path, content=None if body is None else body.model_dump_json().encode())

    async def _send(self, method: str, path: str, *, params: Params | None = None, content: bytes | None = None) -> httpx2.Response:
        given = {name: value for name, value in (params or {}).items() if value is not None}
        transport = httpx2.ASGITransport(app=self._request.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://localhost", trust_env=False) as client:
            answer = await client.request(method, path, params=given, content=content, headers=self._headers(content is not None))
        if answer.status_code >= 400:
            raise error_from_body(_body_of(answer))
        return answer

    def _headers(self, has_body: bool) -> dict[str, str]:
        headers = {"Host": self._request.headers.get("host", "localhost"), "Accept": "application/json"}
        headers |= {"X-Request-Id": str(self._request.scope.get(REQUEST_ID, ""))}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        return headers | ({"Content-Type": "application/json"} if has_body else {})

    def _read(self, answer: httpx2.Response, kind: type[Answer]) -> Answer:
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise UnexpectedAnswer("the service answers with something else than expected") from error

    def forward(self, path: str) -> Response:
        """Return the answer of a GET at another address of ours, passed on as it comes, however long."""
        return _Forwarded(self._request, path, self._token)


class _Forwarded(Response):
    def __init__(self, request: Request, path: str, token: str | None) -> None:
        super().__init__()
        self._request = request
        self._path = path
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kept = [(name, value) for name, value in scope["headers"] if name in (b"host", b"range", b"if-none-match", b"if-range")]
        headers = [*kept, (b"authorization", f"Bearer {self._token}".encode())] if self._token else kept
        asked: dict[str, Any] = {"path": self._path, "raw_path": self._path.encode(), "query_string": b"", "root_path": ""}
        # The router alone: the request is wrapped and counted already.
        plain = {key: value for key, value in scope.items() if key not in ("path_params", "endpoint", "route", "router")}
        await self._request.app.router({**plain, **asked, "headers": headers}, receive, send)


def _body_of(answer: httpx2.Response) -> ErrorBody:
    try:
        return ErrorBody.model_validate(json.loads(answer.content))
    except ValueError as error:
        raise UnexpectedAnswer("the service answers with something else than an error", value=str(answer.status_code)) from error
