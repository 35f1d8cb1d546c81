"""The keys that versions are signed with, and the signed bundles."""

from __future__ import annotations

from datetime import datetime
from typing import get_args

from sqlalchemy import Connection, bindparam, select, update

from hub.catalog.provenance_tables import SIGNATURES, SIGNING_KEYS
from hub.catalog.tables import ADAPTERS, LISTINGS, VERSIONS, key_of, upsert
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.signing_keys import Algorithm, KeySet, PublicKeyView

_KEYS = select(SIGNING_KEYS).order_by(SIGNING_KEYS.c.created_at, SIGNING_KEYS.c.algorithm.desc(), SIGNING_KEYS.c.id)
_BUNDLE = (
    select(SIGNATURES.c.bundle)
    .join(VERSIONS, VERSIONS.c.id == SIGNATURES.c.version_id)
    .join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
    .where(ADAPTERS.c.key == bindparam("adapter"), VERSIONS.c.number == bindparam("version"), SIGNATURES.c.kind == bindparam("of_kind"))
)
"""Asked by every pull, as the one above: made once, because making it takes as long as asking."""


def register_keys(connection: Connection, keys: tuple[PublicKeyView, ...], now: datetime) -> None:
    """Note the keys that are used from now on; those that were used before stay known, and retire."""
    for key in keys:
        row = key.model_dump() | {"created_at": now, "retired_at": None}
        added = upsert(connection, SIGNING_KEYS).values(row)
        connection.execute(added.on_conflict_do_update(index_elements=[SIGNING_KEYS.c.id], set_={"retired_at": None}))
    is_old = SIGNING_KEYS.c.id.not_in([key.id for key in keys])
    connection.execute(update(SIGNING_KEYS).where(is_old, SIGNING_KEYS.c.retired_at.is_(None)).values(retired_at=now))


def list_keys(connection: Connection) -> KeySet:
    """Return every key, oldest first."""
    rows = connection.execute(_KEYS)
    return KeySet(keys=tuple(PublicKeyView.model_validate(dict(row._mapping)) for row in rows))  # noqa: SLF001 - the name is SQLAlchemy's


def add_signature(connection: Connection, version_id: int, kind: str, bundle: tuple[str, str], now: datetime) -> None:
    """Keep a bundle, ``(text, key id)``, of a version, unless it has one of this kind."""
    text, key = bundle
    row = {"version_id": version_id, "kind": kind, "key_id": key, "bundle": text, "created_at": now}
    connection.execute(upsert(connection, SIGNATURES).values(row).on_conflict_do_nothing())
    if kind in get_args(Algorithm):
        connection.execute(update(LISTINGS).where(LISTINGS.c.version_id == version_id).values(is_signed=True))


def find_signature(connection: Connection, adapter: AdapterName, number: int, kind: str) -> str | None:
    """Return a version's bundle of a kind; None where it was not signed yet."""
    meant = {"adapter": key_of(adapter), "version": number, "of_kind": kind}
    bundle: str | None = connection.execute(_BUNDLE, meant).scalar_one_or_none()
    return bundle


def find_version_id(connection: Connection, adapter: AdapterName, number: int) -> int:
    """Return the row of a version that exists."""
    query = select(VERSIONS.c.id).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
    found: int = connection.execute(query.where(ADAPTERS.c.key == key_of(adapter), VERSIONS.c.number == number)).scalar_one()
    return found
