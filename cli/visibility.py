"""``wgctl adapters visibility``: who sees an adapter."""

from __future__ import annotations

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import print_json, say
from wegeft.contracts.visibility import Visibility

SEEN_BY: dict[Visibility, str] = {"private": "those who share its namespace", "public": "everybody who may read"}


@click.command("visibility", epilog=example("wgctl adapters visibility acme/helper private"))
@click.argument("name")
@click.argument("visible", metavar="private|public", type=click.Choice(["private", "public"]))
@json_option
def visibility(name: str, visible: Visibility, is_json: bool) -> None:
    """Show an adapter to those alone who share its namespace, or to everybody who may read.

    To everybody else a private adapter, with all its versions and jobs, is as if it were not there.
    """
    with connect() as client:
        view = client.set_visibility(name, visible)
    if is_json:
        print_json(view)
    else:
        say(f"{view.adapter} is {view.visibility}: {SEEN_BY[view.visibility]} may see it")
