"""Who may see an adapter, and who may change it: asked once for every request, and by every list."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, or_, select, true, update

from hub.catalog.listings import list_privacy
from hub.catalog.namespaces import is_owned, unowned
from hub.catalog.tables import ADAPTERS, MEMBERS, NAMESPACES, Columns, key_of
from infra import audit
from infra.principals import Principal, Role, Scope, weaker
from wegeft.contracts.adapter import AdapterName, check_segment
from wegeft.contracts.errors import AdapterNotFound, Forbidden, InvalidReference

_OWNED = select(NAMESPACES.c.key).where(NAMESPACES.c.key == bindparam("namespace"))
_ROLE = select(MEMBERS.c.role).where(MEMBERS.c.namespace == bindparam("namespace"), MEMBERS.c.account == bindparam("account"))
_PRIVACY = select(ADAPTERS.c.is_private).where(ADAPTERS.c.key == bindparam("key"))
_STANDING = select(
    _OWNED.scalar_subquery().label("owned"), _ROLE.scalar_subquery().label("role"), _PRIVACY.scalar_subquery().label("is_private")
)
"""Asked by every request: made once, because making it takes as long as asking."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """What decides who may do what with an adapter, whether or not it is there yet."""

    is_known: bool
    is_private: bool
    is_owned: bool
    """Whether its namespace is somebody's."""
    member_role: Role | None
    """What the caller's account may do in the namespace as its owner or a member."""


def decide(caller: Principal, adapter: AdapterName, standing: Standing) -> Role | None:
    """Return what a caller may do with an adapter; None where the caller may not know whether it is there."""
    if caller.is_operator:
        return Role.ADMIN
    base = standing.member_role if standing.is_owned else caller.role
    granted = weaker(base, caller.limit_on_adapter(adapter))
    is_open = standing.is_known and not standing.is_private
    return Role.READ if granted is None and is_open else granted


def right_of(connection: Connection, caller: Principal, adapter: AdapterName) -> Role | None:
    """Return what the caller may do with an adapter now; None where the caller may not know whether it is there."""
    if caller.is_operator:
        return Role.ADMIN
    return decide(caller, adapter, _standing(connection, caller, adapter))


def _standing(connection: Connection, caller: Principal, adapter: AdapterName) -> Standing:
    asked = {"namespace": adapter.namespace.lower(), "account": caller.account, "key": key_of(adapter)}
    found = connection.execute(_STANDING, asked).one()
    is_owned = found.owned is not None
    return Standing(
        is_known=found.is_private is not None,
        is_private=bool(found.is_private),
        is_owned=is_owned,
        member_role=Role(found.role) if is_owned and found.role else None,
    )


def require_right(connection: Connection, caller: Principal, adapter: AdapterName, needed: Role) -> None:
    """Return where the caller may do what ``needed`` may with the adapter.

    Raises :class:`AdapterNotFound` where the caller may not even know whether it is there, and :class:`Forbidden` where it may.
    """
    right = right_of(connection, caller, adapter)
    if right is None:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    if not right.covers(needed):
        raise Forbidden(f"this needs the role {needed} on {adapter}", path="role", value=str(right), hint="ask who owns the namespace")


def check_publisher(connection: Connection, caller: Principal, adapter: AdapterName) -> None:
    """Return where the caller may publish under a name, new or not; raise :class:`Forbidden`, which is alike for both."""
    right = right_of(connection, caller, adapter)
    if right is None or not right.covers(Role.WRITE):
        raise Forbidden("you may not publish there", path="adapter", value=str(adapter), hint=f"ask who owns {adapter.namespace}")


def check_path(connection: Connection, caller: Principal, path: Mapping[str, str], needed: Role) -> None:
    """Check the adapter that a request's path names, as :func:`require_right` does; a guard asks this at every door."""
    if "namespace" not in path or "name" not in path:
        return
    try:
        adapter = AdapterName(namespace=check_segment(path["namespace"], "namespace"), name=check_segment(path["name"]))
    except InvalidReference:
        return  # the endpoint says what is wrong with it
    require_right(connection, caller, adapter, needed)


def seen_by(reader: Principal | None, shown: Columns = ADAPTERS.c) -> ColumnElement[bool]:
    """Return what holds for the adapters that a reader may see; None is somebody of whom nothing is known.

    ``shown`` are the columns of adapters, or of their listings.
    """
    if reader is None:
        return shown.is_private.is_(False)
    return true() if reader.is_operator else _seen_by_account(reader.account, reader.scopes, shown.is_private, shown.namespace, shown.key)


@lru_cache(maxsize=256)
def _seen_by_account(
    account: str, scopes: tuple[Scope, ...], is_private: ColumnElement[bool], namespace: ColumnElement[str], key: ColumnElement[str]
) -> ColumnElement[bool]:
    """Return what holds for what is public, and for that of the account's own namespaces, as far as the scopes reach.

    Only the question is kept, which takes as long to make as to be answered; it is asked anew each time.
    """
    lowered = func.lower(namespace)
    is_theirs = lowered.in_(select(MEMBERS.c.namespace).where(MEMBERS.c.account == account))
    reached = [lowered == scope.namespace if scope.name is None else key == f"{scope.namespace}/{scope.name}" for scope in scopes]
    return or_(is_private.is_(False), and_(is_theirs, or_(*reached)) if scopes else is_theirs)


def set_visibility(connection: Connection, adapter: AdapterName, now: datetime, *, is_private: bool) -> None:
    """Hide an adapter from all but those who share its namespace, or show it to everybody who may read.

    Raises :class:`AdapterNotFound`, and :class:`Conflict` where nobody owns the namespace: then there is nobody to keep it for.
    """
    key = adapter.namespace.lower()
    if is_private and not is_owned(connection, key):
        raise unowned(adapter.namespace)
    changed = update(ADAPTERS).where(ADAPTERS.c.key == key_of(adapter)).values(is_private=is_private, updated_at=now)
    if not connection.execute(changed).rowcount:
        raise AdapterNotFound(path="adapter", value=str(adapter))
    list_privacy(connection, adapter, is_private=is_private)
    audit.note(connection, "adapter.visibility", str(adapter), now, is_private=is_private)
