"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

Every function works inside the caller's transaction and takes the time as an argument. A version row is written once and never
changed, and its number is never given again. Two publishers of one adapter wait for each other on the adapter's row, so numbers
are consecutive on SQLite and on PostgreSQL.
"""

from hub.catalog.aliases import delete_alias, set_alias
from hub.catalog.lookup import find_adapter, list_adapters, list_versions, resolve, resolve_commit
from hub.catalog.publishing import publish
from hub.catalog.search import AdapterFilter, Order
from hub.catalog.tables import ADAPTERS, ALIASES, VERSIONS

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "VERSIONS",
    "AdapterFilter",
    "Order",
    "delete_alias",
    "find_adapter",
    "list_adapters",
    "list_versions",
    "publish",
    "resolve",
    "resolve_commit",
    "set_alias",
]
