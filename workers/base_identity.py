"""Whether two names of base models mean one model, by their pins where they have them."""

from __future__ import annotations

import re

_PINNED = re.compile(r"(?P<name>.+)@(?P<pin>[0-9a-f]{40}|sha256:[0-9a-f]{64})")


def is_same_model(first: str, second: str) -> bool:
    """Whether two names mean one model: by their pins where both have one of a kind, else by their names."""
    from wegeft.method.stored_base import canonical_name

    pins = [unpin(identity)[1] for identity in (first, second)]
    digests = [identity.rpartition("@")[2] for identity in (first, second) if _PINNED.fullmatch(identity)]
    if len(digests) == 2 and (pins[0] is None) == (pins[1] is None):
        return digests[0] == digests[1]
    return canonical_name(first) == canonical_name(second)


def unpin(identity: str) -> tuple[str, str | None]:
    """Return the name in a pinned base model, and its commit where it is a Hugging Face id."""
    match = _PINNED.fullmatch(identity)
    if match is None:
        return identity, None
    pin = match["pin"]
    return match["name"], None if pin.startswith("sha256:") else pin
