"""What a list holds, counted by property."""

from __future__ import annotations

from collections import Counter
from itertools import chain

from sqlalchemy import Connection, select

from hub.catalog.search import AdapterFilter
from hub.catalog.search_plan import Wish, select_listings
from hub.catalog.tables import split_tags
from hub.catalog.visibility import seen_by
from infra.principals import Principal
from wegeft.contracts.adapter import AdapterFacets, FacetValue

COUNTED_AT_MOST = 1000
"""Adapters, so that a page of a large hub costs no more than one of a small one."""
MAX_VALUES = 20
"""Of each facet."""
_FEW = 10_000
"""Adapters that are looked at one by one before they are sorted; of more, the last published are."""
_COLUMNS = {
    "base_model": "base_name",
    "method": "method",
    "rank": "rank",
    "task": "task",
    "license": "licence",
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
    selected = select_listings(connection, wanted, Wish(page=at_most + 1, few=_FEW, is_counted=True))
    query = selected.query((*_COLUMNS.values(), "tags")).where(seen_by(reader, selected.listed))
    floor = 0 if selected.floor is None else connection.execute(select(selected.floor())).scalar_one()
    if floor:
        query = query.where(selected.newness > floor)
    rows = connection.execute(query.order_by(selected.newness.desc()).limit(at_most + 1)).all()
    counted = rows[:at_most]
    *values, tags = zip(*counted, strict=True) if counted else ((),) * (len(_COLUMNS) + 1)
    facets = {name: _ranked(Counter(of_each)) for name, of_each in zip(_COLUMNS, values, strict=True)}
    facets["tag"] = _ranked(Counter(chain.from_iterable(map(split_tags, tags))))
    return AdapterFacets(counted=len(counted), is_complete=len(rows) <= at_most and not floor, facets=facets)


def _ranked(counts: Counter[object]) -> tuple[FacetValue, ...]:
    """Return the most frequent values; what says nothing, as no task or the rank 0, is none."""
    told = ((_text(value), count) for value, count in counts.items() if value not in ("", 0) or value is False)
    ranked = sorted(told, key=lambda one: (-one[1], one[0]))
    return tuple(FacetValue(value=value, count=count) for value, count in ranked[:MAX_VALUES])


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
