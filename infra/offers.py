"""Which tokens a token may make, see and revoke: never one that may do more than itself."""

from __future__ import annotations

from datetime import datetime

from infra.auth import TokenGrant, TokenInfo
from infra.principals import Principal, Role, Scope, strongest
from wegeft.contracts.accounts import TokenRequest
from wegeft.contracts.errors import Forbidden, InvalidRequest


def check_offer(maker: Principal, request: TokenRequest) -> TokenGrant:
    """Return the token that is asked for.

    Raises :class:`InvalidRequest` for what no token can be, and :class:`Forbidden` for one that is of another account, or may do more or
    for longer than the one it is made with.
    """
    scopes = tuple(dict.fromkeys(Scope.parse(text) for text in request.scopes))
    role = _role(request, scopes)
    name = maker.name if request.name is None else request.name
    if name.lower() != maker.account and not maker.is_operator:
        raise Forbidden("only an administrator makes tokens of other accounts", path="name", value=name, hint="leave it out for your own")
    _check_strength(maker, role, scopes)
    return TokenGrant(name=name, role=role, scopes=scopes, expires_at=_expiry(maker, request.expires_at), made_by=maker.token_id)


def _role(request: TokenRequest, scopes: tuple[Scope, ...]) -> Role:
    if request.role is not None and scopes:
        raise InvalidRequest(
            "a token has a role or scopes, not both", path="role", value=request.role, hint="scopes say what it may do where"
        )
    if request.role is not None:
        return Role(request.role)
    found = strongest(scope.role for scope in scopes)
    if found is None:
        raise InvalidRequest("a token needs a role or scopes", path="role", hint="read, write or admin; or scopes such as write:acme")
    # Somebody with scopes is never an administrator of the whole service.
    return Role.READ if found is Role.READ else Role.WRITE


def _check_strength(maker: Principal, role: Role, scopes: tuple[Scope, ...]) -> None:
    if not maker.role.covers(role):
        raise Forbidden("a token makes none that may do more", path="role", value=str(role), hint=f"yours has the role {maker.role}")
    if maker.scopes and not scopes:
        raise Forbidden("a token with scopes makes none without", path="scopes", hint=f"yours has {', '.join(map(str, maker.scopes))}")
    for scope in scopes if maker.scopes else ():
        limit = maker.limit_on(scope.namespace, scope.name)
        if limit is None or not limit.covers(scope.role):
            raise Forbidden("a token makes none that may do more", path="scopes", value=str(scope), hint="stay within your own scopes")


def _expiry(maker: Principal, asked: datetime | None) -> datetime | None:
    if asked is not None and asked.tzinfo is None:
        raise InvalidRequest("a moment needs a time zone", path="expires_at", value=asked.isoformat(), hint="end it with Z")
    if maker.expires_at is None:
        return asked
    if asked is not None and asked > maker.expires_at:
        raise Forbidden(
            "a token makes none that lasts longer", path="expires_at", value=asked.isoformat(), hint=maker.expires_at.isoformat()
        )
    return asked or maker.expires_at


def may_manage(caller: Principal, token: TokenInfo) -> bool:
    """Return whether a caller may see and revoke a token: its account's, unless it may do more; with scopes, itself and what it made."""
    if caller.is_operator:
        return True
    is_own = token.name.lower() == caller.account and caller.role.covers(token.role)
    return is_own and (not caller.scopes or caller.token_id in (token.id, token.made_by))
