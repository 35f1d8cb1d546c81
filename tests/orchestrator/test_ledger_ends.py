"""How a job ends in the ledger, on SQLite and on PostgreSQL: success, failure, lost workers and cancelling."""

import pytest
from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.jobs import MAX_LOST_IN_A_ROW
from tests.orchestrator.samples import (
    LEASE_SECONDS,
    add_job,
    at,
    claim,
    claim_one,
    end,
    hear,
    save,
    states,
    view,
)
from wegeft.contracts.adapter import FileEntry, digest_of
from wegeft.contracts.errors import (
    IllegalTransition,
    InvalidData,
    StaleLease,
    StorageFull,
    TrainingCrashed,
    WorkerLost,
)
from wegeft.contracts.training import Checkpoint, PublishedVersion

CHECKPOINT = Checkpoint(step=7, files=(FileEntry(path="state.safetensors", digest=digest_of(b"x"), size=1),))
PUBLISHED = PublishedVersion(adapter="local/sums", version=3)


def test_success_is_final(engine: Engine) -> None:
    """A job that has succeeded keeps its result, whoever comes later."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    hear(engine, lease)
    with writing(engine) as connection:
        ledger.succeed(connection, lease, PUBLISHED, at(5))
    seen = view(engine, job_id)
    assert (seen.state, seen.result, seen.finished_at, seen.error) == ("succeeded", PUBLISHED, at(5), None)
    with reading(engine) as connection:
        assert ledger.was_published(connection, lease) == PUBLISHED
    with pytest.raises(StaleLease):
        end(engine, lease, WorkerLost(), 6)
    with writing(engine) as connection, pytest.raises(IllegalTransition, match="succeeded already"):
        ledger.cancel(connection, job_id, at(6))
    assert view(engine, job_id) == seen
    assert states(engine, job_id)[-1] == "succeeded"


def test_what_the_user_must_change_ends_the_job(engine: Engine) -> None:
    """With the error as it was, problems and all."""
    job_id = add_job(engine)
    error = InvalidData("2 rows have no answer", path="row 3", value="", hint="give each row an answer")
    end(engine, claim_one(engine), error, 1)
    seen = view(engine, job_id)
    assert (seen.state, seen.finished_at, seen.error) == ("failed", at(1), error.body())


def test_crashes_use_up_the_jobs_patience_and_losses_do_not(engine: Engine) -> None:
    """Each has its own budget."""
    job_id = add_job(engine, job_recovery={"max_restarts_on_errors": 1})
    now = 0.0
    for error in (WorkerLost(), TrainingCrashed("first"), WorkerLost()):
        end(engine, claim_one(engine, now), error, now)
        assert view(engine, job_id).state == "queued"
        now += 100
    end(engine, claim_one(engine, now), TrainingCrashed("second"), now)
    seen = view(engine, job_id)
    assert (seen.state, seen.attempt, seen.error) == ("failed", 4, TrainingCrashed("second").body())


def test_losses_without_a_newer_checkpoint_end_the_job(engine: Engine) -> None:
    """The same checkpoint again is no progress, nor is a job that was given back a loss; a newer one begins the count anew."""
    job_id = add_job(engine)
    now = 0.0
    for step in (None, 7, 7, None, 6, 8, 8, None, None):
        lease = claim_one(engine, now)
        if step is not None:
            save(engine, lease, Checkpoint(step=step, files=CHECKPOINT.files), now)
        end(engine, lease, StorageFull("the worker's disk is full"), now)
        assert view(engine, job_id).state == "queued"
        now += 100
        given_back = claim_one(engine, now)
        with writing(engine) as connection:
            ledger.give_back(connection, given_back, WorkerLost().body(), at(now), 0)
    end(engine, claim_one(engine, now), WorkerLost(), now)
    error = view(engine, job_id).error
    assert error is not None
    assert (view(engine, job_id).state, error.code) == ("failed", "no_progress")
    assert "lost without a newer checkpoint, the last by worker_lost" in error.detail


def test_a_checkpoint_that_has_gone_back_is_no_progress(engine: Engine) -> None:
    """Attempts that begin anew, and are lost before they are as far as one before them, do not go on for ever."""
    job_id = add_job(engine)
    now, steps = 0.0, [9, *[3, 6] * 10]
    while view(engine, job_id).state == "queued":
        lease = claim_one(engine, now)
        save(engine, lease, Checkpoint(step=steps[view(engine, job_id).attempt - 1], files=CHECKPOINT.files), now)
        end(engine, lease, WorkerLost(), now)
        now += 100
    seen = view(engine, job_id)
    assert (seen.state, seen.error.code if seen.error else None, seen.attempt) == ("failed", "no_progress", MAX_LOST_IN_A_ROW)


def test_a_worker_may_report_its_failure_twice(engine: Engine) -> None:
    """The answer to the first report can be lost; the second changes nothing. Another error is another attempt's, and stale."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    for _ in range(2):
        with writing(engine) as connection:
            ledger.record_failure(connection, lease, TrainingCrashed().body(), at(1))
    assert states(engine, job_id) == ["queued", "starting", "queued"]
    with writing(engine) as connection, pytest.raises(StaleLease):
        ledger.record_failure(connection, lease, InvalidData().body(), at(1))


def test_giving_a_job_back_uses_no_budget(engine: Engine) -> None:
    """A pool that does not work is not the job's fault."""
    job_id = add_job(engine, job_recovery={"max_restarts_on_errors": 0, "max_preemptions": 0})
    lease = claim_one(engine)
    with writing(engine) as connection:
        ledger.give_back(connection, lease, WorkerLost("no gateway").body(), at(1), 5)
    assert view(engine, job_id, 1).waiting_for == "worker_lost: no gateway; tried again in 5 s"
    assert claim(engine, 5.9) is None
    assert claim_one(engine, 6).attempt == 2


@pytest.mark.parametrize("before", ["queued", "starting", "running", "cancelling", "cancelled"])
def test_cancel_from_every_state(engine: Engine, before: str) -> None:
    """A job without a worker is cancelled at once, the others when their attempt is over; asking again is harmless."""
    job_id = add_job(engine)
    lease = claim_one(engine) if before != "queued" else None
    if lease and before != "starting":
        hear(engine, lease)
    if before in ("cancelling", "cancelled"):
        with writing(engine) as connection:
            ledger.cancel(connection, job_id, at(1))
    if lease and before == "cancelled":
        end(engine, lease, WorkerLost(), 2)
    with writing(engine) as connection:
        seen = ledger.cancel(connection, job_id, at(3))
    if lease and before != "cancelled":
        assert (seen.state, seen.finished_at) == ("cancelling", None)
        end(engine, lease, WorkerLost(), 4)
    assert view(engine, job_id).state == "cancelled"
    assert claim(engine, 1000) is None
    assert states(engine, job_id).count("cancelled") == 1


def test_a_job_that_is_being_cancelled_publishes_nothing(engine: Engine) -> None:
    """The person who cancelled it does not want it; its worker still may say that it lives, and is told to stop."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    hear(engine, lease)
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(1))
    with writing(engine) as connection:
        assert ledger.contact(connection, lease, at(2), LEASE_SECONDS, 3).state == "cancelling"
    with writing(engine) as connection, pytest.raises(IllegalTransition, match="cancelling cannot succeed"):
        ledger.succeed(connection, lease, PUBLISHED, at(3))
    assert (view(engine, job_id).state, view(engine, job_id).result) == ("cancelling", None)


def test_giving_back_a_job_that_is_being_cancelled_cancels_it(engine: Engine) -> None:
    """It must not run again."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    with writing(engine) as connection:
        ledger.cancel(connection, job_id, at(1))
    with writing(engine) as connection:
        ledger.give_back(connection, lease, WorkerLost().body(), at(2), 5)
    assert view(engine, job_id).state == "cancelled"
