"""``wgctl tokens``: who may use the service."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TypeVar

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option, parse_duration
from cli.output import note, print_json, print_table, say, show_time
from wegeft.contracts.accounts import NewToken, RoleName, TokenView

Command = TypeVar("Command", bound=Callable[..., object])


def _local_option(command: Command) -> Command:
    text = "Work on the database that the settings name, without the service: for the operator, on its machine."
    return click.option("--local", "is_local", is_flag=True, help=text)(command)


@click.group(no_args_is_help=True)
def tokens() -> None:
    """Make, list and revoke the service's tokens.

    A token may read, write (submit, cancel, publish) or admin (also make tokens); each may do what the ones before it may.
    """


@tokens.command(
    "create", epilog=example("wgctl tokens create alice --role write --expires 90d\nwgctl tokens create me --role admin --local")
)
@click.argument("name")
@click.option("--role", type=click.Choice(["read", "write", "admin"]), default="write", show_default=True, help="What the token may do.")
@click.option("--expires", metavar="DURATION", help="When it becomes worthless, from now: 12h, 90d; by default never.")
@_local_option
@json_option
def create(name: str, role: RoleName, expires: str | None, is_local: bool, is_json: bool) -> None:
    """Make a token and print it; it is never shown again."""
    expires_at = None if expires is None else datetime.now(UTC) + parse_duration(expires, "--expires")
    made = _create_locally(name, role, expires_at) if is_local else _create_remotely(name, role, expires_at)
    if is_json:
        print_json(made)
    else:
        note(f"token {made.id} of {name} ({role}); keep it, it is not shown again:")
        say(made.token)


def _create_remotely(name: str, role: RoleName, expires_at: datetime | None) -> NewToken:
    with connect() as client:
        return client.create_token(name, role, expires_at=expires_at)


def _create_locally(name: str, role: RoleName, expires_at: datetime | None) -> NewToken:
    from cli.serve import local_accounts, now
    from infra.auth import create_token

    with local_accounts() as connection:
        token_id, token = create_token(connection, name, role, now(), expires_at)
    return NewToken(id=token_id, token=token)


@tokens.command("ls", epilog=example("wgctl tokens ls"))
@json_option
def list_tokens(is_json: bool) -> None:
    """List tokens, without their secrets."""
    with connect() as client:
        found = client.tokens()
    if is_json:
        print_json(found)
        return
    rows = [
        (view.id, view.name, view.role, show_time(view.created_at) or "", show_time(view.expires_at) or "-", _state(view)) for view in found
    ]
    print_table(["id", "name", "role", "made", "expires", "state"], rows)


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
