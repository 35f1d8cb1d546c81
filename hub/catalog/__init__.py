"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

Every function works inside the caller's transaction and takes the time as an argument. A version row is written once and never
changed, and its number is never given again. Two publishers of one adapter wait for each other on the adapter's row, so numbers
are consecutive on SQLite and on PostgreSQL. :mod:`hub.catalog.holds` says which bytes are needed.
"""

from hub.catalog.aliases import delete_alias, set_alias
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
from hub.catalog.lookup import find_adapter, list_adapters, list_versions, resolve, resolve_commit
from hub.catalog.namespaces import SHARED, claim, is_owned, namespaces_of, starts_private
from hub.catalog.publishing import publish
from hub.catalog.quotas import check_room
from hub.catalog.search import AdapterFilter, Order
from hub.catalog.tables import ADAPTERS, ALIASES, BLOBS, HOLDS, MEMBERS, NAMESPACES, QUOTAS, VERSIONS
from hub.catalog.visibility import check_path, check_publisher, require_right, right_of, seen_by, set_visibility

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "BLOBS",
    "HOLDS",
    "MEMBERS",
    "NAMESPACES",
    "QUOTAS",
    "SHARED",
    "VERSIONS",
    "AdapterFilter",
    "Order",
    "Stock",
    "arrive",
    "check_path",
    "check_publisher",
    "check_room",
    "choose_leaving",
    "claim",
    "delete_alias",
    "expect",
    "find_adapter",
    "find_had",
    "forget",
    "hold",
    "is_owned",
    "let_go",
    "list_adapters",
    "list_unheld",
    "list_versions",
    "namespaces_of",
    "publish",
    "require_right",
    "resolve",
    "resolve_commit",
    "right_of",
    "seen_by",
    "seize",
    "set_alias",
    "set_visibility",
    "starts_private",
    "take_stock",
    "upload_of",
    "version_of",
]
