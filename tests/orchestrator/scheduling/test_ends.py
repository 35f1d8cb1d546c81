"""What the scheduler makes of attempts that end, tick by tick, and of trouble of its own."""

from __future__ import annotations

import threading
import time
from datetime import UTC, datetime

import pytest
from sqlalchemy import Engine, event

from infra.database import writing
from orchestrator.scheduler import Scheduler, SchedulerThread
from tests.orchestrator.samples import NOW, add_job, at, claim_one, states, view
from tests.orchestrator.scheduling.hand_pool import LIMITS, SERVER, HandPool, hear, succeed, tick_through
from wegeft.contracts.errors import (
    DatabaseUnavailable,
    ErrorBody,
    InvalidData,
    WorkerLost,
)
from wegeft.contracts.placement import AttemptEnd


def test_an_end_that_could_not_be_recorded_is_not_forgotten(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """The pool tells it once; a database that was gone hears it later."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 0)
    pool.end(f"{job_id}.1", WorkerLost("gone"))
    is_down = True

    def fail(_connection: object) -> None:
        if is_down:
            raise DatabaseUnavailable("down for the test")

    event.listen(engine, "begin", fail)
    with pytest.raises(DatabaseUnavailable):
        scheduler.tick(at(1))
    is_down = False
    scheduler.tick(at(2))
    assert (view(engine, job_id, 2).waiting_for or "").startswith("worker_lost: gone")


def test_one_broken_job_does_not_stop_the_others(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """A row that cannot be read is left for a person to look at; everything else goes on."""
    bad, good = add_job(engine, 0), add_job(engine, 1)
    scheduler.tick(at(2))
    for job_id in (bad, good):
        hear(engine, f"{job_id}.1", 2)
    with writing(engine) as connection:
        connection.exec_driver_sql("UPDATE jobs SET spec = '{' WHERE id = ?", (bad,))
    tick_through(scheduler, 3, 17)
    assert states(engine, bad)[-1] == "running"
    assert view(engine, good).state == "queued"


def test_ends_that_are_nobodys(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """A pool may tell what the ledger never knew, or knows to be over."""
    job_id = add_job(engine)
    pool.ends = [AttemptEnd(handle=handle) for handle in ("nonsense", "job-x.1", f"{job_id}.7", f"{job_id}.", f"{job_id}.²")]
    scheduler.tick(at(0))
    assert view(engine, job_id).state == "starting"


def test_closing_puts_the_jobs_back(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Free of charge, so that the next start goes on at once; what has ended meanwhile stays ended."""
    done, running = add_job(engine, 0, job_recovery={"max_preemptions": 0}), add_job(engine, 1, job_recovery={"max_preemptions": 0})
    scheduler.tick(at(2))
    hear(engine, f"{running}.1", 2)
    succeed(engine, f"{done}.1", 3)
    scheduler.close(at(4))
    assert pool.is_closed
    assert (view(engine, done).state, view(engine, running).state) == ("succeeded", "queued")
    assert claim_one(engine, 4).job_id == running


def test_a_job_the_user_must_change_is_not_tried_again(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Whoever tells of it."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    pool.end(f"{job_id}.1", InvalidData("no rows"))
    scheduler.tick(at(1))
    assert view(engine, job_id).error == InvalidData("no rows").body()


def test_the_thread_ticks_and_survives(engine: Engine, pool: HandPool) -> None:
    """Errors make it wait longer, not stop; closing ends it at once."""
    is_down = threading.Event()
    ticks: list[datetime] = []

    def clock() -> datetime:
        ticks.append(datetime.now(UTC))
        if is_down.is_set():
            raise DatabaseUnavailable("down for the test") if len(ticks) % 2 else RuntimeError("bug")
        return ticks[-1]

    thread = SchedulerThread(Scheduler(engine, pool, LIMITS, SERVER), clock, tick_seconds=0.01, longest_seconds=0.1)
    thread.start()
    job_id = add_job(engine, (datetime.now(UTC) - NOW).total_seconds() - 1)
    wait_until(lambda: f"{job_id}.1" in pool.orders)
    is_down.set()
    count = len(ticks)
    wait_until(lambda: len(ticks) > count + 4)
    is_down.clear()
    other = add_job(engine, (datetime.now(UTC) - NOW).total_seconds() - 1, 1)
    wait_until(lambda: f"{other}.1" in pool.orders)
    started = time.monotonic()
    thread.close()
    assert time.monotonic() - started < 5
    assert pool.is_closed
    assert view(engine, job_id).state == "queued"


def wait_until(is_so: object) -> None:
    """Wait until something is so, for ten seconds."""
    deadline = time.monotonic() + 10
    while not is_so():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_error_bodies_pass_through(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """An end's error is kept as it was told, an unknown code too."""
    job_id = add_job(engine, job_recovery={"max_restarts_on_errors": 0})
    scheduler.tick(at(0))
    told = ErrorBody(code="cosmic_ray", title="t", detail="d", status=500)
    pool.ends.append(AttemptEnd(handle=f"{job_id}.1", error=told))
    scheduler.tick(at(1))
    assert view(engine, job_id).error == told
