"""Jobs in the ledger, on SQLite and on PostgreSQL: submitted, waiting, claimed and listed."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select

from infra.auth import hash_secret
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ledger.tables import EVENTS, JOBS
from tests.orchestrator.samples import (
    LEASE_SECONDS,
    add_job,
    at,
    batch,
    claim,
    claim_one,
    end,
    hear,
    log,
    make_spec,
    save,
    states,
    view,
)
from wegeft.contracts.adapter import FileEntry, digest_of
from wegeft.contracts.errors import (
    IdempotencyConflict,
    JobNotFound,
    StaleLease,
    Unauthenticated,
    WorkerLost,
)
from wegeft.contracts.training import Checkpoint, JobState

CHECKPOINT = Checkpoint(step=7, files=(FileEntry(path="state.safetensors", digest=digest_of(b"x"), size=1),))


def test_a_job_is_what_was_submitted(engine: Engine) -> None:
    """What is read back is what was queued, with its moments in UTC."""
    job_id = add_job(engine, labels={"team": "a b"}, priority=70, max_duration="5m")
    seen = view(engine, job_id)
    assert (seen.id, seen.name, seen.state, seen.priority, seen.labels) == (job_id, "sums", "queued", 70, {"team": "a b"})
    assert seen.spec == make_spec(labels={"team": "a b"}, priority=70, max_duration="5m")
    assert (seen.created_at, seen.started_at, seen.finished_at, seen.attempt, seen.step) == (at(0), None, None, 0, 0)
    assert states(engine, job_id) == ["queued"]


def test_a_job_that_is_not_there(engine: Engine) -> None:
    """Every way to a job says so."""
    with reading(engine) as connection, pytest.raises(JobNotFound):
        ledger.find(connection, "job-none", at(0))
    with reading(engine) as connection, pytest.raises(JobNotFound):
        ledger.read_events(connection, "job-none", 0, 10)
    with reading(engine) as connection, pytest.raises(JobNotFound):
        ledger.read_metric(connection, "job-none", "loss", -1, 10)
    with writing(engine) as connection, pytest.raises(JobNotFound):
        ledger.cancel(connection, "job-none", at(0))


def test_one_key_is_one_job(engine: Engine) -> None:
    """A repeated submission finds the job; the same key for another job is refused; another token's key is another key."""
    first = add_job(engine, entropy=1, key="k")
    assert add_job(engine, entropy=2, key="k") == first
    with pytest.raises(IdempotencyConflict, match="used for another job"):
        add_job(engine, entropy=3, key="k", rank=8)
    other = ledger.NewJob(id="job-" + "1" * 26, owner="ada", token_id="b" * 12, spec=make_spec(rank=8), idempotency_key="k")
    with writing(engine) as connection:
        assert ledger.add(connection, other, at(0))[1]
    assert add_job(engine, entropy=4) != add_job(engine, entropy=5), "without a key every submission is a job"


def test_higher_priority_goes_first_and_then_age(engine: Engine) -> None:
    """The queue's order."""
    low, old, young, high = (add_job(engine, s, priority=p) for s, p in ((0, 10), (1, 50), (2, 50), (3, 90)))
    assert [claim_one(engine, 10).job_id for _ in range(4)] == [high, old, young, low]
    assert claim(engine, 10) is None


def test_a_job_waits_for_its_time(engine: Engine) -> None:
    """A job that failed is not tried again before its wait is over, and lets others pass."""
    patient = add_job(engine, 0)
    end(engine, claim_one(engine, 0), WorkerLost(), 1)
    other = add_job(engine, 1.5)
    assert claim_one(engine, 1.9).job_id == other
    assert claim(engine, 1.9) is None
    assert claim_one(engine, 2).job_id == patient


def test_a_claim_begins_an_attempt(engine: Engine) -> None:
    """Attempts and lease tokens only grow, and the first start is kept."""
    job_id = add_job(engine)
    first = claim_one(engine, 1)
    assert (view(engine, job_id).state, view(engine, job_id).waiting_for) == ("starting", "a worker to start")
    hear(engine, first, 2)
    end(engine, first, WorkerLost(), 3)
    second = claim_one(engine, 100)
    assert (first.attempt, second.attempt) == (1, 2)
    assert second.token > first.token
    assert view(engine, job_id).started_at == at(1)
    assert states(engine, job_id) == ["queued", "starting", "running", "queued", "starting"]


def test_why_a_job_waits(engine: Engine) -> None:
    """In words, from what is so now."""
    first, second = add_job(engine, 0), add_job(engine, 1)
    assert view(engine, first).waiting_for == "the scheduler"
    assert view(engine, second, 1).waiting_for == "its turn: 1 job is before it"
    lease = claim_one(engine, 2)
    assert view(engine, second, 1).waiting_for == "a free place: 1 job is running"
    hear(engine, lease, 2)
    assert view(engine, first).waiting_for is None
    end(engine, lease, WorkerLost("the node is gone"), 3)
    assert view(engine, first, 3).waiting_for == "worker_lost: the node is gone; tried again in 1 s"
    assert view(engine, first, 4).waiting_for == "the scheduler"


def test_the_first_word_of_a_worker_makes_the_job_run(engine: Engine) -> None:
    """Contact renews the lease, remembers the step, and starts the clock of max_duration."""
    job_id = add_job(engine, max_duration="60s")
    lease = claim_one(engine, 0)
    hear(engine, lease, 5)
    hear(engine, lease, 9, step=4)
    with reading(engine) as connection:
        (live,) = ledger.list_live(connection)
    assert (live.handle, live.state) == (f"{job_id}.1", JobState.RUNNING)
    assert (live.begun_at, live.deadline_at, live.progress_at) == (at(0), at(65), at(9))
    assert live.lease_expires_at == at(9 + LEASE_SECONDS)
    assert view(engine, job_id).step == 4
    hear(engine, lease, 11, step=4)
    with reading(engine) as connection:
        assert ledger.list_live(connection)[0].progress_at == at(9), "the same step again is no progress"


def test_a_checkpoint_is_where_the_next_attempt_begins(engine: Engine) -> None:
    """It outlives the attempt that saved it."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    save(engine, lease, CHECKPOINT, 1)
    end(engine, lease, WorkerLost(), 2)
    assert view(engine, job_id).resume_from == CHECKPOINT
    second = claim_one(engine, 10)
    with writing(engine) as connection:
        row = ledger.contact(connection, second, at(10), LEASE_SECONDS)
    assert Checkpoint.model_validate(row.resume_from) == CHECKPOINT


def test_only_the_attempts_own_token_speaks_for_it(engine: Engine) -> None:
    """Not another attempt's, not its hash, not an empty one."""
    job_id = add_job(engine)
    claimed = claim(engine)
    assert claimed is not None
    lease, token = claimed
    with reading(engine) as connection:
        assert ledger.authenticate(connection, job_id, 1, token) == lease
        for number, wrong in ((1, token[:-1] + ("0" if token[-1] != "0" else "1")), (1, hash_secret(token)), (1, ""), (2, token)):
            with pytest.raises(Unauthenticated):
                ledger.authenticate(connection, job_id, number, wrong)
        stored = connection.execute(select(JOBS.c.spec)).scalars().all()
    assert token not in str(stored)


def test_lists_are_filtered_and_paged(engine: Engine) -> None:
    """Newest first, by state and by all labels given, each job once."""
    ids = [add_job(engine, n, labels={"parity": "odd" if n % 2 else "even", "all": "yes"}) for n in range(9)]
    lease = claim_one(engine, 20)
    assert lease.job_id == ids[0]

    def listed(state: JobState | None = None, *labels: tuple[str, str]) -> list[str]:
        found: list[str] = []
        after: str | None = None
        while True:
            with reading(engine) as connection:
                page = ledger.list_jobs(connection, ledger.JobFilter(state=state, labels=labels), 2, after, at(20))
            assert len(page.jobs) <= 2
            found += [job.id for job in page.jobs]
            if page.next_cursor is None:
                return found
            after = page.next_cursor

    assert listed() == ids[::-1]
    assert listed(JobState.STARTING) == [ids[0]]
    assert listed(None, ("parity", "odd"), ("all", "yes")) == ids[1::2][::-1]
    assert listed(JobState.QUEUED, ("parity", "even")) == ids[2::2][::-1]
    assert listed(None, ("parity", "odd"), ("all", "no")) == []
    assert listed(JobState.FAILED) == []
    with reading(engine) as connection:
        assert ledger.count_by_state(connection)[JobState.QUEUED] == 8


def test_a_page_tells_each_jobs_turn(engine: Engine) -> None:
    """The same as the job's own view."""
    ids = [add_job(engine, n, priority=n) for n in range(4)]
    with reading(engine) as connection:
        page = ledger.list_jobs(connection, ledger.JobFilter(), 10, None, at(5))
    assert {job.id: job.waiting_for for job in page.jobs} == {job_id: view(engine, job_id, 5).waiting_for for job_id in ids}
    assert page.jobs[-1].waiting_for == "its turn: 3 jobs are before it"


def test_a_failed_transaction_leaves_nothing(engine: Engine) -> None:
    """What goes wrong half way was never there."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    before = log(engine, job_id)
    with pytest.raises(StaleLease), writing(engine) as connection:  # noqa: PT012 - the first statement is what must not last
        ledger.record_events(connection, lease, batch(0, 1, 2), at(1))
        ledger.renew(connection, replace(lease, token=lease.token + 1), at(1), LEASE_SECONDS)
    assert log(engine, job_id) == before
    with reading(engine) as connection:
        assert connection.execute(select(func.count()).select_from(EVENTS)).scalar_one() == len(before)
