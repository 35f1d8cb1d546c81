"""What the catalog answers: adapters, versions, and what a reference means now."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, Select, select

from hub.catalog.cursors import make_cursor, read_cursor
from hub.catalog.search import AdapterFilter, Order, behind, conditions, cursor_at, ordering
from hub.catalog.tables import ADAPTERS, ALIASES, VERSIONS, key_of
from hub.catalog.tags import find_tagged
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterPage, AdapterRef, AdapterView, Manifest, VersionPage, VersionView
from wegeft.contracts.errors import AdapterNotFound, AliasNotFound, VersionNotFound

_VERSIONS_LIST = "versions"
_LATEST_VERSION = (VERSIONS.c.adapter_id == ADAPTERS.c.id) & (VERSIONS.c.number == ADAPTERS.c.latest_number)


def find_adapter(connection: Connection, adapter: AdapterName) -> AdapterView:
    """Return the adapter, whatever the case of its name; raise :class:`AdapterNotFound`."""
    row = connection.execute(_adapters().where(ADAPTERS.c.key == key_of(adapter))).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return _adapter_view(row, _aliases_of(connection, [row.id]))


def list_adapters(
    connection: Connection, limit: int, after: str | None = None, *, wanted: AdapterFilter | None = None, order: Order = "name"
) -> AdapterPage:
    """Return up to ``limit`` adapters, from the cursor ``after`` on; raise :class:`InvalidRequest` for a foreign cursor."""
    query = _adapters().where(*conditions(wanted or AdapterFilter())).order_by(*ordering(order)).limit(limit + 1)
    if after is not None:
        query = query.where(behind(order, after))
    rows = connection.execute(query).all()
    aliases = _aliases_of(connection, [row.id for row in rows[:limit]])
    views = tuple(_adapter_view(row, aliases) for row in rows[:limit])
    return AdapterPage(adapters=views, next_cursor=cursor_at(order, rows[limit - 1]) if len(rows) > limit else None)


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
    """Return the version that a reference means now, by its number, a tag or an alias.

    Raises :class:`AdapterNotFound`, :class:`VersionNotFound` for a number and :class:`AliasNotFound` for a name.
    """
    query = _versions().where(ADAPTERS.c.key == key_of(ref.adapter))
    if ref.number is not None:
        query = query.where(VERSIONS.c.number == ref.number)
    elif ref.selector == LATEST:
        query = query.where(VERSIONS.c.number == ADAPTERS.c.latest_number)
    elif (tagged := find_tagged(connection, ref.adapter, ref.selector)) is not None:
        query = query.where(VERSIONS.c.number == tagged)  # first, so that no alias that comes later changes what a tag means
    else:
        pointed = (ALIASES.c.adapter_id == ADAPTERS.c.id) & (ALIASES.c.number == VERSIONS.c.number) & (ALIASES.c.alias == ref.selector)
        query = query.join(ALIASES, pointed)
    row = connection.execute(query).one_or_none()
    if row is None:
        raise _explain_missing(connection, ref)
    return _version_view(row, _aliases_of(connection, [row.adapter_id]))


def resolve_commit(connection: Connection, adapter: AdapterName, commit: str) -> VersionView:
    """Return the version whose manifest digest starts with ``commit``, 40 hex digits; raise as :func:`resolve` does."""
    is_named = VERSIONS.c.manifest_digest.startswith(f"sha256:{commit}", autoescape=True)
    row = connection.execute(_versions().where(ADAPTERS.c.key == key_of(adapter), is_named)).one_or_none()
    if row is None:
        found = find_adapter(connection, adapter)
        raise VersionNotFound(path=found.adapter, value=commit, hint=f"the latest is {found.latest_version}")
    return _version_view(row, _aliases_of(connection, [row.adapter_id]))


def _explain_missing(connection: Connection, ref: AdapterRef) -> Exception:
    adapter = find_adapter(connection, ref.adapter)
    if ref.number is not None:
        return VersionNotFound(path=adapter.adapter, value=ref.number, hint=f"the latest is {adapter.latest_version}")
    return AliasNotFound(path=adapter.adapter, value=ref.selector, hint=f"there are {', '.join(sorted(adapter.aliases))}")


def list_versions(connection: Connection, adapter: AdapterName, limit: int, after: str | None = None) -> VersionPage:
    """Return up to ``limit`` versions, newest first; raise :class:`AdapterNotFound`, and :class:`InvalidRequest` for a foreign cursor."""
    query = _versions().where(ADAPTERS.c.key == key_of(adapter)).order_by(VERSIONS.c.number.desc()).limit(limit + 1)
    if after is not None:
        [number] = read_cursor(after, _VERSIONS_LIST, (int,))
        query = query.where(VERSIONS.c.number < number)
    rows = connection.execute(query).all()
    if not rows:
        find_adapter(connection, adapter)
    aliases = _aliases_of(connection, [row.adapter_id for row in rows[:1]])
    views = tuple(_version_view(row, aliases) for row in rows[:limit])
    return VersionPage(versions=views, next_cursor=make_cursor(_VERSIONS_LIST, [rows[limit - 1].number]) if len(rows) > limit else None)


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
