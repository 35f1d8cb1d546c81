"""Names that move from version to version, by compare-and-set."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, delete, select, update

from hub.catalog.lookup import resolve
from hub.catalog.tables import ADAPTERS, ALIASES, key_of, upsert
from hub.catalog.visibility import right_of
from infra import audit
from infra.principals import Principal, Role
from wegeft.contracts.adapter import LATEST, AdapterName, AdapterRef, AliasMove, check_alias
from wegeft.contracts.errors import AdapterNotFound, AliasMoved, AliasNotFound, Forbidden, InvalidRequest, Problem


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


def protect_alias(connection: Connection, adapter: AdapterName, alias: str, now: datetime, *, is_protected: bool) -> None:
    """Let only admins move and delete an alias, or everybody who may publish; wherever it points, it stays so.

    Raises :class:`AliasNotFound` where there is none, and :class:`InvalidRequest` for ``latest``.
    """
    is_ours = (ALIASES.c.adapter_id == _settable(connection, adapter, alias)) & (ALIASES.c.alias == alias)
    if not connection.execute(update(ALIASES).where(is_ours).values(is_protected=is_protected)).rowcount:
        raise AliasNotFound(path=str(adapter), value=alias)
    audit.note(connection, "alias.protect" if is_protected else "alias.unprotect", f"{adapter}@{alias}", now)


def find_protected(connection: Connection, adapter: AdapterName, aliases: Iterable[str]) -> frozenset[str]:
    """Return those of the aliases that only admins move; nobody protects another of them before the transaction ends."""
    query = select(ALIASES.c.alias, ALIASES.c.is_protected).join(ADAPTERS, ADAPTERS.c.id == ALIASES.c.adapter_id)
    asked = query.where(ADAPTERS.c.key == key_of(adapter), ALIASES.c.alias.in_(set(aliases)))
    rows = connection.execute(asked.order_by(ALIASES.c.alias).with_for_update(of=ALIASES)).all()
    return frozenset(row.alias for row in rows if row.is_protected)


def refuse_protected(connection: Connection, adapter: AdapterName, aliases: Iterable[str]) -> None:
    """Raise :class:`Forbidden` where one of the aliases, which a job would move, is protected: that is for a person to do."""
    protected = sorted(find_protected(connection, adapter, aliases))
    if protected:
        hint = "an admin moves it afterwards: wgctl adapters alias set"
        problems = [Problem(path="output.aliases", message="protected: no job moves it", value=alias, hint=hint) for alias in protected]
        raise Forbidden("only admins move this alias", problems=problems)


def point_open_aliases(connection: Connection, adapter: AdapterName, aliases: Iterable[str], number: int, now: datetime) -> tuple[str, ...]:
    """Let aliases point to a version, but for those that are protected meanwhile; return these."""
    asked = tuple(aliases)
    protected = find_protected(connection, adapter, asked)
    for alias in asked:
        if alias not in protected:
            set_alias(connection, adapter, alias, AliasMove(version=number), now)
    return tuple(alias for alias in asked if alias in protected)


def check_mover(connection: Connection, caller: Principal, adapter: AdapterName, alias: str) -> None:
    """Return where the caller, who may publish, may also move and delete this alias; nobody protects it before the transaction ends.

    Raises :class:`Forbidden` where it is protected and the caller is no admin of the adapter.
    """
    query = select(ALIASES.c.is_protected).join(ADAPTERS, ADAPTERS.c.id == ALIASES.c.adapter_id)
    query = query.where(ADAPTERS.c.key == key_of(adapter), ALIASES.c.alias == alias)
    is_protected = connection.execute(query.with_for_update(of=ALIASES)).scalar_one_or_none()
    right = right_of(connection, caller, adapter) if is_protected else None
    if is_protected and not (right and right.covers(Role.ADMIN)):
        raise Forbidden(
            "this alias is protected", path="alias", value=alias, hint=f"an admin of {adapter.namespace} moves it, or unprotects it"
        )


def _settable(connection: Connection, adapter: AdapterName, alias: str) -> int:
    if check_alias(alias) == LATEST:
        raise InvalidRequest("this alias follows the newest version by itself", path="alias", value=alias, hint="use another name")
    adapter_id: int | None = connection.execute(select(ADAPTERS.c.id).where(ADAPTERS.c.key == key_of(adapter))).scalar_one_or_none()
    if adapter_id is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    return adapter_id
