"""What the catalog answers: adapters, versions, and what a reference means now."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, Row, Select, bindparam, join, select

from hub.catalog.cursors import make_cursor, read_cursor
from hub.catalog.search import AdapterFilter, Order, behind, cursor_at, ordering
from hub.catalog.search_plan import select_listings
from hub.catalog.tables import ADAPTERS, ALIASES, LISTING_TAGS, LISTINGS, VERSIONS, key_of
from hub.catalog.tags import find_tagged
from hub.catalog.visibility import seen_by
from infra.principals import Principal
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterPage, AdapterRef, AdapterView, Manifest, VersionPage, VersionView
from wegeft.contracts.errors import AdapterNotFound, AliasNotFound, VersionNotFound

_VERSIONS_LIST = "versions"
_LISTED = tuple(LISTINGS.c[name] for name in ("version_id", "base_model", "method", "rank", "task", "licence", "size"))


def find_adapter(connection: Connection, adapter: AdapterName) -> AdapterView:
    """Return the adapter, whatever the case of its name; raise :class:`AdapterNotFound`."""
    listed = select(*ADAPTERS.c, *_LISTED).join(LISTINGS, LISTINGS.c.adapter_id == ADAPTERS.c.id)
    row = connection.execute(listed.where(ADAPTERS.c.key == key_of(adapter))).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    view = _adapter_view(row, _aliases_of(connection, [row.id]), _tags_of(connection, [row.version_id]))
    protected = select(ALIASES.c.alias).where(ALIASES.c.adapter_id == row.id, ALIASES.c.is_protected).order_by(ALIASES.c.alias)
    return view.model_copy(update={"protected_aliases": tuple(connection.execute(protected).scalars())})


def list_adapters(
    connection: Connection,
    limit: int,
    after: str | None = None,
    *,
    wanted: AdapterFilter | None = None,
    order: Order = "name",
    reader: Principal | None = None,
) -> AdapterPage:
    """Return up to ``limit`` adapters that ``reader`` may see, from the cursor ``after`` on; None sees what is public.

    Raises :class:`InvalidRequest` for a foreign cursor.
    """
    selected = select_listings(connection, wanted or AdapterFilter(), order)
    listed = join(selected.source, ADAPTERS, ADAPTERS.c.id == LISTINGS.c.adapter_id)
    query = select(*ADAPTERS.c, *_LISTED).select_from(listed).where(seen_by(connection, reader), *selected.conditions)
    if after is not None:
        query = query.where(behind(order, after, selected))
    query = query.order_by(*ordering(order, selected)).limit(limit + 1)
    rows = connection.execute(query).all()
    page = rows[:limit]
    aliases, tags = _aliases_of(connection, [row.id for row in page]), _tags_of(connection, [row.version_id for row in page])
    views = tuple(_adapter_view(row, aliases, tags) for row in page)
    return AdapterPage(adapters=views, next_cursor=cursor_at(order, page[-1]) if len(rows) > limit else None)


def _adapter_view(row: Row[Any], aliases: dict[int, dict[str, int]], tags: dict[int, list[str]]) -> AdapterView:
    return AdapterView(
        adapter=f"{row.namespace}/{row.name}",
        latest_version=row.latest_number,
        aliases={**aliases[row.id], LATEST: row.latest_number},
        base_model=row.base_model,
        method=row.method,
        rank=row.rank,
        task=row.task or None,
        licence=row.licence or None,
        tags=tuple(sorted(tags[row.version_id])),
        created_at=row.created_at,
        updated_at=row.updated_at,
        size=row.size,
        visibility="private" if row.is_private else "public",
    )


def resolve(connection: Connection, ref: AdapterRef) -> VersionView:
    """Return the version that a reference means now, by its number, a tag or an alias.

    Raises :class:`AdapterNotFound`, :class:`VersionNotFound` for a number and :class:`AliasNotFound` for a name.
    """
    named: dict[str, str | int] = {"key": key_of(ref.adapter)}
    if ref.number is not None:
        found = connection.execute(_NUMBERED, named | {"number": ref.number})
    elif ref.selector == LATEST:
        found = connection.execute(_NEWEST, named)
    elif (tagged := find_tagged(connection, ref.adapter, ref.selector)) is not None:
        # First, so that no alias that comes later changes what a tag means.
        found = connection.execute(_NUMBERED, named | {"number": tagged})
    else:
        found = connection.execute(_POINTED, named | {"alias": ref.selector})
    row = found.one_or_none()
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
    named = (ADAPTERS.c.namespace, ADAPTERS.c.name, ADAPTERS.c.latest_number, ADAPTERS.c.is_private)
    return select(*VERSIONS.c, *named).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)


_NAMED = _versions().where(ADAPTERS.c.key == bindparam("key"))
_NUMBERED = _NAMED.where(VERSIONS.c.number == bindparam("number"))
_NEWEST = _NAMED.where(VERSIONS.c.number == ADAPTERS.c.latest_number)
_POINTED = _NAMED.join(
    ALIASES,
    (ALIASES.c.adapter_id == ADAPTERS.c.id) & (ALIASES.c.number == VERSIONS.c.number) & (ALIASES.c.alias == bindparam("alias")),
)
_ALIASES = select(ALIASES).where(ALIASES.c.adapter_id.in_(bindparam("adapter_ids", expanding=True)))
"""Asked again and again, as the others: made once, because making a statement takes as long as asking it."""


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
        visibility="private" if row.is_private else "public",
    )


def _aliases_of(connection: Connection, adapter_ids: list[int]) -> dict[int, dict[str, int]]:
    found: dict[int, dict[str, int]] = defaultdict(dict)
    for row in connection.execute(_ALIASES, {"adapter_ids": adapter_ids}):
        found[row.adapter_id][row.alias] = row.number
    return found


def _tags_of(connection: Connection, version_ids: list[int]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = defaultdict(list)
    query = select(LISTING_TAGS.c.version_id, LISTING_TAGS.c.tag).where(LISTING_TAGS.c.version_id.in_(version_ids))
    for row in connection.execute(query):
        found[row.version_id].append(row.tag)
    return found
