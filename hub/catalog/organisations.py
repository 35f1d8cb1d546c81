"""Organisations: namespaces that several accounts share, each member with a role."""

from __future__ import annotations

from collections import defaultdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, delete, func, select

from hub.catalog.namespaces import SHARED, add_namespace, has_adapters, namespaces_of, role_in, share_own
from hub.catalog.tables import MEMBERS, NAMESPACES, upsert
from infra import audit
from infra.auth import is_account
from infra.principals import Principal, Role, parse_role, weaker
from wegeft.contracts.adapter import check_segment
from wegeft.contracts.errors import Conflict, Forbidden, InvalidRequest, NotFound
from wegeft.contracts.organisations import MemberView, OrganisationView


def create_organisation(
    connection: Connection, name: str, founder: Principal, now: datetime, *, is_private_by_default: bool
) -> OrganisationView:
    """Make an organisation with the caller's account as its admin; a namespace that the account has alone becomes one.

    Raises :class:`InvalidReference` for what is no name, :class:`Conflict` where the name is taken, looks like a taken one or is somebody's
    account, and :class:`Forbidden` where there are adapters under it already, which only an operator may hand over.
    """
    key = check_segment(name, "organisation").lower()
    if key == SHARED:
        raise Conflict("this namespace is everybody's", path="organisation", value=name, hint="choose another name")
    if key != founder.account and is_account(connection, key):
        raise Conflict("an account is called that", path="organisation", value=name, hint="choose another name")
    is_in_use = has_adapters(connection, key) and role_in(connection, key, founder.account) is not Role.ADMIN
    if founder.scopes or (is_in_use and not founder.is_operator):
        raise Forbidden("you may not make this organisation", path="organisation", value=name, hint="ask an admin of the service")
    is_new = add_namespace(connection, name, "organisation", founder.account, now, is_private_by_default=is_private_by_default)
    if not is_new and not share_own(connection, key, founder, now):
        raise Conflict("the namespace has an owner already", path="organisation", value=name, hint="choose another name")
    return find_organisation(connection, name, founder)


def list_organisations(connection: Connection, reader: Principal) -> tuple[OrganisationView, ...]:
    """Return the namespaces that the caller owns or is a member of, by name; to an operator all of them."""
    query = select(NAMESPACES).order_by(NAMESPACES.c.key)
    if not reader.is_operator:
        reached = [key for key in namespaces_of(connection, reader.account) if reader.limit_on(key, None) is not None]
        query = query.where(NAMESPACES.c.key.in_(reached))
    rows = connection.execute(query).all()
    members: dict[str, list[MemberView]] = defaultdict(list)
    named = select(MEMBERS).where(MEMBERS.c.namespace.in_([row.key for row in rows])).order_by(MEMBERS.c.namespace, MEMBERS.c.account)
    for row in connection.execute(named):
        members[row.namespace].append(MemberView(account=row.account, role=row.role, added_at=row.added_at))
    return tuple(_view(row, members[row.key]) for row in rows)


def memberships_of(connection: Connection, caller: Principal) -> tuple[tuple[str, Role], ...]:
    """Return the organisations that the caller's account is a member of, as far as the token reaches, by name, and what it may do there."""
    query = select(NAMESPACES.c.key, NAMESPACES.c.name, MEMBERS.c.role).join(MEMBERS, MEMBERS.c.namespace == NAMESPACES.c.key)
    query = query.where(MEMBERS.c.account == caller.account, NAMESPACES.c.kind == "organisation").order_by(NAMESPACES.c.key)
    rows = connection.execute(query).all()
    granted = ((row.name, weaker(Role(row.role), caller.limit_on(row.key, None))) for row in rows)
    return tuple((name, role) for name, role in granted if role is not None)


def _view(row: Row[Any], members: list[MemberView]) -> OrganisationView:
    return OrganisationView(
        name=row.name,
        kind=row.kind,
        new_adapters="private" if row.is_private_by_default else "public",
        members=tuple(members),
        created_at=row.created_at,
    )


def find_organisation(connection: Connection, name: str, reader: Principal) -> OrganisationView:
    """Return a namespace; raise :class:`NotFound` where there is none or the caller is no member of it."""
    found = next((view for view in list_organisations(connection, reader) if view.name.lower() == name.lower()), None)
    if found is None:
        raise _missing(name)
    return found


def _missing(name: str) -> NotFound:
    return NotFound("there is no such organisation, or you are not a member", path="organisation", value=name)


def set_member(connection: Connection, name: str, account: str, role: str, caller: Principal, now: datetime) -> None:
    """Add an account to an organisation, or change what it may do there.

    Raises :class:`NotFound` for an organisation or an account that is not there, :class:`Forbidden` where the caller is no admin of it, and
    :class:`Conflict` where nobody would be left who is.
    """
    key, member = _administered(connection, name, caller), account.lower()
    if not is_account(connection, member):
        raise NotFound("there is no such account", path="account", value=account, hint="an account is there once it has a token")
    wanted = parse_role(role)
    if wanted is not Role.ADMIN:
        _keep_an_admin(connection, key, member)
    row = {"namespace": key, "account": member, "role": wanted.value, "added_at": now}
    added = upsert(connection, MEMBERS).values(row)
    connection.execute(added.on_conflict_do_update(index_elements=list(MEMBERS.primary_key), set_={"role": wanted.value}))
    audit.note(connection, "member.set", key, now, account=member, role=wanted.value)


def remove_member(connection: Connection, name: str, account: str, caller: Principal) -> None:
    """Take an account out of an organisation, where it may see nothing private from now on; every member may leave.

    Raises as :func:`set_member` does, and :class:`NotFound` where the account is no member.
    """
    member = account.lower()
    is_leaving = member == caller.account and not caller.scopes
    key = _locked(connection, name, caller) if is_leaving else _administered(connection, name, caller)
    _keep_an_admin(connection, key, member)
    if not connection.execute(delete(MEMBERS).where(MEMBERS.c.namespace == key, MEMBERS.c.account == member)).rowcount:
        raise NotFound("the account is not a member", path="account", value=account)
    audit.note(connection, "member.remove", key, account=member)


def _administered(connection: Connection, name: str, caller: Principal) -> str:
    """Return the organisation's key, and hold it until the transaction ends; refuse who is no admin of it."""
    key = _locked(connection, name, caller)
    if caller.is_operator:
        return key
    if weaker(role_in(connection, key, caller.account), caller.limit_on(key, None)) is not Role.ADMIN:
        raise Forbidden("only an admin of the organisation may do this", path="organisation", value=name, hint="ask one of them")
    return key


def _locked(connection: Connection, name: str, caller: Principal) -> str:
    # Two admins who remove each other at the same moment must not both find the other still there.
    query = select(NAMESPACES.c.key, NAMESPACES.c.kind).where(NAMESPACES.c.key == name.lower()).with_for_update()
    row = connection.execute(query).one_or_none()
    is_known = row is not None and (caller.is_operator or _is_member(connection, row.key, caller))
    if row is None or not is_known:
        raise _missing(name)
    if row.kind != "organisation":
        raise InvalidRequest("the namespace belongs to one account and has no members", path="organisation", value=name)
    key: str = row.key
    return key


def _is_member(connection: Connection, key: str, caller: Principal) -> bool:
    return weaker(role_in(connection, key, caller.account), caller.limit_on(key, None)) is not None


def _keep_an_admin(connection: Connection, key: str, leaving: str) -> None:
    """Raise where ``leaving`` is the only admin."""
    if role_in(connection, key, leaving) is not Role.ADMIN:
        return
    others = select(func.count()).select_from(MEMBERS)
    others = others.where(MEMBERS.c.namespace == key, MEMBERS.c.role == Role.ADMIN.value, MEMBERS.c.account != leaving)
    if not connection.execute(others).scalar_one():
        raise Conflict("the organisation would have no admin", path="account", value=leaving, hint="make another member an admin first")
