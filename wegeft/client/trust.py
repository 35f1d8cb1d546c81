"""Which hubs' keys are trusted: pinned when a hub is first met, and from then on changed only by those keys, or by a person."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from wegeft.client.blobs import local_errors
from wegeft.client.transport import Call, Transport
from wegeft.contracts.adapter import VersionView
from wegeft.contracts.bundles import SignedFormat, SignedVersion, check_signed, key_of_bundle, open_format_bundle, open_version_bundle
from wegeft.contracts.errors import InvalidSetting, NotFound, SignatureInvalid, UntrustedKey
from wegeft.contracts.formats import AttachedFormat
from wegeft.contracts.signing_keys import KeySet, extend_trust, key_id

KEYS_PATH = "//.well-known/wegeft-keys.json"


class _Pins(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    servers: dict[str, dict[str, str]] = {}
    """PEM by id, by server."""


class TrustStore:
    """A file of pinned keys; without a file, keys are remembered as long as the process lives. Of two
    processes that write, the last one wins.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        self._memory = _Pins()

    def keys_of(self, server: str) -> dict[str, str]:
        """Return the keys that are trusted for a server, PEM by id; none for one that was never met."""
        return dict(self._read().servers.get(server, {}))

    @property
    def servers(self) -> dict[str, dict[str, str]]:
        """Return every server's keys."""
        return self._read().servers

    def pin(self, server: str, keys: dict[str, str]) -> None:
        """Trust these keys, and no others, for a server; raise :class:`InvalidSetting` for a key that is not what its id says."""
        if any(key_id(pem) != name for name, pem in keys.items()):
            raise InvalidSetting("a key is not what its id says", path=server)
        self._write(_Pins(servers={**self._read().servers, server: keys}))

    def forget(self, server: str) -> None:
        """Trust whatever the server shows when it is met next."""
        self._write(_Pins(servers={name: keys for name, keys in self._read().servers.items() if name != server}))

    def _read(self) -> _Pins:
        if self.path is None:
            return self._memory
        try:
            return _Pins.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _Pins()
        except (OSError, ValidationError) as error:
            hint = "delete it to trust what hubs show when they are met next"
            raise InvalidSetting("the file of trusted keys cannot be read", path=str(self.path), hint=hint) from error

    def _write(self, pins: _Pins) -> None:
        self._memory = pins
        if self.path is None:
            return
        with local_errors(self.path.parent):
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(prefix=f".{self.path.name}.", dir=self.path.parent)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(json.dumps(pins.model_dump(), indent=2) + "\n")
            Path(name).replace(self.path)


def fetch_keys(transport: Transport) -> KeySet:
    """Return the keys that a server shows; none where it is a hub that does not sign."""
    try:
        return transport.ask(Call(method="GET", path=KEYS_PATH), KeySet)
    except NotFound:
        return KeySet(keys=())


def trusted_keys(transport: Transport, store: TrustStore, wanted: str | None, shown: KeySet | None = None) -> dict[str, str]:
    """Return the keys that are trusted for a server, PEM by id.

    A server that is met for the first time is trusted with what it shows, ``shown`` already or when it is asked. Afterwards, where the key
    ``wanted`` is not pinned, those that a pinned key endorses are pinned too.
    """
    pinned = store.keys_of(transport.server)
    if pinned and (wanted is None or wanted in pinned):
        return pinned
    offered = fetch_keys(transport) if shown is None else shown
    found = extend_trust(pinned, offered) if pinned else {key.id: key.pem for key in offered.keys if key.id == key_id(key.pem)}
    if found != pinned:
        store.pin(transport.server, found)
    return found


def check_version(transport: Transport, store: TrustStore, version: VersionView, shown: KeySet | None = None) -> SignedVersion | None:
    """Return what a version's signature says, once it holds, is by a trusted key and is of this version and manifest.

    ``shown``: the keys that the server shows, where it has said.
    None only where the hub has never shown a key and the version has no signature. Raises :class:`SignatureInvalid` and
    :class:`UntrustedKey`.
    """
    if version.signature is None:
        if trusted_keys(transport, store, None, shown):
            raise SignatureInvalid("the version is not signed, though its hub signs", path=version.ref)
        return None
    trusted = trusted_keys(transport, store, key_of_bundle(version.signature), shown)
    with _told_how_to_renew(transport, version.signature):
        signed = open_version_bundle(version.signature, trusted)
    check_signed(signed, version.ref, version.manifest, version.manifest_digest)
    return signed


def check_format(transport: Transport, store: TrustStore, ref: str, attached: AttachedFormat) -> SignedFormat | None:
    """Return what the signature of a derived format says, once it holds, is by a trusted key, and is of this one of this version.

    None and errors as :func:`check_version` has them; ``ref``: the version, by its number.
    """
    if attached.signature is None:
        if trusted_keys(transport, store, None):
            raise SignatureInvalid("the format is not signed, though its hub signs", path=ref, value=f"{attached.format} {attached.dtype}")
        return None
    trusted = trusted_keys(transport, store, key_of_bundle(attached.signature))
    with _told_how_to_renew(transport, attached.signature):
        signed = open_format_bundle(attached.signature, trusted)
    if signed.subject.lower() != f"{ref}/{attached.format}/{attached.dtype}".lower():
        raise SignatureInvalid("the signature is of another format, or of another version's", path=ref, value=signed.subject)
    if dict(signed.files) != {entry.path: entry.digest for entry in attached.files}:
        raise SignatureInvalid("the signature is of other files", path=ref, value=f"{attached.format} {attached.dtype}")
    return signed


@contextmanager
def _told_how_to_renew(transport: Transport, bundle: str) -> Iterator[None]:
    try:
        yield
    except UntrustedKey as error:
        hint = "if the hub's operator says that its key has changed: wgctl adapters trust --renew"
        raise UntrustedKey(path=transport.server, value=key_of_bundle(bundle), hint=hint) from error
