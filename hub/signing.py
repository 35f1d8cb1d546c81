"""The hub's signature under a version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, get_args

from wegeft.contracts.bundles import make_bundle
from wegeft.contracts.signing_keys import Algorithm, PublicKeyView, SigningKey, key_id


@dataclass(frozen=True, kw_only=True)
class Succession:
    """That the key took over from another one."""

    predecessor: str
    """Id of the Ed25519 key before."""
    endorsements: Mapping[Algorithm, str]
    """That key's signatures of both keys, in hex."""


@dataclass(frozen=True, kw_only=True)
class Signer:
    """Signs statements with the hub's key; safe to use from several threads."""

    key: SigningKey
    succession: Succession | None = None

    @property
    def key_id(self) -> str:
        """Id of the Ed25519 key."""
        return key_id(self.key.pem("ed25519"))

    def public_keys(self, now: datetime) -> tuple[PublicKeyView, ...]:
        """Return both public keys, as they are published."""
        return tuple(self._view(algorithm, now) for algorithm in get_args(Algorithm))

    def _view(self, algorithm: Algorithm, now: datetime) -> PublicKeyView:
        pem = self.key.pem(algorithm)
        told = self.succession
        return PublicKeyView(
            id=key_id(pem),
            algorithm=algorithm,
            pem=pem,
            created_at=now,
            endorsed_by=told.predecessor if told else None,
            endorsement=told.endorsements[algorithm] if told else None,
        )

    def sign(self, statement: Mapping[str, Any], algorithm: Algorithm = "ed25519") -> tuple[str, str]:
        """Return a bundle, and the id of the key that it is signed with."""
        return make_bundle(statement, self.key, algorithm), key_id(self.key.pem(algorithm))
