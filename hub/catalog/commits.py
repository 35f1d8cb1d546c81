"""What publishers say of a version, and the versions of an adapter as a history."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Column, Connection, ForeignKeyConstraint, Integer, Table, Text, insert, select

from hub.catalog.tables import ADAPTERS, VERSIONS, key_of
from infra.database import METADATA
from wegeft.contracts.adapter import AdapterName

COMMIT_MESSAGES = Table(
    "commit_messages",
    METADATA,
    Column("adapter_id", Integer, primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("summary", Text, nullable=False),
    Column("description", Text, nullable=False),
    ForeignKeyConstraint(["adapter_id", "number"], ["versions.adapter_id", "versions.number"]),
)


@dataclass(frozen=True, kw_only=True)
class Commit:
    """A version as a step of a history."""

    number: int
    manifest_digest: str
    created_at: datetime
    created_by: str
    summary: str
    """What its publisher said in a line, or what made it."""
    description: str


def add_message(connection: Connection, adapter: AdapterName, number: int, summary: str, description: str) -> None:
    """Keep what a version's publisher says of it."""
    adapter_id = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).scalar_one()
    row = {"adapter_id": adapter_id, "number": number, "summary": summary, "description": description}
    connection.execute(insert(COMMIT_MESSAGES).values(row))


def list_commits(connection: Connection, adapter: AdapterName, newest: int, limit: int) -> tuple[Commit, ...]:
    """Return up to ``limit`` versions from number ``newest`` down."""
    is_said = (COMMIT_MESSAGES.c.adapter_id == VERSIONS.c.adapter_id) & (COMMIT_MESSAGES.c.number == VERSIONS.c.number)
    shown = (VERSIONS.c.number, VERSIONS.c.manifest_digest, VERSIONS.c.created_at, VERSIONS.c.created_by, VERSIONS.c.source)
    query = select(*shown, COMMIT_MESSAGES.c.summary, COMMIT_MESSAGES.c.description)
    query = query.join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).outerjoin(COMMIT_MESSAGES, is_said)
    query = query.where(ADAPTERS.c.key == key_of(adapter), VERSIONS.c.number <= newest)
    rows = connection.execute(query.order_by(VERSIONS.c.number.desc()).limit(limit))
    return tuple(
        Commit(
            number=row.number,
            manifest_digest=row.manifest_digest,
            created_at=row.created_at,
            created_by=row.created_by,
            summary=row.summary or f"Publish {row.source}",
            description=row.description or "",
        )
        for row in rows
    )


def find_made(connection: Connection, adapter: AdapterName, source: str) -> int | None:
    """Return the number of the adapter's version whose source begins with ``source``, or None."""
    query = select(VERSIONS.c.number).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
    found = query.where(ADAPTERS.c.key == key_of(adapter), VERSIONS.c.source.startswith(source, autoescape=True))
    number: int | None = connection.execute(found.order_by(VERSIONS.c.number).limit(1)).scalar_one_or_none()
    return number
