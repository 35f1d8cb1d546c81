"""Whether the files in a folder are those that a hub has signed; nothing is asked of any server."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from wegeft.contracts.bundles import IGNORED_NAMES, MAX_BUNDLE_BYTES, SIGNATURE_FILE, SignedFormat, SignedVersion, open_files_bundle
from wegeft.contracts.errors import InvalidSetting, Problem, SignatureInvalid

_SNAPSHOT = re.compile(r"models--(?P<namespace>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})\Z")


def read_signature(folder: Path, signature: Path | None = None) -> bytes:
    """Return the signature beside a folder's files, or of another file; raise :class:`InvalidSetting` where there is none."""
    path = signature or folder / SIGNATURE_FILE
    try:
        content = path.read_bytes() if path.stat().st_size <= MAX_BUNDLE_BYTES else None
    except OSError as error:
        hint = "give one with --signature, or name the version instead"
        raise InvalidSetting("there is no signature to check the files against", path=str(path), hint=hint) from error
    if content is None:
        raise SignatureInvalid("the bundle is too long", path=str(path), hint=f"at most {MAX_BUNDLE_BYTES} bytes")
    return content


def verify_folder(folder: Path, bundle: bytes | str, trusted: Mapping[str, str]) -> SignedVersion:
    """Return what the signature says, once every signed file is in the folder as it was signed, and no other file is.

    Takes a folder that was downloaded, of a version's own files or of a derived format, and a snapshot in the cache of the Hugging Face
    libraries, whose files are links and whose name must be the version's commit. ``trusted`` are PEM keys by id. Raises
    :class:`SignatureInvalid` with every file that is changed, missing or not signed, and :class:`UntrustedKey`.
    """
    signed = open_files_bundle(bundle, trusted)
    problems = [*_file_problems(folder, signed), *_snapshot_problems(folder, signed)]
    if problems:
        raise SignatureInvalid(f"the files are not those of {signed.subject}", problems=problems)
    return signed


def _file_problems(folder: Path, signed: SignedVersion) -> Iterator[Problem]:
    if not folder.is_dir():
        raise InvalidSetting("there is no such folder", path="folder", value=str(folder))
    for name, digest in sorted(signed.files.items()):
        path = folder / name
        if not path.is_file():
            yield Problem(path=name, message="the signed file is missing", value=digest)
        elif (found := _digest_of(path)) != digest:
            yield Problem(path=name, message="the file is not the signed one", value=found, hint=f"signed is {digest}")
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_file() and relative.as_posix() not in signed.files and relative.parts[0] not in IGNORED_NAMES:
            yield Problem(path=relative.as_posix(), message="the file is not signed", hint="it is not of this version")


def _snapshot_problems(folder: Path, signed: SignedVersion) -> Iterator[Problem]:
    found = _SNAPSHOT.search(folder.absolute().as_posix())
    if found is None:
        return
    name, commit = f"{found['namespace']}/{found['name']}", signed.claim.manifest.removeprefix("sha256:")[:40]
    if isinstance(signed, SignedFormat) or name.lower() != signed.claim.adapter.lower() or found["commit"] != commit:
        message = "the snapshot is named for another version"
        yield Problem(path=str(folder), message=message, value=f"{name}, {found['commit']}", hint=f"signed is {signed.subject}, {commit}")


def _digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
