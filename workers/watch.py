"""A worker's lease: signs of life on a thread of their own, and when the worker must stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from time import monotonic

import structlog

from wegeft.contracts.errors import IllegalTransition, JobNotFound, StaleLease, Unauthenticated, WegeftError
from wegeft.contracts.training import HeartbeatReply

_LOG = structlog.get_logger("worker")
GRACE_SECONDS = 3.0
"""How long training may take to notice that it must stop, before the process is ended."""


class Reason(StrEnum):
    """Why a worker stops before its work is done."""

    CANCELLED = "cancelled"
    """A person asked for it."""
    STALE = "stale"
    """Another attempt holds the job."""
    SILENT = "silent"
    """The orchestrator could not be reached for a whole lease, so another attempt may hold the job."""
    ASKED = "asked"
    """The pool asked for it."""


def reason_to_stop(answer: HeartbeatReply | WegeftError, silent_seconds: float, lease_seconds: float) -> Reason | None:
    """Decide on what a heartbeat brought; ``silent_seconds`` is the time since the last one that was answered.

    A refusal means that the lease is another's. Any other error may pass, but not for longer than the lease.
    """
    match answer:
        case HeartbeatReply(should_stop=True):
            return Reason.CANCELLED
        case HeartbeatReply():
            return None
        case StaleLease() | IllegalTransition() | Unauthenticated() | JobNotFound():
            return Reason.STALE
        case _:
            return Reason.SILENT if silent_seconds >= lease_seconds else None


class Watch:
    """Knows whether the worker must stop; asked from the training thread, told from the others."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._asked = stop
        self._reason: Reason | None = None
        self._is_over = threading.Event()
        self.step: int | None = None
        """Optimizer steps done; heartbeats carry it."""

    @property
    def reason(self) -> Reason | None:
        """Why to stop, or None to go on."""
        if self._reason is None and self._asked is not None and self._asked.is_set():
            return Reason.ASKED
        return self._reason

    def must_stop(self) -> bool:
        """Whether to stop at once."""
        return self.reason is not None

    def stop(self, reason: Reason) -> None:
        """Say that the worker must stop; the first reason stays."""
        if self._reason is None:
            _LOG.warning("worker stops", reason=str(reason))
            self._reason = reason

    def check(self, error: WegeftError) -> None:
        """Stop where an error says that the lease is another's; any other refusal concerns what was sent, not the lease."""
        if isinstance(error, StaleLease | IllegalTransition | Unauthenticated | JobNotFound):
            self.stop(Reason.STALE)

    @contextmanager
    def beating(self, heartbeat: Callable[[int | None], HeartbeatReply], every_seconds: float, lease_seconds: float) -> Iterator[None]:
        """Give signs of life until the block ends."""
        thread = threading.Thread(target=self._beat, args=(heartbeat, every_seconds, lease_seconds), name="heartbeat", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_over.set()
            thread.join(timeout=GRACE_SECONDS)

    def _beat(self, heartbeat: Callable[[int | None], HeartbeatReply], every_seconds: float, lease_seconds: float) -> None:
        heard_at = monotonic()
        while not self._is_over.wait(every_seconds):
            asked_at = monotonic()
            answer = _try(heartbeat, self.step)
            if isinstance(answer, HeartbeatReply):
                # The lease runs from when the question was sent at the latest.
                heard_at = asked_at
            reason = reason_to_stop(answer, monotonic() - heard_at, lease_seconds)
            if reason is not None:
                self.stop(reason)
                return

    @contextmanager
    def ending_process(self) -> Iterator[None]:
        """End this process where the block goes on for ``GRACE_SECONDS`` after the worker had to stop; for a process of its own only."""
        is_done = threading.Event()

        def wait() -> None:
            while not is_done.wait(0.2):
                if self.must_stop() and not is_done.wait(GRACE_SECONDS):
                    os._exit(75)  # EX_TEMPFAIL

        threading.Thread(target=wait, name="fence", daemon=True).start()
        try:
            yield
        finally:
            is_done.set()


def _try(heartbeat: Callable[[int | None], HeartbeatReply], step: int | None) -> HeartbeatReply | WegeftError:
    try:
        return heartbeat(step)
    except WegeftError as error:
        return error
