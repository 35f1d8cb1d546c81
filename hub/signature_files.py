"""What the hub vouches for of a version as files beside its own, so that a folder of another client's cache carries its proof."""

from __future__ import annotations

import io
from dataclasses import dataclass

from hub.objects import MemoryStore
from hub.provenance import find_bundle
from hub.services import HubServices
from wegeft.contracts.adapter import FileEntry, VersionView, digest_of
from wegeft.contracts.bundles import ATTESTATION_FILE, SIGNATURE_FILE, BundleKind, ignored_names
from wegeft.contracts.errors import NotFound

KINDS: dict[str, BundleKind] = {SIGNATURE_FILE: "ed25519", ATTESTATION_FILE: "attestation"}
"""What each file holds; no version holds files of these names."""


@dataclass(frozen=True, kw_only=True)
class SignatureFile:
    """A file that the hub adds to a version's own."""

    entry: FileEntry
    content: bytes

    @property
    def store(self) -> MemoryStore:
        """A store that holds just this file."""
        store = MemoryStore()
        store.put(self.entry.digest, io.BytesIO(self.content), self.entry.size)
        return store


def signature_files(services: HubServices, version: VersionView) -> tuple[SignatureFile, ...]:
    """Return a version's signature, and the attestation of how it was trained; nothing where the hub does not sign.

    What was signed before attestations were files would not pass the OpenSSF's verifier with one beside it, and comes without.
    """
    try:
        signature = find_bundle(services, version, KINDS[SIGNATURE_FILE])
        made = [_file(SIGNATURE_FILE, signature)]
        if ATTESTATION_FILE in ignored_names(signature):
            made.append(_file(ATTESTATION_FILE, find_bundle(services, version, KINDS[ATTESTATION_FILE])))
    except NotFound:
        return ()
    return tuple(sorted(made, key=lambda file: file.entry.path))


def _file(path: str, bundle: str) -> SignatureFile:
    content = bundle.encode()
    return SignatureFile(entry=FileEntry(path=path, digest=digest_of(content), size=len(content)), content=content)
