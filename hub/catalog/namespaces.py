"""Who owns a namespace: an account, an organisation, or nobody.

Whoever publishes first under a name that nobody uses gets the namespace. What was there before namespaces had owners belongs to nobody:
there, as ever, every token may do what its role says, and nothing is private.
"""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from sqlalchemy import Connection, insert, select, update

from hub.catalog.tables import ADAPTERS, MEMBERS, NAMESPACES, upsert
from infra import audit
from infra.auth import is_account
from infra.principals import Principal, Role
from wegeft.contracts.errors import Conflict
from wegeft.contracts.visibility import Visibility

Kind = Literal["account", "organisation"]

SHARED = "local"
"""The namespace of jobs that name none; it is everybody's, always."""

_LOOKALIKES = (("rn", "m"), ("vv", "w"), ("cl", "d"))
_ALIKE = str.maketrans({"0": "o", "1": "l", "i": "l", "5": "s", "8": "b", "2": "z", ".": None, "_": None, "-": None})


def skeleton_of(namespace: str) -> str:
    """Return what two namespaces have in common that a reader takes for one another, such as ``Acme-1`` and ``acmel``."""
    skeleton = namespace.lower()
    for pair, single in _LOOKALIKES:
        skeleton = skeleton.replace(pair, single)
    return skeleton.translate(_ALIKE)


def claim(connection: Connection, namespace: str, owner: Principal, now: datetime, *, is_private_by_default: bool) -> None:
    """Give a namespace that nobody uses to the caller's account; nothing happens where somebody has it, or has published there.

    Raises :class:`Conflict` where the name looks like another owner's, or is another account's; to that one an operator gives it.
    """
    key = namespace.lower()
    if key == SHARED or is_owned(connection, key) or has_adapters(connection, key):
        return
    account = key if is_account(connection, key) else owner.account
    if account != owner.account and not owner.is_operator:
        raise Conflict("the namespace is kept for the account of its name", path="namespace", value=namespace, hint="choose another name")
    add_namespace(connection, namespace, "account", account, now, is_private_by_default=is_private_by_default)


def add_namespace(connection: Connection, namespace: str, kind: Kind, admin: str, now: datetime, *, is_private_by_default: bool) -> bool:
    """Give a namespace its owner; return whether this was done just now, and not by somebody else a moment before.

    ``admin`` is the account, in lower case, that may do everything in it. Raises :class:`Conflict` where the name looks like
    another owner's.
    """
    key = namespace.lower()
    row = {"key": key, "name": namespace, "skeleton": skeleton_of(namespace), "kind": kind, "is_private_by_default": is_private_by_default}
    added = upsert(connection, NAMESPACES).values(**row, created_at=now).on_conflict_do_nothing().returning(NAMESPACES.c.key)
    if connection.execute(added).one_or_none() is None:
        if not is_owned(connection, key):
            raise Conflict("the name looks like that of another namespace", path="namespace", value=namespace, hint="choose another name")
        return False
    connection.execute(insert(MEMBERS).values(namespace=key, account=admin, role=Role.ADMIN.value, added_at=now))
    audit.note(connection, "namespace.create", key, now, kind=kind, admin=admin, is_private_by_default=is_private_by_default)
    return True


def share_own(connection: Connection, key: str, owner: Principal, now: datetime) -> bool:
    """Make an organisation of a namespace that one account has alone, the caller's unless an operator asks; return whether it was one."""
    owned = update(NAMESPACES).where(NAMESPACES.c.key == key, NAMESPACES.c.kind == "account")
    if not owner.is_operator and role_in(connection, key, owner.account) is not Role.ADMIN:
        return False
    is_done = bool(connection.execute(owned.values(kind="organisation")).rowcount)
    if is_done:
        audit.note(connection, "namespace.share", key, now)
    return is_done


def is_owned(connection: Connection, key: str) -> bool:
    """Return whether somebody owns the namespace."""
    return connection.execute(select(NAMESPACES.c.key).where(NAMESPACES.c.key == key)).one_or_none() is not None


def has_adapters(connection: Connection, key: str) -> bool:
    """Return whether anything was ever published in the namespace."""
    query = select(ADAPTERS.c.id).where(ADAPTERS.c.key.startswith(f"{key}/", autoescape=True)).limit(1)
    return connection.execute(query).first() is not None


def role_in(connection: Connection, key: str, account: str) -> Role | None:
    """Return what an account may do in a namespace as its owner or a member."""
    query = select(MEMBERS.c.role).where(MEMBERS.c.namespace == key, MEMBERS.c.account == account)
    found = connection.execute(query).scalar_one_or_none()
    return None if found is None else Role(found)


def namespaces_of(connection: Connection, account: str) -> tuple[str, ...]:
    """Return the keys of the namespaces that an account owns or is a member of."""
    query = select(MEMBERS.c.namespace).where(MEMBERS.c.account == account).order_by(MEMBERS.c.namespace)
    return tuple(connection.execute(query).scalars())


def starts_private(connection: Connection, namespace: str, asked: Visibility | None) -> bool:
    """Return whether a new adapter of the namespace is private: as asked for, or as the namespace has it.

    Raises :class:`Conflict` where it shall be, and nobody owns the namespace.
    """
    query = select(NAMESPACES.c.is_private_by_default).where(NAMESPACES.c.key == namespace.lower())
    default = connection.execute(query).scalar_one_or_none()
    if default is None and asked == "private":
        raise unowned(namespace)
    return bool(default) if asked is None else asked == "private"


def unowned(namespace: str) -> Conflict:
    """Return what to raise where something shall be private in a namespace that is everybody's."""
    hint = "name another namespace" if namespace.lower() == SHARED else f"make it an organisation: wgctl orgs create {namespace}"
    return Conflict("nobody owns the namespace, so nothing in it is private", path="namespace", value=namespace, hint=hint)
