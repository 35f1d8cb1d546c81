"""Names that move from version to version, by compare-and-set."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select, update

from hub.catalog.lookup import resolve
from hub.catalog.tables import ADAPTERS, ALIASES, key_of, upsert
from infra import audit
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterRef, AliasMove, check_alias
from wegeft.contracts.errors import AdapterNotFound, AliasMoved, AliasNotFound, InvalidRequest


def set_alias(connection: Connection, adapter: AdapterName, alias: str, move: AliasMove, now: datetime) -> None:
    """Let an alias point to a version, unless it has moved from where ``move`` expects it: then raise :class:`AliasMoved`.

    Raises :class:`VersionNotFound`, and :class:`InvalidRequest` for ``latest``, which follows the versions by itself.
    """
    row = {"adapter_id": _settable(connection, adapter, alias), "alias": alias, "number": move.version, "updated_at": now}
    resolve(connection, AdapterRef(adapter=adapter, selector=str(move.version)))
    added = upsert(connection, ALIASES).values(row)
    is_ours = (ALIASES.c.adapter_id == row["adapter_id"]) & (ALIASES.c.alias == alias)
    change: Any
    match move.expected:
        case None:
            change = added.on_conflict_do_update(index_elements=list(ALIASES.primary_key), set_=row)
        case 0:
            change = added.on_conflict_do_nothing()
        case expected:
            change = update(ALIASES).where(is_ours, ALIASES.c.number == expected).values(row)
    if connection.execute(change.returning(ALIASES.c.number)).one_or_none() is None:
        _check_already(connection, is_ours, move)
    else:
        audit.note(connection, "alias.set", f"{adapter}@{alias}", now, version=move.version, expected=move.expected)


def _check_already(connection: Connection, is_ours: ColumnElement[bool], move: AliasMove) -> None:
    """Let a repeated request pass: the alias is already where it should go."""
    number = connection.execute(select(ALIASES.c.number).where(is_ours)).scalar_one_or_none()
    if number != move.version:
        raise AliasMoved(
            path="expected", value=move.expected, hint="it points nowhere now" if number is None else f"it points to {number} now"
        )


def delete_alias(connection: Connection, adapter: AdapterName, alias: str) -> None:
    """Forget an alias; raise :class:`AliasNotFound` where there is none, and :class:`InvalidRequest` for ``latest``."""
    adapter_id = _settable(connection, adapter, alias)
    gone = delete(ALIASES).where(ALIASES.c.adapter_id == adapter_id, ALIASES.c.alias == alias)
    if not connection.execute(gone).rowcount:
        raise AliasNotFound(path=str(adapter), value=alias)
    audit.note(connection, "alias.delete", f"{adapter}@{alias}")


def _settable(connection: Connection, adapter: AdapterName, alias: str) -> int:
    if check_alias(alias) == LATEST:
        raise InvalidRequest("this alias follows the newest version by itself", path="alias", value=alias, hint="use another name")
    adapter_id: int | None = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).scalar_one_or_none()
    if adapter_id is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return adapter_id
