"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

A version row is written once and never changed, and its number is never given again. Two publishers of one adapter wait for
each other on the adapter's row, so numbers are consecutive on SQLite and on PostgreSQL.
"""

from __future__ import annotations

import base64
import json
from collections import defaultdict
from datetime import datetime
from typing import Any, TypeVar

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    Row,
    Select,
    String,
    Table,
    Text,
    UniqueConstraint,
    delete,
    insert,
    select,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import IntegrityError

from hub.publication import Publication
from infra.database import METADATA, UtcTime
from wegeft.contracts.adapter import (
    LATEST,
    AdapterName,
    AdapterPage,
    AdapterRef,
    AdapterView,
    AliasMove,
    Manifest,
    VersionPage,
    VersionView,
    check_alias,
    digest_of,
)
from wegeft.contracts.errors import (
    AdapterNotFound,
    AliasMoved,
    AliasNotFound,
    Conflict,
    InvalidRequest,
    VersionNotFound,
)
from wegeft.contracts.training import PublishedVersion

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

_Position = TypeVar("_Position", str, int)


def publish(connection: Connection, publication: Publication, now: datetime) -> PublishedVersion:
    """Add a version under the next number, in the caller's transaction; publishing a source again returns the version it made.

    Creates the adapter where need be. Raises :class:`Conflict` where the source has published to another adapter.
    """
    adapter = _lock_adapter(connection, publication.adapter, now)
    name = f"{adapter.namespace}/{adapter.name}"
    made = connection.execute(select(VERSIONS.c.adapter_id, VERSIONS.c.number).where(VERSIONS.c.source == publication.source)).one_or_none()
    if made is not None and made.adapter_id != adapter.id:
        raise Conflict("this source has published to another adapter", path="source", value=publication.source)
    if made is not None:
        return PublishedVersion(adapter=name, version=made.number)
    number: int = adapter.next_number
    try:
        connection.execute(insert(VERSIONS).values(adapter_id=adapter.id, number=number, **_version_row(publication, now)))
    except IntegrityError as error:
        raise Conflict("this source is being published to another adapter", path="source", value=publication.source) from error
    grown = {"latest_number": number, "next_number": number + 1, "updated_at": now}
    connection.execute(update(ADAPTERS).where(ADAPTERS.c.id == adapter.id).values(grown))
    return PublishedVersion(adapter=name, version=number)


def _lock_adapter(connection: Connection, adapter: AdapterName, now: datetime) -> Row[Any]:
    """Return the adapter's row, made where need be, and hold it until the transaction ends."""
    row = {"key": _key(adapter), "namespace": adapter.namespace, "name": adapter.name, "latest_number": 0, "next_number": 1}
    added = _upsert(connection, ADAPTERS).values({**row, "created_at": now, "updated_at": now})
    locked = added.on_conflict_do_update(index_elements=[ADAPTERS.c.key], set_={"key": ADAPTERS.c.key})
    return connection.execute(locked.returning(*ADAPTERS.c)).one()


def _upsert(connection: Connection, table: Table) -> Any:
    return postgresql.insert(table) if connection.dialect.name == "postgresql" else sqlite.insert(table)


def _version_row(publication: Publication, now: datetime) -> dict[str, Any]:
    manifest = publication.manifest(now).to_bytes()
    return {
        "source": publication.source,
        "manifest": manifest.decode(),
        "manifest_digest": digest_of(manifest),
        "base_model": publication.base_model,
        "method": publication.method,
        "rank": publication.rank,
        "size": publication.size,
        "metrics": dict(publication.metrics),
        "created_at": now,
        "created_by": publication.created_by,
    }


def _key(adapter: AdapterName) -> str:
    return str(adapter).lower()


_LATEST_VERSION = (VERSIONS.c.adapter_id == ADAPTERS.c.id) & (VERSIONS.c.number == ADAPTERS.c.latest_number)


def find_adapter(connection: Connection, adapter: AdapterName) -> AdapterView:
    """Return the adapter, whatever the case of its name; raise :class:`AdapterNotFound`."""
    row = connection.execute(_adapters().where(ADAPTERS.c.key == _key(adapter))).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return _adapter_view(row, _aliases_of(connection, [row.id]))


def list_adapters(connection: Connection, limit: int, after: str | None = None) -> AdapterPage:
    """Return up to ``limit`` adapters by name, from the cursor ``after`` on; raise :class:`InvalidRequest` for a foreign cursor."""
    query = _adapters().order_by(ADAPTERS.c.key).limit(limit + 1)
    if after is not None:
        query = query.where(ADAPTERS.c.key > _read_cursor(after, str))
    rows = connection.execute(query).all()
    aliases = _aliases_of(connection, [row.id for row in rows[:limit]])
    views = tuple(_adapter_view(row, aliases) for row in rows[:limit])
    return AdapterPage(adapters=views, next_cursor=_cursor(rows[limit - 1].key) if len(rows) > limit else None)


def _adapters() -> Select[Any]:
    shown = (VERSIONS.c.base_model, VERSIONS.c.method, VERSIONS.c.rank, VERSIONS.c.size)
    return select(*ADAPTERS.c, *shown).join(VERSIONS, _LATEST_VERSION)


def _adapter_view(row: Row[Any], aliases: dict[int, dict[str, int]]) -> AdapterView:
    return AdapterView(
        adapter=f"{row.namespace}/{row.name}",
        latest_version=row.latest_number,
        aliases={**aliases[row.id], LATEST: row.latest_number},
        base_model=row.base_model,
        method=row.method,
        rank=row.rank,
        created_at=row.created_at,
        updated_at=row.updated_at,
        size=row.size,
    )


def resolve(connection: Connection, ref: AdapterRef) -> VersionView:
    """Return the version that a reference means now.

    Raises :class:`AdapterNotFound`, :class:`VersionNotFound` for a number and :class:`AliasNotFound` for an alias.
    """
    query = _versions().where(ADAPTERS.c.key == _key(ref.adapter))
    if ref.number is not None:
        query = query.where(VERSIONS.c.number == ref.number)
    elif ref.selector == LATEST:
        query = query.where(VERSIONS.c.number == ADAPTERS.c.latest_number)
    else:
        pointed = (ALIASES.c.adapter_id == ADAPTERS.c.id) & (ALIASES.c.number == VERSIONS.c.number) & (ALIASES.c.alias == ref.selector)
        query = query.join(ALIASES, pointed)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _explain_missing(connection, ref)
    return _version_view(row, _aliases_of(connection, [row.adapter_id]))


def _explain_missing(connection: Connection, ref: AdapterRef) -> Exception:
    adapter = find_adapter(connection, ref.adapter)
    if ref.number is not None:
        return VersionNotFound(path=adapter.adapter, value=ref.number, hint=f"the latest is {adapter.latest_version}")
    return AliasNotFound(path=adapter.adapter, value=ref.selector, hint=f"there are {', '.join(sorted(adapter.aliases))}")


def list_versions(connection: Connection, adapter: AdapterName, limit: int, after: str | None = None) -> VersionPage:
    """Return up to ``limit`` versions, newest first; raise :class:`AdapterNotFound`, and :class:`InvalidRequest` for a foreign cursor."""
    query = _versions().where(ADAPTERS.c.key == _key(adapter)).order_by(VERSIONS.c.number.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(VERSIONS.c.number < _read_cursor(after, int))
    rows = connection.execute(query).all()
    if not rows:
        find_adapter(connection, adapter)
    aliases = _aliases_of(connection, [row.adapter_id for row in rows[:1]])
    views = tuple(_version_view(row, aliases) for row in rows[:limit])
    return VersionPage(versions=views, next_cursor=_cursor(rows[limit - 1].number) if len(rows) > limit else None)


def _versions() -> Select[Any]:
    named = (ADAPTERS.c.namespace, ADAPTERS.c.name, ADAPTERS.c.latest_number)
    return select(*VERSIONS.c, *named).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)


def _version_view(row: Row[Any], aliases: dict[int, dict[str, int]]) -> VersionView:
    pointing = sorted(alias for alias, number in aliases[row.adapter_id].items() if number == row.number)
    return VersionView(
        adapter=f"{row.namespace}/{row.name}",
        version=row.number,
        manifest_digest=row.manifest_digest,
        manifest=Manifest.model_validate_json(row.manifest),
        aliases=(*pointing, LATEST) if row.number == row.latest_number else tuple(pointing),
        source=row.source,
        base_model=row.base_model,
        method=row.method,
        rank=row.rank,
        metrics=row.metrics,
        created_at=row.created_at,
        size=row.size,
    )


def _aliases_of(connection: Connection, adapter_ids: list[int]) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(select(ALIASES).where(ALIASES.c.adapter_id.in_(adapter_ids))):
        found[row.adapter_id][row.alias] = row.number
    return found


def set_alias(connection: Connection, adapter: AdapterName, alias: str, move: AliasMove, now: datetime) -> None:
    """Let an alias point to a version, unless it has moved from where ``move`` expects it: then raise :class:`AliasMoved`.

    Raises :class:`VersionNotFound`, and :class:`InvalidRequest` for ``latest``, which follows the versions by itself.
    """
    row = {"adapter_id": _settable(connection, adapter, alias), "alias": alias, "number": move.version, "updated_at": now}
    resolve(connection, AdapterRef(adapter=adapter, selector=str(move.version)))
    added = _upsert(connection, ALIASES).values(row)
    is_ours = (ALIASES.c.adapter_id == row["adapter_id"]) & (ALIASES.c.alias == alias)
    change: Any
    match move.expected:
        case None:
            change = added.on_conflict_do_update(index_elements=list(ALIASES.primary_key), set_=row)
        case 0:
            change = added.on_conflict_do_nothing()
        case expected:
            change = update(ALIASES).where(is_ours, ALIASES.c.number == expected).values(row)
    if connection.execute(change.returning(ALIASES.c.number)).one_or_none() is None:
        _check_already(connection, is_ours, move)


def _check_already(connection: Connection, is_ours: ColumnElement[bool], move: AliasMove) -> None:
    """Let a repeated request pass: the alias is already where it should go."""
    number = connection.execute(select(ALIASES.c.number).where(is_ours)).scalar_one_or_none()
    if number != move.version:
        raise AliasMoved(
            path="expected", value=move.expected, hint="it points nowhere now" if number is None else f"it points to {number} now"
        )


def delete_alias(connection: Connection, adapter: AdapterName, alias: str) -> None:
    """Forget an alias; raise :class:`AliasNotFound` where there is none, and :class:`InvalidRequest` for ``latest``."""
    adapter_id = _settable(connection, adapter, alias)
    gone = delete(ALIASES).where(ALIASES.c.adapter_id == adapter_id, ALIASES.c.alias == alias)
    if not connection.execute(gone).rowcount:
        raise AliasNotFound(path=str(adapter), value=alias)


def _settable(connection: Connection, adapter: AdapterName, alias: str) -> int:
    if check_alias(alias) == LATEST:
        raise InvalidRequest("this alias follows the newest version by itself", path="alias", value=alias, hint="use another name")
    adapter_id: int | None = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == _key(adapter))).scalar_one_or_none()
    if adapter_id is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return adapter_id


def _cursor(position: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, kind: type[_Position]) -> _Position:
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        position = None
    if type(position) is not kind or not _is_storable(position):
        raise InvalidRequest("not a cursor of this list", path="after", value=cursor, hint="pass next_cursor of the page before, unchanged")
    return position


def _is_storable(position: str | int) -> bool:
    return position.isprintable() if isinstance(position, str) else 0 <= position < 2**31
