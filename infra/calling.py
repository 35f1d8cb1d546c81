"""Who is behind what is done now: noted once where a request is let in, so that no change can be made without a name in the audit log.

It is the one thing that travels beside the arguments: a caller's name does not change what a function does, and a function that forgot to
pass it on would leave a hole in the log.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime

SERVICE = "service"
"""Who acts where nobody has asked: the scheduler, the rounds of a federation, the operator on the service's machine."""


@dataclass
class Call:
    """One request, or what the service does by itself."""

    request_id: str | None = None
    actor: str = SERVICE
    token_id: str | None = None
    at: datetime | None = None
    """When the caller was let in."""


_CALL: ContextVar[Call | None] = ContextVar("wegeft_call", default=None)


@contextmanager
def calling(request_id: str) -> Iterator[Call]:
    """Let everything that is done meanwhile belong to one request, in whatever thread."""
    call = Call(request_id=request_id)
    reset = _CALL.set(call)
    try:
        yield call
    finally:
        _CALL.reset(reset)


def current_call() -> Call:
    """Return the request that is being answered, or a call by the service itself."""
    return _CALL.get() or Call()
