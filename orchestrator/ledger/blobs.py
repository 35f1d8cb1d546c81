"""Which blobs a job's attempts have delivered: to know a digest is not to have its bytes, so only these may be named."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, select
from sqlalchemy.dialects import postgresql, sqlite

from orchestrator.ledger.attempts import Lease
from orchestrator.ledger.tables import JOB_BLOBS


def note_blob(connection: Connection, lease: Lease, digest: str) -> bool:
    """Note that an attempt had these bytes, which were read and verified; return whether the job had not delivered them before."""
    table: Any = postgresql.insert(JOB_BLOBS) if connection.dialect.name == "postgresql" else sqlite.insert(JOB_BLOBS)
    noted = table.values(job_id=lease.job_id, digest=digest).on_conflict_do_nothing().returning(JOB_BLOBS.c.digest)
    return connection.execute(noted).first() is not None


def find_delivered(connection: Connection, lease: Lease, digests: Iterable[str]) -> frozenset[str]:
    """Return those of ``digests`` that this or an earlier attempt at the job has delivered."""
    is_asked = (JOB_BLOBS.c.job_id == lease.job_id) & JOB_BLOBS.c.digest.in_(set(digests))
    return frozenset(connection.execute(select(JOB_BLOBS.c.digest).where(is_asked)).scalars())
