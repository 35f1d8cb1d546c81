"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

Every function works inside the caller's transaction and takes the time as an argument. A version row is written once and never
changed, and its number is never given again. Two publishers of one adapter wait for each other on the adapter's row, so numbers
are consecutive on SQLite and on PostgreSQL. :mod:`hub.catalog.holds` says which bytes are needed.
"""

from hub.catalog.aliases import delete_alias, set_alias
from hub.catalog.commits import COMMIT_MESSAGES, Commit, add_message, find_made, list_commits
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
from hub.catalog.repositories import REPOSITORIES, Repository, create_repository, delete_adapter, find_repository, lock_latest
from hub.catalog.search import AdapterFilter, Order
from hub.catalog.tables import ADAPTERS, ALIASES, BLOBS, HOLDS, VERSIONS
from hub.catalog.tags import TAGS, Tag, create_tag, delete_tag, list_tags, refuse_tag

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "BLOBS",
    "COMMIT_MESSAGES",
    "HOLDS",
    "REPOSITORIES",
    "TAGS",
    "VERSIONS",
    "AdapterFilter",
    "Commit",
    "Order",
    "Repository",
    "Stock",
    "Tag",
    "add_message",
    "arrive",
    "choose_leaving",
    "create_repository",
    "create_tag",
    "delete_adapter",
    "delete_alias",
    "delete_tag",
    "expect",
    "find_adapter",
    "find_had",
    "find_made",
    "find_repository",
    "forget",
    "hold",
    "let_go",
    "list_adapters",
    "list_commits",
    "list_tags",
    "list_unheld",
    "list_versions",
    "lock_latest",
    "publish",
    "refuse_tag",
    "resolve",
    "resolve_commit",
    "seize",
    "set_alias",
    "take_stock",
    "upload_of",
    "version_of",
]
