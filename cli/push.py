"""``wgctl adapters push``: a folder as the next version of an adapter."""

from __future__ import annotations

from pathlib import Path

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import print_json, say


@click.command("push", epilog=example('wgctl adapters push ./adapter acme/helper -m "Trained on the spring data"'))
@click.argument("folder", type=click.Path(path_type=Path))
@click.argument("name", metavar="NAMESPACE/NAME")
@click.option("-m", "--message", default="Upload adapter", show_default=True, help="What the version is, in a line.")
@click.option("--parent", metavar="COMMIT", help="Publish only on top of this commit, the newest version's.")
@json_option
def push(folder: Path, name: str, message: str, parent: str | None, is_json: bool) -> None:
    """Publish a folder that PEFT or wgctl wrote as the next version of an adapter.

    What the folder has beside an adapter's own files stays where it is. The hub checks the adapter before anybody sees it, and the same
    push again changes nothing. A new adapter is seen by whom its namespace says; wgctl adapters visibility changes that.
    """
    with connect() as client:
        view = client.push(folder, name, message=message, parent=parent)
    if is_json:
        print_json(view)
    else:
        say(f"published {view.ref}")
