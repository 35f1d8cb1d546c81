"""How a site gets a new key: a token from the federation's owner, and the site's proof that the key is its own."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints

from wegeft.contracts.federation import Identifier, Instant, KeyText, Message, SignatureText
from wegeft.contracts.federation_rules import SiteName

RotationToken = Annotated[str, StringConstraints(pattern=r"^wgr_[0-9a-f]{12}_[0-9a-f]{64}$")]


def rotation_content(token: str, public_key: str) -> bytes:
    """Return what a site signs with its new key to bind it, which shows that the key is its own."""
    return f"wegeft-rotation-1\n{token}\n{public_key}".encode()


class RotationOrder(Message):
    """A site that is to have a new key."""

    expires_in_seconds: Annotated[int, Field(ge=60, le=90 * 86_400)] = 86_400
    """How long the token can be used."""


class Rotation(Message):
    """A token with which one site can bind one new key; it is shown this one time."""

    job_id: Identifier
    name: SiteName
    token: RotationToken = Field(repr=False)
    expires_at: Instant


class RotationRequest(Message):
    """A site that binds its new key; from then on the old one is refused."""

    token: RotationToken = Field(repr=False)
    public_key: KeyText
    """Ed25519; the private key never leaves the site."""
    proof: SignatureText
    """By the new key, over :func:`rotation_content`."""
