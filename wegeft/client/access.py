"""Who may do what, over HTTP: the part of the client that asks and changes it."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import RootModel

from wegeft.client.transport import Call, Transport, json_body
from wegeft.contracts.accounts import RoleName
from wegeft.contracts.adapter import AdapterName, AdapterView, Visibility, VisibilityChange
from wegeft.contracts.organisations import MemberRole, OrganisationRequest, OrganisationView

_JSON = {"Content-Type": "application/json"}


class _Organisations(RootModel[tuple[OrganisationView, ...]]):
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


def _member_path(name: str, account: str) -> str:
    return f"/organisations/{quote(name, safe='')}/members/{quote(account, safe='')}"
