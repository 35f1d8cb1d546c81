"""Who calls, and the most that a token lets its account do: roles, scopes and the caller. Nothing here asks a database."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Self

from wegeft.contracts.adapter import AdapterName, check_segment
from wegeft.contracts.errors import InvalidReference, InvalidRequest

_SCOPE_HINT = "read, write or admin, a colon, and a namespace or an adapter: read:acme, write:acme/helper"


class Role(StrEnum):
    """What somebody may do; each role may do what the ones before it may."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: Role) -> bool:
        """Return whether this role may do what ``needed`` may."""
        order = list(Role)
        return order.index(self) >= order.index(needed)


def parse_role(text: str) -> Role:
    """Return the role called ``text``; raise :class:`InvalidRequest` where there is none."""
    try:
        return Role(text)
    except ValueError:
        raise InvalidRequest("not a role", path="role", value=text, hint="read, write or admin") from None


def weaker(one: Role | None, other: Role | None) -> Role | None:
    """Return the weaker of two roles; None, which may do nothing, is the weakest."""
    if one is None or other is None:
        return None
    return other if one.covers(other) else one


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a token is limited to: a role on a namespace, or on one adapter of it."""

    role: Role
    namespace: str
    """In lower case."""
    name: str | None = None
    """In lower case; None is the whole namespace."""

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse ``write:acme`` or ``write:acme/helper``; raise :class:`InvalidRequest` where it is neither."""
        role, _, target = text.partition(":")
        namespace, slash, name = target.partition("/")
        try:
            found = cls(role=Role(role), namespace=check_segment(namespace).lower(), name=check_segment(name).lower() if slash else None)
        except (ValueError, InvalidReference):
            raise InvalidRequest("not a scope", path="scopes", value=text, hint=_SCOPE_HINT) from None
        return found

    def __str__(self) -> str:
        return f"{self.role}:{self.namespace}" + (f"/{self.name}" if self.name else "")

    def reaches(self, namespace: str, name: str | None) -> bool:
        """Return whether the scope holds for an adapter, or for a whole namespace; both names are in lower case."""
        return self.namespace == namespace and self.name in (None, name)


@dataclass(frozen=True, kw_only=True)
class Principal:
    """The caller of a request."""

    name: str
    role: Role
    token_id: str
    scopes: tuple[Scope, ...] = ()
    """What the token is limited to; empty where it may do all that its account may."""
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    """To the hour."""

    @property
    def account(self) -> str:
        """The account that the token speaks for: its name, whatever the case."""
        return self.name.lower()

    @property
    def is_operator(self) -> bool:
        """Whether the caller looks after the whole service, everybody's namespaces included."""
        return self.role is Role.ADMIN and not self.scopes

    def limit_on(self, namespace: str, name: str | None) -> Role | None:
        """Return the most that the token lets its account do with an adapter or a whole namespace, both in lower case."""
        if self.scopes:
            return strongest(scope.role for scope in self.scopes if scope.reaches(namespace, name))
        return Role.READ if self.role is Role.READ else Role.ADMIN

    def limit_on_adapter(self, adapter: AdapterName) -> Role | None:
        """Return the most that the token lets its account do with an adapter."""
        return self.limit_on(adapter.namespace.lower(), adapter.name.lower())


def strongest(roles: Iterable[Role]) -> Role | None:
    """Return the strongest of the roles; None where there is none."""
    return max(roles, key=list(Role).index, default=None)
