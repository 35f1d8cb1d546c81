"""Ed25519 signatures over canonical bytes, and what a signed request signs."""

from __future__ import annotations

import hashlib
from datetime import datetime, timedelta

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from wegeft.contracts.errors import Problem

PREFIX = "ed25519:"
CLOCK_TOLERANCE = timedelta(minutes=5)
"""How far a site's clock may be from the server's; nonces are remembered for twice as long."""


def public_key_of(private_key: bytes) -> str:
    """Return ``ed25519:…``, the public half of a private key of 32 bytes."""
    return PREFIX + Ed25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw().hex()


def sign(private_key: bytes, content: bytes) -> str:
    """Return ``ed25519:…``, the signature of ``content`` by a private key of 32 bytes; the same each time (RFC 8032)."""
    return PREFIX + Ed25519PrivateKey.from_private_bytes(private_key).sign(content).hex()


def is_signed(public_key: str, content: bytes, signature: str) -> bool:
    """Return whether ``signature`` is that of ``content`` by the owner of ``public_key``; False too for malformed keys and signatures."""
    try:
        key = Ed25519PublicKey.from_public_bytes(_unhex(public_key))
        key.verify(_unhex(signature), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def request_content(method: str, path: str, body: bytes, timestamp: str, nonce: str) -> bytes:
    """Return what a site signs for one HTTP request: method, path with query, sha256 of the body, time and nonce, a line each."""
    return upload_content(method, path, hashlib.sha256(body).hexdigest(), (timestamp, nonce))


def upload_content(method: str, path: str, body_sha256: str, stamp: tuple[str, str]) -> bytes:
    """Return the same for a body that is known by its sha256 alone; ``stamp``: the request's time and nonce."""
    return "\n".join(["wegeft-request-1", method.upper(), path, body_sha256, *stamp]).encode()


def check_freshness(timestamp: str, now: datetime) -> Problem | None:
    """Return what is wrong with a request's time, an ISO 8601 text with its offset; None where it is near enough to ``now``."""
    try:
        sent_at = datetime.fromisoformat(timestamp)
    except ValueError:
        return Problem(path="timestamp", message="is not an ISO 8601 time", value=timestamp[:64])
    if sent_at.tzinfo is None:
        return Problem(path="timestamp", message="has no offset from UTC", value=timestamp[:64], hint="end it with +00:00")
    if abs(sent_at - now) > CLOCK_TOLERANCE:
        minutes = int(CLOCK_TOLERANCE.total_seconds() // 60)
        return Problem(
            path="timestamp", message=f"is more than {minutes} min from the server's clock", value=timestamp, hint="set the clock"
        )
    return None


def _unhex(text: str) -> bytes:
    if not text.startswith(PREFIX):
        raise ValueError(text[:16])
    return bytes.fromhex(text.removeprefix(PREFIX))
