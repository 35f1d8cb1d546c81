"""The keys that a hub signs versions with, and the key set that it publishes.

A hub has one secret of 32 bytes. It is the Ed25519 key that our clients check; a second key, on the curve P-256, is derived from it for the
OpenSSF's own verifier, which takes no Ed25519 keys. A key is known by the sha256 of its PEM form, as that verifier counts it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Literal

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from pydantic import BaseModel, ConfigDict, Field

Algorithm = Literal["ed25519", "ecdsa-p256"]

_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_SUCCESSION = b"wegeft-key-succession-1\n"


class PublicKeyView(BaseModel):
    """A public key that a hub signs with, or has signed with."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    id: str = Field(pattern=r"^[0-9a-f]{64}$")
    """sha256 of ``pem``."""
    algorithm: Algorithm
    pem: str = Field(max_length=1000)
    created_at: datetime
    retired_at: datetime | None = None
    """From when on nothing new is signed with it."""
    endorsed_by: str | None = None
    """The key that it took over from."""
    endorsement: str | None = Field(default=None, max_length=400)
    """That key's signature of this one, in hex: whoever trusts that key may trust this one."""


class KeySet(BaseModel):
    """Every public key of a hub, oldest first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    keys: tuple[PublicKeyView, ...] = Field(max_length=1000)


@dataclass(frozen=True)
class SigningKey:
    """One secret, and both keys that it is."""

    seed: bytes = field(repr=False)
    """32 bytes."""

    @cached_property
    def _ed25519(self) -> Ed25519PrivateKey:
        return Ed25519PrivateKey.from_private_bytes(self.seed)

    @cached_property
    def _p256(self) -> ec.EllipticCurvePrivateKey:
        # 48 bytes make the remainder as good as even (FIPS 186-5, appendix A.2.1).
        content = HKDF(algorithm=hashes.SHA256(), length=48, salt=None, info=b"wegeft signing key p-256").derive(self.seed)
        return ec.derive_private_key(int.from_bytes(content) % (_P256_ORDER - 1) + 1, ec.SECP256R1())

    def pem(self, algorithm: Algorithm) -> str:
        """Return the public key."""
        key = self._ed25519.public_key() if algorithm == "ed25519" else self._p256.public_key()
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")

    def sign(self, algorithm: Algorithm, content: bytes) -> bytes:
        """Return the signature of ``content``."""
        return self._ed25519.sign(content) if algorithm == "ed25519" else self._p256.sign(content, ec.ECDSA(hashes.SHA256()))

    def endorse(self, pem: str) -> str:
        """Return the hex signature by which whoever trusts this Ed25519 key may trust its successor's key ``pem``."""
        return self.sign("ed25519", _SUCCESSION + pem.encode()).hex()


def key_id(pem: str) -> str:
    """Return what a public key is known by."""
    return hashlib.sha256(pem.encode()).hexdigest()


def is_signature(pem: str, content: bytes, signature: bytes) -> bool:
    """Return whether ``signature`` is that of ``content`` by the key; False too for what is no key or no signature."""
    try:
        match _public_key(pem):
            case Ed25519PublicKey() as key:
                key.verify(signature, content)
            case ec.EllipticCurvePublicKey() as curve_key if isinstance(curve_key.curve, ec.SECP256R1):
                curve_key.verify(signature, content, ec.ECDSA(hashes.SHA256()))
            case _:
                return False
    except (InvalidSignature, UnsupportedAlgorithm, ValueError):
        return False
    return True


@lru_cache(maxsize=16)
def _public_key(pem: str) -> PublicKeyTypes:
    return load_pem_public_key(pem.encode())


def extend_trust(trusted: Mapping[str, str], offered: KeySet) -> dict[str, str]:
    """Return the trusted keys, PEM by id, with all that one of them endorses, directly or through others that are offered."""
    found = dict(trusted)
    grows = True
    while grows:
        new = {key.id: key.pem for key in offered.keys if key.id not in found and _is_endorsed(key, found)}
        found |= new
        grows = bool(new)
    return found


def _is_endorsed(key: PublicKeyView, trusted: Mapping[str, str]) -> bool:
    endorser = trusted.get(key.endorsed_by or "")
    if endorser is None or key.endorsement is None or key.id != key_id(key.pem):
        return False
    try:
        signature = bytes.fromhex(key.endorsement)
    except ValueError:
        return False
    return is_signature(endorser, _SUCCESSION + key.pem.encode(), signature)
