"""What a list holds, counted by property."""

from __future__ import annotations

from sqlalchemy import Boolean, ColumnElement, Connection, Select, String, case, cast, func, join, literal, select, union_all

from hub.catalog.search import AdapterFilter
from hub.catalog.search_plan import select_listings
from hub.catalog.tables import ADAPTERS, LISTING_TAGS, LISTINGS
from hub.catalog.visibility import seen_by
from infra.principals import Principal
from wegeft.contracts.adapter import AdapterFacets, FacetValue

COUNTED_AT_MOST = 1000
"""Adapters, so that a page of a large hub costs no more than one of a small one."""
MAX_VALUES = 20
"""Of each facet."""
_COLUMNS = {
    "base_model": "base_name",
    "method": "method",
    "rank": "rank",
    "task": "task",
    "licence": "licence",
    "format": "format",
    "signed": "is_signed",
    "namespace": "namespace",
}


def count_facets(
    connection: Connection, wanted: AdapterFilter, at_most: int = COUNTED_AT_MOST, *, reader: Principal | None = None
) -> AdapterFacets:
    """Count the adapters that a filter selects and ``reader`` may see by what they are; of more than ``at_most``, the last published ones.

    None sees what is public.
    """
    selected = select_listings(connection, wanted)
    listed = join(selected.source, ADAPTERS, ADAPTERS.c.id == LISTINGS.c.adapter_id)
    columns = [LISTINGS.c[name] for name in ("version_id", *_COLUMNS.values())]
    seen = (seen_by(connection, reader), *selected.conditions)
    floor = 0 if selected.floor is None else connection.execute(select(selected.floor)).scalar_one()
    if floor:
        seen = (*seen, selected.newness > floor)
    query = select(*columns).select_from(listed).where(*seen).order_by(selected.newness.desc()).limit(at_most + 1)
    found = query.cte("found")
    counted = select(found).order_by(found.c.version_id.desc()).limit(at_most).cte("counted")
    parts: list[Select[str, str, int]] = [_counts(name, counted.c[column]) for name, column in _COLUMNS.items()]
    tagged = select(literal("tag").label("facet"), LISTING_TAGS.c.tag.label("value"), func.count().label("number"))
    # The outer join lets SQLite begin with what was counted, not with every tag that there is.
    of_counted = counted.outerjoin(LISTING_TAGS, counted.c.version_id == LISTING_TAGS.c.version_id)
    parts.append(tagged.select_from(of_counted).group_by(LISTING_TAGS.c.tag))
    parts.append(select(literal("").label("facet"), literal("").label("value"), func.count().label("number")).select_from(found))
    facets: dict[str, list[FacetValue]] = {name: [] for name in (*_COLUMNS, "tag")}
    total = 0
    for facet, value, number in connection.execute(union_all(*parts)):
        if not facet:
            total = number
        elif value not in (None, "", "0"):
            facets[facet].append(FacetValue(value=value, count=number))
    ranked = {name: tuple(sorted(values, key=_rank)[:MAX_VALUES]) for name, values in facets.items()}
    return AdapterFacets(counted=min(total, at_most), is_complete=total <= at_most and not floor, facets=ranked)


def _counts(name: str, column: ColumnElement[object]) -> Select[str, str, int]:
    told = case((column, "true"), else_="false") if isinstance(column.type, Boolean) else cast(column, String)
    value = told.label("value")
    return select(literal(name).label("facet"), value, func.count().label("number")).group_by(column)


def _rank(value: FacetValue) -> tuple[int, str]:
    return -value.count, value.value
