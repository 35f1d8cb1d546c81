"""``wgctl orgs``: namespaces that several accounts share."""

from __future__ import annotations

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_json, print_table, say, show_age
from wegeft.contracts.accounts import RoleName
from wegeft.contracts.organisations import OrganisationView

_ROLES = click.Choice(["read", "write", "admin"])


@click.group(no_args_is_help=True)
def orgs() -> None:
    """Share namespaces: organisations and their members.

    A member may read (see what is private), write (publish too) or admin (also say who sees it, and who is a member). An account is the
    name that a token bears; a namespace that nobody has yet goes to the account that publishes there first.
    """


@orgs.command("create", epilog=example("wgctl orgs create acme"))
@click.argument("name")
@json_option
def create(name: str, is_json: bool) -> None:
    """Make an organisation, with a namespace of its name; you are its first admin."""
    with connect() as client:
        made = client.create_organisation(name)
    _tell(made, f"{made.name} is yours; add somebody: wgctl orgs add-member {made.name} ACCOUNT", is_json=is_json)


@orgs.command("ls", epilog=example("wgctl orgs ls"))
@json_option
def list_organisations(is_json: bool) -> None:
    """List the namespaces that you own or are a member of; an administrator sees all."""
    with connect() as client:
        found = client.organisations()
    if is_json:
        print_json(found)
        return
    if not found:
        note("none; wgctl orgs create NAME makes one")
        return
    rows = [(view.name, view.kind, view.new_adapters, _members(view), show_age(view.created_at)) for view in found]
    print_table(["namespace", "owner", "new adapters", "members", "since"], rows)


def _members(view: OrganisationView) -> str:
    return ", ".join(f"{member.account} ({member.role})" for member in view.members)


@orgs.command("add-member", epilog=example("wgctl orgs add-member acme bob --role write"))
@click.argument("name")
@click.argument("account")
@click.option("--role", type=_ROLES, default="read", show_default=True, help="What the member may do.")
@json_option
def add_member(name: str, account: str, role: RoleName, is_json: bool) -> None:
    """Let an account see and, by its role, change what an organisation has."""
    _set_role(name, account, role, is_json=is_json)


@orgs.command("set-role", epilog=example("wgctl orgs set-role acme bob admin"))
@click.argument("name")
@click.argument("account")
@click.argument("role", type=_ROLES)
@json_option
def set_role(name: str, account: str, role: RoleName, is_json: bool) -> None:
    """Change what a member may do; an organisation always has an admin."""
    _set_role(name, account, role, is_json=is_json)


def _set_role(name: str, account: str, role: RoleName, *, is_json: bool) -> None:
    with connect() as client:
        view = client.set_member(name, account, role)
    _tell(view, f"{account} may {role} in {view.name}", is_json=is_json)


@orgs.command("remove-member", epilog=example("wgctl orgs remove-member acme bob"))
@click.argument("name")
@click.argument("account")
@json_option
def remove_member(name: str, account: str, is_json: bool) -> None:
    """Take an account out of an organisation; you may leave one yourself."""
    with connect() as client:
        client.remove_member(name, account)
    if is_json:
        print_json({"organisation": name, "removed": account})
    else:
        say(f"{account} is no member of {name} any more")


def _tell(view: OrganisationView, text: str, *, is_json: bool) -> None:
    if is_json:
        print_json(view)
    else:
        say(text)
