"""``wgctl hub``: look after the bytes that the hub keeps."""

from __future__ import annotations

from typing import Literal

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, print_table, say, show_bytes
from wegeft.contracts.collection import Collected, CollectionPlan
from wegeft.contracts.errors import InvalidSetting


@click.group(no_args_is_help=True)
def hub() -> None:
    """Look after the bytes that the hub keeps; for an administrator."""


@hub.command("gc", epilog=example("wgctl hub gc --dry-run\nwgctl hub gc"))
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@click.option("--all-formats", is_flag=True, help="To make room: derived formats of versions too, all of which can be made again.")
@json_option
def collect(dry_run: bool, all_formats: bool, is_json: bool) -> None:
    """Delete the bytes that nothing needs any more.

    The service does so by itself every WEGEFT_COLLECT_SECONDS. What versions and jobs name always stays; uploads that no job names, and
    the data and checkpoints of jobs that ended, stay for WEGEFT_KEEP_SECONDS. Derived formats go first: those that nobody has fetched for
    30 days, or all of them where that is asked for.
    """
    if dry_run and all_formats:
        raise InvalidSetting("a dry run forgets nothing", path="--all-formats", hint="leave one of the two out")
    answer = _look() if dry_run else _collect_all("all" if all_formats else "unused")
    if is_json:
        print_json(answer)
    elif isinstance(answer, CollectionPlan):
        _show(answer)
    else:
        say(f"deleted {answer.blobs} blobs, {show_bytes(answer.bytes)}")


def _look() -> CollectionPlan:
    with connect() as client:
        return client.plan_collection()


def _collect_all(formats: Literal["unused", "all"]) -> Collected:
    blobs = size = 0
    with connect() as client:
        while True:
            collected = client.collect(formats=formats)
            blobs, size = blobs + collected.blobs, size + collected.bytes
            if collected.is_done:
                return Collected(blobs=blobs, bytes=size, is_done=True)


def _show(plan: CollectionPlan) -> None:
    print_fields(
        [
            ("stored", f"{plan.stored_blobs} blobs, {show_bytes(plan.stored_bytes)}"),
            ("formats", f"{plan.formats}, {show_bytes(plan.format_bytes)}, of which {plan.unused_formats} go next"),
            ("not needed", f"{plan.unheld_blobs} blobs, {show_bytes(plan.unheld_bytes)}"),
        ]
    )
    if plan.first:
        print_table(["digest", "#size"], [(blob.digest, show_bytes(blob.size or 0)) for blob in plan.first])
    if plan.unheld_blobs > len(plan.first):
        note(f"and {plan.unheld_blobs - len(plan.first)} more")


@hub.command("rotate-key", epilog=example("wgctl hub rotate-key"))
@json_option
def rotate_signing_key(is_json: bool) -> None:
    """Put a new key in the place of the one that versions are signed with; for the operator, on the service's machine.

    The service signs with it from its next start on. The old key signs the new one before it is forgotten, so that whoever trusts the old
    one trusts the new one; versions that the old one has signed stay good.
    """
    from cli.home import Home
    from cli.signing_key import rotate_key
    from infra.settings import load_settings

    settings = load_settings()
    signer = rotate_key(settings, Home(settings.home))
    if is_json:
        print_json({"key": signer.key_id})
    else:
        say(f"the new key is {signer.key_id}; restart the service to sign with it")
