"""What forms a version can be had in, and the derived ones that are attached to it."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any, get_args

from hub import catalog
from hub.formats.gate import Candidate, check_format
from hub.provenance import find_engines
from hub.services import HubServices
from hub.serving import ServedBlob
from hub.signing import Signer
from infra.database import reading, writing
from infra.principals import Principal
from wegeft.contracts.adapter import AdapterRef, VersionView
from wegeft.contracts.bundles import FormatClaim, format_statement
from wegeft.contracts.engines import EngineView
from wegeft.contracts.errors import FileNotFoundInVersion, InvalidRequest, NotFound, Problem
from wegeft.contracts.formats import AttachedFormat, DerivedFormat, FormatAttachment, FormatList, FormatView
from wegeft.contracts.signing_keys import Algorithm

_ENGINE_OF: dict[DerivedFormat, str] = {"lora": "vllm", "gguf": "llama.cpp", "mlx": "mlx"}


def find_formats(services: HubServices, version: VersionView) -> FormatList:
    """Return every form in which a version can be had: as published, attached, to be converted, or why not."""
    attached = list_signed(services, version)
    engines = {view.engine: view for view in find_engines(services, version).engines}
    derived = [_view(name, version, engines[_ENGINE_OF[name]], attached) for name in get_args(DerivedFormat)]
    native = FormatView(format="native", state="published", how=f"wgctl adapters download {version.ref} -o FOLDER")
    merged = FormatView(
        format="merged", state="convertible", how=f"wgctl adapters export {version.ref} --format merged -o FOLDER, where the base model is"
    )
    if version.method != "wegeft":
        merged = FormatView(
            format="merged", state="impossible", how="PEFT's own merge_and_unload makes it; only generators are merged here"
        )
    return FormatList(ref=version.ref, formats=(native, *derived, merged))


def _view(name: DerivedFormat, version: VersionView, engine: EngineView, attached: Iterable[AttachedFormat]) -> FormatView:
    found = tuple(one for one in attached if one.format == name)
    if found:
        return FormatView(
            format=name, state="attached", how=f"wgctl adapters download {version.ref} --format {name} -o FOLDER", attached=found
        )
    if name == "lora" and version.method in ("lora", "rslora"):
        return FormatView(format=name, state="published", how="the version's own files are a LoRA")
    if version.method != "wegeft" or (name != "lora" and engine.loads == "no"):
        return FormatView(format=name, state="impossible", how=engine.how)
    return FormatView(format=name, state="convertible", how=how_to_make(version, name))


def how_to_make(version: VersionView, name: DerivedFormat) -> str:
    """Return the commands that make a format and attach it: by a worker, and where the base model is."""
    return (
        f"wgctl adapters convert {version.ref} --format {name} has a worker make it; "
        f"where the base model is, wgctl adapters export {version.ref} --format {name} --attach"
    )


def attach(
    services: HubServices, version: VersionView, shelf: catalog.Shelf, attachment: FormatAttachment, caller: Principal
) -> AttachedFormat:
    """Check a derived format and attach it to its version, in the place of one of the same type; the same again is harmless.

    Raises :class:`InvalidInput` with everything that the gate refuses, :class:`InvalidRequest` for bytes that the caller has not sent,
    :class:`QuotaExceeded`, and :class:`AdapterNotFound` or :class:`VersionNotFound` where the version was deleted meanwhile.
    """
    _check_sent(services, attachment, caller)
    check_format(services.store, Candidate(version=version, format=shelf[0], dtype=shelf[1], attachment=attachment))
    now = services.clock()
    stamp = (caller.name, now, now + timedelta(seconds=services.format_keep_seconds))
    with writing(services.engine) as connection:
        ref = AdapterRef.parse(version.ref)
        catalog.lock_latest(connection, ref.adapter)
        catalog.resolve(connection, ref)  # it may have been deleted meanwhile
        return catalog.attach_format(connection, version, shelf, attachment, stamp, sign(services.signer, version, shelf, attachment))


def sign(signer: Signer | None, version: VersionView, shelf: catalog.Shelf, told: FormatAttachment | AttachedFormat) -> str | None:
    """Return the hub's signature of a format's files; None where the hub does not sign."""
    return None if signer is None else signer.sign(_statement_of(version, shelf, told))[0]


def _statement_of(version: VersionView, shelf: catalog.Shelf, told: FormatAttachment | AttachedFormat) -> dict[str, Any]:
    claim = FormatClaim(
        adapter=version.adapter,
        version=version.version,
        manifest=version.manifest_digest,
        format=shelf[0],
        dtype=shelf[1],
        base_model=told.base_model,
        largest_error=told.largest_error,
        made_by=told.made_by,
    )
    return format_statement(claim, told.files)


def find_signature(services: HubServices, version: VersionView, shelf: catalog.Shelf, algorithm: Algorithm) -> str:
    """Return the hub's signature of a format that is attached; what is not kept is made anew each time.

    Raises :class:`NotFound` where there is no such format, or the hub does not sign.
    """
    attached = find_attached(services, version, shelf)
    if algorithm == "ed25519" and attached.signature is not None:
        return attached.signature
    if services.signer is None:
        raise NotFound("this hub does not sign derived formats", path=version.ref, value=" ".join(shelf))
    return services.signer.sign(_statement_of(version, shelf, attached), algorithm)[0]


def list_signed(services: HubServices, version: VersionView) -> tuple[AttachedFormat, ...]:
    """Return what is attached to a version; what was attached before the hub signed formats is signed now."""
    with reading(services.engine) as connection:
        attached = catalog.list_formats(connection, version)
    bare = [one for one in attached if one.signature is None]
    if services.signer is None or not bare:
        return attached
    with writing(services.engine) as connection:
        for one in bare:
            signature = sign(services.signer, version, (one.format, one.dtype), one)
            assert signature is not None  # noqa: S101 - there is a signer
            catalog.sign_format(connection, version, one, signature)
        return catalog.list_formats(connection, version)


def _check_sent(services: HubServices, attachment: FormatAttachment, caller: Principal) -> None:
    digests = [entry.digest for entry in attachment.files]
    with reading(services.engine) as connection:
        had = catalog.find_had(connection, catalog.upload_of(caller.token_id), digests, caller)
    problems = [
        Problem(path=f"files.{index}", message="you have not sent these bytes", value=digest, hint="send them to /api/v1/blobs first")
        for index, digest in enumerate(digests)
        if digest not in had
    ]
    if problems:
        raise InvalidRequest("the files are not all sent", problems=problems)


def find_attached(services: HubServices, version: VersionView, shelf: catalog.Shelf) -> AttachedFormat:
    """Return a format that is attached; raise :class:`NotFound`, which says how to make it."""
    with reading(services.engine) as connection:
        attached = catalog.list_formats(connection, version)
    found = next((one for one in attached if (one.format, one.dtype) == shelf), None)
    if found is None:
        raise NotFound("the version has no such format", path=version.ref, value=" ".join(shelf), hint=how_to_make(version, shelf[0]))
    return found


def find_file(services: HubServices, version: VersionView, shelf: catalog.Shelf, path: str) -> ServedBlob:
    """Return a file of a format that is attached; raise :class:`NotFound` or :class:`FileNotFoundInVersion`."""
    attached = find_attached(services, version, shelf)
    entry = next((entry for entry in attached.files if entry.path == path), None)
    if entry is None:
        raise FileNotFoundInVersion(path=version.ref, value=path, hint=f"it holds {', '.join(entry.path for entry in attached.files)}")
    return ServedBlob(
        digest=entry.digest,
        size=entry.size,
        media_type=entry.media_type,
        file_name=entry.path,
        is_immutable=False,  # whoever may write can put another one in its place
        tag=entry.digest,
    )


def note_use(services: HubServices, version: VersionView, shelf: catalog.Shelf) -> None:
    """Let a format that somebody fetches stay longer; written at most once in the half of its time."""
    attached, now = find_attached(services, version, shelf), services.clock()
    whole = timedelta(seconds=services.format_keep_seconds)
    if attached.kept_until - now > whole / 2:
        return
    with writing(services.engine) as connection:
        if not catalog.keep_format(connection, version, attached, now + whole):
            raise NotFound("the version has no such format", path=version.ref, value=" ".join(shelf), hint=how_to_make(version, shelf[0]))


def detach(services: HubServices, version: VersionView, shelf: catalog.Shelf) -> None:
    """Forget a format of a version; raise :class:`NotFound` where there is none."""
    with writing(services.engine) as connection:
        catalog.detach_format(connection, version, shelf, services.clock())
