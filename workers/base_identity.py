"""Whether two names of base models mean one model, by their pins where they have them."""

from __future__ import annotations

import re

from wegeft.contracts.base_model_name import is_hub_id, unpinned_name

_PINNED = re.compile(r"(?P<name>.+)@(?P<pin>[0-9a-f]{40}|(?P<kind>sha256|weights1):[0-9a-f]{64})")


def comparable_identity(wanted: str, identity: str, former_identity: str | None) -> str:
    """Return by which of its identities a model is held against ``wanted``: the former one where ``wanted`` has a pin of its kind."""
    return identity if former_identity is None or _kind(former_identity) != _kind(wanted) else former_identity


def is_same_model(first: str, second: str) -> bool:
    """Whether two names mean one model: by their pins where both have one of a kind, else by their names."""
    from wegeft.method.stored_base import canonical_name

    pins = [identity.rpartition("@")[2] for identity in (first, second) if _PINNED.fullmatch(identity)]
    if len(pins) == 2 and _kind(first) == _kind(second):
        return pins[0] == pins[1]
    return canonical_name(_without_branch(first)) == canonical_name(_without_branch(second))


def _without_branch(identity: str) -> str:
    """Return an id of a hub without a branch, a tag or part of a commit behind it, which pin nothing; anything else as it is."""
    name = unpinned_name(identity)
    return name if is_hub_id(name) else identity


def unpin(identity: str) -> tuple[str, str | None]:
    """Return the name in a pinned base model, and its commit where it is a Hugging Face id."""
    match = _PINNED.fullmatch(identity)
    if match is None:
        return identity, None
    return match["name"], match["pin"] if match["kind"] is None else None


def _kind(identity: str) -> str | None:
    """Return what a pin is of: ``sha256`` or ``weights1``, ``commit``, or None without one."""
    match = _PINNED.fullmatch(identity)
    return None if match is None else match["kind"] or "commit"
