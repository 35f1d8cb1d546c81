"""What a pull needs, in one answer: for short files the way there and back costs more than their bytes."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress

from hub import catalog, provenance
from hub.objects import read_verified
from hub.services import HubServices
from infra.database import reading
from wegeft.contracts.adapter import VersionView
from wegeft.contracts.errors import BlobNotFound, Broken, TooLarge
from wegeft.contracts.pulling import MAX_INLINE_BYTES, PullView


def begin_pull(services: HubServices, version: VersionView) -> PullView:
    """Return the version signed, its short files verified, and the hub's keys.

    A file that cannot be read now is left out: whoever asks for it by itself hears why.
    """
    signed = provenance.with_signature(services, version)
    with reading(services.engine) as connection:
        keys = catalog.list_keys(connection)  # also where nothing is signed any more: who sees them notices a signature that is missing
    return PullView(version=signed, contents=dict(_short_files(services, version)), keys=keys)


def _short_files(services: HubServices, version: VersionView) -> Iterator[tuple[str, str]]:
    for entry in version.manifest.files:
        if entry.size <= MAX_INLINE_BYTES:
            with suppress(Broken, BlobNotFound, TooLarge):
                yield entry.path, b64encode(read_verified(services.store, entry.digest, MAX_INLINE_BYTES)).decode()
