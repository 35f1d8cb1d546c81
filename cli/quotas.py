"""``wgctl quotas``: how much a namespace may hold."""

from __future__ import annotations

import re

import rich_click as click

from cli.connection import connect
from cli.options import example, json_option
from cli.output import print_fields, print_json, show_bytes
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.quotas import QuotaLimits, QuotaView

_UNITS = {"": 1, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30, "Ti": 1 << 40}


@click.group(no_args_is_help=True)
def quotas() -> None:
    """See and set how much a namespace may hold: bytes, adapters and versions.

    Bytes that several versions share count once, and those of what was deleted until they are collected. What is over a quota already
    stays; nothing more is published.
    """


@quotas.command("show", epilog=example("wgctl quotas show acme"))
@click.argument("namespace")
@json_option
def show(namespace: str, is_json: bool) -> None:
    """Show what a namespace of yours holds, and what it may."""
    with connect() as client:
        _tell(client.quota(namespace), is_json=is_json)


@quotas.command("set", epilog=example("wgctl quotas set acme --bytes 10Gi --adapters 100\nwgctl quotas set acme"))
@click.argument("namespace")
@click.option("--bytes", "size", metavar="SIZE", help="Bytes of all versions' files, such as 512Mi or 10Gi.")
@click.option("--adapters", type=click.IntRange(0, 2**31 - 1), help="Adapters at most.")
@click.option("--versions", type=click.IntRange(0, 2**31 - 1), help="Versions of all adapters together, at most.")
@json_option
def set_quota(namespace: str, size: str | None, adapters: int | None, versions: int | None, is_json: bool) -> None:
    """Limit what a namespace may hold; what is not given has no limit any more. For an administrator."""
    limits = QuotaLimits(bytes=None if size is None else _parse_size(size), adapters=adapters, versions=versions)
    with connect() as client:
        _tell(client.set_quota(namespace, limits), is_json=is_json)


def _parse_size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,9})(|Ki|Mi|Gi|Ti)", text, re.ASCII)
    if found is None or int(found[1]) * _UNITS[found[2]] >= 2**63:
        raise InvalidSetting("not a size", path="--bytes", value=text, hint="a whole number, then Ki, Mi, Gi, Ti or nothing: 10Gi")
    return int(found[1]) * _UNITS[found[2]]


def _tell(view: QuotaView, *, is_json: bool) -> None:
    if is_json:
        print_json(view)
        return
    limits, used = view.limits, view.used
    most = "no limit" if limits.bytes is None else show_bytes(limits.bytes)
    print_fields(
        [
            ("namespace", view.namespace),
            ("bytes", f"{show_bytes(used.bytes)} of {most}"),
            ("deleted, not collected", show_bytes(used.deleted_bytes)),
            ("sent, not published", show_bytes(view.staged_bytes)),
            ("adapters", f"{used.adapters} of {'no limit' if limits.adapters is None else limits.adapters}"),
            ("versions", f"{used.versions} of {'no limit' if limits.versions is None else limits.versions}"),
        ]
    )
