"""Request bodies: how long one may be, and how a plain function reads one that is too long to hold."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio.from_thread
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from wegeft.contracts.errors import InvalidRequest, TooLarge

MAX_BODY_BYTES = 8 << 20
"""Of a request whose endpoint does not say that it streams."""

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_MARK = "streams_its_body"


def streams_body(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that reads its body through :class:`BodyReader`, with a limit of its own."""
    setattr(endpoint, _MARK, True)
    return endpoint


def limit_body(scope: Scope, receive: Receive) -> Receive:
    """Return a ``receive`` that raises :class:`TooLarge` once a body is over :data:`MAX_BODY_BYTES`, or says that it will be."""
    seen = 0

    async def limited() -> Message:
        nonlocal seen
        # The endpoint is known only now: the router has run between the request's arrival and its body's first byte.
        is_streamed = getattr(scope.get("endpoint"), _MARK, False)
        if not is_streamed and (declared_length(scope) or 0) > MAX_BODY_BYTES:
            raise _too_large(MAX_BODY_BYTES)
        message = await receive()
        seen += len(message.get("body", b""))
        if not is_streamed and seen > MAX_BODY_BYTES:
            raise _too_large(MAX_BODY_BYTES)
        return message

    return limited


def declared_length(scope: Scope) -> int | None:
    """Return the request's ``Content-Length``; None where it has none that is a number."""
    text = next((value for key, value in scope["headers"] if key == b"content-length"), b"")
    return int(text) if text.isdigit() else None


def _too_large(limit: int) -> TooLarge:
    return TooLarge(f"the body is longer than {limit} bytes", path="body", hint="send less, or ask the operator for a higher limit")


class BodyReader(io.RawIOBase):
    """A request's body as a binary file, for an endpoint that is a plain function (FastAPI runs it in a worker thread).

    Reads no more than it is asked for and what the peer's last packet held, so memory does not grow with the body.
    Raises :class:`TooLarge` past ``max_bytes``, and :class:`InvalidRequest` where the peer stops before the length that it declared.
    """

    def __init__(self, request: Request, max_bytes: int) -> None:
        super().__init__()
        self._chunks: AsyncIterator[bytes] = request.stream()
        self._max_bytes = max_bytes
        self._seen = 0
        self._rest = memoryview(b"")
        self.length = declared_length(request.scope)
        """Bytes to come, as declared; None where the peer sends in chunks."""
        if (self.length or 0) > max_bytes:
            raise _too_large(max_bytes)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill ``buffer`` with the next bytes; return how many, 0 at the end."""
        while not self._rest:
            chunk = anyio.from_thread.run(self._next_chunk)
            if chunk is None:
                return 0
            self._count(len(chunk))
            self._rest = memoryview(chunk)
        count = min(len(self._rest), len(buffer))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count

    async def _next_chunk(self) -> bytes | None:
        async for chunk in self._chunks:
            return chunk
        if self.length is not None and self._seen != self.length:
            raise InvalidRequest("the body ended early", path="body", value=f"{self._seen} bytes", hint=f"{self.length} were announced")
        return None

    def _count(self, size: int) -> None:
        self._seen += size
        if self._seen > self._max_bytes:
            raise _too_large(self._max_bytes)
