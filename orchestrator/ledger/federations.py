"""Federated jobs: which of them go on, and which server drives each; fenced by the job's lease, as attempts are."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Row, or_, select, update

from orchestrator.jobs import LIVE_STATES, Move, move
from orchestrator.ledger.attempts import Lease
from orchestrator.ledger.log import append, note_state
from orchestrator.ledger.tables import JOBS
from wegeft.contracts.errors import JobNotFound
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import JobState, Message, PublishedVersion

_GOING_ON = [state.value for state in (JobState.QUEUED, *LIVE_STATES)]


@dataclass(frozen=True, kw_only=True)
class FederatedJob:
    """A job whose spec has a ``federation:`` section."""

    id: str
    owner: str
    state: JobState
    spec: JobSpec
    section: FederationSpec
    waiting_for: str | None
    started_at: datetime | None
    result: PublishedVersion | None
    """What the last round published; None before the job has succeeded."""


def list_going_on(connection: Connection) -> tuple[FederatedJob, ...]:
    """Return every federated job that has not ended, oldest first."""
    rows = connection.execute(select(JOBS).where(JOBS.c.is_federated.is_(True), JOBS.c.state.in_(_GOING_ON)).order_by(JOBS.c.id))
    return tuple(_job(row) for row in rows)


def find_federated(connection: Connection, job_id: str) -> FederatedJob:
    """Return a federated job; raise :class:`JobNotFound` where there is no such job or it is not federated."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    if row is None or not row.is_federated:
        message = "there is no such job" if row is None else "the job is not federated"
        raise JobNotFound(message, path="job", value=job_id)
    return _job(row)


def hold_federated(connection: Connection, job_id: str) -> FederatedJob:
    """Return a federated job as :func:`find_federated` does, held until the transaction ends: nobody moves it or its rounds meanwhile."""
    connection.execute(select(JOBS.c.id).where(JOBS.c.id == job_id).with_for_update())
    return find_federated(connection, job_id)


def begin(connection: Connection, job: FederatedJob, now: datetime, lease_seconds: float) -> Lease | None:
    """Let a queued federation run, driven by the caller; None where another server was faster."""
    after = move(move(JobState.QUEUED, Move.CLAIM), Move.CONTACT)
    values = {"state": after.value, "started_at": now, "waiting_for": None, "total_steps": job.section.rounds}
    lease = _take(connection, (JOBS.c.id == job.id, JOBS.c.state == JobState.QUEUED.value), values, now, lease_seconds)
    if lease is not None:
        note_state(connection, job.id, 0, after, now)
    return lease


def take_over(connection: Connection, job: FederatedJob, now: datetime, lease_seconds: float) -> Lease | None:
    """Drive a running federation from now on; None where another server does."""
    is_free = or_(JOBS.c.lease_expires_at.is_(None), JOBS.c.lease_expires_at <= now)
    is_live = JOBS.c.state.in_([state.value for state in LIVE_STATES])
    return _take(connection, (JOBS.c.id == job.id, is_live, is_free), {}, now, lease_seconds)


def release(connection: Connection, lease: Lease, now: datetime) -> None:
    """Let another server take the federation over at once; harmless where one has."""
    is_ours = (JOBS.c.id == lease.job_id, JOBS.c.lease_token == lease.token)
    connection.execute(update(JOBS).where(*is_ours).values(lease_expires_at=now))


def note_wait(connection: Connection, job_id: str, text: str | None) -> None:
    """Say what a federation waits for, in words."""
    connection.execute(update(JOBS).where(JOBS.c.id == job_id, JOBS.c.state.in_(_GOING_ON)).values(waiting_for=text))


def note_round(connection: Connection, lease: Lease, number: int) -> None:
    """Count committed rounds as the job's progress."""
    is_ours = (JOBS.c.id == lease.job_id, JOBS.c.lease_token == lease.token)
    connection.execute(update(JOBS).where(*is_ours).values(step=number))


def tell(connection: Connection, job_id: str, text: str, now: datetime) -> None:
    """Add a line to the job's log."""
    append(connection, job_id, 0, [(None, Message(text=text))], now)


def _take(connection: Connection, where: tuple[Any, ...], values: dict[str, Any], now: datetime, lease_seconds: float) -> Lease | None:
    lease = {"lease_token": JOBS.c.lease_token + 1, "lease_expires_at": now + timedelta(seconds=lease_seconds)}
    taken = update(JOBS).where(*where, JOBS.c.is_federated.is_(True)).values(**values, **lease)
    row = connection.execute(taken.returning(JOBS.c.id, JOBS.c.lease_token)).one_or_none()
    return None if row is None else Lease(job_id=row.id, attempt=0, token=row.lease_token)


def _job(row: Row[Any]) -> FederatedJob:
    spec = JobSpec.model_validate_json(row.spec)
    assert spec.federation is not None  # noqa: S101 - is_federated says so
    return FederatedJob(
        id=row.id,
        owner=row.owner,
        state=JobState(row.state),
        spec=spec,
        section=spec.federation,
        waiting_for=row.waiting_for,
        started_at=row.started_at,
        result=PublishedVersion(adapter=row.result_adapter, version=row.result_version) if row.result_adapter else None,
    )
