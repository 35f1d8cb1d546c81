"""Tables of what is known about versions beside their files: signatures, evaluations, lineage, and adapters' cards."""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Column, Float, ForeignKey, Index, Integer, String, Table, Text, UniqueConstraint

from infra.database import METADATA, UtcTime

SIGNING_KEYS = Table(
    "signing_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("algorithm", String(16), nullable=False),
    Column("pem", String(1000), nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("retired_at", UtcTime, nullable=True),
    Column("endorsed_by", String(64), nullable=True),
    Column("endorsement", String(400), nullable=True),
)

SIGNATURES = Table(
    "signatures",
    METADATA,
    Column("version_id", Integer, ForeignKey("versions.id"), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("key_id", String(64), ForeignKey("signing_keys.id"), nullable=False),
    Column("bundle", Text, nullable=False),  # the bytes that were signed, so never JSON that a database may reorder
    Column("created_at", UtcTime, nullable=False),
)

EVALUATIONS = Table(
    "evaluations",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("version_id", Integer, ForeignKey("versions.id"), nullable=False),
    Column("metric", String(100), nullable=False),
    Column("value", Float, nullable=False),
    Column("dataset_digest", String(71), nullable=False),  # empty where no data set is named
    Column("dataset_name", String(200), nullable=False),
    Column("is_reported", Integer, nullable=False),  # 1: by a person, 0: by the job that made the version
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(200), nullable=False),
    UniqueConstraint("version_id", "metric", "dataset_digest", "dataset_name", "is_reported", name="uq_evaluations_once"),
    Index(None, "metric", "value", "version_id"),
)

LINEAGE = Table(
    "lineage",
    METADATA,
    Column("version_id", Integer, ForeignKey("versions.id"), primary_key=True),
    Column("parent_id", Integer, ForeignKey("versions.id"), primary_key=True),
    Column("relation", String(20), nullable=False),
    # Every parent was published before its child, so there are no circles.
    CheckConstraint("parent_id < version_id", name="parent_is_older"),
    Index(None, "parent_id"),
)

CARDS = Table(
    "cards",
    METADATA,
    Column("adapter_id", Integer, ForeignKey("adapters.id"), primary_key=True),
    Column("markdown", Text, nullable=False),
    Column("digest", String(71), nullable=False),
    Column("license", String(500), nullable=True),
    Column("updated_at", UtcTime, nullable=False),
    Column("updated_by", String(200), nullable=False),
)
