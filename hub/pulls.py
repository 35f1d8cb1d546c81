"""What a pull needs, in one answer: for short files the way there and back costs more than their bytes."""

from __future__ import annotations

from collections.abc import Iterator, Set
from contextlib import suppress

from hub import catalog, provenance
from hub.services import HubServices
from hub.serving import DIRECT_SECONDS
from infra.database import reading
from wegeft.contracts.adapter import AdapterName, AdapterRef, VersionView
from wegeft.contracts.errors import BlobNotFound, Broken, TooLarge
from wegeft.contracts.pulling import MAX_FOLLOWING_BYTES, PullView, write_pull


def begin_pull(services: HubServices, ref: AdapterRef) -> bytes:
    """Return the answer to a pull: the version signed, its short files verified, addresses of those in the store, and the hub's keys.

    A file that cannot be read now is left out: whoever asks for it by itself hears why. Raises as :func:`hub.catalog.resolve` does.
    """
    with reading(services.engine) as connection:
        version = catalog.resolve(connection, ref)
        bundle = None
        if services.signer is not None:
            bundle = catalog.find_signature(connection, AdapterName.parse(version.adapter), version.version, "ed25519")
        keys = catalog.list_keys(connection)  # also where nothing is signed any more: who sees them notices a signature that is missing
    addresses = dict(_addresses(services, version))
    contents = dict(_short_files(services, version, addresses.keys()))
    signed = version.model_copy(update={"signature": bundle}) if bundle else provenance.with_signature(services, version)
    return write_pull(PullView(version=signed, following=tuple(contents), addresses=addresses, keys=keys), contents)


def _addresses(services: HubServices, version: VersionView) -> Iterator[tuple[str, str]]:
    least = services.direct_from_bytes
    for entry in version.manifest.files:
        if least is not None and entry.size >= least and (url := services.store.presign(entry.digest, DIRECT_SECONDS, entry.path)):
            yield entry.path, url


def _short_files(services: HubServices, version: VersionView, elsewhere: Set[str]) -> Iterator[tuple[str, bytes]]:
    room = MAX_FOLLOWING_BYTES
    for entry in sorted(version.manifest.files, key=lambda entry: entry.size):
        if entry.size > room:
            return
        if entry.path not in elsewhere:
            with suppress(Broken, BlobNotFound, TooLarge):
                content = services.recent.read(services.store, entry.digest, entry.size)
                if len(content) == entry.size:
                    room -= entry.size
                    yield entry.path, content
