"""What the scheduler starts, tick by tick, and what it does where the pool will not."""

from __future__ import annotations

import pytest
from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.scheduler import Scheduler
from tests.orchestrator.samples import add_job, at, log, view
from tests.orchestrator.scheduling.hand_pool import LIMITS, SERVER, HandPool, hear, succeed, tick_through
from wegeft.contracts.errors import (
    NoCapacity,
    OutOfMemory,
    ServiceUnreachable,
    StartFailed,
    WegeftError,
    WorkerLost,
)


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
