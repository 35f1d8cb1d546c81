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
from hub.catalog.publishing import publish
from hub.catalog.search import AdapterFilter, Order
from hub.catalog.tables import ADAPTERS, ALIASES, BLOBS, HOLDS, UPLOAD_PARTS, UPLOADS, VERSIONS
from hub.catalog.uploads import Part, Upload, add_part, close_upload, find_upload, forget_expired_uploads, open_upload

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "BLOBS",
    "HOLDS",
    "UPLOADS",
    "UPLOAD_PARTS",
    "VERSIONS",
    "AdapterFilter",
    "Order",
    "Part",
    "Stock",
    "Upload",
    "add_part",
    "arrive",
    "choose_leaving",
    "close_upload",
    "delete_alias",
    "expect",
    "find_adapter",
    "find_had",
    "find_upload",
    "forget",
    "forget_expired_uploads",
    "hold",
    "let_go",
    "list_adapters",
    "list_unheld",
    "list_versions",
    "open_upload",
    "publish",
    "resolve",
    "resolve_commit",
    "seize",
    "set_alias",
    "take_stock",
    "upload_of",
    "version_of",
]
