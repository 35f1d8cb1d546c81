"""What the catalog answers: adapters, versions, and what a reference means now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from sqlalchemy import Connection, Row, Select, String, bindparam, cast, column, func, select, table

from hub.catalog.cursors import make_cursor, read_cursor
from hub.catalog.search import AdapterFilter, Order, Selected, behind, cursor_at, ordering
from hub.catalog.search_plan import Wish, select_listings
from hub.catalog.tables import ADAPTERS, ALIASES, LISTINGS, VERSIONS, key_of, split_tags
from hub.catalog.tags import find_tagged
from hub.catalog.visibility import seen_by
from infra.principals import Principal
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterPage, AdapterRef, AdapterView, Manifest, VersionPage, VersionView
from wegeft.contracts.errors import AdapterNotFound, AliasNotFound, VersionNotFound

_VERSIONS_LIST = "versions"
_LISTED = ("base_model", "method", "rank", "task", "licence", "size", "tags")
_PAGED = ("version_id", "adapter_id", "key", *_LISTED)
_NAMED = tuple(ADAPTERS.c[name] for name in ("id", "namespace", "name", "latest_number", "created_at", "updated_at", "is_private"))
_ALIASES = (
    select(func.aggregate_strings(ALIASES.c.alias + "=" + cast(ALIASES.c.number, String), "\n"))
    .where(ALIASES.c.adapter_id == ADAPTERS.c.id)
    .correlate(ADAPTERS)  # and nothing else, for a statement may be about one alias besides
    .scalar_subquery()
    .label("aliases")
)
"""Of one adapter, in one text."""
_PAGE = table("page", *(column(name, LISTINGS.c[name].type) for name in _PAGED))
_ORDERED = Selected(source=_PAGE, listed=_PAGE.c, conditions=(), newness=_PAGE.c.version_id, key=_PAGE.c.key)
_WHOLE = select(*_PAGE.c, *_NAMED, _ALIASES).join_from(_PAGE, ADAPTERS, ADAPTERS.c.id == _PAGE.c.adapter_id)
_SHOWN: dict[Order, Select[Any]] = {order: _WHOLE.order_by(*ordering(order, _ORDERED)) for order in get_args(Order)}
"""What is shown of a page, by the order of the list."""


def find_adapter(connection: Connection, adapter: AdapterName) -> AdapterView:
    """Return the adapter, whatever the case of its name; raise :class:`AdapterNotFound`."""
    described = (LISTINGS.c[name] for name in _LISTED)
    listed = select(*_NAMED, _ALIASES, *described).join_from(ADAPTERS, LISTINGS, LISTINGS.c.adapter_id == ADAPTERS.c.id)
    row = connection.execute(listed.where(ADAPTERS.c.key == key_of(adapter))).one_or_none()
    if row is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    protected = select(ALIASES.c.alias).where(ALIASES.c.adapter_id == row.id, ALIASES.c.is_protected).order_by(ALIASES.c.alias)
    return AdapterView.model_validate({**_shown(row._asdict()), "protected_aliases": tuple(connection.execute(protected).scalars())})


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
    selected = select_listings(connection, wanted or AdapterFilter(), Wish(order=order, page=limit + 1))
    query = selected.query(_PAGED).where(seen_by(reader, selected.listed))
    if after is not None:
        query = query.where(behind(order, after, selected))
    page = query.order_by(*ordering(order, selected)).limit(limit + 1)
    # What the list does not sort by is fetched for the page alone.
    result = connection.execute(_SHOWN[order].add_cte(page.cte(_PAGE.name)))
    names, rows = tuple(result.keys()), result.all()
    next_cursor = cursor_at(order, rows[limit - 1]) if len(rows) > limit else None
    # Dictionaries, for a row takes long to find what it is asked for by name; and checked at once, which is quicker than one by one.
    shown = [_shown(dict(zip(names, row, strict=True))) for row in rows[:limit]]
    return AdapterPage.model_validate({"adapters": shown, "next_cursor": next_cursor})


def _shown(listed: dict[str, Any]) -> dict[str, object]:
    """Return what an :class:`AdapterView` is made of, where a row of a list or of one adapter has its columns by name."""
    return {
        "adapter": f"{listed['namespace']}/{listed['name']}",
        "latest_version": listed["latest_number"],
        "aliases": {**_pointed(listed["aliases"]), LATEST: listed["latest_number"]},
        "base_model": listed["base_model"],
        "method": listed["method"],
        "rank": listed["rank"],
        "task": listed["task"] or None,
        "license": listed["licence"] or None,
        "tags": split_tags(listed["tags"]),
        "created_at": listed["created_at"],
        "updated_at": listed["updated_at"],
        "size": listed["size"],
        "visibility": "private" if listed["is_private"] else "public",
    }


def _pointed(aliases: str | None) -> dict[str, int]:
    """Return which version each alias points to."""
    found = (line.rpartition("=") for line in aliases.split("\n")) if aliases else ()
    return {alias: int(number) for alias, _, number in found}


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
    return _version_view(row)


def resolve_commit(connection: Connection, adapter: AdapterName, commit: str) -> VersionView:
    """Return the version whose manifest digest starts with ``commit``, 40 hex digits; raise as :func:`resolve` does."""
    is_named = VERSIONS.c.manifest_digest.startswith(f"sha256:{commit}", autoescape=True)
    row = connection.execute(_versions().where(ADAPTERS.c.key == key_of(adapter), is_named)).one_or_none()
    if row is None:
        found = find_adapter(connection, adapter)
        raise VersionNotFound(path=found.adapter, value=commit, hint=f"the latest is {found.latest_version}")
    return _version_view(row)


def _explain_missing(connection: Connection, ref: AdapterRef) -> Exception:
    adapter = find_adapter(connection, ref.adapter)
    if ref.number is not None:
        return VersionNotFound(path=adapter.adapter, value=ref.number, hint=f"the latest is {adapter.latest_version}")
    return AliasNotFound(path=adapter.adapter, value=ref.selector, hint=f"there are {', '.join(sorted(adapter.aliases))}")


def list_versions(connection: Connection, adapter: AdapterName, limit: int, after: str | None = None) -> VersionPage:
    """Return up to ``limit`` versions, newest first; raise :class:`AdapterNotFound`, and :class:`InvalidRequest` for a foreign cursor."""
    query = _versions(has_aliases=False).where(ADAPTERS.c.key == key_of(adapter)).order_by(VERSIONS.c.number.desc()).limit(limit + 1)
    if after is not None:
        [number] = read_cursor(after, _VERSIONS_LIST, (int,))
        query = query.where(VERSIONS.c.number < number)
    rows = connection.execute(query).all()
    if not rows:
        find_adapter(connection, adapter)
    pointing = _pointing(connection, rows[:limit])
    views = tuple(_version_view(row, pointing[row.number]) for row in rows[:limit])
    return VersionPage(versions=views, next_cursor=make_cursor(_VERSIONS_LIST, [rows[limit - 1].number]) if len(rows) > limit else None)


def _pointing(connection: Connection, rows: Sequence[Row[Any]]) -> dict[int, list[str]]:
    """Return the aliases of one adapter's versions, by number: all at once, for each version would look through all aliases anew."""
    found: dict[int, list[str]] = defaultdict(list)
    is_asked = ALIASES.c.adapter_id.in_({row.adapter_id for row in rows}) & ALIASES.c.number.in_([row.number for row in rows])
    for alias, number in connection.execute(select(ALIASES.c.alias, ALIASES.c.number).where(is_asked)):
        found[number].append(alias)
    return found


def _versions(*, has_aliases: bool = True) -> Select[Any]:
    named = (ADAPTERS.c.namespace, ADAPTERS.c.name, ADAPTERS.c.latest_number, ADAPTERS.c.is_private)
    return select(*VERSIONS.c, *named, *((_ALIASES,) if has_aliases else ())).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)


_VERSIONS_OF = _versions().where(ADAPTERS.c.key == bindparam("key"))
_NUMBERED = _VERSIONS_OF.where(VERSIONS.c.number == bindparam("number"))
_NEWEST = _VERSIONS_OF.where(VERSIONS.c.number == ADAPTERS.c.latest_number)
_POINTED = _VERSIONS_OF.join(
    ALIASES,
    (ALIASES.c.adapter_id == ADAPTERS.c.id) & (ALIASES.c.number == VERSIONS.c.number) & (ALIASES.c.alias == bindparam("alias")),
)
"""Asked again and again, as the others: made once, because making a statement takes as long as asking it."""


def _version_view(row: Row[Any], aliases: Iterable[str] | None = None) -> VersionView:
    if aliases is None:
        aliases = (alias for alias, number in _pointed(row.aliases).items() if number == row.number)
    pointing = sorted(aliases)
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
