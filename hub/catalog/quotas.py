"""How much a namespace may hold: bytes, adapters and versions; bytes that several of its versions share count once.

What was deleted counts until it is collected.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Select, func, literal, select, union_all

from hub.catalog.departed import DEPARTED
from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.holds import version_of
from hub.catalog.tables import ADAPTERS, BLOBS, HOLDS, QUOTAS, VERSIONS, key_of, upsert
from infra import audit
from wegeft.contracts.adapter import AdapterName, check_segment
from wegeft.contracts.errors import Problem, QuotaExceeded
from wegeft.contracts.quotas import Amounts, QuotaLimits, QuotaView


def find_quota(connection: Connection, namespace: str) -> QuotaView:
    """Return what a namespace may hold and what its versions do hold."""
    return QuotaView(namespace=namespace, limits=find_limits(connection, namespace), used=measure(connection, namespace))


def set_quota(connection: Connection, namespace: str, limits: QuotaLimits) -> None:
    """Limit what a namespace may hold; what is there already stays. Raises :class:`InvalidReference` for what is no namespace."""
    key = check_segment(namespace, "namespace").lower()
    row = {"namespace": key, "max_bytes": limits.bytes, "max_adapters": limits.adapters, "max_versions": limits.versions}
    added = upsert(connection, QUOTAS).values(row)
    connection.execute(added.on_conflict_do_update(index_elements=[QUOTAS.c.namespace], set_=row))
    audit.note(connection, "quota.set", key, **limits.model_dump())


def check_room(connection: Connection, adapter: AdapterName, size: int = 0, *, versions: int = 1) -> None:
    """Return where so many more versions of the adapter, ``size`` bytes longer than what is there, have room in its namespace now.

    Asked before bytes are accepted, which need not all be new; :func:`enforce` is sure. Raises :class:`QuotaExceeded`.
    """
    limits = find_limits(connection, adapter.namespace)
    if limits.is_none:
        return
    used = measure(connection, adapter.namespace)
    is_new = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).one_or_none() is None
    is_full = limits.bytes is not None and used.counted_bytes >= limits.bytes
    coming = Amounts(bytes=max(size, int(is_full)), adapters=int(is_new), versions=versions)
    _refuse_excess(adapter.namespace, limits, used, coming)


def enforce(connection: Connection, namespace: str) -> None:
    """Return where the namespace, with what this transaction has added, is within its quota; hold the quota until the transaction ends.

    So two who publish at the same moment cannot both take the last room. Raises :class:`QuotaExceeded`.
    """
    limits = find_limits(connection, namespace, is_locking=True)
    if not limits.is_none:
        _refuse_excess(namespace, limits, measure(connection, namespace), Amounts(bytes=0, adapters=0, versions=0))


def find_limits(connection: Connection, namespace: str, *, is_locking: bool = False) -> QuotaLimits:
    """Return what a namespace may hold; locking, hold it until the transaction ends."""
    query = select(QUOTAS).where(QUOTAS.c.namespace == namespace.lower())
    row = connection.execute(query.with_for_update() if is_locking else query).one_or_none()
    return QuotaLimits() if row is None else QuotaLimits(bytes=row.max_bytes, adapters=row.max_adapters, versions=row.max_versions)


def measure(connection: Connection, namespace: str) -> Amounts:
    """Return what a namespace holds."""
    is_inside = ADAPTERS.c.key.startswith(f"{namespace.lower()}/", autoescape=True)
    versions = select(VERSIONS.c.source).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).where(is_inside)
    formats = select(DERIVED_FORMATS.c.holder).join(VERSIONS, VERSIONS.c.id == DERIVED_FORMATS.c.version_id)
    formats = formats.join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).where(is_inside)
    sources = select(literal(version_of("")) + versions.subquery().c.source)
    held = select(HOLDS.c.digest, literal(1).label("is_live")).where(HOLDS.c.holder.in_(union_all(sources, formats)))
    size, live_size = _sizes(connection, held, namespace.lower())
    return Amounts(
        bytes=live_size,
        adapters=_scalar(connection, select(func.count()).select_from(ADAPTERS).where(is_inside)),
        versions=_scalar(connection, select(func.count()).select_from(versions.subquery())),
        deleted_bytes=size - live_size,
    )


def _sizes(connection: Connection, held: Select[Any], key: str) -> tuple[int, int]:
    """Return the bytes of what is held, with what was deleted and without; asked at once, so that none is missed that just goes."""
    each = union_all(held, select(DEPARTED.c.digest, literal(0)).where(DEPARTED.c.namespace == key)).subquery()
    blobs = select(each.c.digest, func.max(each.c.is_live).label("is_live")).group_by(each.c.digest).subquery()
    sums = [func.coalesce(func.sum(size), 0) for size in (BLOBS.c.size, BLOBS.c.size * blobs.c.is_live)]
    size, live_size = connection.execute(select(*sums).join_from(blobs, BLOBS, BLOBS.c.digest == blobs.c.digest)).one()
    return int(size), int(live_size)


def _scalar(connection: Connection, query: Select[Any]) -> int:
    found: int = connection.execute(query).scalar_one()
    return found


def _refuse_excess(namespace: str, limits: QuotaLimits, used: Amounts, coming: Amounts) -> None:
    if problems := find_excess(limits, used, coming):
        raise QuotaExceeded(f"the namespace {namespace} has no room left", problems=problems)


def find_excess(limits: QuotaLimits, used: Amounts, coming: Amounts) -> list[Problem]:
    """Return what would be over its limit, once what is coming is added to what is used."""
    kinds = [
        ("bytes", limits.bytes, used.counted_bytes, coming.bytes),
        ("adapters", limits.adapters, used.adapters, coming.adapters),
        ("versions", limits.versions, used.versions, coming.versions),
    ]
    return [
        Problem(path=name, message=f"no room: {before} used of {limit}", value=str(before + more), hint=_hint(name, used))
        for name, limit, before, more in kinds
        if limit is not None and before + more > limit
    ]


def _hint(name: str, used: Amounts) -> str | None:
    if name != "bytes" or not used.deleted_bytes:
        return None
    return f"{used.deleted_bytes} of them are of what was deleted, and count until they are collected (WEGEFT_KEEP_SECONDS)"
