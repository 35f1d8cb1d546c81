"""The pure decisions: every transition, every retry, every verdict."""

from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.jobs import (
    MAX_LOST_IN_A_ROW,
    Budget,
    Counters,
    End,
    Fail,
    GiveUp,
    Keep,
    Limits,
    LiveAttempt,
    Move,
    Renew,
    Requeue,
    decide_retry,
    judge,
    move,
)
from tests.orchestrator.samples import NOW, at
from wegeft.contracts.errors import (
    ERROR_KINDS,
    DatabaseUnavailable,
    DurationExceeded,
    ErrorBody,
    IllegalTransition,
    InvalidInput,
    LeaseExpired,
    LossNotFinite,
    NoCapacity,
    OutOfMemory,
    ServiceTimeout,
    ServiceUnreachable,
    Stalled,
    StorageFull,
    StorageUnavailable,
    TrainingCrashed,
    WegeftError,
    WorkerLost,
)
from wegeft.contracts.job import RecoverySpec
from wegeft.contracts.training import JobState

ALLOWED = {
    "queued": {"claim": "starting", "cancel": "cancelled"},
    "starting": {"contact": "running", "requeue": "queued", "fail": "failed", "cancel": "cancelling"},
    "running": {"contact": "running", "requeue": "queued", "fail": "failed", "cancel": "cancelling", "succeed": "succeeded"},
    "cancelling": {"contact": "cancelling", "cancel": "cancelling", "stop": "cancelled"},
    "succeeded": {},
    "failed": {},
    "cancelled": {"cancel": "cancelled"},
}


@pytest.mark.parametrize("state", JobState)
@pytest.mark.parametrize("what", Move)
def test_every_transition(state: JobState, what: Move) -> None:
    """What may happen leads where the table says; everything else is refused by name."""
    expected = ALLOWED[state].get(what)
    if expected is None:
        with pytest.raises(IllegalTransition, match=f"a job that is {state} cannot {what}"):
            move(state, what)
    else:
        assert move(state, what) == expected


@pytest.mark.parametrize("state", [state for state in JobState if state.is_final])
def test_nothing_leads_out_of_a_final_state(state: JobState) -> None:
    """Final states are final."""
    assert set(ALLOWED[state].values()) <= {state}


def test_every_state_can_be_reached_and_left() -> None:
    """No state is unreachable, and no state but the final ones is a trap."""
    reached = {"queued"}
    for _ in JobState:
        reached |= {after for state in reached for after in ALLOWED[state].values()}
    assert reached == set(JobState)
    assert all(set(ALLOWED[state].values()) - {state} for state in JobState if not state.is_final)


def decide(error: ErrorBody, restarts: int = 0, preemptions: int = 0, **recovery: int) -> Requeue | Fail:
    """The decision about an error."""
    return decide_retry(error, Counters(restarts=restarts, preemptions=preemptions), RecoverySpec(**recovery))


def decide_after(error: ErrorBody, lost_in_a_row: int, **recovery: int) -> Requeue | Fail:
    """The decision about an error after so many losses."""
    return decide_retry(error, Counters(preemptions=lost_in_a_row, lost_in_a_row=lost_in_a_row), RecoverySpec(**recovery))


@pytest.mark.parametrize("kind", [InvalidInput, LossNotFinite, OutOfMemory, DurationExceeded, NoCapacity])
def test_what_the_user_must_change_is_never_tried_again(kind: type[InvalidInput]) -> None:
    """A wrong job would only fail again."""
    assert decide(kind().body()) == Fail()


def test_crashes_are_tried_again_as_often_as_the_job_says() -> None:
    """Errors of the training code have their own budget, whatever was lost besides."""
    crash = TrainingCrashed().body()
    assert decide(crash, preemptions=50) == Requeue(after_seconds=2, budget=Budget.RESTARTS)
    assert decide(crash, restarts=1) == Fail()
    assert decide(crash, restarts=1, max_restarts_on_errors=2) == Requeue(after_seconds=4, budget=Budget.RESTARTS)
    assert decide(crash, max_restarts_on_errors=0) == Fail()


@pytest.mark.parametrize("kind", [WorkerLost, LeaseExpired, Stalled, StorageUnavailable])
def test_losses_of_the_machinery_do_not_use_up_the_jobs_own_budget(kind: type[WorkerLost]) -> None:
    """Lost workers are replaced without limit unless the job says otherwise."""
    is_loss = kind is not StorageUnavailable
    assert decide(kind().body(), restarts=1) == Requeue(after_seconds=1, budget=Budget.PREEMPTIONS, is_loss=is_loss)
    assert decide(kind().body(), preemptions=1000) == Requeue(after_seconds=60, budget=Budget.PREEMPTIONS, is_loss=is_loss)
    assert decide(kind().body(), max_preemptions=0) == Fail()
    assert decide(kind().body(), preemptions=2, max_preemptions=3) == Requeue(after_seconds=4, budget=Budget.PREEMPTIONS, is_loss=is_loss)
    assert decide(kind().body(), preemptions=3, max_preemptions=3) == Fail()


@pytest.mark.parametrize("kind", [WorkerLost, LeaseExpired, Stalled, StorageFull])
def test_a_job_that_gets_nowhere_is_given_up(kind: type[WorkerLost]) -> None:
    """A full disk or too little memory kills every attempt alike; without a limit on losses a job would go on for ever."""
    loss = kind("as ever").body()
    assert isinstance(decide_after(loss, MAX_LOST_IN_A_ROW - 2), Requeue)
    final = decide_after(loss, MAX_LOST_IN_A_ROW - 1)
    assert isinstance(final, Fail)
    assert final.instead is not None
    assert (final.instead.code, ERROR_KINDS["no_progress"].is_retryable) == ("no_progress", False)
    assert f"5 attempts in a row were lost without a newer checkpoint, the last by {loss.code}: as ever" in final.instead.detail
    assert decide_after(loss, MAX_LOST_IN_A_ROW - 1, max_preemptions=4) == Fail()


@pytest.mark.parametrize("kind", [StorageUnavailable, DatabaseUnavailable, ServiceUnreachable, ServiceTimeout])
def test_an_outage_of_the_service_is_waited_for_however_long(kind: type[WegeftError]) -> None:
    """It is no property of the job, and adds nothing to what is."""
    decision = decide_after(kind().body(), 1000)
    assert decision == Requeue(after_seconds=60, budget=Budget.PREEMPTIONS, is_loss=False)


@given(st.lists(st.sampled_from(["loss", "outage", "crash", "checkpoint"]), max_size=40))
def test_no_job_outlives_so_many_losses_in_a_row(happenings: list[str]) -> None:
    """Only a newer checkpoint starts the count again."""
    errors = {"loss": WorkerLost().body(), "outage": StorageUnavailable().body(), "crash": TrainingCrashed().body()}
    counters, row = Counters(), 0
    for happening in happenings:
        if happening == "checkpoint":
            counters, row = replace(counters, lost_in_a_row=0), 0
            continue
        row += happening == "loss"
        decision = decide_retry(errors[happening], counters, RecoverySpec(max_restarts_on_errors=100))
        if isinstance(decision, Fail):
            assert (happening, row) == ("loss", MAX_LOST_IN_A_ROW)
            return
        counters = replace(counters, lost_in_a_row=counters.lost_in_a_row + decision.is_loss)
        assert row < MAX_LOST_IN_A_ROW


def test_an_error_without_a_name_counts_as_a_crash() -> None:
    """A bug of a server that a worker met, or an error that only newer workers know."""
    assert decide(WegeftError().body()) == Requeue(after_seconds=2, budget=Budget.RESTARTS)
    unknown = ErrorBody(code="cosmic_ray", title="x", detail="x", status=500)
    assert decide(unknown) == Requeue(after_seconds=2, budget=Budget.RESTARTS)


@given(st.sampled_from(sorted(ERROR_KINDS)), st.integers(0, 200), st.integers(0, 200), st.integers(0, 100), st.integers(-1, 200))
def test_waits_are_bounded_and_budgets_kept(code: str, restarts: int, preemptions: int, max_restarts: int, max_preemptions: int) -> None:
    """Whatever happened before, another attempt comes within a minute, and only within its budget."""
    body = ErrorBody(code=code, title="x", detail="x", status=500)
    decision = decide(body, restarts, preemptions, max_restarts_on_errors=max_restarts, max_preemptions=max_preemptions)
    match decision:
        case Requeue(after_seconds=seconds, budget=Budget.RESTARTS):
            assert 0 < seconds <= 60
            assert restarts < max_restarts
        case Requeue(after_seconds=seconds, budget=Budget.PREEMPTIONS):
            assert 0 < seconds <= 60
            assert max_preemptions == -1 or preemptions < max_preemptions
        case Fail():
            spent = restarts >= max_restarts or 0 <= max_preemptions <= preemptions
            assert spent or not ERROR_KINDS[code].is_retryable


LIMITS = Limits(lease_seconds=15, stop_grace_seconds=3, start_seconds=100, stall_seconds=1000)
LIVE = LiveAttempt(
    handle="job-x.1",
    job_id="job-x",
    attempt=1,
    lease_token=1,
    state=JobState.RUNNING,
    lease_expires_at=at(15),
    begun_at=NOW,
    deadline_at=None,
    progress_at=NOW,
    cancel_requested_at=None,
)


def verdict(live: LiveAttempt, seconds: float, *, is_in_our_pool: bool = True) -> str:
    """What is done about an attempt, in a word: keep, renew, give up, or the error that ends it."""
    match judge(live, at(seconds), LIMITS, is_in_our_pool=is_in_our_pool):
        case GiveUp():
            return "give up"
        case Keep():
            return "keep"
        case Renew():
            return "renew"
        case End(error=error):
            return error.code


def test_a_running_attempt_lives_as_long_as_its_lease() -> None:
    """To the moment: at its end a lease is over."""
    assert verdict(LIVE, 14.999) == "keep"
    assert verdict(LIVE, 15) == "lease_expired"


def test_a_running_attempt_ends_at_its_deadline() -> None:
    """``max_duration`` goes before everything else, so that the job is not tried again."""
    limited = replace(LIVE, deadline_at=at(10))
    assert verdict(limited, 9.999) == "keep"
    assert verdict(limited, 10) == "duration_exceeded"
    assert verdict(limited, 20) == "duration_exceeded"


def test_a_worker_that_lives_but_gets_nowhere_is_ended() -> None:
    """A heartbeat alone is not progress."""
    beating = replace(LIVE, lease_expires_at=at(5000))
    assert verdict(beating, 999.9) == "keep"
    assert verdict(beating, 1000) == "stalled"
    assert verdict(replace(beating, progress_at=at(900)), 1000) == "keep"


def test_a_starting_attempt_of_ours_is_kept_alive_until_its_worker_is_heard() -> None:
    """Nobody else can renew its lease, however long the pool needs to find room, within reason."""
    starting = replace(LIVE, state=JobState.STARTING)
    assert verdict(starting, 7) == "keep"
    assert verdict(starting, 7.5) == "renew"
    assert verdict(starting, 99) == "renew"
    assert verdict(starting, 100) == "give up"


def test_a_starting_attempt_of_a_process_that_is_gone_runs_out() -> None:
    """After a restart the scheduler does not know what its predecessor had begun."""
    starting = replace(LIVE, state=JobState.STARTING)
    assert verdict(starting, 14, is_in_our_pool=False) == "keep"
    assert verdict(starting, 15, is_in_our_pool=False) == "lease_expired"


def test_a_cancelled_worker_gets_its_grace_and_no_more() -> None:
    """It is killed three seconds after the request, or when its lease is over."""
    cancelling = replace(LIVE, state=JobState.CANCELLING, cancel_requested_at=at(5))
    assert verdict(cancelling, 7.9) == "keep"
    assert verdict(cancelling, 8) == "worker_lost"
    assert verdict(replace(cancelling, lease_expires_at=at(6)), 6) == "worker_lost"


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])
def test_what_is_not_live_is_left_alone(state: JobState) -> None:
    """Only a live attempt can be judged."""
    assert verdict(replace(LIVE, state=state, lease_expires_at=NOW - timedelta(days=1)), 0) == "keep"
