"""``wgctl adapters verify``, ``trust``, ``signature``, ``lineage``: what a version is, who vouches for it and where it comes from."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import rich_click as click

from cli.connection import connect, find_service
from cli.home import Home
from cli.options import example, json_option
from cli.output import note, print_fields, print_json, print_table, say
from infra.settings import load_settings
from wegeft.contracts.bundles import BundleKind, SignedFormat, key_of_bundle
from wegeft.contracts.errors import InvalidSetting
from wegeft.contracts.formats import DerivedFormat, StoredDtype
from wegeft.contracts.provenance import LineageView, Relative
from wegeft.contracts.signing_keys import Algorithm, key_id

if TYPE_CHECKING:
    from wegeft.contracts.bundles import SignedVersion

_MAX_KEY_BYTES = 10_000


@click.command(
    "verify",
    epilog=example(
        "wgctl adapters verify demo/arithmetic@3\n"
        "wgctl adapters verify demo/arithmetic@3 --format gguf --dtype q8_0\n"
        "wgctl adapters verify ./adapter\n"
        "wgctl adapters verify models--demo--arithmetic/snapshots/COMMIT --signature model.sig --public-key hub.pem"
    ),
)
@click.argument("target", metavar="REF|FOLDER")
@click.option("--signature", type=click.Path(path_type=Path), help="For a folder: its signature, by default model.sig in it.")
@click.option("--public-key", type=click.Path(path_type=Path), help="For a folder: PEM file of the key to trust, and no other.")
@click.option(
    "--format", "layout", type=click.Choice(get_args(DerivedFormat)), help="Of a version: check a derived format that is attached."
)
@click.option(
    "--dtype", type=click.Choice(get_args(StoredDtype)), help="With --format: how its numbers are stored; by default the most exact."
)
@json_option
def verify(target: str, is_json: bool, **options: Any) -> None:
    """Check the hub's signature of a version, or of a derived format of it, and every byte of its files against it.

    A folder is checked without asking any server: one that was downloaded, or a snapshot in the cache of the Hugging Face libraries. The
    keys to trust are those of the hubs that were met before, or the one that is given.
    """
    folder = Path(target).expanduser()
    _check_options(options, is_folder=folder.is_dir())
    if folder.is_dir():
        signed = _verify_folder(folder, options["signature"], options["public_key"])
    elif options["layout"]:
        signed = _verify_format(target, options["layout"], options["dtype"])
    else:
        signed = _verify_published(target)
    if is_json:
        answer: dict[str, object] = {
            "ref": signed.ref,
            "manifest_digest": signed.claim.manifest,
            "key": signed.key,
            "files": dict(signed.files),
            **({"format": signed.claim.format, "dtype": signed.claim.dtype} if isinstance(signed, SignedFormat) else {}),
        }
        print_json(answer)
    else:
        told = f"{len(signed.files)} files, manifest {signed.claim.manifest}, key {signed.key[:16]}"
        say(f"{signed.subject} is what its hub has signed: {told}")


def _check_options(options: dict[str, Any], *, is_folder: bool) -> None:
    """Raise :class:`InvalidSetting` for options that do not go together."""
    wrong = ("layout", "dtype") if is_folder else ("signature", "public_key")
    found = next((name for name in wrong if options[name]), None)
    if found:
        hint = "its signature says what it is" if is_folder else "there is no such folder"
        path = {"layout": "--format", "public_key": "--public-key"}.get(found, f"--{found}")
        raise InvalidSetting("only used with a version" if is_folder else "only used with a folder", path=path, hint=hint)
    if options["dtype"] and not options["layout"]:
        raise InvalidSetting("only used with --format", path="--dtype", value=options["dtype"])


def _verify_folder(folder: Path, signature: Path | None, public_key: Path | None) -> SignedVersion:
    from wegeft.client.verification import read_signature, verify_folder

    return verify_folder(folder, read_signature(folder, signature), read_key(public_key) if public_key else _pinned())


def read_key(path: Path) -> dict[str, str]:
    """Return a public key of a PEM file, by its id; raise :class:`InvalidSetting` where there is none."""
    try:
        with path.open("rb") as file:
            pem = file.read(_MAX_KEY_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise InvalidSetting(
            "the key cannot be read", path=str(path), hint="a PEM file, as wgctl adapters trust --save writes it"
        ) from error
    return {key_id(pem): pem}


def _pinned() -> dict[str, str]:
    from wegeft.client.trust import TrustStore

    found = TrustStore(Home(load_settings().home).trust_file).servers
    keys = {name: pem for server in found.values() for name, pem in server.items()}
    if not keys:
        hint = "give --public-key, or meet the hub once: wgctl adapters trust"
        raise InvalidSetting("no hub's key is trusted yet", path="--public-key", hint=hint)
    return keys


def _verify_published(ref: str) -> SignedVersion:
    from wegeft.client.verification import read_signature, verify_folder

    with connect() as client, tempfile.TemporaryDirectory(prefix="wegeft-") as temporary:
        folder = Path(temporary) / "version"
        version = client.download(ref, folder)
        if version.signature is None:
            raise InvalidSetting("the version is not signed: its hub has no key", path=version.ref)
        trusted = client.trusted_keys(key_of_bundle(version.signature))
        return verify_folder(folder, read_signature(folder), trusted)


def _verify_format(ref: str, layout: DerivedFormat, dtype: StoredDtype | None) -> SignedVersion:
    from wegeft.client.verification import read_signature, verify_folder

    with connect() as client, tempfile.TemporaryDirectory(prefix="wegeft-") as temporary:
        folder = Path(temporary) / "format"
        attached = client.download_format(ref, layout, folder, dtype)
        if attached.signature is None:
            raise InvalidSetting("the format is not signed: its hub has no key", path=ref)
        return verify_folder(folder, read_signature(folder), client.trusted_keys(key_of_bundle(attached.signature)))


@click.command("trust", epilog=example("wgctl adapters trust\nwgctl adapters trust --public-key hub.pem\nwgctl adapters trust --renew"))
@click.option("--public-key", type=click.Path(path_type=Path), help="Trust this key for the service, and no other: a PEM file.")
@click.option("--renew", is_flag=True, help="Forget what is trusted for the service, and trust the keys that it shows now.")
@click.option("--save", type=click.Path(path_type=Path), metavar="FILE", help="Write the key that the service signs with now, as PEM.")
@click.option(
    "--algorithm",
    type=click.Choice(["ed25519", "ecdsa-p256"]),
    default="ed25519",
    show_default=True,
    help="With --save: which of its two keys; the OpenSSF's model_signing takes ecdsa-p256.",
)
@json_option
def trust(public_key: Path | None, renew: bool, save: Path | None, algorithm: Algorithm, is_json: bool) -> None:
    """Show which keys are trusted for the service, and change that.

    The keys that a service shows when it is first met are pinned. A key that takes over from a pinned one is trusted by itself; any other
    is refused until a person says otherwise.
    """
    from wegeft.client.trust import TrustStore

    if public_key and renew:
        raise InvalidSetting("either a key or whatever the service shows", path="--renew")
    service = find_service(load_settings())
    store = TrustStore(Home(load_settings().home).trust_file)
    with connect() as client:
        if public_key and service:
            store.pin(client.server, read_key(public_key))
        elif renew:
            store.forget(client.server)
        trusted = client.trusted_keys()
        shown = client.keys().keys
    rows = [key for key in shown if key.id in trusted]
    if save:
        _save_key(save, [key.pem for key in rows if key.algorithm == algorithm and key.retired_at is None])
    if is_json:
        print_json({"server": client.server, "trusted": trusted})
        return
    others = len(shown) - len(rows)
    print_table(["key", "algorithm", "state"], [(key.id, key.algorithm, "retired" if key.retired_at else "signs") for key in rows])
    if others:
        note(f"{others} keys that the service shows are not trusted; --renew trusts all that it shows")


def _save_key(path: Path, pems: list[str]) -> None:
    from wegeft.client.blobs import local_errors

    if not pems:
        raise InvalidSetting("no trusted key signs now", path="--save", value=str(path))
    with local_errors(path.absolute().parent):
        path.write_text(pems[-1], encoding="ascii")


@click.command("signature", epilog=example("wgctl adapters signature demo/arithmetic@3 --kind attestation"))
@click.argument("ref")
@click.option(
    "--kind",
    type=click.Choice(["ed25519", "ecdsa-p256", "attestation"]),
    default="ed25519",
    show_default=True,
    help="ed25519: what our commands check. ecdsa-p256: the same for the OpenSSF's model_signing. attestation: how it was trained.",
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the bundle to a file, by default to standard output.")
@json_option
def signature(ref: str, kind: BundleKind, output: Path | None, is_json: bool) -> None:
    """Print a version's signature as a Sigstore bundle, or with --json what its attestation says, once its signature holds."""
    from wegeft.client.blobs import local_errors

    with connect() as client:
        if is_json and kind == "attestation":
            print_json(client.attestation(ref))
            return
        bundle = client.signature(ref, kind)
    if output is None:
        say(bundle)
        return
    with local_errors(output.absolute().parent):
        output.write_text(bundle, encoding="utf-8")


@click.command("lineage", epilog=example("wgctl adapters lineage demo/arithmetic@3\nwgctl adapters lineage demo/arithmetic@3 --json"))
@click.argument("ref")
@json_option
def lineage(ref: str, is_json: bool) -> None:
    """Show where a version comes from, and what came of it: rounds of a federation, training that began with it, edits."""
    with connect() as client:
        view = client.lineage(ref)
    if is_json:
        print_json(view)
        return
    print_fields(_lineage_fields(view))
    for title, trees in (("ancestors", view.ancestors), ("descendants", view.descendants)):
        say(f"{title}{'' if trees else ': none'}")
        for line in _lines(trees, 1):
            say(line)
    if view.is_cut:
        note("there are more, further away")


def _lineage_fields(view: LineageView) -> list[tuple[str, str | None]]:
    return [
        ("version", view.ref),
        ("source", view.source),
        ("round", None if view.round is None else str(view.round)),
        ("manifest", view.manifest_digest),
        ("base model", view.base_model.name),
        ("revision", view.base_model.revision),
        ("its config", view.base_model.config_digest),
    ]


_RELATIONS: dict[str, str] = {"next_round": "round", "started_from": "start of training", "edited": "edit"}


def _lines(trees: tuple[Relative, ...], depth: int) -> Iterator[str]:
    for one in trees:
        yield f"{'  ' * depth}{one.ref}  ({_RELATIONS[one.relation]}, {one.source})"
        yield from _lines(one.kin, depth + 1)


def summary_of(predicate: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Return the lines that a person reads of an attestation."""
    build, run = predicate.get("buildDefinition", {}), predicate.get("runDetails", {})
    made = "\n".join(
        f"{one.get('name')}  {one.get('uri') or ''}  {', '.join(f'{k}:{v}' for k, v in one.get('digest', {}).items())}"
        for one in build.get("resolvedDependencies", [])
    )
    code = ", ".join(f"{name} {text}" for name, text in run.get("builder", {}).get("version", {}).items())
    return [("trained as", build.get("buildType")), ("from", made or None), ("by", code or None)]
