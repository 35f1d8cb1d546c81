"""Whether two names of base models mean one model, by their pins where they have them."""

from __future__ import annotations

from wegeft.contracts.base_model_name import have_same_pin, is_hub_id, kind_of_pin, unpinned_name


def comparable_identity(wanted: str, identity: str, former_identity: str | None) -> str:
    """Return by which of its identities a model is held against ``wanted``: the former one where ``wanted`` has a pin of its kind."""
    if former_identity is None or kind_of_pin(former_identity) != kind_of_pin(wanted):
        return identity
    return former_identity


def is_same_model(first: str, second: str) -> bool:
    """Whether two names mean one model: by their pins where both have one of a kind, else by their names, however a place is written."""
    from wegeft.method.stored_base import canonical_name

    known = have_same_pin(first, second)
    return canonical_name(_without_branch(first)) == canonical_name(_without_branch(second)) if known is None else known


def _without_branch(identity: str) -> str:
    """Return an id of a hub without a branch, a tag or part of a commit behind it, which pin nothing; anything else as it is."""
    name = unpinned_name(identity)
    return name if is_hub_id(name) else identity
