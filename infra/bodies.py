"""Request bodies: how long one may be and may take, and how a plain function reads one that is too long to hold."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, ParamSpec, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
from anyio.lowlevel import RunVar
from fastapi import Depends
from starlette.requests import Request
from starlette.types import Message, Receive, Scope

from infra.principals import Principal
from wegeft.contracts.errors import InvalidRequest, ServiceTimeout, TooLarge

MAX_BODY_BYTES = 1 << 20
"""Of a request whose endpoint says neither that it streams nor that it takes more."""
MAX_REPORT_BYTES = 8 << 20
"""Of what a worker reports: the events of a whole outage, the files of a checkpoint."""
BODY_SECONDS = 30.0
"""How long a body may take: in all, or where it is streamed, from one packet to the next."""
MAX_STREAMS = 16
"""Bodies that are streamed at once; the next ones wait, and hold no thread meanwhile."""
STREAMS_A_SENDER = 4
"""Of those, how many one account's may be, or one attempt's or site's, so that nobody alone keeps everybody waiting."""
STREAM_PATIENCE = 20
"""How many times :data:`BODY_SECONDS` a streamed body may be waited for in all, besides a second for each :data:`LEAST_BYTES_A_SECOND`."""
LEAST_BYTES_A_SECOND = 4096
MAX_STORE_READERS = 32
"""Requests that wait for the object store at once, beside the streamed bodies; the next ones hold no thread meanwhile."""
LONG_READS_A_SENDER = 4
"""Of those, how many one account's, site's or attempt's may be that look at any number of files, or read them to their ends."""
MAX_COMPUTATIONS = 2
"""Requests that hold whole tensors at once, some gigabytes each; the next ones hold no thread meanwhile."""
COMPUTATIONS_A_SENDER = 1
"""Of those, how many one account's may be."""
DOWNLOADS_A_READER = 16
"""Answers with a file that one account may have open at once, unless the operator says otherwise."""
SENDER = "wegeft.sender"
"""In a request's scope: who sends it, where that was found out by other means than a token."""

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_LIMIT = "max_body_bytes"
_SLOTS: RunVar[anyio.CapacityLimiter] = RunVar("wegeft_streams")
_READERS: RunVar[anyio.CapacityLimiter] = RunVar("wegeft_store_readers")
_COMPUTATIONS: RunVar[anyio.CapacityLimiter] = RunVar("wegeft_computations")
_SHARES: RunVar[dict[str, _Share]] = RunVar("wegeft_shares")


def streams_body(endpoint: Callable[Parameters, Result]) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Return an endpoint that runs the given one, which reads its body through :class:`BodyReader`, with a limit of its own.

    It runs in a thread beside those of the other endpoints, so that however slow peers are, the others have theirs. The endpoint
    takes its :class:`Request` by keyword, as FastAPI gives it.
    """

    @wraps(endpoint)
    async def streamed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        async with _share_of(f"streams of {_sender_of(kwargs)}", STREAMS_A_SENDER):
            return await anyio.to_thread.run_sync(partial(endpoint, *args, **kwargs), limiter=_limiter(_SLOTS, MAX_STREAMS))

    setattr(streamed, _LIMIT, None)
    return streamed


def waits_for_store(endpoint: Callable[Parameters, Result]) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Return an endpoint that runs the given one, which reads from the object store, in a thread beside those of the other endpoints.

    So however long the store takes, what needs the database alone is answered.
    """

    @wraps(endpoint)
    async def waited(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        return await anyio.to_thread.run_sync(partial(endpoint, *args, **kwargs), limiter=_limiter(_READERS, MAX_STORE_READERS))

    return waited


def holds_tensors(endpoint: Callable[Parameters, Result]) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Return an endpoint that runs the given one, which reads tensors and computes with them, in a thread of which there are few.

    So however many ask at once, the memory of :data:`MAX_COMPUTATIONS` is enough, and the other endpoints have their threads. One account
    has one of these. The endpoint takes its :class:`Principal` by keyword.
    """

    @wraps(endpoint)
    async def computed(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        async with _share_of(f"computations of {_sender_of(kwargs)}", COMPUTATIONS_A_SENDER):
            return await anyio.to_thread.run_sync(partial(endpoint, *args, **kwargs), limiter=_limiter(_COMPUTATIONS, MAX_COMPUTATIONS))

    return computed


def reads_whole_files(endpoint: Callable[Parameters, Result]) -> Callable[Parameters, Coroutine[Any, Any, Result]]:
    """Return an endpoint as :func:`waits_for_store` does, of which one account, site or attempt has :data:`LONG_READS_A_SENDER` at once.

    Its next ones wait, and hold no thread meanwhile. The endpoint takes its :class:`Principal`, or else its :class:`Request`, by keyword.
    """
    waited = waits_for_store(endpoint)

    @wraps(endpoint)
    async def shared(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        async with _share_of(f"long reads of {_sender_of(kwargs)}", LONG_READS_A_SENDER):
            return await waited(*args, **kwargs)

    return shared


def sends_files(reader: Callable[..., Principal], most: int) -> Callable[..., AsyncIterator[None]]:
    """Return a FastAPI dependency of endpoints that answer with files, of which one account has ``most`` at once.

    Its next ones wait, and hold no thread meanwhile. A place is free again when the answer is sent or cut, not when it begins: so a reader
    that takes its bytes slowly has these places and no more. ``reader`` is the endpoint's own guard.
    """

    async def held(caller: Principal = Depends(reader)) -> AsyncIterator[None]:  # noqa: B008 - as FastAPI has it
        async with _share_of(f"downloads of account {caller.account}", most):
            yield

    return held


def _sender_of(arguments: Mapping[str, object]) -> str:
    """Return who sends a request that was let in: an account, however many tokens it has, or else who was found out by other means."""
    for argument in arguments.values():
        if isinstance(argument, Principal):
            return f"account {argument.account}"
    request = next(value for value in arguments.values() if isinstance(value, Request))
    token = request.headers.get("authorization", "").partition(" ")[2].strip()
    return str(request.scope.get(SENDER, token))


def takes_reports(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint whose body may have :data:`MAX_REPORT_BYTES`."""
    setattr(endpoint, _LIMIT, MAX_REPORT_BYTES)
    return endpoint


def _limiter(variable: RunVar[anyio.CapacityLimiter], most: int) -> anyio.CapacityLimiter:
    """Return the event loop's own limiter."""
    limiter = variable.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(most)
        variable.set(limiter)
    return limiter


@dataclass
class _Share:
    """One sender's part of the slots."""

    slots: anyio.CapacityLimiter
    requests: int = 0
    """That have a slot of it or wait for one."""


@asynccontextmanager
async def _share_of(what: str, most: int) -> AsyncIterator[None]:
    """Wait for one of a sender's ``most`` slots for something, and hold it; a share lives as long as somebody needs it."""
    shares = _SHARES.get(None)
    if shares is None:
        shares = {}
        _SHARES.set(shares)
    share = shares.setdefault(what, _Share(anyio.CapacityLimiter(most)))
    share.requests += 1
    try:
        async with share.slots:
            yield
    finally:
        share.requests -= 1
        if not share.requests:
            del shares[what]


class LimitedBody:
    """A ``receive`` that raises :class:`TooLarge` once a body is over its endpoint's limit, or says that it will be.

    Raises :class:`ServiceTimeout` where the body takes longer than ``seconds``, as :data:`BODY_SECONDS` explains.
    """

    def __init__(self, scope: Scope, receive: Receive, seconds: float) -> None:
        self._scope = scope
        self._receive = receive
        self._seconds = seconds
        self._seen = 0
        self._waited = 0.0
        self._is_whole = False

    async def __call__(self) -> Message:
        """Return the next message; once the body is whole, wait for it as long as it takes."""
        if self._is_whole:
            return await self._receive()
        # The endpoint is known only now: the router has run between the request's arrival and its body's first byte.
        limit: int | None = getattr(self._scope.get("endpoint"), _LIMIT, MAX_BODY_BYTES)
        _check_length(declared_length(self._scope) or 0, limit)
        message = await self._next_message(is_streamed=limit is None)
        self._is_whole = not message.get("more_body", False)
        self._seen += len(message.get("body", b""))
        _check_length(self._seen, limit)
        return message

    async def _next_message(self, *, is_streamed: bool) -> Message:
        began = anyio.current_time()
        with anyio.CancelScope(deadline=began + self._seconds_left(is_streamed=is_streamed)):
            message = await self._receive()
            # Only what the peer takes counts, not what the endpoint does with it meanwhile.
            self._waited += anyio.current_time() - began
            return message
        raise ServiceTimeout("the body came too slowly", path="body", hint="send it again, without a pause")

    def _seconds_left(self, *, is_streamed: bool) -> float:
        if not is_streamed:
            return self._seconds - self._waited
        in_all = STREAM_PATIENCE * self._seconds + self._seen / LEAST_BYTES_A_SECOND
        return min(self._seconds, in_all - self._waited)


def _check_length(size: int, limit: int | None) -> None:
    if limit is not None and size > limit:
        raise _too_large(limit)


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

    def limit(self, max_bytes: int) -> None:
        """Let fewer bytes come than was said before."""
        self._max_bytes = min(self._max_bytes, max_bytes)

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
