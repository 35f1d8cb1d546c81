"""``wgctl adapters card``: read and write an adapter's card."""

from __future__ import annotations

import sys
from pathlib import Path

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_json, printable, say
from wegeft.contracts.card import MAX_CARD_BYTES, CardEdit, CardView, canonical_license, join_card, read_front_matter, split_card
from wegeft.contracts.errors import InvalidInput, InvalidSetting


@click.command(
    "card",
    epilog=example(
        "wgctl adapters card demo/arithmetic\n"
        "wgctl adapters card demo/arithmetic --file README.md\n"
        "wgctl adapters card demo/arithmetic --license apache-2.0"
    ),
)
@click.argument("name")
@click.option("--edit", "is_edited", is_flag=True, help="Open it in the editor that VISUAL or EDITOR names.")
@click.option("--file", "file", type=click.Path(path_type=Path, allow_dash=True), help="Take this Markdown; - is standard input.")
@click.option("--license", "--licence", "license_", metavar="SPDX", help="Set the licence, an SPDX id such as apache-2.0 or mit.")
@click.option("--reset", "is_reset", is_flag=True, help="Forget what was edited: the latest version's own card is shown again.")
@json_option
def card(name: str, is_edited: bool, file: Path | None, license_: str | None, is_reset: bool, is_json: bool) -> None:
    """Show an adapter's card, Markdown under a YAML front matter, or change it.

    A version's own README.md never changes; an edited card is the adapter's, and stays when new versions come.
    """
    if sum((is_edited, file is not None, license_ is not None, is_reset)) > 1:
        raise InvalidSetting("one change at a time", path="--edit", hint="one of --edit, --file, --license and --reset")
    with connect() as client:
        if is_reset:
            client.reset_card(name)
        view = client.card(name)
        text = _changed(view, is_edited=is_edited, file=file, license_=license_)
        if text is not None and text != view.markdown:
            view = client.edit_card(name, CardEdit(markdown=text, expected=None if file else view.digest))
    if is_json:
        print_json(view)
    elif text is None:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in view.markdown.splitlines()))
    else:
        say(f"the card of {view.adapter} is {view.digest}")
        note(f"licence {view.license}" if view.license else "it names no licence: --license sets one")


def _changed(view: CardView, *, is_edited: bool, file: Path | None, license_: str | None) -> str | None:
    """Return the text that the card shall have; None where it is only looked at."""
    if file is not None:
        return _read(file)
    if license_ is not None:
        return with_license(view.markdown, license_)
    if not is_edited:
        return None
    try:
        return click.edit(view.markdown, extension=".md", require_save=True) or view.markdown
    except click.ClickException as error:
        raise InvalidSetting(f"the editor failed: {error.format_message()}", path="--edit", hint="set EDITOR, or use --file") from error


def _read(file: Path) -> str:
    try:
        if str(file) == "-":
            content = sys.stdin.buffer.read(MAX_CARD_BYTES + 1)
        else:
            with file.open("rb") as opened:
                content = opened.read(MAX_CARD_BYTES + 1)
        if len(content) > MAX_CARD_BYTES:
            raise InvalidInput("the card is too long", path=str(file), hint=f"at most {MAX_CARD_BYTES} bytes")
        return content.decode()
    except OSError as error:
        raise InvalidSetting(f"the file cannot be read: {error.strerror}", path="--file", value=str(file)) from error
    except UnicodeDecodeError as error:
        raise InvalidInput("the card is not UTF-8 text", path=str(file)) from error


def with_license(markdown: str, license_: str) -> str:
    """Return a card with another licence in its front matter; raise :class:`InvalidInput` where it is none of the SPDX list."""
    if canonical_license(license_) is None:
        raise InvalidInput("not a licence of the SPDX list", path="license", value=license_, hint="for example apache-2.0, mit, other")
    data = {**read_front_matter(markdown), "license": license_.lower()}
    return join_card(data, split_card(markdown)[1])
