"""The child's side of the gateway: hears requests, runs them on a real pool, tells what ended."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, BinaryIO

import structlog
from pydantic import BaseModel, ConfigDict, ValidationError

from infra.telemetry import configure_logging
from wegeft.contracts.errors import ErrorBody, StartFailed, WegeftError
from wegeft.contracts.placement import AttemptEnd, AttemptOrder

if TYPE_CHECKING:
    from orchestrator.scheduler import Pool  # the child has no use for SQL

_POLL_SECONDS = 0.1
_PULSE_SECONDS = 1.0
_MAX_POLL_FAILURES = 10
_LAST_SECONDS = 10.0
"""How long closing the pool may take once the parent is gone."""
_LOG = structlog.get_logger("gateway")


class Request(BaseModel):
    """What the parent asks: to start an attempt, or to stop one."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    id: int
    order: AttemptOrder | None = None
    stop: str | None = None


class Answer(BaseModel):
    """What the child says: how a request went, what ended, or only that it lives."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: int | None = None
    """Of the request that this answers."""
    error: ErrorBody | None = None
    ended: AttemptEnd | None = None


def run_gateway(make_pool: Callable[[], Pool]) -> None:
    """Be the child: serve the pool over standard input and output until the input ends, then close it and return.

    Whatever else this process prints goes to standard error, so that it cannot be taken for an answer; so do its logs.
    """
    source, sink = _claim_standard_streams()
    configure_logging("json", stream=sys.stderr)
    serve_pool(make_pool(), source, sink, at_end=_end_soon)


def _claim_standard_streams() -> tuple[BinaryIO, BinaryIO]:
    # Copies made by dup are not inherited, so what the pool starts holds neither end of our pipes.
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    with open(os.devnull, "rb") as nothing:  # noqa: PTH123 - a descriptor is all that is wanted
        os.dup2(nothing.fileno(), 0)
    sys.stdout.flush()
    os.dup2(2, 1)
    return source, sink


def _end_soon() -> None:
    """See that the process ends even where closing the pool hangs."""
    timer = threading.Timer(_LAST_SECONDS, os._exit, [1])
    timer.daemon = True
    timer.start()


def serve_pool(pool: Pool, source: BinaryIO, sink: BinaryIO, *, at_end: Callable[[], None] = lambda: None) -> None:
    """Run the requests that come from ``source`` on ``pool`` and tell ``sink`` what ends; close the pool when ``source`` ends.

    ``at_end`` is called, in another thread, as soon as the source has ended.
    """
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read_lines, args=(source, lines, at_end), name="gateway-input", daemon=True).start()
    try:
        _Server(pool, sink).run(lines)
    except BrokenPipeError:
        _LOG.warning("the parent is gone")
    finally:
        pool.close()


def _read_lines(source: BinaryIO, lines: queue.SimpleQueue[bytes], at_end: Callable[[], None]) -> None:
    for line in source:
        lines.put(line)
    lines.put(b"")
    at_end()


class _Server:
    def __init__(self, pool: Pool, sink: BinaryIO) -> None:
        self._pool = pool
        self._sink = sink
        self._poll_failures = 0

    def run(self, lines: queue.SimpleQueue[bytes]) -> None:
        last_pulse = 0.0
        while True:
            try:
                line = lines.get(timeout=_POLL_SECONDS)
            except queue.Empty:
                pass
            else:
                if not line:
                    return
                self._serve(line)
            for end in self._poll():
                self._tell(Answer(ended=end))
            if monotonic() - last_pulse >= _PULSE_SECONDS:
                last_pulse = monotonic()
                self._tell(Answer())

    def _serve(self, line: bytes) -> None:
        try:
            request = Request.model_validate_json(line)
        except ValidationError as error:
            _LOG.error("not a request", problems=error.error_count())
            return
        self._tell(Answer(id=request.id, error=self._try(request)))

    def _try(self, request: Request) -> ErrorBody | None:
        try:
            if request.order is not None:
                self._pool.start(request.order)
            if request.stop is not None:
                self._pool.stop(request.stop)
        except WegeftError as error:
            return error.body()
        except Exception as error:  # noqa: BLE001 - told to the parent, as a trouble of the pool and not of the job
            _LOG.exception("pool failed", request=request.id)
            return StartFailed(f"the pool could not start the attempt: {type(error).__name__}").body()
        return None

    def _poll(self) -> tuple[AttemptEnd, ...]:
        try:
            ends = self._pool.poll()
        except Exception:
            self._poll_failures += 1
            _LOG.exception("pool cannot be polled", times=self._poll_failures)
            if self._poll_failures >= _MAX_POLL_FAILURES:
                raise
            return ()
        self._poll_failures = 0
        return ends

    def _tell(self, answer: Answer) -> None:
        self._sink.write(answer.model_dump_json(exclude_none=True).encode() + b"\n")
        self._sink.flush()
