"""Who may do what, over HTTP: the part of the client that asks and changes it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from urllib.parse import quote

from pydantic import RootModel

from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.accounts import NewToken, RoleName, TokenRequest, TokenView
from wegeft.contracts.adapter import AdapterName, AdapterView
from wegeft.contracts.audit import AuditPage
from wegeft.contracts.organisations import MemberRole, OrganisationRequest, OrganisationView
from wegeft.contracts.quotas import QuotaLimits, QuotaView
from wegeft.contracts.visibility import Visibility, VisibilityChange

_JSON = {"Content-Type": "application/json"}


class _Organisations(RootModel[tuple[OrganisationView, ...]]):
    pass


class _Tokens(RootModel[tuple[TokenView, ...]]):
    pass


class AccessCalls:
    """What :class:`wegeft.client.Client` can ask about access."""

    _transport: Transport

    def set_visibility(self, name: str, visibility: Visibility) -> AdapterView:
        """Show an adapter to those who share its namespace, or to everybody; return it. Raises :class:`Conflict` where nobody owns it."""
        path = f"/adapters/{AdapterName.parse(name)}/visibility"
        change = VisibilityChange(visibility=visibility)
        return self._transport.ask(Call(method="PUT", path=path, headers=_JSON, content=json_body(change)), AdapterView)

    def organisations(self) -> tuple[OrganisationView, ...]:
        """Return the namespaces that the caller owns or is a member of, by name."""
        return self._transport.ask(Call(method="GET", path="/organisations"), _Organisations).root

    def create_organisation(self, name: str) -> OrganisationView:
        """Make an organisation; the caller is its first admin. Raises :class:`Conflict` where the name is taken, or looks so."""
        call = Call(method="POST", path="/organisations", headers=_JSON, content=json_body(OrganisationRequest(name=name)))
        return self._transport.ask(call, OrganisationView, patience_seconds=0)

    def set_member(self, name: str, account: str, role: RoleName) -> OrganisationView:
        """Add a member, or change what it may do; return the organisation. Raises :class:`Conflict` where no admin would be left."""
        call = Call(method="PUT", path=_member_path(name, account), headers=_JSON, content=json_body(MemberRole(role=role)))
        return self._transport.ask(call, OrganisationView)

    def remove_member(self, name: str, account: str) -> None:
        """Take a member out. Raises :class:`NotFound`, and :class:`Conflict` where no admin would be left."""
        self._transport.tell(Call(method="DELETE", path=_member_path(name, account)))

    # Tokens

    def tokens(self) -> tuple[TokenView, ...]:
        """Return the account's tokens, an administrator every one, oldest first, without their secrets."""
        return self._transport.ask(Call(method="GET", path="/tokens"), _Tokens).root

    def create_token(
        self, name: str | None, role: RoleName | None, *, expires_at: datetime | None = None, scopes: Sequence[str] = ()
    ) -> NewToken:
        """Make a token and return it; its secret is told this once, so the call is not repeated by itself.

        ``name`` is the account, the caller's own where it is None; a token has a role or scopes. Raises :class:`Forbidden` for one that may
        do more than the one it is made with.
        """
        request = TokenRequest(name=name, role=role, expires_at=expires_at, scopes=tuple(scopes))
        call = Call(method="POST", path="/tokens", headers=_JSON, content=json_body(request))
        return self._transport.ask(call, NewToken, patience_seconds=0)

    def revoke_token(self, token_id: str) -> None:
        """Make a token worthless; harmless where it is already. Raises :class:`NotFound`."""
        self._transport.tell(Call(method="DELETE", path=f"/tokens/{quote(token_id, safe='')}"))

    # For an administrator

    def audit(self, *, after: int = 0) -> AuditPage:
        """Return some of the audit log's entries, behind number ``after``."""
        return self._transport.ask(Call(method="GET", path="/audit", params={"after": after, "limit": 1000}), AuditPage)

    def quota(self, namespace: str) -> QuotaView:
        """Return what a namespace may hold and what it holds. Raises :class:`NotFound` for one that is not the caller's."""
        return self._transport.ask(Call(method="GET", path=_quota_path(namespace)), QuotaView)

    def set_quota(self, namespace: str, limits: QuotaLimits) -> QuotaView:
        """Limit what a namespace may hold; return it. What is there already stays."""
        call = Call(method="PUT", path=_quota_path(namespace), headers=_JSON, content=json_body(limits))
        return self._transport.ask(call, QuotaView)


def _quota_path(namespace: str) -> str:
    return f"/namespaces/{quote(namespace, safe='')}/quota"


def _member_path(name: str, account: str) -> str:
    return f"/organisations/{quote(name, safe='')}/members/{quote(account, safe='')}"
