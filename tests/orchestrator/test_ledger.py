"""The ledger, on SQLite and on PostgreSQL, built by the real migrations."""

from dataclasses import replace

import pytest
from sqlalchemy import Engine, func, select

from infra.auth import hash_secret
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.ledger.log import PAGE_BYTES
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
    progress,
    save,
    states,
    view,
)
from wegeft.contracts.adapter import FileEntry, digest_of
from wegeft.contracts.errors import (
    IdempotencyConflict,
    IllegalTransition,
    InvalidData,
    JobNotFound,
    StaleLease,
    StorageFull,
    TrainingCrashed,
    Unauthenticated,
    WorkerLost,
)
from wegeft.contracts.training import Checkpoint, Evaluation, EventBatch, JobState, Message, Progress, PublishedVersion, Sample

CHECKPOINT = Checkpoint(step=7, files=(FileEntry(path="state.safetensors", digest=digest_of(b"x"), size=1),))
PUBLISHED = PublishedVersion(adapter="local/sums", version=3)


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


def test_a_batch_of_events_counts_once(engine: Engine) -> None:
    """A batch that is sent again, in whole or in part, adds what is new and no more, in order."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    hear(engine, lease)
    for first, steps in ((0, (1, 2, 3)), (0, (1, 2, 3)), (2, (3, 4)), (0, (1, 2, 3, 4, 5)), (5, ())):
        with writing(engine) as connection:
            ledger.record_events(connection, lease, batch(first, *steps), at(1))
    records = [record for record in log(engine, job_id) if isinstance(record.event, Progress)]
    assert [record.event.step for record in records if isinstance(record.event, Progress)] == [1, 2, 3, 4, 5]
    assert [record.sequence for record in log(engine, job_id)] == list(range(1, len(log(engine, job_id)) + 1))
    assert (view(engine, job_id).step, view(engine, job_id).total_steps) == (5, 100)


def test_a_second_attempt_counts_its_events_anew(engine: Engine) -> None:
    """Numbers are of an attempt; the log goes on, and a metric keeps one value a step: the last attempt's."""
    job_id = add_job(engine)
    first = claim_one(engine)
    with writing(engine) as connection:
        ledger.record_events(connection, first, batch(0, 1, 2), at(1))
    end(engine, first, WorkerLost(), 2)
    second = claim_one(engine, 10)
    redone = EventBatch(first_number=0, events=(progress(2, 0.25), Evaluation(step=2, total_steps=100, loss=0.5, rows=9, exact_match=0.1)))
    with writing(engine) as connection:
        ledger.record_events(connection, second, redone, at(11))
    with reading(engine) as connection:
        loss = ledger.read_metric(connection, job_id, "loss", -1, 10)
        assert [(point.step, point.value) for point in loss.points] == [(1, 1.0), (2, 0.25)]
        assert [point.value for point in ledger.read_metric(connection, job_id, "exact_match", -1, 10).points] == [0.1]
        assert ledger.read_metric(connection, job_id, "loss", 1, 1).points == loss.points[1:]
    assert [record.attempt for record in log(engine, job_id)] == [0, 1, 1, 1, 1, 2, 2, 2]


def test_a_log_is_read_in_pages(engine: Engine) -> None:
    """From a number on, up to a limit, with the state at that moment; nothing twice, nothing left out."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    with writing(engine) as connection:
        ledger.record_events(connection, lease, batch(0, *range(1, 24)), at(1))
    seen: list[int] = []
    while True:
        with reading(engine) as connection:
            page = ledger.read_events(connection, job_id, seen[-1] if seen else 0, 10)
        if not page.records:
            break
        seen += [record.sequence for record in page.records]
    assert seen == list(range(1, 26))
    assert page.state == "starting"


def test_text_that_databases_dislike_is_kept(engine: Engine) -> None:
    """A log may quote anything: NUL, emoji, quotes, line ends."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    text = "a\0b 🦊 ' \" \\ \r\n %s :x \u2028"
    with writing(engine) as connection:
        ledger.record_events(connection, lease, EventBatch(first_number=0, events=(Message(text=text),)), at(1))
    assert log(engine, job_id)[-1].event == Message(text=text)
    end(engine, lease, WorkerLost(text), 2)
    assert (view(engine, job_id, 2).waiting_for or "").startswith("worker_lost: a b 🦊")


def test_a_page_of_the_log_is_bounded_in_bytes(engine: Engine) -> None:
    """It ends before it has too many, holds one event at least, and the pages together are the whole log."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    # Sixty thousand stored bytes each, as JSON escapes what is not ASCII.
    for number in range(0, 100, 50):
        texts = tuple(Message(text="ä" * 10_000) for _ in range(50))
        with writing(engine) as connection:
            ledger.record_events(connection, lease, EventBatch(first_number=number, events=texts), at(1))
    seen: list[int] = []
    pages = 0
    with reading(engine) as connection:
        while records := ledger.read_events(connection, job_id, seen[-1] if seen else 0, 1000).records:
            assert len("".join(record.model_dump_json() for record in records)) < PAGE_BYTES
            seen += [record.sequence for record in records]
            pages += 1
    assert (seen, pages) == ([*range(1, 103)], 2)


def test_an_event_longer_than_a_page_is_a_page(engine: Engine) -> None:
    """So that no reader stands still before it."""
    job_id = add_job(engine)
    lease = claim_one(engine)
    text = "ä" * 16_384
    sample = Sample(prompt=text, expected=text, answer=text)
    long = Evaluation(step=1, total_steps=9, loss=0.5, rows=16, samples=(sample,) * 16)
    with writing(engine) as connection:
        ledger.record_events(connection, lease, EventBatch(first_number=0, events=(long, long)), at(1))
    with reading(engine) as connection:
        pages = [ledger.read_events(connection, job_id, after, 10).records for after in (0, 2, 3, 4)]
    assert [[record.sequence for record in page] for page in pages] == [[1, 2], [3], [4], []]


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
