"""How long the scheduler waits, tick by tick: for silent workers, after a pause of its own, for a cancel and a duration."""

from __future__ import annotations

from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.scheduler import Scheduler
from tests.orchestrator.samples import add_job, at, states, view
from tests.orchestrator.scheduling.hand_pool import LIMITS, SERVER, HandPool, hear, succeed, tick_through
from wegeft.contracts.errors import WorkerLost


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
