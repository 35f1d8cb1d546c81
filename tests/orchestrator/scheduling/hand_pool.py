"""A pool whose workers do as the test says, and a clock that a test turns."""

from __future__ import annotations

from sqlalchemy import Engine

from infra.database import writing
from orchestrator import ledger
from orchestrator.jobs import Limits
from orchestrator.scheduler import Scheduler
from tests.orchestrator.samples import LEASE_SECONDS, at
from wegeft.contracts.errors import WegeftError
from wegeft.contracts.placement import AttemptEnd, AttemptOrder
from wegeft.contracts.training import PublishedVersion

SERVER = "http://127.0.0.1:1"
LIMITS = Limits(max_concurrent_jobs=2, lease_seconds=LEASE_SECONDS, start_seconds=100, stall_seconds=500)


class HandPool:
    """A pool whose attempts end when the test says so."""

    def __init__(self) -> None:
        self.orders: dict[str, AttemptOrder] = {}
        self.ends: list[AttemptEnd] = []
        self.stopped: list[str] = []
        self.trouble: Exception | None = None
        self.poll_trouble: Exception | None = None
        self.is_closed = False

    def start(self, order: AttemptOrder) -> None:
        if self.trouble is not None:
            raise self.trouble
        self.orders[order.handle] = order

    def poll(self) -> tuple[AttemptEnd, ...]:
        if self.poll_trouble is not None:
            raise self.poll_trouble
        ends, self.ends = tuple(self.ends), []
        return ends

    def stop(self, handle: str) -> None:
        self.stopped.append(handle)

    def close(self) -> None:
        self.is_closed = True

    def end(self, handle: str, error: WegeftError | None = None) -> None:
        """Let an attempt's process end."""
        del self.orders[handle]
        self.ends.append(AttemptEnd(handle=handle, error=error.body() if error else None))

    def refuse(self, handle: str, error: WegeftError) -> None:
        """Say afterwards that an attempt is not started."""
        del self.orders[handle]
        self.ends.append(AttemptEnd(handle=handle, error=error.body(), is_refused=True))


def tick_through(scheduler: Scheduler, start: float, end: float) -> None:
    """Tick every five seconds from ``start`` on, and at ``end``."""
    seconds = start
    while seconds < end:
        scheduler.tick(at(seconds))
        seconds += 5
    scheduler.tick(at(end))


def hear(engine: Engine, handle: str, seconds: float) -> None:
    """Let the attempt's worker be heard."""
    job_id, _, attempt = handle.rpartition(".")
    with writing(engine) as connection:
        lease = ledger.find_lease(connection, job_id, int(attempt))
        assert lease is not None
        ledger.contact(connection, lease, at(seconds), LEASE_SECONDS)


def succeed(engine: Engine, handle: str, seconds: float) -> None:
    """Let the attempt's worker publish."""
    job_id, _, attempt = handle.rpartition(".")
    with writing(engine) as connection:
        lease = ledger.find_lease(connection, job_id, int(attempt))
        assert lease is not None
        ledger.contact(connection, lease, at(seconds), LEASE_SECONDS)
        ledger.succeed(connection, lease, PublishedVersion(adapter="a/b", version=1), at(seconds))
