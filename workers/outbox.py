"""What a worker sends while it trains, from threads of their own, so that no step waits for the network."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import structlog

from wegeft.client import AttemptClient
from wegeft.contracts.adapter import FileEntry
from wegeft.contracts.errors import WegeftError
from wegeft.contracts.training import Checkpoint, CheckpointSaved, EventBatch, Message, Progress, WorkerEvent

_LOG = structlog.get_logger("worker")
_BATCH = 200
_PAUSE_SECONDS = 0.3
"""Between two batches: a log that is half a second old is live enough."""
_LIMIT = 10_000
"""Events kept while the orchestrator is away; beyond it, progress is thinned."""

OnError = Callable[[WegeftError], None]


class EventOutbox:
    """Sends events in order, each once; any thread may add."""

    def __init__(self, send: Callable[[EventBatch], None], on_error: OnError) -> None:
        self._send = send
        self._on_error = on_error
        self._waiting: deque[WorkerEvent] = deque()
        self._in_flight: tuple[WorkerEvent, ...] = ()
        self._sent = 0
        self._lock = threading.Lock()
        self._is_closing = threading.Event()

    def add(self, event: WorkerEvent) -> None:
        """Keep an event to be sent soon; never waits."""
        with self._lock:
            if len(self._waiting) >= _LIMIT:
                self._waiting = deque(thinned(tuple(self._waiting)))
            self._waiting.append(event)

    @contextmanager
    def sending(self) -> Iterator[None]:
        """Send what is added until the block ends, and then what is left, once."""
        thread = threading.Thread(target=self._run, name="events", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._is_closing.set()
            thread.join()

    def _run(self) -> None:
        while not self._is_closing.wait(_PAUSE_SECONDS):
            self._send_all()
        self._send_all()

    def _send_all(self) -> None:
        while self._take():
            try:
                self._send(EventBatch(first_number=self._sent, events=self._in_flight))
            except WegeftError as error:
                # The batch stays as it is: the orchestrator may have it already, and knows it by its number.
                _LOG.warning("events not delivered", reason=error.message)
                self._on_error(error)
                return
            self._sent += len(self._in_flight)
            self._in_flight = ()

    def _take(self) -> bool:
        with self._lock:
            if not self._in_flight:
                self._in_flight = tuple(self._waiting.popleft() for _ in range(min(_BATCH, len(self._waiting))))
        return bool(self._in_flight)


def thinned(events: tuple[WorkerEvent, ...]) -> list[WorkerEvent]:
    """Return the events without every other progress, and without the older half where nothing else helps."""
    steps = 0
    kept: list[WorkerEvent] = []
    for event in events:
        if isinstance(event, Progress):
            steps += 1
            if steps % 2:
                continue
        kept.append(event)
    return kept if len(kept) < len(events) else kept[len(kept) // 2 :]


class CheckpointOutbox:
    """Delivers the newest checkpoint; one that a newer one overtakes is not sent."""

    def __init__(self, client: AttemptClient, report: Callable[[WorkerEvent], None], on_error: OnError) -> None:
        self._client = client
        self._report = report
        self._on_error = on_error
        self._next: tuple[int, Mapping[str, bytes]] | None = None
        self._changed = threading.Condition()
        self._is_closing = False

    def save(self, step: int, files: dict[str, bytes]) -> None:
        """Keep a checkpoint to be delivered soon; never waits."""
        with self._changed:
            self._next = (step, files)
            self._changed.notify()

    @contextmanager
    def delivering(self) -> Iterator[None]:
        """Deliver what is saved until the block ends; what is under way then is finished, what waits is let go."""
        thread = threading.Thread(target=self._run, name="checkpoints", daemon=True)
        thread.start()
        try:
            yield
        finally:
            with self._changed:
                self._is_closing, self._next = True, None
                self._changed.notify()
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closing)
                if self._next is None:
                    return
                (step, files), self._next = self._next, None
            self._deliver(step, files)

    def _deliver(self, step: int, files: Mapping[str, bytes]) -> None:
        try:
            blobs = {name: self._client.put_blob(content) for name, content in files.items()}
            entries = tuple(FileEntry(path=name, digest=blob.digest, size=blob.size) for name, blob in sorted(blobs.items()))
            self._client.checkpoint(Checkpoint(step=step, files=entries))
        except WegeftError as error:
            self._report(Message(level="warning", text=f"the checkpoint of step {step} could not be saved: {error.message}"))
            self._on_error(error)
        else:
            self._report(CheckpointSaved(step=step, size=sum(entry.size for entry in entries)))
