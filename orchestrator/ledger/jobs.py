"""Jobs as people see them: adding, finding, listing and cancelling."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, exists, func, insert, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite

from infra.principals import Principal
from orchestrator.jobs import LIVE_STATES, Move, move
from orchestrator.ledger.access import seen_by
from orchestrator.ledger.log import note_state
from orchestrator.ledger.tables import JOB_LABELS, JOBS
from wegeft.contracts.adapter import AdapterName, digest_of
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.errors import ErrorBody, IdempotencyConflict, IllegalTransition, JobNotFound
from wegeft.contracts.job import JobSpec
from wegeft.contracts.job_kinds import read_spec
from wegeft.contracts.training import Checkpoint, JobPage, JobState, JobView, PublishedVersion


@dataclass(frozen=True, kw_only=True)
class NewJob:
    """A job about to be queued."""

    id: str
    owner: str
    """The name of who submits it, as people read it."""
    token_id: str
    """Of who submits it; unlike a name it is one caller's."""
    spec: JobSpec | ConversionSpec
    idempotency_key: str | None = None
    """Unique among the jobs of the token."""

    @property
    def request_digest(self) -> str:
        """The sha256 of what was asked for, to tell a repeated request from another one under the same key."""
        return digest_of(json.dumps(self.spec.model_dump(mode="json"), sort_keys=True).encode())


def add(connection: Connection, job: NewJob, now: datetime) -> tuple[JobView, bool]:
    """Queue a job; return it, and whether it is new. The same key and spec give the job that is there.

    Raises :class:`IdempotencyConflict` where the key was used for another spec.
    """
    row = {
        "id": job.id,
        "name": job.spec.name,
        "owner": job.owner,
        "token_id": job.token_id,
        "state": JobState.QUEUED.value,
        "priority": job.spec.priority,
        "queue_rank": -job.spec.priority,
        "spec": job.spec.model_dump_json(),
        "idempotency_key": job.idempotency_key,
        "request_digest": job.request_digest,
        "is_federated": isinstance(job.spec, JobSpec) and job.spec.federation is not None,
        "adapter_key": str(job.spec.adapter).lower(),
        "namespace_key": job.spec.adapter.namespace.lower(),
        "converted_digest": job.spec.manifest_digest if isinstance(job.spec, ConversionSpec) else None,
    }
    zeros = dict.fromkeys(("attempt", "restarts", "preemptions", "lost_in_a_row", "lease_token", "step", "last_sequence"), 0)
    table: Any = postgresql.insert(JOBS) if connection.dialect.name == "postgresql" else sqlite.insert(JOBS)
    added = table.values(**row, **zeros, created_at=now, run_after=now)
    # Two requests with one key at the same moment: the second waits for the first to commit, and then finds its row.
    key = [JOBS.c.token_id, JOBS.c.idempotency_key]
    is_new = connection.execute(added.on_conflict_do_nothing(index_elements=key).returning(JOBS.c.id)).first() is not None
    if not is_new:
        same = find_same(connection, job, now)
        assert same is not None  # noqa: S101 - what the insert ran into cannot go away
        return same, False
    if job.spec.labels:
        connection.execute(insert(JOB_LABELS), [{"job_id": job.id, "key": k, "value": v} for k, v in job.spec.labels.items()])
    note_state(connection, job.id, 0, JobState.QUEUED, now)
    return find(connection, job.id, now), True


def find_same(connection: Connection, job: NewJob, now: datetime) -> JobView | None:
    """Return the job that was queued under the same key before; None where there is none.

    Raises :class:`IdempotencyConflict` where that one is another job.
    """
    if job.idempotency_key is None:
        return None
    is_ours = (JOBS.c.token_id == job.token_id) & (JOBS.c.idempotency_key == job.idempotency_key)
    row = connection.execute(select(JOBS.c.id, JOBS.c.request_digest).where(is_ours)).one_or_none()
    if row is None:
        return None
    if row.request_digest != job.request_digest:
        raise IdempotencyConflict(
            "the key was used for another job", path="Idempotency-Key", value=job.idempotency_key, hint=f"that one is {row.id}"
        )
    return find(connection, row.id, now)


def list_conversions(connection: Connection, adapter: AdapterName, manifest_digest: str, now: datetime) -> tuple[JobView, ...]:
    """Return the conversions of a version that may still end well, oldest first."""
    is_meant = (JOBS.c.converted_digest == manifest_digest) & (JOBS.c.adapter_key == str(adapter).lower())
    rows = connection.execute(select(JOBS).where(is_meant, JOBS.c.state.in_(_MAY_SUCCEED)).order_by(JOBS.c.id)).all()
    return tuple(_views(connection, rows, now))


_MAY_SUCCEED = [state.value for state in (JobState.QUEUED, JobState.STARTING, JobState.RUNNING)]


def find(connection: Connection, job_id: str, now: datetime) -> JobView:
    """Return a job; raise :class:`JobNotFound`."""
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id)).one_or_none()
    if row is None:
        raise JobNotFound(path="job", value=job_id)
    return _views(connection, [row], now)[0]


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs to list."""

    state: JobState | None = None
    labels: tuple[tuple[str, str], ...] = field(default=())
    """All of which a job must have."""
    reader: Principal | None = None
    """Who asks; None sees the jobs of adapters that are public or whose namespaces are nobody's."""
    is_federated: bool | None = None


def list_jobs(connection: Connection, wanted: JobFilter, limit: int, after: str | None, now: datetime) -> JobPage:
    """Return up to ``limit`` jobs, newest first, older than the job ``after``."""
    query = select(JOBS).where(seen_by(connection, wanted.reader)).order_by(JOBS.c.id.desc()).limit(limit + 1)
    if wanted.state is not None:
        query = query.where(JOBS.c.state == wanted.state.value)
    if wanted.is_federated is not None:
        query = query.where(JOBS.c.is_federated.is_(wanted.is_federated))
    for key, value in wanted.labels:
        query = query.where(exists().where(JOB_LABELS.c.job_id == JOBS.c.id, JOB_LABELS.c.key == key, JOB_LABELS.c.value == value))
    if after is not None:
        query = query.where(JOBS.c.id < after)
    rows = connection.execute(query).all()
    more = rows[limit - 1].id if len(rows) > limit else None
    return JobPage(jobs=tuple(_views(connection, rows[:limit], now)), next_cursor=more)


def cancel(connection: Connection, job_id: str, now: datetime) -> JobView:
    """Ask a job to stop: one that has no worker is cancelled at once, the others by their workers or the scheduler.

    Harmless to repeat. Raises :class:`JobNotFound`, and :class:`IllegalTransition` where the job has succeeded or failed.
    """
    row = connection.execute(select(JOBS).where(JOBS.c.id == job_id).with_for_update()).one_or_none()
    if row is None:
        raise JobNotFound(path="job", value=job_id)
    state = JobState(row.state)
    if state in (JobState.SUCCEEDED, JobState.FAILED):
        raise IllegalTransition(f"the job has {state} already", path="job", value=job_id)
    after = move(state, Move.CANCEL)
    if after != state:
        values = {"state": after.value, "cancel_requested_at": now, "finished_at": now if after.is_final else None, "waiting_for": None}
        connection.execute(update(JOBS).where(JOBS.c.id == job_id).values(values))
        note_state(connection, job_id, row.attempt, after, now)
    return find(connection, job_id, now)


def count_by_state(connection: Connection) -> dict[JobState, int]:
    """Return how many jobs are in each state."""
    counts = dict.fromkeys(JobState, 0)
    for state, count in connection.execute(select(JOBS.c.state, func.count()).group_by(JOBS.c.state)):
        counts[JobState(state)] = count
    return counts


def _views(connection: Connection, rows: Sequence[Row[Any]], now: datetime) -> list[JobView]:
    queued = [row for row in rows if row.state == JobState.QUEUED]
    turns = {row.id: _turn(connection, row) for row in queued} if len(queued) < 2 else _turns(connection)
    running = count_live(connection) if queued else 0
    return [_view(row, _reason_to_wait(row, turns.get(row.id, 0), running, now)) for row in rows]


_IS_IN_LINE = (JOBS.c.state == JobState.QUEUED.value, JOBS.c.is_federated.is_(False))
"""Waits for a worker."""


def _turn(connection: Connection, row: Row[Any]) -> int:
    """Return how many queued jobs go before one."""
    is_before = or_(JOBS.c.queue_rank < row.queue_rank, and_(JOBS.c.queue_rank == row.queue_rank, JOBS.c.id < row.id))
    query = select(func.count()).select_from(JOBS).where(*_IS_IN_LINE, is_before)
    return connection.execute(query).scalar_one()


def _turns(connection: Connection) -> dict[str, int]:
    """Return for each queued job how many go before it; for a page, reading the queue once is cheaper than a count each."""
    query = select(JOBS.c.id).where(*_IS_IN_LINE).order_by(JOBS.c.queue_rank, JOBS.c.id)
    return {job_id: turn for turn, job_id in enumerate(connection.execute(query).scalars())}


def count_live(connection: Connection) -> int:
    """Return how many attempts hold a job now; federated jobs have none."""
    is_held = (JOBS.c.state.in_([state.value for state in LIVE_STATES]), JOBS.c.is_federated.is_(False))
    return connection.execute(select(func.count()).select_from(JOBS).where(*is_held)).scalar_one()


def _reason_to_wait(row: Row[Any], turn: int, running: int, now: datetime) -> str | None:
    if row.is_federated:
        return row.waiting_for or ("the scheduler" if row.state == JobState.QUEUED else None)
    if row.state == JobState.STARTING:
        return "a worker to start"
    if row.state != JobState.QUEUED:
        return None
    if row.waiting_for and row.run_after > now:
        return f"{row.waiting_for}; tried again in {(row.run_after - now).total_seconds():.0f} s"
    if turn:
        return f"its turn: {turn} {'jobs are' if turn > 1 else 'job is'} before it"
    if running:
        return f"a free place: {running} {'jobs are' if running > 1 else 'job is'} running"
    return "the scheduler"


def _view(row: Row[Any], waiting_for: str | None) -> JobView:
    spec = read_spec(row.spec)
    published = PublishedVersion(adapter=row.result_adapter, version=row.result_version) if row.result_adapter else None
    return JobView(
        id=row.id,
        name=row.name,
        state=JobState(row.state),
        priority=row.priority,
        labels=spec.labels,
        spec=spec,
        attempt=row.attempt,
        step=row.step,
        total_steps=row.total_steps,
        created_at=row.created_at,
        started_at=row.started_at,
        finished_at=row.finished_at,
        error=ErrorBody.model_validate(row.error) if row.error else None,
        result=published,
        resume_from=Checkpoint.model_validate(row.resume_from) if row.resume_from else None,
        waiting_for=waiting_for,
    )
