"""``wgctl adapters``: list, look at and download what was published, and convert it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import rich_click as click

from cli.adapter_conversion import convert_in_worker
from cli.adapter_export import Wish, check_wish, convert, export, open_published
from cli.adapter_formats import fetch_attached, formats, show_formats
from cli.adapter_import import import_checkpoint
from cli.cards import card
from cli.connection import connect
from cli.evaluations import diff, evaluations
from cli.options import example, json_option, wanted_options
from cli.output import note, print_fields, print_json, print_table, say, show_age, show_bytes, show_time
from cli.provenance import lineage, signature, trust, verify
from cli.push import push
from cli.visibility import SEEN_BY, visibility
from wegeft.contracts.adapter import AdapterPage, AdapterRef, AdapterView, VersionView
from wegeft.contracts.base_model_name import unpin
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.formats import DerivedFormat
from wegeft.contracts.provenance import EvaluationView

if TYPE_CHECKING:
    from wegeft.client import Client


@click.group(no_args_is_help=True)
def adapters() -> None:
    """List, download and convert adapters.

    An adapter is namespace/name; a version of it is namespace/name@3, or @alias, and the latest where neither is said.
    """


@adapters.command("ls", epilog=example("wgctl adapters ls --method wegeft --tag math --order updated"))
@wanted_options
@json_option
def list_adapters(limit: int, after: str | None, is_json: bool, **wanted: Any) -> None:
    """List adapters, by name; options narrow the list to those whose newest version is as they say."""
    with connect() as client:
        page = client.adapters(limit=limit, after=after, **wanted)
    _print_page(page, is_json=is_json)


@adapters.command("search", epilog=example("wgctl adapters search qwen math\nwgctl adapters search sums --metric 'eval_loss<=0.5'"))
@click.argument("words", nargs=-1, required=True)
@wanted_options
@json_option
def search(words: tuple[str, ...], limit: int, after: str | None, is_json: bool, **wanted: Any) -> None:
    """Find adapters by words: each begins a word of their names, base model, tags or card."""
    with connect() as client:
        page = client.adapters(limit=limit, after=after, search=" ".join(words), **wanted)
    _print_page(page, is_json=is_json)


def _print_page(page: AdapterPage, *, is_json: bool) -> None:
    if is_json:
        print_json(page)
        return
    if not page.adapters:
        note("no adapters")
        return
    rows = [
        (
            view.adapter,
            str(view.latest_version),
            short_model(view.base_model),
            view.method,
            str(view.rank or ""),
            show_bytes(view.size),
            _age(view),
        )
        for view in page.adapters
    ]
    print_table(["adapter", "#latest", "base model", "method", "#rank", "#size", "updated"], rows)
    if page.next_cursor:
        note(f"there are more: --after {page.next_cursor}")


def _method(view: AdapterView | VersionView) -> str:
    return f"{view.method}, rank {view.rank}" if view.rank else view.method


def _age(view: AdapterView) -> str:
    return show_age(view.updated_at)


def short_model(identity: str) -> str:
    """Return a pinned base model as a person calls it: without its commit or digest, and a path by its last part."""
    name, _ = unpin(identity)
    return name.rpartition("/")[2] if name.startswith("/") else name


def short_source(source: str) -> str:
    """Return where a version came from with the first digits of each digest and commit; programs read them whole."""
    return re.sub(r"\b([0-9a-f]{12})[0-9a-f]{28,}\b", r"\1", source)


@adapters.command("show", epilog=example("wgctl adapters show demo/arithmetic\nwgctl adapters show demo/arithmetic@3"))
@click.argument("ref")
@json_option
def show_adapter(ref: str, is_json: bool) -> None:
    """Show an adapter, or with @ one version of it."""
    with connect() as client:
        if "@" not in ref:
            adapter, shown = client.adapter(ref), client.card(ref)
            _print(adapter, [*_adapter_fields(adapter), ("licence", shown.license)], is_json=is_json)
            return
        version, signed = client.resolve_signed(ref)
        engines = [] if is_json else [(one.engine, one.loads, one.how) for one in client.loads_on(version.ref).engines]
        rows = [] if is_json else client.evaluations(version.ref).evaluations
        made = None if is_json else show_formats(client.formats(version.ref).formats)
    key = "not signed" if signed is None else f"good, by key {signed.key[:16]}"
    _print(version, [*_version_fields(version), ("signature", key), *_known_fields(engines, rows), ("formats", made)], is_json=is_json)


def _print(view: AdapterView | VersionView, fields: list[tuple[str, str | None]], *, is_json: bool) -> None:
    if is_json:
        print_json(view)
    else:
        print_fields(fields)


def _known_fields(engines: Sequence[tuple[str, str, str]], rows: Sequence[EvaluationView]) -> list[tuple[str, str | None]]:
    reported = [f"{one.metric}  {one.value:.6g}  {one.dataset_name or one.dataset_digest or ''}" for one in rows if one.is_reported]
    return [
        ("reported", "\n".join(reported) or None),
        ("loads on", "\n".join(f"{name}: {_LOADS[loads]}; {how}" for name, loads, how in engines) or None),
    ]


_LOADS = {"as_is": "yes", "converted": "once converted", "no": "no"}


def _adapter_fields(view: AdapterView) -> list[tuple[str, str | None]]:
    return [
        ("adapter", view.adapter),
        ("latest", str(view.latest_version)),
        ("seen by", SEEN_BY[view.visibility]),
        ("aliases", _aliases(view)),
        ("base model", view.base_model),
        ("method", _method(view)),
        ("size", show_bytes(view.size)),
        ("created", show_time(view.created_at)),
        ("updated", show_time(view.updated_at)),
    ]


def _aliases(view: AdapterView) -> str:
    named = sorted(view.aliases.items())
    return ", ".join(f"{alias}={number}{' (protected)' if alias in view.protected_aliases else ''}" for alias, number in named)


def _version_fields(view: VersionView) -> list[tuple[str, str | None]]:
    return [
        ("version", view.ref),
        ("aliases", ", ".join(sorted(view.aliases)) or None),
        ("base model", view.base_model),
        ("method", _method(view)),
        ("source", view.source),
        ("published", show_time(view.created_at)),
        ("size", show_bytes(view.size)),
        ("manifest", view.manifest_digest),
        ("files", "\n".join(f"{file.path}  {show_bytes(file.size)}  {file.digest}" for file in view.manifest.files)),
        ("metrics", "\n".join(f"{name}  {value:.6g}" for name, value in sorted(view.metrics.items())) or None),
    ]


@adapters.command("versions", epilog=example("wgctl adapters versions demo/arithmetic"))
@click.argument("name")
@json_option
def list_versions(name: str, is_json: bool) -> None:
    """List an adapter's versions, newest first."""
    with connect() as client:
        versions = client.versions(name)
    if is_json:
        print_json(versions)
        return
    rows = [
        (
            str(view.version),
            ", ".join(sorted(view.aliases)) or "-",
            short_source(view.source),
            show_bytes(view.size),
            show_age(view.created_at),
        )
        for view in versions
    ]
    print_table(["#version", "aliases", "source", "#size", "published"], rows)


@adapters.command(
    "download",
    epilog=example(
        "wgctl adapters download demo/arithmetic@3 -o adapter\n"
        "wgctl adapters download demo/arithmetic -o gguf --format gguf\n"
        "wgctl adapters download demo/arithmetic -o lora --format lora --base-model HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
)
@click.argument("ref")
@click.option("-o", "--output", "folder", required=True, type=click.Path(path_type=Path), help="Folder to make.")
@click.option("--overwrite", is_flag=True, help="Replace the adapter that is in the folder.")
@click.option(
    "--format",
    "layout",
    type=click.Choice(["native", *get_args(DerivedFormat)]),
    default="native",
    show_default=True,
    help="native: as published, for PEFT with wegeft. lora: an equal standard LoRA, for everything else; made here where none is attached. "
    "gguf, mlx: for llama.cpp and mlx-lm, where they are attached.",
)
@click.option(
    "--base-model",
    metavar="MODEL",
    help="For lora: make it here, with this base model: id, folder or .gguf; by default the one it was trained on.",
)
@json_option
def download(
    ref: str, folder: Path, overwrite: bool, layout: Literal["native"] | DerivedFormat, base_model: str | None, is_json: bool
) -> None:
    """Download a version into a folder that PEFT and engines load; every byte is verified."""
    if base_model is not None and layout != "lora":
        raise InvalidSetting("only used to convert", path="--base-model", value=base_model, hint="add --format lora, or leave it out")
    if overwrite and layout != "native":
        raise InvalidSetting("a converted folder is not overwritten", path="--overwrite", hint="give another folder")
    AdapterRef.parse(ref)
    with connect() as client:
        version = (
            _fetch(client, ref, folder, layout, base_model) if layout != "native" else client.download(ref, folder, overwrite=overwrite)
        )
    if is_json:
        print_json({"ref": version.ref, "folder": str(folder.absolute()), "format": layout, "manifest_digest": version.manifest_digest})
    else:
        say(f"{version.ref} is in {folder}")


def _fetch(client: Client, ref: str, folder: Path, layout: DerivedFormat, base_model: str | None) -> VersionView:
    if base_model is None:
        version, _ = client.resolve_signed(ref)
        if fetch_attached(client, version.ref, layout, folder) is not None:
            return version
    return _download_lora(client, ref, folder, base_model)


def _download_lora(client: Client, ref: str, folder: Path, base_model: str | None) -> VersionView:
    wish = Wish(layout="lora", target=folder.expanduser().absolute(), base_model=base_model, allow_other_base=True)
    check_wish(wish)
    with open_published(client, ref) as (version, source):
        convert(source, wish)
    return version


adapters.add_command(export)
adapters.add_command(convert_in_worker)
adapters.add_command(formats)
adapters.add_command(import_checkpoint)
adapters.add_command(push)
for command in (verify, trust, signature, lineage, diff, evaluations, card):
    adapters.add_command(command)


adapters.add_command(visibility)


@adapters.group("alias", no_args_is_help=True)
def alias_group() -> None:
    """Name versions: set an alias, remove one, or let only admins do so."""


@alias_group.command("set", epilog=example("wgctl adapters alias set demo/arithmetic@3 production"))
@click.argument("ref")
@click.argument("alias")
@click.option("--expected", type=click.IntRange(0), metavar="NUMBER", help="Move it only from this version; 0: only if it is new.")
@json_option
def set_alias(ref: str, alias: str, expected: int | None, is_json: bool) -> None:
    """Let an alias point to a version; latest moves by itself."""
    with connect() as client:
        version = client.resolve(ref)
        view = client.set_alias(version.adapter, alias, version.version, expected=expected)
    if is_json:
        print_json(view)
    else:
        say(f"{view.adapter}@{alias} is version {version.version}")


@alias_group.command("rm", epilog=example("wgctl adapters alias rm demo/arithmetic production"))
@click.argument("name")
@click.argument("alias")
@json_option
def remove_alias(name: str, alias: str, is_json: bool) -> None:
    """Forget an alias; the version that it points to stays."""
    with connect() as client:
        client.delete_alias(name, alias)
    if is_json:
        print_json({"adapter": name, "removed": alias})
    else:
        say(f"{name} has no alias {alias} any more")


@alias_group.command("protect", epilog=example("wgctl adapters alias protect demo/arithmetic production"))
@click.argument("name")
@click.argument("alias")
@json_option
def protect_alias(name: str, alias: str, is_json: bool) -> None:
    """Let only admins of the adapter move or remove an alias; no job moves it either."""
    _set_protection(name, alias, is_protected=True, is_json=is_json)


@alias_group.command("unprotect", epilog=example("wgctl adapters alias unprotect demo/arithmetic production"))
@click.argument("name")
@click.argument("alias")
@json_option
def unprotect_alias(name: str, alias: str, is_json: bool) -> None:
    """Let everybody who may publish to the adapter move or remove an alias again."""
    _set_protection(name, alias, is_protected=False, is_json=is_json)


def _set_protection(name: str, alias: str, *, is_protected: bool, is_json: bool) -> None:
    with connect() as client:
        view = client.protect_alias(name, alias, is_protected=is_protected)
    if is_json:
        print_json(view)
    else:
        who = "only admins" if is_protected else "everybody who may publish"
        say(f"{who} may move {view.adapter}@{alias}")
