"""The scheduler, tick by tick, with a clock of its own and a pool whose workers do as the test says."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.jobs import Limits
from orchestrator.scheduler import Scheduler, SchedulerThread
from tests.orchestrator.samples import LEASE_SECONDS, NOW, add_job, at, claim_one, log, new_sqlite, states, view
from wegeft.contracts.errors import (
    DatabaseUnavailable,
    ErrorBody,
    InvalidData,
    NoCapacity,
    OutOfMemory,
    ServiceUnreachable,
    StartFailed,
    WegeftError,
    WorkerLost,
)
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


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """SQLite is enough: the ledger itself is tested on both."""
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


@pytest.fixture
def pool() -> HandPool:
    return HandPool()


@pytest.fixture
def scheduler(engine: Engine, pool: HandPool) -> Scheduler:
    return Scheduler(engine, pool, LIMITS, SERVER)


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


def test_a_queued_job_is_started_with_what_it_asks_for(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """And with a token that opens its own attempt and is written nowhere."""
    job_id = add_job(engine, resources={"cpus": 3, "gpus": 1, "memory": "2Gi"})
    scheduler.tick(at(0))
    order = pool.orders[f"{job_id}.1"]
    assert (order.server, order.attempt, order.cpus, order.gpus, order.memory_bytes) == (SERVER, 1, 3, 1, 2 << 30)
    with reading(engine) as connection:
        assert ledger.authenticate(connection, job_id, 1, order.token).handle == order.handle
        dump = "".join(str(connection.exec_driver_sql(f"SELECT * FROM {table}").all()) for table in ("jobs", "attempts", "events"))
    assert order.token not in dump
    assert view(engine, job_id).state == "starting"


def test_no_more_run_than_may(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """The limit counts what the ledger knows, not what this process remembers."""
    ids = [add_job(engine, n, n) for n in range(4)]
    scheduler.tick(at(10))
    assert set(pool.orders) == {f"{ids[0]}.1", f"{ids[1]}.1"}
    Scheduler(engine, HandPool(), LIMITS, SERVER).tick(at(11))
    assert view(engine, ids[2], 11).waiting_for == "a free place: 2 jobs are running"
    succeed(engine, f"{ids[0]}.1", 12)
    scheduler.tick(at(12))
    assert view(engine, ids[2]).state == "starting"


def test_a_good_end_changes_nothing_more(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """The worker reported it over HTTP before its process ended."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    succeed(engine, f"{job_id}.1", 1)
    before = log(engine, job_id)
    pool.end(f"{job_id}.1")
    scheduler.tick(at(2))
    assert view(engine, job_id).state == "succeeded"
    assert log(engine, job_id) == before


@pytest.mark.parametrize("error", [None, WorkerLost("killed by signal 9")])
def test_a_lost_worker_is_replaced(engine: Engine, pool: HandPool, scheduler: Scheduler, error: WegeftError | None) -> None:
    """One that says it reported its end but did not is lost too."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    pool.end(f"{job_id}.1", error)
    scheduler.tick(at(2))
    assert view(engine, job_id, 2).state == "queued"
    scheduler.tick(at(3))
    assert set(pool.orders) == {f"{job_id}.2"}
    assert pool.orders[f"{job_id}.2"].token


def test_what_cannot_be_had_fails_the_job(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """At once, with the pool's reason; the others start."""
    pool.trouble = NoCapacity("no node has 64 CPUs")
    job_id = add_job(engine, priority=90)
    scheduler.tick(at(0))
    seen = view(engine, job_id)
    assert (seen.state, seen.error) == ("failed", NoCapacity("no node has 64 CPUs").body())
    pool.trouble = None
    other = add_job(engine, 1)
    scheduler.tick(at(1))
    assert f"{other}.1" in pool.orders


def test_what_cannot_be_had_may_be_told_later(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """As the attempt's end."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    pool.end(f"{job_id}.1", OutOfMemory("needs 9 GiB"))
    scheduler.tick(at(1))
    assert view(engine, job_id).error == OutOfMemory("needs 9 GiB").body()


@pytest.mark.parametrize("trouble", [ServiceUnreachable("the gateway is down"), RuntimeError("bug")])
def test_a_pool_that_does_not_work_fails_no_job(engine: Engine, pool: HandPool, scheduler: Scheduler, trouble: Exception) -> None:
    """The job waits, saying why, and is started when the pool works; meanwhile the queue is not churned."""
    first, second = (add_job(engine, n, n, job_recovery={"max_restarts_on_errors": 0, "max_preemptions": 0}) for n in range(2))
    pool.trouble = trouble
    for tenth in range(200):
        scheduler.tick(at(tenth / 10))
    seen = view(engine, first, 20)
    assert seen.state == "queued"
    assert "tried again in" in (seen.waiting_for or "")
    assert seen.attempt + view(engine, second).attempt <= 6, "after each failure it rests longer"
    pool.trouble = None
    for tenth in range(200, 600):
        scheduler.tick(at(tenth / 10))
    assert {handle.rpartition(".")[0] for handle in pool.orders} == {first, second}


def test_a_pool_that_refuses_later_fails_no_job(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """It takes every order and then says that it does not work: the jobs wait, longer each time, however often it takes them."""
    ids = [add_job(engine, n, n, job_recovery={"max_restarts_on_errors": 0, "max_preemptions": 0}) for n in range(2)]
    for tenth in range(600):
        for handle in list(pool.orders):
            pool.refuse(handle, StartFailed("the cluster cannot be joined"))
        scheduler.tick(at(2 + tenth / 10))
    assert [view(engine, job_id).state for job_id in ids] == ["queued", "queued"]
    assert "start_failed: the cluster cannot be joined" in (view(engine, ids[0], 62).waiting_for or "")
    assert max(view(engine, job_id).attempt for job_id in ids) <= 6, "two at one time are one failure, and each rest is longer"
    pool.orders.clear()
    tick_through(scheduler, 62, 130)
    assert {handle.rpartition(".")[0] for handle in pool.orders} == set(ids)


def test_a_refusal_that_is_the_jobs_own_ends_it(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """And the others need not wait for it."""
    job_id = add_job(engine, priority=90)
    scheduler.tick(at(0))
    pool.refuse(f"{job_id}.1", NoCapacity("no node has 64 CPUs"))
    other = add_job(engine, 1)
    scheduler.tick(at(1))
    assert view(engine, job_id).error == NoCapacity("no node has 64 CPUs").body()
    assert set(pool.orders) == {f"{other}.1"}


def test_a_refused_job_that_was_cancelled_is_cancelled(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """It is not queued again."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(1))
    pool.refuse(f"{job_id}.1", StartFailed("the cluster cannot be joined"))
    scheduler.tick(at(2))
    assert view(engine, job_id).state == "cancelled"


def test_a_pools_old_trouble_is_forgotten(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """After a minute without any, the next failure is the first again."""
    for second in (0, 100):
        pool.trouble = ServiceUnreachable("the gateway is down")
        job_id = add_job(engine, second)
        scheduler.tick(at(second))
        assert view(engine, job_id, second).waiting_for == "service_unreachable: the gateway is down; tried again in 1 s"
        pool.trouble = None
        scheduler.tick(at(second + 1))
        succeed(engine, f"{job_id}.2", second + 2)


def test_a_pool_that_cannot_be_polled_keeps_no_cancel_waiting(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Leases, cancels and deadlines go on."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(1))
    pool.poll_trouble = RuntimeError("bug")
    scheduler.tick(at(4))
    assert view(engine, job_id).state == "cancelled"


def test_a_silent_worker_is_killed_and_replaced(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """When its lease is over and not before."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 5)
    tick_through(scheduler, 5, 19.9)
    assert (view(engine, job_id).state, pool.stopped) == ("running", [])
    scheduler.tick(at(20))
    assert pool.stopped == [f"{job_id}.1"]
    assert view(engine, job_id, 20).waiting_for == "lease_expired: the worker was not heard for 15 s; tried again in 1 s"
    scheduler.tick(at(21))
    assert f"{job_id}.2" in pool.orders


def test_a_worker_that_was_heard_meanwhile_lives(engine: Engine, pool: HandPool) -> None:
    """Between the look at its lease and the decision it was renewed; the decision is made again on what is so then."""
    scheduler = Scheduler(engine, pool, LIMITS, SERVER)
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    with reading(engine) as connection:
        (seen,) = ledger.list_live(connection)
    hear(engine, f"{job_id}.1", 15.9)
    scheduler._judge(seen, at(16))
    assert (view(engine, job_id).state, pool.stopped) == ("running", [])


def test_after_a_pause_workers_may_speak_first(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """A machine that slept wakes up: the clock has jumped, but nobody was silent longer than the scheduler was deaf."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    scheduler.tick(at(3600))
    assert (view(engine, job_id).state, pool.stopped) == ("running", [])
    hear(engine, f"{job_id}.1", 3602)
    tick_through(scheduler, 3603, 3616)
    assert view(engine, job_id).state == "running"
    tick_through(scheduler, 3616, 3617)
    assert view(engine, job_id, 3617).state == "queued", "silence counts again"


def test_after_a_pause_silence_is_not_forgiven_for_long(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Half a lease."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    scheduler.tick(at(3600))
    scheduler.tick(at(3607.4))
    assert view(engine, job_id).state == "running"
    scheduler.tick(at(3607.5))
    assert pool.stopped == [f"{job_id}.1"]


def test_a_slow_scheduler_is_not_taken_for_a_paused_one(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Ticks that are always far apart still find a dead worker."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    for second in (20, 40):
        scheduler.tick(at(second))
    assert pool.stopped == [f"{job_id}.1"]


def test_a_worker_that_is_being_started_keeps_its_lease(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """However long the pool looks for room, up to a limit; then the job goes back into the queue, and no budget is used."""
    job_id = add_job(engine, job_recovery={"max_restarts_on_errors": 0, "max_preemptions": 0})
    for second in range(100):
        scheduler.tick(at(second))
    assert (view(engine, job_id).state, view(engine, job_id).attempt) == ("starting", 1)
    scheduler.tick(at(100))
    assert pool.stopped == [f"{job_id}.1"]
    assert "no worker started within 100 s" in (view(engine, job_id, 100).waiting_for or "")
    other = add_job(engine, 100, priority=0)
    tick_through(scheduler, 101, 131)
    assert list(pool.orders) == [f"{job_id}.1", f"{other}.1", f"{job_id}.2"], "the others go first"


def test_what_a_dead_scheduler_began_runs_out(engine: Engine, scheduler: Scheduler) -> None:
    """Its successor does not renew what it did not start, and lets a worker that lives go on."""
    silent, heard = add_job(engine, 0), add_job(engine, 1)
    scheduler.tick(at(2))
    hear(engine, f"{heard}.1", 10)
    successor_pool = HandPool()
    successor = Scheduler(engine, successor_pool, LIMITS, SERVER)
    tick_through(successor, 11, 16.9)
    assert view(engine, silent).state == "starting"
    successor.tick(at(17))
    assert (view(engine, silent, 17).state, view(engine, heard).state) == ("queued", "running")
    successor.tick(at(18))
    assert set(successor_pool.orders) == {f"{silent}.2"}


def test_a_cancelled_worker_is_killed_after_its_grace(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Three seconds to stop by itself; then it is killed and the job is cancelled, with no attempt after."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    hear(engine, f"{job_id}.1", 1)
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(2))
    scheduler.tick(at(4.9))
    assert (view(engine, job_id).state, pool.stopped) == ("cancelling", [])
    scheduler.tick(at(5))
    assert (view(engine, job_id).state, pool.stopped) == ("cancelled", [f"{job_id}.1"])
    for second in range(6, 40):
        scheduler.tick(at(second))
    assert states(engine, job_id) == ["queued", "starting", "running", "cancelling", "cancelled"]


def test_a_cancelled_worker_that_ends_by_itself(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Its end is the job's."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(1))
    pool.end(f"{job_id}.1", WorkerLost())
    scheduler.tick(at(1.5))
    assert (view(engine, job_id).state, pool.stopped) == ("cancelled", [])


def test_max_duration_ends_the_job(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Counted from the first word of the attempt's worker, and final."""
    job_id = add_job(engine, max_duration="30s")
    scheduler.tick(at(0))
    for second in (5, 15, 25, 34):
        hear(engine, f"{job_id}.1", second)
        tick_through(scheduler, second - 4, second)
    assert view(engine, job_id).state == "running"
    scheduler.tick(at(35))
    seen = view(engine, job_id)
    assert (seen.state, seen.error and seen.error.code, pool.stopped) == ("failed", "duration_exceeded", [f"{job_id}.1"])


def test_a_worker_that_gets_nowhere_is_replaced(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """It is heard all the time, but its step does not change."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    for second in range(1, 502, 5):
        hear(engine, f"{job_id}.1", second)
        scheduler.tick(at(second))
    assert pool.stopped == [f"{job_id}.1"]
    assert view(engine, job_id, 501).waiting_for == "stalled: the worker lives but made no progress for 500 s; tried again in 1 s"


def test_a_process_that_lingers_is_killed(engine: Engine, pool: HandPool, scheduler: Scheduler) -> None:
    """Ten seconds after its attempt is over, as it holds what other jobs wait for."""
    job_id = add_job(engine)
    scheduler.tick(at(0))
    succeed(engine, f"{job_id}.1", 1)
    for second in range(2, 12):
        scheduler.tick(at(second))
    assert pool.stopped == []
    scheduler.tick(at(12))
    scheduler.tick(at(13))
    assert pool.stopped == [f"{job_id}.1"], "once"


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
