"""``wgctl tokens``: who may use the service."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import TypeVar

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option, parse_duration
from cli.output import note, print_json, print_table, say, show_time
from wegeft.contracts.accounts import NewToken, RoleName, TokenRequest, TokenView
from wegeft.contracts.errors import InvalidSetting

Command = TypeVar("Command", bound=Callable[..., object])


def _local_option(command: Command) -> Command:
    text = "Work on the database that the settings name, without the service: for the operator, on its machine."
    return click.option("--local", "is_local", is_flag=True, help=text)(command)


@click.group(no_args_is_help=True)
def tokens() -> None:
    """Make, list and revoke tokens.

    A token speaks for an account, whose name it bears. It may read, write (submit, cancel, publish) or admin (look after the whole
    service); each may do what the ones before it may. With scopes it may do so in some namespaces or with some adapters alone.
    """


@tokens.command(
    "create",
    epilog=example(
        "wgctl tokens create alice --role write --expires 90d\n"
        "wgctl tokens create --scope write:acme/helper --scope read:acme --expires 30d\n"
        "wgctl tokens create me --role admin --local"
    ),
)
@click.argument("name", required=False)
@click.option("--role", type=click.Choice(["read", "write", "admin"]), help="What the token may do everywhere; by default write.")
@click.option("--scope", "scopes", multiple=True, metavar="ROLE:TARGET", help="Only this, instead of a role: read:acme, write:acme/helper.")
@click.option("--expires", metavar="DURATION", help="When it becomes worthless, from now: 12h, 90d; by default never.")
@_local_option
@json_option
def create(name: str | None, role: RoleName | None, scopes: tuple[str, ...], expires: str | None, is_local: bool, is_json: bool) -> None:
    """Make a token and print it; it is never shown again.

    NAME is the account, by default your own; only an administrator makes tokens for others. No token makes one that may do more than
    itself.
    """
    expires_at = None if expires is None else datetime.now(UTC) + parse_duration(expires, "--expires")
    request = TokenRequest(name=name, role=role or (None if scopes else "write"), scopes=scopes, expires_at=expires_at)
    made = _create_locally(request) if is_local else _create_remotely(request)
    if is_json:
        print_json(made)
    else:
        note(f"token {made.id} ({', '.join(scopes) or request.role}); keep it, it is not shown again:")
        say(made.token)


def _create_remotely(request: TokenRequest) -> NewToken:
    with connect() as client:
        return client.create_token(request.name, request.role, expires_at=request.expires_at, scopes=request.scopes)


def _create_locally(request: TokenRequest) -> NewToken:
    from cli.local_accounts import local_accounts
    from cli.serve import now
    from infra.auth import grant_token
    from infra.offers import check_offer
    from infra.principals import Principal, Role

    if request.name is None:
        raise InvalidSetting("say whose token it is", path="NAME", hint="wgctl tokens create NAME --local")
    grant = check_offer(Principal(name=request.name, role=Role.ADMIN, token_id=""), request)
    with local_accounts() as connection:
        token_id, token = grant_token(connection, replace(grant, made_by=None), now())
    return NewToken(id=token_id, token=token)


@tokens.command("ls", epilog=example("wgctl tokens ls"))
@json_option
def list_tokens(is_json: bool) -> None:
    """List your account's tokens, without their secrets; an administrator sees everybody's."""
    with connect() as client:
        found = client.tokens()
    if is_json:
        print_json(found)
        return
    rows = [
        (
            view.id,
            view.name,
            ", ".join(view.scopes) or view.role,
            show_time(view.created_at) or "",
            show_time(view.expires_at) or "-",
            show_time(view.last_used_at) or "-",
            _state(view),
        )
        for view in found
    ]
    print_table(["id", "name", "may", "made", "expires", "last used", "state"], rows)


def _state(view: TokenView) -> str:
    if view.revoked_at is not None:
        return "revoked"
    return "expired" if view.expires_at is not None and view.expires_at <= datetime.now(UTC) else "good"


@tokens.command("revoke", epilog=example("wgctl tokens revoke 0123456789ab"))
@click.argument("token_id")
@json_option
def revoke(token_id: str, is_json: bool) -> None:
    """Make a token worthless at once."""
    with connect() as client:
        client.revoke_token(token_id)
    if is_json:
        print_json({"revoked": token_id})
    else:
        say(f"{token_id} is revoked")
