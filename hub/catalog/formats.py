"""Derived formats of versions: kept for a while, longer where they are fetched, and the first to go where space is needed.

A row and the hold on its bytes end at the same moment, and a collection forgets the rows that are over before it chooses bytes. So a row
never points at missing bytes, and what deletes rows otherwise, such as the end of an adapter, leaves nothing that is kept for ever.
Rows are locked in one order, the adapter's, then these, then bytes and holds, so that nobody waits in a circle.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, func, select, update

from hub.catalog.departed import depart
from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.holds import hold, let_go, note_sizes
from hub.catalog.quotas import enforce
from hub.catalog.signatures import find_version_id
from hub.catalog.staged import release
from hub.catalog.tables import ADAPTERS, HOLDS, VERSIONS, upsert
from infra import audit
from wegeft.contracts.adapter import AdapterName, FileEntry, VersionView
from wegeft.contracts.errors import InvalidRequest, NotFound, Problem
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatAttachment, StoredDtype

_HOLDER = "format:"

Shelf = tuple[DerivedFormat, StoredDtype]
"""Where a format of a version stands: there is one for each type of numbers."""


def attach_format(
    connection: Connection,
    version: VersionView,
    shelf: Shelf,
    attachment: FormatAttachment,
    stamp: tuple[str, datetime, datetime],
    signature: str | None = None,
) -> AttachedFormat:
    """Put a checked format in the place of the one of its type that may be there; ``stamp``: by whom, now, and until when it stays.

    The adapter must be locked, and the version be there still.
    Raises :class:`InvalidRequest` where bytes have been collected that were stored before, and :class:`QuotaExceeded`.
    """
    name = AdapterName.parse(version.adapter)
    holder = f"{_HOLDER}{version.manifest_digest.removeprefix('sha256:')}:{shelf[0]}:{shelf[1]}"
    digests = [entry.digest for entry in attachment.files]
    connection.execute(select(DERIVED_FORMATS.c.id).where(*_is_at(version, shelf)).with_for_update())
    missing = hold(connection, holder, digests, stamp[2])
    if missing:
        problems = [Problem(path="files", message="its bytes are not kept any more", value=digest) for digest in sorted(missing)]
        raise InvalidRequest("the files are not all stored", problems=problems)
    depart(connection, name.namespace, [holder], stamp[1], but=digests)
    connection.execute(delete(HOLDS).where(HOLDS.c.holder == holder, HOLDS.c.digest.not_in(digests)))
    note_sizes(connection, {entry.digest: entry.size for entry in attachment.files})
    row = _row_of(attachment, shelf, stamp) | {
        "version_id": find_version_id(connection, name, version.version),
        "holder": holder,
        "signature": signature,
    }
    place = ["version_id", "format", "dtype"]
    added = upsert(connection, DERIVED_FORMATS).values(row).on_conflict_do_update(index_elements=place, set_=row)
    found = connection.execute(added.returning(*DERIVED_FORMATS.c)).one()
    enforce(connection, name.namespace)
    release(connection, stamp[0], digests)
    audit.note(connection, "format.attach", version.ref, stamp[1], format=shelf[0], dtype=shelf[1], largest_error=attachment.largest_error)
    return _view(found)


def _row_of(attachment: FormatAttachment, shelf: Shelf, stamp: tuple[str, datetime, datetime]) -> dict[str, Any]:
    return attachment.model_dump(exclude={"files"}) | {
        "format": shelf[0],
        "dtype": shelf[1],
        "files": _files_text(attachment.files),
        "size": sum(entry.size for entry in attachment.files),
        "created_by": stamp[0],
        "created_at": stamp[1],
        "kept_until": stamp[2],
    }


def list_formats(connection: Connection, version: VersionView) -> tuple[AttachedFormat, ...]:
    """Return what is attached to a version, by format and type."""
    named = (ADAPTERS.c.key == version.adapter.lower()) & (VERSIONS.c.number == version.version)
    query = select(DERIVED_FORMATS).join(VERSIONS, VERSIONS.c.id == DERIVED_FORMATS.c.version_id)
    query = query.join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id).where(named)
    return tuple(_view(row) for row in connection.execute(query.order_by(DERIVED_FORMATS.c.format, DERIVED_FORMATS.c.dtype)))


def keep_format(connection: Connection, version: VersionView, attached: AttachedFormat, until: datetime) -> bool:
    """Let a format stay until then; return False where it has gone meanwhile, or is another now."""
    is_it = (*_is_at(version, (attached.format, attached.dtype)), DERIVED_FORMATS.c.files == _files_text(attached.files))
    renewed = update(DERIVED_FORMATS).where(*is_it).values(kept_until=until)
    holder = connection.execute(renewed.returning(DERIVED_FORMATS.c.holder)).scalar_one_or_none()
    return holder is not None and not hold(connection, holder, [entry.digest for entry in attached.files], until)


def sign_format(connection: Connection, version: VersionView, attached: AttachedFormat, signature: str) -> None:
    """Keep the signature of a format that has none, unless another has taken its place meanwhile."""
    is_it = (*_is_at(version, (attached.format, attached.dtype)), DERIVED_FORMATS.c.files == _files_text(attached.files))
    connection.execute(update(DERIVED_FORMATS).where(*is_it, DERIVED_FORMATS.c.signature.is_(None)).values(signature=signature))


def detach_format(connection: Connection, version: VersionView, shelf: Shelf, now: datetime) -> None:
    """Forget a format of a version; raise :class:`NotFound` where there is none."""
    gone = delete(DERIVED_FORMATS).where(*_is_at(version, shelf)).returning(DERIVED_FORMATS.c.holder)
    holder = connection.execute(gone).scalar_one_or_none()
    if holder is None:
        raise NotFound("the version has no such format", path=version.ref, value=" ".join(shelf))
    depart(connection, AdapterName.parse(version.adapter).namespace, [holder], now)
    let_go(connection, holder, now)
    audit.note(connection, "format.detach", version.ref, now, format=shelf[0], dtype=shelf[1])


def _is_at(version: VersionView, shelf: Shelf) -> tuple[ColumnElement[bool], ...]:
    named = select(VERSIONS.c.id).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
    is_meant = (ADAPTERS.c.key == version.adapter.lower()) & (VERSIONS.c.number == version.version)
    columns = DERIVED_FORMATS.c
    return columns.version_id == named.where(is_meant).scalar_subquery(), columns.format == shelf[0], columns.dtype == shelf[1]


def drop_formats(connection: Connection, now: datetime, *, only_unused: bool = True) -> int:
    """Forget the formats that nobody has fetched for long, or all of them, and let go of their bytes; return how many they were."""
    chosen = select(DERIVED_FORMATS.c.id, DERIVED_FORMATS.c.holder, ADAPTERS.c.namespace).order_by(DERIVED_FORMATS.c.id)
    chosen = chosen.join(VERSIONS, VERSIONS.c.id == DERIVED_FORMATS.c.version_id).join(ADAPTERS, ADAPTERS.c.id == VERSIONS.c.adapter_id)
    if only_unused:
        chosen = chosen.where(DERIVED_FORMATS.c.kept_until <= now)
    found = connection.execute(chosen.with_for_update(of=DERIVED_FORMATS)).all()
    for namespace in sorted({row.namespace.lower() for row in found}):
        depart(connection, namespace, [row.holder for row in found if row.namespace.lower() == namespace], now)
    for row in found:
        connection.execute(delete(DERIVED_FORMATS).where(DERIVED_FORMATS.c.id == row.id))
        let_go(connection, row.holder, now)
    if found:
        audit.note(connection, "formats.collect", "", now, formats=len(found))
    return len(found)


def count_formats(connection: Connection, now: datetime) -> tuple[int, int, int]:
    """Return how many formats are attached, their bytes, and how many of them the next collection forgets."""
    total = select(func.count(), func.coalesce(func.sum(DERIVED_FORMATS.c.size), 0))
    count, size = connection.execute(total).one()
    unused = select(func.count()).select_from(DERIVED_FORMATS).where(DERIVED_FORMATS.c.kept_until <= now)
    return count, int(size), int(connection.execute(unused).scalar_one())


def _files_text(files: tuple[FileEntry, ...]) -> str:
    return json.dumps([entry.model_dump() for entry in files])


def _view(row: Row[Any]) -> AttachedFormat:
    told = dict(row._mapping)  # noqa: SLF001 - the name is SQLAlchemy's
    return AttachedFormat.model_validate(told | {"files": json.loads(row.files)})
