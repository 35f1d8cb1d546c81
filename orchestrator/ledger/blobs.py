"""Which blobs a job needs, and which its attempts have delivered: to know a digest is not to have its bytes."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, delete, exists, select
from sqlalchemy.dialects import postgresql, sqlite

from hub import catalog
from orchestrator.ledger.attempts import Lease
from orchestrator.ledger.holders import data_holder_of, delivery_of, holders_of, rounds_of
from orchestrator.ledger.tables import JOB_BLOBS, JOBS
from wegeft.contracts.conversion_spec import ConversionSpec
from wegeft.contracts.job import JobSpec
from wegeft.contracts.training import JobState

__all__ = ["data_of", "delivery_of", "find_delivered", "hold_data", "keep_for_rounds", "let_go_of_ended", "note_blob", "renew_delivered"]

_FINAL = [state.value for state in JobState if state.is_final]
_AT_ONCE = 1000


def data_of(spec: JobSpec | ConversionSpec) -> set[str]:
    """Return the digests of a job's uploaded data sets, of the adapter that its federation begins with, or of the version it converts."""
    if isinstance(spec, ConversionSpec):
        return {entry.digest for entry in spec.files}
    start = spec.federation.start if spec.federation else None
    named = {dataset.path for dataset in (*spec.datasets, *spec.test_datasets) if dataset.is_uploaded}
    return named | ({start.config, start.weights} if start else set())


def keep_for_rounds(connection: Connection, job_id: str, digest: str, size: int, until: datetime) -> bool:
    """Keep bytes that have come for a federated job as long as it needs them; return False where they were collected meanwhile."""
    is_there = catalog.arrive(connection, digest, size, rounds_of(job_id), until)
    return is_there and not catalog.hold(connection, rounds_of(job_id), [digest], None)


def hold_data(connection: Connection, job_id: str, spec: JobSpec | ConversionSpec) -> frozenset[str]:
    """Keep what a job reads as long as it needs them; return those that are not there to be kept."""
    return catalog.hold(connection, data_holder_of(job_id), data_of(spec), None)


def let_go_of_ended(connection: Connection, ended_before: datetime) -> int:
    """Let the data and the checkpoints of jobs go that have ended long enough ago; return of how many jobs, a thousand at most."""
    has_data = exists().where(catalog.HOLDS.c.holder == "job:" + JOBS.c.id)
    ended = select(JOBS.c.id).where(JOBS.c.state.in_(_FINAL), JOBS.c.finished_at <= ended_before, has_data).limit(_AT_ONCE)
    jobs = connection.execute(ended).scalars().all()
    holders = [holder for job_id in jobs for holder in holders_of(job_id)]
    connection.execute(delete(catalog.HOLDS).where(catalog.HOLDS.c.holder.in_(holders)))
    return len(jobs)


def note_blob(connection: Connection, lease: Lease, digest: str) -> bool:
    """Note that an attempt had these bytes, which were read and verified; return whether the job had not delivered them before."""
    table: Any = postgresql.insert(JOB_BLOBS) if connection.dialect.name == "postgresql" else sqlite.insert(JOB_BLOBS)
    noted = table.values(job_id=lease.job_id, digest=digest).on_conflict_do_nothing().returning(JOB_BLOBS.c.digest)
    return connection.execute(noted).first() is not None


def find_delivered(connection: Connection, lease: Lease, digests: Iterable[str]) -> frozenset[str]:
    """Return those of ``digests`` that this or an earlier attempt at the job has delivered."""
    is_asked = (JOB_BLOBS.c.job_id == lease.job_id) & JOB_BLOBS.c.digest.in_(set(digests))
    return frozenset(connection.execute(select(JOB_BLOBS.c.digest).where(is_asked)).scalars())


def renew_delivered(connection: Connection, lease: Lease, digest: str, until: datetime) -> bool:
    """Keep what the job has delivered ``until`` then, so that it can be named; return False where it has not, or it is gone."""
    is_delivered = bool(find_delivered(connection, lease, [digest]))
    return is_delivered and not catalog.hold(connection, delivery_of(lease.job_id), [digest], until)
