"""``wgctl adapters formats``: in which forms a version can be had, and forgetting one that was attached."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_json, print_table, say, show_age, show_bytes
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatList, FormatView, StoredDtype

if TYPE_CHECKING:
    from wegeft.client import Client


@click.group("formats", no_args_is_help=True)
def formats() -> None:
    """What engines read instead of a version's own files: see what there is, and forget it; adapters convert and export make it."""


@formats.command("ls", epilog=example("wgctl adapters formats ls demo/arithmetic@3"))
@click.argument("ref")
@json_option
def list_formats(ref: str, is_json: bool) -> None:
    """List the forms in which a version can be had, with the error of each against the exact change, and how to make the others."""
    with connect() as client:
        found = client.formats(ref)
    if is_json:
        print_json(found)
        return
    print_table(["format", "type", "#size", "#error of ΔW", "by", "attached"], list(_rows(found)))
    for view in found.formats:
        if view.state != "attached":
            note(f"{view.format}: {view.how}")


def _rows(found: FormatList) -> Iterator[tuple[str, ...]]:
    for view in found.formats:
        for one in view.attached:
            yield view.format, one.dtype, show_bytes(one.size), f"{one.largest_error:.1e}", one.created_by, show_age(one.created_at)
        if not view.attached:
            yield view.format, "-", "-", "-", "-", _STATES[view.state]


_STATES: dict[str, str] = {"published": "as published", "attached": "yes", "convertible": "not yet", "impossible": "never"}


@formats.command("rm", epilog=example("wgctl adapters formats rm demo/arithmetic@3 gguf --dtype q8_0"))
@click.argument("ref")
@click.argument("layout", metavar="FORMAT", type=click.Choice(get_args(DerivedFormat)))
@click.option(
    "--dtype",
    type=click.Choice(get_args(StoredDtype)),
    default="float32",
    show_default=True,
    help="How its numbers are stored.",
)
@json_option
def remove_format(ref: str, layout: DerivedFormat, dtype: StoredDtype, is_json: bool) -> None:
    """Forget a derived format; the version stays as it is, and the format can be made again."""
    with connect() as client:
        client.detach_format(ref, (layout, dtype))
    if is_json:
        print_json({"ref": ref, "removed": layout, "dtype": dtype})
    else:
        say(f"{ref} has no {layout} of {dtype} any more")


def fetch_attached(client: Client, ref: str, layout: DerivedFormat, folder: Path) -> AttachedFormat | None:
    """Write the most exact format of a kind that is attached into a new folder; None where there is none and it can be made here."""
    [view] = [view for view in client.formats(ref).formats if view.format == layout]
    if not view.attached and layout == "lora":
        return None
    attached = client.download_format(ref, layout, folder)
    note(f"{layout} of {attached.dtype} by {attached.created_by}: error of ΔW {attached.largest_error:.1e} at most, as measured there")
    return attached


def show_formats(views: tuple[FormatView, ...]) -> str | None:
    """Return the formats that are attached, one a line; None where there is none."""
    lines = [f"{view.format} {one.dtype}  {show_bytes(one.size)}  error {one.largest_error:.1e}" for view in views for one in view.attached]
    return "\n".join(lines) or None
