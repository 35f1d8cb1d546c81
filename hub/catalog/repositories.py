"""Adapters before their first version and after their last: names that somebody has made, and names that are given up.

An adapter without a version is nothing to those who read; only whoever is about to publish to it sees it. The row of an adapter that
was deleted stays without versions, because its numbers are never given again.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Column, Connection, ForeignKey, Integer, Select, String, Table, delete, insert, select, update

from hub.catalog.holds import let_go, version_of
from hub.catalog.tables import ADAPTERS, VERSIONS, key_of, upsert
from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import AdapterNotFound, Conflict

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


def create_repository(connection: Connection, adapter: AdapterName, created_by: str, now: datetime) -> None:
    """Make a name for versions to come; raise :class:`Conflict` where there is such an adapter, with versions or without."""
    row = {"key": key_of(adapter), "namespace": adapter.namespace, "name": adapter.name, "latest_number": 0, "next_number": 1}
    added = upsert(connection, ADAPTERS).values({**row, "created_at": now, "updated_at": now})
    locked = added.on_conflict_do_update(index_elements=[ADAPTERS.c.key], set_={"key": ADAPTERS.c.key})
    found = connection.execute(locked.returning(ADAPTERS.c.id, ADAPTERS.c.latest_number)).one()
    is_made = connection.execute(select(REPOSITORIES.c.adapter_id).where(REPOSITORIES.c.adapter_id == found.id)).first() is not None
    if found.latest_number or is_made:
        raise Conflict("there is such an adapter already", path="adapter", value=str(adapter))
    named = {"namespace": adapter.namespace, "name": adapter.name, "created_at": now, "updated_at": now}
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == found.id).values(named))
    connection.execute(insert(REPOSITORIES).values(adapter_id=found.id, created_by=created_by, created_at=now))


def find_repository(connection: Connection, adapter: AdapterName) -> Repository:
    """Return an adapter that was made and has no version yet; raise :class:`AdapterNotFound` for any other."""
    row = connection.execute(_repositories().where(ADAPTERS.c.key == key_of(adapter), ADAPTERS.c.latest_number == 0)).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return Repository(adapter=f"{row.namespace}/{row.name}", created_at=row.created_at)


def _repositories() -> Select[Any]:
    named = (ADAPTERS.c.namespace, ADAPTERS.c.name, REPOSITORIES.c.created_at)
    return select(*named).join(REPOSITORIES, REPOSITORIES.c.adapter_id == ADAPTERS.c.id)


def lock_latest(connection: Connection, adapter: AdapterName) -> int:
    """Return the newest version's number, 0 where there is none yet, and let nobody publish before the transaction ends."""
    query = select(ADAPTERS.c.latest_number).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()
    return int(connection.execute(query).scalar_one_or_none() or 0)


def delete_adapter(connection: Connection, adapter: AdapterName, until: datetime) -> None:
    """Forget an adapter, its versions and their names; bytes that nothing else names go ``until`` then.

    A number is never given again: whoever publishes under the same name later goes on counting. Raises :class:`AdapterNotFound`.
    """
    query = select(ADAPTERS.c.id, ADAPTERS.c.latest_number).where(ADAPTERS.c.key == key_of(adapter)).with_for_update()
    row = connection.execute(query).one_or_none()
    if row is None or not row.latest_number:
        find_repository(connection, adapter)
    assert row is not None  # noqa: S101 - otherwise there was no such repository
    for source in connection.execute(select(VERSIONS.c.source).where(VERSIONS.c.adapter_id == row.id)).scalars().all():
        let_go(connection, version_of(source), until)
    for table in _tables_about_adapters():
        connection.execute(delete(table).where(table.c.adapter_id == row.id))
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == row.id).values(latest_number=0))


def _tables_about_adapters() -> Iterator[Table]:
    """Yield every table whose rows belong to one adapter, those first that refer to others."""
    for table in reversed(METADATA.sorted_tables):
        owners = {key.column.table.name for key in table.foreign_keys if key.parent.name == "adapter_id"}
        if owners & {ADAPTERS.name, VERSIONS.name}:
            yield table
