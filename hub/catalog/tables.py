"""The catalog's tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    String,
    Table,
    Text,
    UniqueConstraint,
    column,
    false,
    table,
    true,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.sql.base import ReadOnlyColumnCollection

from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import AdapterName

Columns = ReadOnlyColumnCollection[str, ColumnElement[Any]]
"""Columns of a table, or of a query of it."""

_BYTEWISE = String(193).with_variant(String(193, collation="C"), "postgresql")
"""Sorted alike by every database, whatever the locale of its cluster."""

MAX_BASE_NAME = 400
"""Characters of a base model's name that lists find it by."""

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
    Column("is_private", Boolean, nullable=False, server_default=false()),  # only where somebody owns the namespace
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

LISTED_BY = ("base_name", "namespace", "method", "rank", "task", "licence", "format", "is_signed")
"""Columns that lists are filtered by; each has an index for the order of publishing and one for that of names."""

LISTINGS = Table(
    "listings",
    METADATA,
    Column("version_id", Integer, primary_key=True, autoincrement=False),  # of the newest version; the greater, the later published
    Column("adapter_id", Integer, ForeignKey("adapters.id"), nullable=False, unique=True),
    Column("key", _BYTEWISE, nullable=False, unique=True),
    Column("namespace", String(96), nullable=False),  # in lower case
    Column("base_name", String(MAX_BASE_NAME), nullable=False),  # of the base model, without what pins it, cut for the indexes' sake
    Column("base_model", String(4200), nullable=False),
    Column("method", String(40), nullable=False),
    Column("rank", Integer, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("task", String(64), nullable=False),
    Column("licence", String(64), nullable=False),
    Column("format", String(16), nullable=False, server_default=""),  # what the weights are stored as
    Column("is_signed", Boolean, nullable=False, server_default=false()),
    # As the adapter's own, and written with it; a row that does not say so is hidden.
    Column("is_private", Boolean, nullable=False, server_default=true()),
    Column("tags", Text, nullable=False, server_default=""),  # sorted, on a line each
    Column("words", Text().with_variant(postgresql.TSVECTOR(), "postgresql"), nullable=False),
    Index(None, "size", "version_id"),
    *(Index(None, name, order) for name in LISTED_BY for order in ("version_id", "key")),
)
"""What lists show and filter: one row for each adapter, about its newest version, written where that is published."""

LISTING_TAGS = Table(
    "listing_tags",
    METADATA,
    Column("tag", String(64), primary_key=True),
    Column("version_id", Integer, ForeignKey("listings.version_id"), primary_key=True),
    Column("key", _BYTEWISE, nullable=False),
    Index(None, "tag", "key"),
    Index(None, "version_id"),
)

LISTING_METRICS = Table(
    "listing_metrics",
    METADATA,
    Column("version_id", Integer, ForeignKey("listings.version_id"), primary_key=True),
    Column("name", String(100), primary_key=True),
    Column("value", Float(53), primary_key=True),  # measured more than once, it has more than one value
    Index(None, "name", "value", "version_id"),
)

LISTING_WORDS = table("listing_words", column("rowid"), column("listing_words"))
"""SQLite's full-text index over the words of listings, which triggers keep in step; PostgreSQL's is in :mod:`hub.catalog.search_terms`."""

ALIASES = Table(
    "aliases",
    METADATA,
    Column("adapter_id", Integer, primary_key=True),
    Column("alias", String(64), primary_key=True),
    Column("number", Integer, nullable=False),
    Column("updated_at", UtcTime, nullable=False),
    Column("is_protected", Boolean, nullable=False, server_default=false()),  # moved and deleted by admins alone
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
    Column("multipart", Text, nullable=True),  # the S3 server's name of one that goes there directly, empty before it is begun there
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


NAMESPACES = Table(
    "namespaces",
    METADATA,
    Column("key", String(96), primary_key=True),  # in lower case; a namespace without a row belongs to nobody
    Column("name", String(96), nullable=False),
    Column("skeleton", String(96), nullable=False, unique=True),  # equal for names that look alike
    Column("kind", String(16), nullable=False),  # account or organisation
    Column("is_private_by_default", Boolean, nullable=False),
    Column("created_at", UtcTime, nullable=False),
)

MEMBERS = Table(
    "members",
    METADATA,
    Column("namespace", String(96), ForeignKey("namespaces.key"), primary_key=True),
    Column("account", String(64), primary_key=True),  # in lower case
    Column("role", String(16), nullable=False),
    Column("added_at", UtcTime, nullable=False),
    Index(None, "account"),
)

QUOTAS = Table(
    "quotas",
    METADATA,
    Column("namespace", String(96), primary_key=True),  # in lower case, whether or not anybody owns it
    Column("max_bytes", BigInteger, nullable=True),  # none is no limit
    Column("max_adapters", Integer, nullable=True),
    Column("max_versions", Integer, nullable=True),
)


def joined_tags(tags: Iterable[str]) -> str:
    """Return tags as a listing keeps them: sorted, on a line each; :func:`split_tags` takes them apart."""
    return "\n".join(sorted(tags))


def split_tags(joined: str) -> tuple[str, ...]:
    """Return the tags that a listing keeps."""
    return tuple(joined.split("\n")) if joined else ()


def key_of(adapter: AdapterName) -> str:
    """Return the key that an adapter is found by, whatever the case of its name."""
    return str(adapter).lower()


def upsert(connection: Connection, table: Table) -> postgresql.Insert | sqlite.Insert:
    """Return an INSERT that may say what to do ON CONFLICT, which both databases can, each by its own dialect."""
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)
