"""The ledger's tables."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
)

from infra.database import METADATA, UtcTime

JOBS = Table(
    "jobs",
    METADATA,
    Column("id", String(30), primary_key=True),
    Column("name", String(64), nullable=False),
    Column("owner", String(64), nullable=False),
    Column("token_id", String(12), nullable=False),  # names need not be unique, so keys are kept apart by the token
    Column("state", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("queue_rank", Integer, nullable=False),  # minus the priority, so that one ascending index is the queue's order
    Column("spec", Text, nullable=False),  # JSON as it was accepted; read back by the contract, never by SQL
    Column("idempotency_key", String(255), nullable=True),
    Column("request_digest", String(71), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("started_at", UtcTime, nullable=True),
    Column("finished_at", UtcTime, nullable=True),
    Column("run_after", UtcTime, nullable=False),
    Column("waiting_for", Text, nullable=True),
    Column("attempt", Integer, nullable=False),
    Column("restarts", Integer, nullable=False),
    Column("preemptions", Integer, nullable=False),
    Column("lost_in_a_row", Integer, nullable=False, server_default="0"),  # since the last newer checkpoint
    Column("lease_token", BigInteger, nullable=False),  # only grows
    Column("lease_expires_at", UtcTime, nullable=True),
    Column("deadline_at", UtcTime, nullable=True),
    Column("progress_at", UtcTime, nullable=True),
    Column("cancel_requested_at", UtcTime, nullable=True),
    Column("step", Integer, nullable=False),
    Column("total_steps", Integer, nullable=True),
    Column("last_sequence", Integer, nullable=False),
    Column("resume_from", JSON(none_as_null=True), nullable=True),
    Column("checkpoint_step", Integer, nullable=False, server_default="0"),  # the furthest of all; what is gone on from may be behind it
    Column("error", JSON(none_as_null=True), nullable=True),
    Column("result_adapter", String(193), nullable=True),
    Column("result_version", Integer, nullable=True),
    Column("is_federated", Boolean, nullable=False, server_default=false()),  # driven round by round, and never given to a worker
    Column("adapter_key", String(193), nullable=True),  # of the adapter that it makes, in lower case: who may see that may see the job
    Column("namespace_key", String(96), nullable=True),
    Column("converted_digest", String(71), nullable=True),  # the manifest of the version that a conversion is of; none of other jobs
    UniqueConstraint("token_id", "idempotency_key"),
    Index(None, "state", "queue_rank", "id"),
    Index(None, "converted_digest"),
)

JOB_LABELS = Table(
    "job_labels",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("key", String(64), primary_key=True),
    Column("value", String(64), nullable=False),
    Index(None, "key", "value", "job_id"),
)

ATTEMPTS = Table(
    "attempts",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("attempt", Integer, primary_key=True),
    Column("lease_token", BigInteger, nullable=False),
    Column("token_hash", String(64), nullable=False),
    Column("begun_at", UtcTime, nullable=False),
    Column("ended_at", UtcTime, nullable=True),
    Column("error", JSON(none_as_null=True), nullable=True),
)

EVENTS = Table(
    "events",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("attempt", Integer, nullable=False),
    Column("number", Integer, nullable=True),  # the worker's own count within its attempt; none for the ledger's events
    Column("at", UtcTime, nullable=False),
    Column("event", JSON, nullable=False),
    UniqueConstraint("job_id", "attempt", "number"),
)

JOB_BLOBS = Table(
    "job_blobs",
    METADATA,
    Column("job_id", String(30), ForeignKey("jobs.id"), primary_key=True),
    Column("digest", String(71), primary_key=True),
)

METRICS = Table(
    "metrics",
    METADATA,
    Column("job_id", String(30), primary_key=True),
    Column("name", String(64), primary_key=True),
    Column("step", Integer, primary_key=True),
    Column("value", Float, nullable=False),
    Column("attempt", Integer, nullable=False),
    ForeignKeyConstraint(["job_id"], ["jobs.id"]),
)
