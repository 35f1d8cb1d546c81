"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

Every function works inside the caller's transaction and takes the time as an argument. A version row is written once and never
changed, and its number is never given again. Two publishers of one adapter wait for each other on the adapter's row, so numbers
are consecutive on SQLite and on PostgreSQL. :mod:`hub.catalog.holds` says which bytes are needed.
"""

from hub.catalog.aliases import delete_alias, set_alias
from hub.catalog.facets import count_facets
from hub.catalog.holds import (
    Stock,
    arrive,
    choose_leaving,
    expect,
    find_had,
    forget,
    hold,
    let_go,
    list_unheld,
    seize,
    take_stock,
    upload_of,
    version_of,
)
from hub.catalog.listings import unlist
from hub.catalog.lookup import find_adapter, list_adapters, list_versions, resolve, resolve_commit
from hub.catalog.publishing import publish
from hub.catalog.search import AdapterFilter, MetricBound, Order, check_cursor, parse_bound, problem_with
from hub.catalog.tables import ADAPTERS, ALIASES, BLOBS, HOLDS, LISTING_METRICS, LISTING_TAGS, LISTINGS, VERSIONS

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "BLOBS",
    "HOLDS",
    "LISTINGS",
    "LISTING_METRICS",
    "LISTING_TAGS",
    "VERSIONS",
    "AdapterFilter",
    "MetricBound",
    "Order",
    "Stock",
    "arrive",
    "check_cursor",
    "choose_leaving",
    "count_facets",
    "delete_alias",
    "expect",
    "find_adapter",
    "find_had",
    "forget",
    "hold",
    "let_go",
    "list_adapters",
    "list_unheld",
    "list_versions",
    "parse_bound",
    "problem_with",
    "publish",
    "resolve",
    "resolve_commit",
    "seize",
    "set_alias",
    "take_stock",
    "unlist",
    "upload_of",
    "version_of",
]
