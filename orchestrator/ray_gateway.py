"""A pool in a child process, because Ray ends the process that drives it when its own control process dies.

Parent and child speak JSON lines over the child's standard input and output. The parent restarts a child that died or hangs and
reports all that it ran as lost; the child ends when its input does, so that it never outlives a killed parent. An order with its
token travels through the pipe only, never on a command line or into a log.
"""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from time import monotonic

import structlog
from pydantic import ValidationError

from orchestrator.gateway_child import Answer, Request, run_gateway, serve_pool
from wegeft.contracts.errors import ServiceUnreachable, WorkerLost
from wegeft.contracts.placement import AttemptEnd, AttemptOrder

__all__ = ["GatewayPool", "run_gateway", "serve_pool"]

HANG_SECONDS = 120.0
"""A child that says nothing for so long is killed; starting Ray may take a good part of it."""

_RESTART_SECONDS = (0.5, 1.0, 2.0, 5.0, 15.0, 30.0)
_GOOD_LIFE_SECONDS = 10.0
"""A child that lived so long does not count as failing again and again."""
_CLOSE_SECONDS = 15.0
_EXIT_SECONDS = 3.0
"""How long a child that has closed its output may take to end."""
_LOOK_SECONDS = 0.2
_MAX_LINE_BYTES = 4 << 20
_MAX_LOG_BYTES = 10 << 20
_LOG = structlog.get_logger("gateway")


@dataclass(eq=False)
class _Child:
    """One life of the child process."""

    process: subprocess.Popen[bytes]
    sending: threading.Lock = field(default_factory=threading.Lock)
    """Held to write; never together with the pool's lock, or a child that does not read would block the thread that kills it."""
    running: set[str] = field(default_factory=set)
    asked: dict[int, str] = field(default_factory=dict)
    """Which handle each unanswered request to start is about."""
    rest: bytes = b""
    """The beginning of a line that has not ended yet."""


class GatewayPool:
    """A pool whose attempts run in the child that ``command`` starts; see :class:`orchestrator.scheduler.Pool`.

    ``start`` returns once the order is on its way; what the child's pool refuses comes back as an end that says so. Safe to use
    from several threads.
    """

    def __init__(
        self, command: Sequence[str], log_path: Path, *, env: Mapping[str, str] | None = None, hang_seconds: float = HANG_SECONDS
    ) -> None:
        """``log_path`` takes the child's standard error; ``env`` is its whole environment.

        By default that is ours without the service's settings: what runs on the pool has no business with the database's password.
        """
        self._command = tuple(command)
        self._log_path = log_path
        self._env = _without_settings(os.environ) if env is None else dict(env)
        self._hang_seconds = hang_seconds
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._ends: deque[AttemptEnd] = deque()
        self._child: _Child | None = None
        self._trouble = "it is being started"
        self._is_closing = threading.Event()
        self._thread = threading.Thread(target=self._supervise, name="gateway", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int | None:
        """The child's process id, None while there is none."""
        child = self._child
        return child.process.pid if child else None

    def start(self, order: AttemptOrder) -> None:
        """Send an order to the child; raise :class:`ServiceUnreachable` while there is none."""
        with self._lock:
            child = self._child
            if child is None:
                raise ServiceUnreachable(f"the gateway to Ray is not running: {self._trouble}", hint=f"its log is {self._log_path}")
            number = next(self._numbers)
            child.running.add(order.handle)
            child.asked[number] = order.handle
        try:
            _send(child, Request(id=number, order=order))
        except OSError as error:
            with self._lock:
                child.running.discard(order.handle)
            raise ServiceUnreachable("the gateway to Ray has just died", hint=f"its log is {self._log_path}") from error

    def poll(self) -> tuple[AttemptEnd, ...]:
        """Return what has ended since the last call."""
        with self._lock:
            ends = tuple(self._ends)
            self._ends.clear()
        return ends

    def stop(self, handle: str) -> None:
        """Ask the child to kill an attempt; where there is no child, nothing runs."""
        with self._lock:
            child = self._child
            number = next(self._numbers)
        if child is not None:
            with suppress(OSError):
                _send(child, Request(id=number, stop=handle))

    def close(self) -> None:
        """End the child, and with it all that it runs."""
        self._is_closing.set()
        self._thread.join()

    # The rest runs in the supervising thread.

    def _supervise(self) -> None:
        failures = 0
        while not self._is_closing.is_set():
            born = monotonic()
            try:
                self._live()
            except OSError as error:
                self._trouble = f"it cannot be started: {error.strerror}"
                _LOG.error("gateway cannot be started", command=self._command[0], reason=str(error))
            failures = 0 if monotonic() - born > _GOOD_LIFE_SECONDS else failures + 1
            self._is_closing.wait(_RESTART_SECONDS[min(failures, len(_RESTART_SECONDS) - 1)])

    def _live(self) -> None:
        """Start a child and hear it until it is dead."""
        child = self._spawn()
        _LOG.info("gateway started", pid=child.process.pid)
        with self._lock:
            self._child = child
        try:
            self._hear(child)
        finally:
            _kill(child.process)
            self._bury(child)

    def _spawn(self) -> _Child:
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        if self._log_path.exists() and self._log_path.stat().st_size > _MAX_LOG_BYTES:
            self._log_path.replace(self._log_path.with_name(self._log_path.name + ".1"))
        descriptor = os.open(self._log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(descriptor, "ab") as log:
            # A session of its own: Ctrl-C at our terminal is for us, and all that the child starts can be killed with it.
            process = subprocess.Popen(  # noqa: S603 - the composition root's own command
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._env,
                bufsize=0,
                start_new_session=True,
            )
        return _Child(process=process)

    def _hear(self, child: _Child) -> None:
        output = child.process.stdout
        assert output is not None  # noqa: S101 - it was asked for in Popen
        last_heard = monotonic()
        closing_since: float | None = None
        with selectors.DefaultSelector() as selector:
            selector.register(output, selectors.EVENT_READ)
            while True:
                if selector.select(_LOOK_SECONDS):
                    data = os.read(output.fileno(), 1 << 16)
                    if not data:
                        with suppress(subprocess.TimeoutExpired):
                            child.process.wait(_EXIT_SECONDS)
                        return
                    last_heard = monotonic()
                    self._take(child, data)
                elif child.process.poll() is not None:
                    # Whatever the child left behind may hold the pipe open; it is dead all the same.
                    return
                if monotonic() - last_heard > self._hang_seconds:
                    _LOG.error("gateway hangs", pid=child.process.pid, seconds=self._hang_seconds)
                    return
                if self._is_closing.is_set():
                    closing_since = closing_since or monotonic()
                    _end_input(child)
                    if monotonic() - closing_since > _CLOSE_SECONDS:
                        return

    def _take(self, child: _Child, data: bytes) -> None:
        *lines, child.rest = (child.rest + data).split(b"\n")
        if len(child.rest) > _MAX_LINE_BYTES:
            _LOG.warning("gateway wrote a line without an end", size=len(child.rest))
            child.rest = b""
        for line in lines:
            try:
                answer = Answer.model_validate_json(line)
            except ValidationError:
                _LOG.warning("gateway wrote what is no answer", size=len(line))
                continue
            with self._lock:
                self._note(child, answer)

    def _note(self, child: _Child, answer: Answer) -> None:
        if answer.id is not None:
            handle = child.asked.pop(answer.id, None)
            if handle is not None and answer.error is not None:
                self._end(child, AttemptEnd(handle=handle, error=answer.error, is_refused=True))
        if answer.ended is not None:
            self._end(child, answer.ended)

    def _end(self, child: _Child, end: AttemptEnd) -> None:
        if end.handle in child.running:
            child.running.discard(end.handle)
            self._ends.append(end)

    def _bury(self, child: _Child) -> None:
        code = child.process.returncode
        self._trouble = f"it ended with status {code}"
        if not self._is_closing.is_set():
            _LOG.warning("gateway ended", pid=child.process.pid, status=code, lost=len(child.running))
        lost = WorkerLost("the gateway to Ray died, and the worker with it").body()
        unstarted = ServiceUnreachable("the gateway to Ray died before it said that the attempt is started").body()
        with self._lock:
            self._child = None
            for handle in sorted(child.running):
                is_refused = handle in child.asked.values()
                self._ends.append(AttemptEnd(handle=handle, error=unstarted if is_refused else lost, is_refused=is_refused))
            child.running.clear()
        with child.sending:
            for stream in (child.process.stdin, child.process.stdout):
                if stream is not None:
                    stream.close()


def _without_settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("WEGEFT_") or name == "WEGEFT_HOME"}


def _send(child: _Child, request: Request) -> None:
    line = memoryview(request.model_dump_json().encode() + b"\n")
    with child.sending:
        stdin = child.process.stdin
        if stdin is None or stdin.closed:
            raise BrokenPipeError
        while line:
            line = line[stdin.write(line) :]


def _end_input(child: _Child) -> None:
    # Where somebody is stuck in writing, the child does not read, and will be killed for not ending.
    if child.sending.acquire(blocking=False):
        try:
            if child.process.stdin is not None:
                child.process.stdin.close()
        finally:
            child.sending.release()


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill the child and what is left of its session, and reap it."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
