"""What a job may become, whether it is tried again, and when an attempt is over: pure decisions, no clock and no I/O.

    queued ──claim──▶ starting ──contact──▶ running ──succeed──▶ succeeded
      ▲ │                │  │                 │  │
      │ └─cancel─▶ cancelled ◀──stop── cancelling ◀──cancel── starting, running
      └──requeue── starting, running ──fail──▶ failed

Contact leaves a running or cancelling job as it is. The three states on the outside are final: nothing leads out of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import assert_never

from wegeft.contracts.errors import (
    ERROR_KINDS,
    DurationExceeded,
    ErrorBody,
    IllegalTransition,
    LeaseExpired,
    Stalled,
    StartFailed,
    TrainingCrashed,
    WegeftError,
    WorkerLost,
)
from wegeft.contracts.job import RecoverySpec
from wegeft.contracts.training import JobState


class Move(StrEnum):
    """What can happen to a job."""

    CLAIM = "claim"
    """The scheduler took it."""
    CONTACT = "contact"
    """Its worker was heard."""
    REQUEUE = "requeue"
    """The attempt is over, and there will be another."""
    SUCCEED = "succeed"
    """Its adapter is published."""
    FAIL = "fail"
    """The attempt is over, and there will be no other."""
    CANCEL = "cancel"
    """A person asked it to stop."""
    STOP = "stop"
    """The attempt of a job that is being cancelled is over."""


LIVE_STATES = (JobState.STARTING, JobState.RUNNING, JobState.CANCELLING)
"""The states in which an attempt holds the job."""

_MOVES = {
    (JobState.QUEUED, Move.CLAIM): JobState.STARTING,
    (JobState.QUEUED, Move.CANCEL): JobState.CANCELLED,
    (JobState.STARTING, Move.CONTACT): JobState.RUNNING,
    (JobState.STARTING, Move.REQUEUE): JobState.QUEUED,
    (JobState.STARTING, Move.FAIL): JobState.FAILED,
    (JobState.STARTING, Move.CANCEL): JobState.CANCELLING,
    (JobState.RUNNING, Move.CONTACT): JobState.RUNNING,
    (JobState.RUNNING, Move.REQUEUE): JobState.QUEUED,
    (JobState.RUNNING, Move.SUCCEED): JobState.SUCCEEDED,
    (JobState.RUNNING, Move.FAIL): JobState.FAILED,
    (JobState.RUNNING, Move.CANCEL): JobState.CANCELLING,
    (JobState.CANCELLING, Move.CONTACT): JobState.CANCELLING,
    (JobState.CANCELLING, Move.CANCEL): JobState.CANCELLING,
    (JobState.CANCELLING, Move.STOP): JobState.CANCELLED,
    (JobState.CANCELLED, Move.CANCEL): JobState.CANCELLED,
}


def move(state: JobState, what: Move) -> JobState:
    """Return the state that a job goes to; raise :class:`IllegalTransition` where ``what`` cannot happen to it."""
    try:
        return _MOVES[state, what]
    except KeyError:
        raise IllegalTransition(f"a job that is {state} cannot {what}", path="state", value=str(state)) from None


class Budget(StrEnum):
    """What another attempt is taken from."""

    RESTARTS = "restarts"
    """For errors of the training code; the job's ``max_restarts_on_errors``."""
    PREEMPTIONS = "preemptions"
    """For losses of the machinery; the job's ``max_preemptions``."""


@dataclass(frozen=True, kw_only=True)
class Counters:
    """How often the job was tried again so far."""

    restarts: int = 0
    preemptions: int = 0


@dataclass(frozen=True, kw_only=True)
class Requeue:
    """Try again."""

    after_seconds: float
    budget: Budget


@dataclass(frozen=True, kw_only=True)
class Fail:
    """Do not try again."""


_RESTART_SECONDS = 2.0
_PREEMPTION_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 60.0
_DOUBLINGS = 6
"""After so many the longest wait is reached; more would only make large numbers."""


def decide_retry(error: ErrorBody, counters: Counters, recovery: RecoverySpec) -> Requeue | Fail:
    """Return whether an attempt that ended with ``error`` is made again, and after how long.

    What the user must change is never tried again. Errors of the training code and losses of the machinery have a budget each,
    so that a cluster that loses its nodes does not use up a job's patience with its own code.
    """
    kind = ERROR_KINDS.get(error.code, TrainingCrashed)
    if kind is WegeftError:
        kind = TrainingCrashed  # whoever could not say more met a bug, ours perhaps
    if not kind.is_retryable:
        return Fail()
    if issubclass(kind, TrainingCrashed):
        is_allowed = counters.restarts < recovery.max_restarts_on_errors
        wait, budget = _backoff(_RESTART_SECONDS, counters.restarts), Budget.RESTARTS
    else:
        is_allowed = recovery.max_preemptions < 0 or counters.preemptions < recovery.max_preemptions
        wait, budget = _backoff(_PREEMPTION_SECONDS, counters.preemptions), Budget.PREEMPTIONS
    return Requeue(after_seconds=wait, budget=budget) if is_allowed else Fail()


def _backoff(first_seconds: float, times: int) -> float:
    return min(_LONGEST_WAIT_SECONDS, first_seconds * 2.0 ** min(times, _DOUBLINGS))


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the scheduler holds attempts to."""

    max_concurrent_jobs: int = 1
    """Attempts at one time, over all orchestrators of one database."""
    lease_seconds: float = 15.0
    """An attempt that was not heard for so long is given up."""
    heartbeat_seconds: float = 2.0
    """How often a worker says that it lives."""
    stop_grace_seconds: float = 3.0
    """How long a worker has to stop by itself after a cancel, before it is killed."""
    start_seconds: float = 900.0
    """How long a pool may take to find room and start a worker, before the job goes back into the queue."""
    stall_seconds: float = 3600.0
    """How long a worker may live without any progress."""


@dataclass(frozen=True, kw_only=True)
class LiveAttempt:
    """What the ledger knows of an attempt that holds its job."""

    handle: str
    job_id: str
    attempt: int
    lease_token: int
    state: JobState
    lease_expires_at: datetime
    begun_at: datetime
    deadline_at: datetime | None
    """When its ``max_duration`` is over."""
    progress_at: datetime
    """When it was last seen to get on."""
    cancel_requested_at: datetime | None


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Leave the attempt alone."""


@dataclass(frozen=True, kw_only=True)
class Renew:
    """Renew the lease for a worker that the pool is still starting."""


@dataclass(frozen=True, kw_only=True)
class End:
    """Kill the attempt and record ``error``; a job that is being cancelled is then cancelled."""

    error: WegeftError


@dataclass(frozen=True, kw_only=True)
class GiveUp:
    """Take back from the pool what it found no room for, and put the job into the queue again; that is nobody's loss."""

    error: WegeftError


Verdict = Keep | Renew | End | GiveUp


def judge(live: LiveAttempt, now: datetime, limits: Limits, *, is_in_our_pool: bool) -> Verdict:
    """Return what is to be done about a live attempt.

    ``is_in_our_pool`` says that this process gave it to its pool and has not seen it end: until its worker is heard, nobody else
    can renew its lease.
    """
    match live.state:
        case JobState.CANCELLING:
            return _judge_cancelling(live, now, limits)
        case JobState.STARTING:
            return _judge_starting(live, now, limits, is_in_our_pool=is_in_our_pool)
        case JobState.RUNNING:
            return _judge_running(live, now, limits)
        case JobState.QUEUED | JobState.SUCCEEDED | JobState.FAILED | JobState.CANCELLED:
            return Keep()
        case _:
            assert_never(live.state)


def _judge_cancelling(live: LiveAttempt, now: datetime, limits: Limits) -> Verdict:
    asked = live.cancel_requested_at or live.begun_at
    is_over = now >= asked + timedelta(seconds=limits.stop_grace_seconds) or now >= live.lease_expires_at
    return End(error=WorkerLost("stopped, as the job is cancelled")) if is_over else Keep()


def _judge_starting(live: LiveAttempt, now: datetime, limits: Limits, *, is_in_our_pool: bool) -> Verdict:
    if not is_in_our_pool:
        return End(error=LeaseExpired("the worker was not heard of in time")) if now >= live.lease_expires_at else Keep()
    if now >= live.begun_at + timedelta(seconds=limits.start_seconds):
        return GiveUp(error=StartFailed(f"no worker started within {limits.start_seconds:g} s", hint="are the resources free anywhere?"))
    is_due = now >= live.lease_expires_at - timedelta(seconds=limits.lease_seconds / 2)
    return Renew() if is_due else Keep()


def _judge_running(live: LiveAttempt, now: datetime, limits: Limits) -> Verdict:
    if live.deadline_at is not None and now >= live.deadline_at:
        return End(error=DurationExceeded("the attempt ran longer than max_duration"))
    if now >= live.lease_expires_at:
        return End(error=LeaseExpired(f"the worker was not heard for {limits.lease_seconds:g} s"))
    if now >= live.progress_at + timedelta(seconds=limits.stall_seconds):
        return End(error=Stalled(f"the worker lives but made no progress for {limits.stall_seconds:g} s"))
    return Keep()
