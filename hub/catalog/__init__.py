"""What the hub knows about adapters, in SQL: adapters, their numbered versions, and aliases that point to versions.

Every function works inside the caller's transaction and takes the time as an argument. A version row is written once and never
changed, and its number is never given again. Two publishers of one adapter wait for each other on the adapter's row, so numbers
are consecutive on SQLite and on PostgreSQL. :mod:`hub.catalog.holds` says which bytes are needed.
"""

from hub.catalog.aliases import delete_alias, set_alias
from hub.catalog.card_rows import drop_card, find_card, lock_adapter_id, put_card
from hub.catalog.commits import COMMIT_MESSAGES, Commit, add_message, find_made, list_commits
from hub.catalog.evaluations import list_evaluations, report_evaluation
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
from hub.catalog.lineage import find_relatives
from hub.catalog.listings import unlist
from hub.catalog.lookup import find_adapter, list_adapters, list_versions, resolve, resolve_commit
from hub.catalog.namespaces import SHARED, claim, is_owned, namespaces_of, starts_private
from hub.catalog.provenance_tables import CARDS, EVALUATIONS, LINEAGE, SIGNATURES, SIGNING_KEYS
from hub.catalog.publishing import publish
from hub.catalog.quotas import check_room
from hub.catalog.repositories import REPOSITORIES, Repository, create_repository, delete_adapter, find_repository, lock_latest
from hub.catalog.search import AdapterFilter, MetricBound, Order, check_cursor, parse_bound, problem_with
from hub.catalog.signatures import add_signature, find_signature, find_version_id, list_keys, register_keys
from hub.catalog.tables import (
    ADAPTERS,
    ALIASES,
    BLOBS,
    HOLDS,
    LISTING_METRICS,
    LISTING_TAGS,
    LISTINGS,
    MEMBERS,
    NAMESPACES,
    QUOTAS,
    UPLOAD_PARTS,
    UPLOADS,
    VERSIONS,
)
from hub.catalog.tags import TAGS, Tag, create_tag, delete_tag, list_tags, refuse_tag
from hub.catalog.uploads import (
    Part,
    Upload,
    add_part,
    close_upload,
    find_upload,
    forget_expired_direct,
    forget_expired_uploads,
    list_expired_direct,
    name_multipart,
    open_upload,
)
from hub.catalog.visibility import check_path, check_publisher, require_right, right_of, seen_by, set_visibility

__all__ = [
    "ADAPTERS",
    "ALIASES",
    "BLOBS",
    "CARDS",
    "COMMIT_MESSAGES",
    "EVALUATIONS",
    "HOLDS",
    "LINEAGE",
    "LISTINGS",
    "LISTING_METRICS",
    "LISTING_TAGS",
    "MEMBERS",
    "NAMESPACES",
    "QUOTAS",
    "REPOSITORIES",
    "SHARED",
    "SIGNATURES",
    "SIGNING_KEYS",
    "TAGS",
    "UPLOADS",
    "UPLOAD_PARTS",
    "VERSIONS",
    "AdapterFilter",
    "Commit",
    "MetricBound",
    "Order",
    "Part",
    "Repository",
    "Stock",
    "Tag",
    "Upload",
    "add_message",
    "add_part",
    "add_signature",
    "arrive",
    "check_cursor",
    "check_path",
    "check_publisher",
    "check_room",
    "choose_leaving",
    "claim",
    "close_upload",
    "count_facets",
    "create_repository",
    "create_tag",
    "delete_adapter",
    "delete_alias",
    "delete_tag",
    "drop_card",
    "expect",
    "find_adapter",
    "find_card",
    "find_had",
    "find_made",
    "find_relatives",
    "find_repository",
    "find_signature",
    "find_upload",
    "find_version_id",
    "forget",
    "forget_expired_direct",
    "forget_expired_uploads",
    "hold",
    "is_owned",
    "let_go",
    "list_adapters",
    "list_commits",
    "list_evaluations",
    "list_expired_direct",
    "list_keys",
    "list_tags",
    "list_unheld",
    "list_versions",
    "lock_adapter_id",
    "lock_latest",
    "name_multipart",
    "namespaces_of",
    "open_upload",
    "parse_bound",
    "problem_with",
    "publish",
    "put_card",
    "refuse_tag",
    "register_keys",
    "report_evaluation",
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
    "unlist",
    "upload_of",
    "version_of",
]
