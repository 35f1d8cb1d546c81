"""Attempts: who holds a job, for how long, and how it ends. Every write is fenced by the lease token."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, Select, func, insert, select, update

from hub import catalog
from infra.auth import is_attempt_token, is_same_secret
from orchestrator.jobs import LIVE_STATES, Budget, Counters, Fail, LiveAttempt, Move, Requeue, decide_retry, move
from orchestrator.ledger.holders import checkpoint_of, delivery_of
from orchestrator.ledger.log import note_state, record
from orchestrator.ledger.tables import ATTEMPTS, JOBS
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import ErrorBody, InvalidRequest, StaleLease, Unauthenticated, shorten
from wegeft.contracts.job import JobSpec, seconds_of
from wegeft.contracts.job_kinds import read_spec
from wegeft.contracts.placement import handle_of
from wegeft.contracts.training import Advanced, Checkpoint, EventBatch, JobState, Progress, PublishedVersion

SUPERSEDED_SECONDS = 600.0
"""How long a checkpoint stays after a newer one; nobody begins to read it any more, and who has begun may finish."""

_LIVE = [state.value for state in LIVE_STATES]


@dataclass(frozen=True, kw_only=True)
class Lease:
    """The right to write for a job, as long as nobody else got it since."""

    job_id: str
    attempt: int
    token: int

    @property
    def handle(self) -> str:
        """The attempt's name in a pool."""
        return handle_of(self.job_id, self.attempt)


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A job just taken from the queue."""

    lease: Lease
    spec: JobSpec | ConversionSpec


def claim(connection: Connection, token_hash: str, now: datetime, lease_seconds: float) -> Claimed | None:
    """Take the next job that may run, the highest priority and then the oldest first; None where there is none.

    Two claimers never get the same job: PostgreSQL skips the rows that another holds, SQLite lets one writer in at a time.
    """
    next_id = (
        select(JOBS.c.id)
        .where(JOBS.c.state == JobState.QUEUED.value, JOBS.c.run_after <= now, JOBS.c.is_federated.is_(False))
        .order_by(JOBS.c.queue_rank, JOBS.c.id)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    taken = (
        update(JOBS)
        .where(JOBS.c.id == next_id, JOBS.c.state == JobState.QUEUED.value)
        .values(
            state=move(JobState.QUEUED, Move.CLAIM).value,
            attempt=JOBS.c.attempt + 1,
            lease_token=JOBS.c.lease_token + 1,
            lease_expires_at=now + timedelta(seconds=lease_seconds),
            progress_at=now,
            started_at=func.coalesce(JOBS.c.started_at, now),
            waiting_for=None,
        )
        .returning(JOBS.c.id, JOBS.c.attempt, JOBS.c.lease_token, JOBS.c.spec)
    )
    row = connection.execute(taken).one_or_none()
    if row is None:
        return None
    lease = Lease(job_id=row.id, attempt=row.attempt, token=row.lease_token)
    begun = {"job_id": row.id, "attempt": row.attempt, "lease_token": row.lease_token, "token_hash": token_hash, "begun_at": now}
    connection.execute(insert(ATTEMPTS).values(begun))
    note_state(connection, row.id, row.attempt, JobState.STARTING, now)
    return Claimed(lease=lease, spec=read_spec(row.spec))


def authenticate(connection: Connection, job_id: str, attempt: int, token: str) -> Lease:
    """Return the lease that an attempt's token stands for, current or not; raise :class:`Unauthenticated` for a wrong one."""
    is_ours = (ATTEMPTS.c.job_id == job_id) & (ATTEMPTS.c.attempt == attempt)
    row = connection.execute(select(ATTEMPTS.c.token_hash, ATTEMPTS.c.lease_token).where(is_ours)).one_or_none()
    is_right = is_same_secret(token, row.token_hash if row else "")
    if row is None or not is_right or not is_attempt_token(token):
        raise Unauthenticated("this token is not of this attempt")
    return Lease(job_id=job_id, attempt=attempt, token=row.lease_token)


def find_lease(connection: Connection, job_id: str, attempt: int) -> Lease | None:
    """Return an attempt's lease, current or not; None where there is no such attempt."""
    is_ours = (ATTEMPTS.c.job_id == job_id) & (ATTEMPTS.c.attempt == attempt)
    token = connection.execute(select(ATTEMPTS.c.lease_token).where(is_ours)).scalar_one_or_none()
    return None if token is None else Lease(job_id=job_id, attempt=attempt, token=token)


def hold(connection: Connection, lease: Lease) -> Row[Any]:
    """Return the job's row, held until the transaction ends; raise :class:`StaleLease` where the lease no longer holds it."""
    row = connection.execute(select(JOBS).where(*_is_held(lease)).with_for_update()).one_or_none()
    if row is None:
        raise StaleLease(path=lease.handle, hint="stop; nothing that this attempt does counts any more")
    return row


def _is_held(lease: Lease) -> tuple[Any, ...]:
    return JOBS.c.id == lease.job_id, JOBS.c.lease_token == lease.token, JOBS.c.state.in_(_LIVE)


def _write(connection: Connection, lease: Lease, values: dict[str, Any]) -> None:
    if connection.execute(update(JOBS).where(*_is_held(lease)).values(values)).rowcount != 1:
        raise StaleLease(path=lease.handle)


def contact(connection: Connection, lease: Lease, now: datetime, lease_seconds: float, step: int | None = None) -> Row[Any]:
    """Note that the worker was heard: renew its lease, and let a starting job run. Return the job's row as it was before.

    ``step`` is how many optimizer steps the worker has done, where it says so.
    """
    row = hold(connection, lease)
    state = JobState(row.state)
    values: dict[str, Any] = {"lease_expires_at": now + timedelta(seconds=lease_seconds), "state": move(state, Move.CONTACT).value}
    if state is JobState.STARTING:
        duration = read_spec(row.spec).max_duration
        values["deadline_at"] = now + timedelta(seconds=seconds_of(duration)) if duration else None
        values["progress_at"] = now
    if step is not None and step != row.step:
        values |= {"step": step, "progress_at": now}
    _write(connection, lease, values)
    if state is JobState.STARTING:
        note_state(connection, lease.job_id, lease.attempt, JobState.RUNNING, now)
    return row


def renew(connection: Connection, lease: Lease, now: datetime, lease_seconds: float) -> None:
    """Renew the lease on behalf of a worker that is still being started."""
    _write(connection, lease, {"lease_expires_at": now + timedelta(seconds=lease_seconds)})


def record_events(connection: Connection, lease: Lease, batch: EventBatch, now: datetime) -> None:
    """Add what a worker reports to the job's log, once however often it is sent; the lease was renewed before."""
    new = record(connection, lease.job_id, lease.attempt, enumerate(batch.events, batch.first_number), now)
    values: dict[str, Any] = {"progress_at": now} if new else {}
    for event in new:
        if isinstance(event, Progress | Advanced):
            values |= {"step": event.step, "total_steps": event.total_steps}
    if values:
        _write(connection, lease, values)


def save_checkpoint(connection: Connection, lease: Lease, checkpoint: Checkpoint, now: datetime) -> None:
    """Let a later attempt go on from ``checkpoint``, whose blobs the job has delivered; the one before it goes after a while.

    Raises :class:`InvalidRequest` where a blob was collected since it was delivered.
    """
    row = hold(connection, lease)
    before = row.resume_from
    digests = [entry.digest for entry in checkpoint.files]
    missing = catalog.hold(connection, checkpoint_of(lease.job_id), digests, None)
    if missing:
        raise InvalidRequest("the checkpoint's bytes are not kept any more", path="files", value=min(missing), hint="upload them again")
    superseded_at = now + timedelta(seconds=SUPERSEDED_SECONDS)
    catalog.let_go(connection, checkpoint_of(lease.job_id), superseded_at, but=digests)
    if before:
        old = {entry.digest for entry in Checkpoint.model_validate(before).files}.difference(digests)
        catalog.let_go(connection, delivery_of(lease.job_id), superseded_at, only=old)
    values = {"resume_from": checkpoint.model_dump(mode="json"), "progress_at": now}
    if checkpoint.step > row.checkpoint_step:
        # An attempt that has begun anew is no further than those before it until it has passed them.
        values |= {"checkpoint_step": checkpoint.step, "lost_in_a_row": 0}
    _write(connection, lease, values)


def was_published(connection: Connection, lease: Lease) -> PublishedVersion | None:
    """Return what this very attempt has published, so that a repeated report gets the same answer; None where it has not."""
    is_ours = (JOBS.c.id == lease.job_id) & (JOBS.c.lease_token == lease.token) & (JOBS.c.state == JobState.SUCCEEDED.value)
    row = connection.execute(select(JOBS.c.result_adapter, JOBS.c.result_version).where(is_ours)).one_or_none()
    return None if row is None else PublishedVersion(adapter=row.result_adapter, version=row.result_version)


def succeed(connection: Connection, lease: Lease, published: PublishedVersion, now: datetime) -> None:
    """End the job with what it has published; raise :class:`IllegalTransition` where it is being cancelled."""
    row = hold(connection, lease)
    after = move(JobState(row.state), Move.SUCCEED)
    result = {"result_adapter": published.adapter, "result_version": published.version}
    _write(connection, lease, {**_over(after, now), **result})
    _close(connection, lease, None, now)
    note_state(connection, lease.job_id, lease.attempt, after, now, published.ref)


def record_failure(connection: Connection, lease: Lease, error: ErrorBody, now: datetime) -> None:
    """End the attempt as its worker reports; a repeated report is harmless. Raises :class:`StaleLease`."""
    is_ours = (ATTEMPTS.c.job_id == lease.job_id) & (ATTEMPTS.c.attempt == lease.attempt)
    known = connection.execute(select(ATTEMPTS.c.error).where(is_ours)).scalar_one_or_none()
    if known is None or known.get("code") != error.code:
        end_attempt(connection, lease, error, now)


def end_attempt(connection: Connection, lease: Lease, error: ErrorBody, now: datetime, *, is_last: bool = False) -> JobState:
    """End the attempt with ``error`` and return what becomes of the job; raise :class:`StaleLease` where it is over already.

    A job that is being cancelled is cancelled; the others are queued again or fail, as :func:`decide_retry` says, or fail in any case where
    this was the last try (``is_last``).
    """
    row = hold(connection, lease)
    state = JobState(row.state)
    counters = Counters(restarts=row.restarts, preemptions=row.preemptions, lost_in_a_row=row.lost_in_a_row)
    reason = _reason(error)
    if state is JobState.CANCELLING:
        after, values, text = move(state, Move.STOP), {}, ""
    else:
        recovery = read_spec(row.spec).job_recovery
        decision = Fail() if is_last else decide_retry(error, counters, recovery)
        match decision:
            case Requeue():
                after, text = move(state, Move.REQUEUE), f"{reason}; tried again in {decision.after_seconds:g} s"
                values = _again(decision, counters, reason, now)
            case Fail():
                final = decision.instead or error
                after, text = move(state, Move.FAIL), _reason(final)
                values = {"error": final.model_dump(mode="json")}
    _write(connection, lease, {**_over(after, now), **values})
    _close(connection, lease, error, now)
    note_state(connection, lease.job_id, lease.attempt, after, now, text)
    return after


def _reason(error: ErrorBody) -> str:
    # PostgreSQL keeps no NUL in a text, and an error may quote one.
    return shorten(f"{error.code}: {error.detail}".replace("\0", " "), 1000)


def _again(decision: Requeue, counters: Counters, reason: str, now: datetime) -> dict[str, Any]:
    used = {"restarts": counters.restarts, "preemptions": counters.preemptions}
    used["lost_in_a_row"] = counters.lost_in_a_row + decision.is_loss
    match decision.budget:
        case Budget.RESTARTS:
            used["restarts"] += 1
        case Budget.PREEMPTIONS:
            used["preemptions"] += 1
    return {**used, "run_after": now + timedelta(seconds=decision.after_seconds), "waiting_for": reason}


def give_back(connection: Connection, lease: Lease, error: ErrorBody, now: datetime, after_seconds: float) -> None:
    """Put a job back that no pool could take; it is nobody's attempt, so no budget is used."""
    row = hold(connection, lease)
    if JobState(row.state) is JobState.CANCELLING:
        end_attempt(connection, lease, error, now)
        return
    after = move(JobState(row.state), Move.REQUEUE)
    reason = _reason(error)
    _write(connection, lease, {**_over(after, now), "run_after": now + timedelta(seconds=after_seconds), "waiting_for": reason})
    _close(connection, lease, error, now)
    note_state(connection, lease.job_id, lease.attempt, after, now, f"{reason}; tried again in {after_seconds:g} s")


def _over(after: JobState, now: datetime) -> dict[str, Any]:
    cleared = dict.fromkeys(("lease_expires_at", "deadline_at", "progress_at", *(["waiting_for"] if after.is_final else [])))
    return {"state": after.value, "finished_at": now if after.is_final else None, **cleared}


def _close(connection: Connection, lease: Lease, error: ErrorBody | None, now: datetime) -> None:
    is_ours = (ATTEMPTS.c.job_id == lease.job_id) & (ATTEMPTS.c.attempt == lease.attempt)
    values = {"ended_at": now, "error": error.model_dump(mode="json") if error else None}
    connection.execute(update(ATTEMPTS).where(is_ours).values(values))


def list_live(connection: Connection) -> tuple[LiveAttempt, ...]:
    """Return every attempt that holds a job, oldest first."""
    return tuple(_live(row) for row in connection.execute(_live_rows().order_by(ATTEMPTS.c.begun_at, JOBS.c.id)))


def find_live(connection: Connection, lease: Lease) -> LiveAttempt:
    """Return the attempt as it is now, held until the transaction ends; raise :class:`StaleLease` where it is over."""
    hold(connection, lease)
    return _live(connection.execute(_live_rows().where(JOBS.c.id == lease.job_id)).one())


def _live_rows() -> Select[Any]:
    begun = (ATTEMPTS.c.job_id == JOBS.c.id) & (ATTEMPTS.c.attempt == JOBS.c.attempt)
    return select(JOBS, ATTEMPTS.c.begun_at).join(ATTEMPTS, begun).where(JOBS.c.state.in_(_LIVE))


def _live(row: Row[Any]) -> LiveAttempt:
    return LiveAttempt(
        handle=handle_of(row.id, row.attempt),
        job_id=row.id,
        attempt=row.attempt,
        lease_token=row.lease_token,
        state=JobState(row.state),
        lease_expires_at=row.lease_expires_at,
        begun_at=row.begun_at,
        deadline_at=row.deadline_at,
        progress_at=row.progress_at,
        cancel_requested_at=row.cancel_requested_at,
    )
