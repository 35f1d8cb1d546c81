"""Adapters before their first version and after their last: names that somebody has made, and names that are given up.

An adapter without a version is nothing to those who read; only whoever is about to publish to it sees it. The row of an adapter that
was deleted stays without versions, because its numbers are never given again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import (
    Column,
    ColumnElement,
    Connection,
    ForeignKey,
    Integer,
    Select,
    String,
    Table,
    delete,
    insert,
    literal,
    select,
    union_all,
    update,
)

from hub.catalog.departed import depart
from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.holds import let_go, version_of
from hub.catalog.listings import unlist
from hub.catalog.namespaces import starts_private
from hub.catalog.tables import ADAPTERS, VERSIONS, key_of, upsert
from infra import audit
from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import AdapterNotFound, Conflict
from wegeft.contracts.visibility import Visibility

REPOSITORIES = Table(
    "repositories",
    METADATA,
    Column("adapter_id", Integer, ForeignKey("adapters.id"), primary_key=True),
    Column("created_by", String(200), nullable=False),
    Column("created_at", UtcTime, nullable=False),
)


@dataclass(frozen=True, kw_only=True)
class Repository:
    """An adapter that has no version yet."""

    adapter: str
    """``namespace/name``."""
    created_at: datetime
    is_private: bool


def create_repository(
    connection: Connection, adapter: AdapterName, created_by: str, now: datetime, asked: Visibility | None = None
) -> None:
    """Make a name for versions to come, seen by whom is asked for, or as its namespace has it.

    Raises :class:`Conflict` where there is such an adapter, with versions or without, or where nobody owns the namespace of a private one.
    """
    is_private = starts_private(connection, adapter.namespace, asked)
    row = {"key": key_of(adapter), "namespace": adapter.namespace, "name": adapter.name, "latest_number": 0, "next_number": 1}
    added = upsert(connection, ADAPTERS).values({**row, "created_at": now, "updated_at": now})
    locked = added.on_conflict_do_update(index_elements=[ADAPTERS.c.key], set_={"key": ADAPTERS.c.key})
    found = connection.execute(locked.returning(ADAPTERS.c.id, ADAPTERS.c.latest_number)).one()
    is_made = connection.execute(select(REPOSITORIES.c.adapter_id).where(REPOSITORIES.c.adapter_id == found.id)).first() is not None
    if found.latest_number or is_made:
        raise Conflict("there is such an adapter already", path="adapter", value=str(adapter))
    named = {"namespace": adapter.namespace, "name": adapter.name, "created_at": now, "updated_at": now, "is_private": is_private}
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == found.id).values(named))
    connection.execute(insert(REPOSITORIES).values(adapter_id=found.id, created_by=created_by, created_at=now))
    audit.note(connection, "adapter.create", str(adapter), now, is_private=is_private)


def is_made(connection: Connection, adapter_id: int) -> bool:
    """Return whether somebody has made an adapter before publishing to it."""
    return connection.execute(select(REPOSITORIES.c.adapter_id).where(REPOSITORIES.c.adapter_id == adapter_id)).first() is not None


def find_repository(connection: Connection, adapter: AdapterName) -> Repository:
    """Return an adapter that was made and has no version yet; raise :class:`AdapterNotFound` for any other."""
    row = connection.execute(_repositories().where(ADAPTERS.c.key == key_of(adapter), ADAPTERS.c.latest_number == 0)).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return Repository(adapter=f"{row.namespace}/{row.name}", created_at=row.created_at, is_private=row.is_private)


def _repositories() -> Select[Any]:
    named = (ADAPTERS.c.namespace, ADAPTERS.c.name, ADAPTERS.c.is_private, REPOSITORIES.c.created_at)
    return select(*named).join(REPOSITORIES, REPOSITORIES.c.adapter_id == ADAPTERS.c.id)


def lock_latest(connection: Connection, adapter: AdapterName) -> int:
    """Return the newest version's number, 0 where there is none yet, and let nobody publish or delete before the transaction ends."""
    query = select(ADAPTERS.c.latest_number).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()
    return int(connection.execute(query).scalar_one_or_none() or 0)


def delete_adapter(connection: Connection, adapter: AdapterName, until: datetime) -> None:
    """Forget an adapter, its versions and their names; bytes that nothing else names go ``until`` then, and count till they do.

    A number is never given again: whoever publishes under the same name later goes on counting. Raises :class:`AdapterNotFound`.
    """
    query = select(ADAPTERS.c.id, ADAPTERS.c.latest_number).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or not row.latest_number:
        find_repository(connection, adapter)
    assert row is not None  # noqa: S101 - otherwise there was no such repository
    formats = select(DERIVED_FORMATS.c.holder).join(VERSIONS, VERSIONS.c.id == DERIVED_FORMATS.c.version_id)
    formats = formats.where(VERSIONS.c.adapter_id == row.id)
    locked = formats.with_for_update(of=DERIVED_FORMATS).order_by(DERIVED_FORMATS.c.id)  # before any hold, as whoever renews one
    holders = connection.execute(locked).scalars().all()
    sources = select(VERSIONS.c.source).where(VERSIONS.c.adapter_id == row.id)
    versions = select(literal(version_of("")) + sources.subquery().c.source)
    depart(connection, adapter.namespace, union_all(versions, formats), until)
    for holder in (*map(version_of, connection.execute(sources).scalars()), *holders):
        let_go(connection, holder, until)
    unlist(connection, row.id)
    for table, is_about in _rows_about(row.id):
        connection.execute(delete(table).where(is_about))
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == row.id).values(latest_number=0))
    audit.note(connection, "adapter.delete", str(adapter), versions=row.latest_number)


def _rows_about(adapter_id: int) -> Iterator[tuple[Table, ColumnElement[bool]]]:
    """Yield which rows of which tables are about an adapter or a version of it, those first that refer to others."""
    versions = select(VERSIONS.c.id).where(VERSIONS.c.adapter_id == adapter_id)
    for table in reversed(METADATA.sorted_tables):
        for key in table.foreign_keys:
            match key.column.table.name, key.column.name, key.parent.name:
                case (ADAPTERS.name | VERSIONS.name, _, "adapter_id"):
                    yield table, key.parent == adapter_id
                case (VERSIONS.name, "id", _):
                    yield table, key.parent.in_(versions)
                case _:
                    pass
