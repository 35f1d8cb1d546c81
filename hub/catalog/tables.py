"""The catalog's tables."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects import postgresql, sqlite

from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import AdapterName

_BYTEWISE = String(193).with_variant(String(193, collation="C"), "postgresql")
"""Sorted alike by every database, whatever the locale of its cluster."""

ADAPTERS = Table(
    "adapters",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("key", _BYTEWISE, nullable=False, unique=True),  # namespace/name in lower case: names differ by more than their case
    Column("namespace", String(96), nullable=False),
    Column("name", String(96), nullable=False),
    Column("latest_number", Integer, nullable=False),
    Column("next_number", Integer, nullable=False),  # only grows, whatever happens to versions
    Column("created_at", UtcTime, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Index(None, "updated_at", "id"),
)

VERSIONS = Table(
    "versions",
    METADATA,
    Column("id", Integer, primary_key=True),
    Column("adapter_id", Integer, ForeignKey("adapters.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("source", String(200), nullable=False, unique=True),
    Column("manifest", Text, nullable=False),  # the bytes that manifest_digest names, so never JSON that a database may reorder
    Column("manifest_digest", String(71), nullable=False),
    Column("base_model", String(4200), nullable=False),
    Column("method", String(40), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("metrics", JSON, nullable=False),
    Column("created_at", UtcTime, nullable=False),
    Column("created_by", String(200), nullable=False),
    UniqueConstraint("adapter_id", "number"),
)

ALIASES = Table(
    "aliases",
    METADATA,
    Column("adapter_id", Integer, primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    ForeignKeyConstraint(["adapter_id", "number"], ["versions.adapter_id", "versions.number"]),
)

BLOBS = Table(
    "blobs",
    METADATA,
    Column("digest", String(71), primary_key=True),
    Column("size", BigInteger, nullable=True),  # bytes, once they have all come
    Column("is_leaving", Boolean, nullable=False),  # chosen by the collector: nobody may name it, and its bytes may be gone
)

HOLDS = Table(
    "holds",
    METADATA,
    Column("digest", String(71), ForeignKey("blobs.digest"), primary_key=True),
    Column("holder", String(220), primary_key=True),
    Column("until", UtcTime, nullable=True),  # none is for ever
    Index(None, "holder"),
)

UPLOADS = Table(
    "uploads",
    METADATA,
    Column("id", String(32), primary_key=True),
    Column("owner", String(200), nullable=False),
    Column("digest", String(71), nullable=False),  # of the whole
    Column("size", BigInteger, nullable=False),
    Column("part_bytes", Integer, nullable=False),  # of each part but the last
    Column("expires_at", UtcTime, nullable=False),
    UniqueConstraint("owner", "digest"),
    Index(None, "expires_at"),
)

UPLOAD_PARTS = Table(
    "upload_parts",
    METADATA,
    Column("upload_id", String(32), ForeignKey("uploads.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("digest", String(71), nullable=False),
    Column("size", Integer, nullable=False),
)


def key_of(adapter: AdapterName) -> str:
    """Return the key that an adapter is found by, whatever the case of its name."""
    return str(adapter).lower()


def upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that may say what to do ON CONFLICT, which both databases can, each by its own dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
