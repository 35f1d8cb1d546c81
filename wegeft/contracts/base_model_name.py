"""How a base model is named: by a place on a disk, or by an id in a model hub. The server's policy and the worker must agree on it."""

from __future__ import annotations

import re

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(?:/[A-Za-z0-9][\w.-]{0,95})?\Z", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")
_PINNED = re.compile(rf"(?P<name>.+)@(?P<pin>{_COMMIT.pattern}|(?P<kind>sha256|weights1):[0-9a-f]{{64}})")
"""What a full pin looks like: a commit, or a digest of a file or of a folder's weights."""


def is_commit(text: str) -> bool:
    """Return whether ``text`` is a commit as a model hub, or ours, names one: 40 lower-case hex digits."""
    return _COMMIT.fullmatch(text) is not None


def is_hub_id(base_model: str) -> bool:
    """Return whether a base model is an id such as ``org/name``; anything else is a path, and a relative path never is an id's rival."""
    return not base_model.lower().endswith(".gguf") and bool(_HUB_ID.match(base_model)) and ".." not in base_model


def pinned_name(base_model: str, revision: str | None) -> str:
    """Return how a federation names its base model: with ``@`` and the revision where there is one."""
    return f"{base_model}@{revision}" if revision else base_model


def revision_of(base_model: str) -> str | None:
    """Return the commit, branch or tag behind ``@`` in the name of a hub's model; None where none is told, or what is told is a digest."""
    name, _, pin = base_model.partition("@")
    return pin if pin and ":" not in pin and is_hub_id(name) else None


def kind_of_pin(base_model: str) -> str | None:
    """Return what the full pin behind ``@`` is of, ``commit``, ``sha256`` or ``weights1``; None where there is none."""
    match = _PINNED.fullmatch(base_model)
    return None if match is None else match["kind"] or "commit"


def have_same_pin(first: str, second: str) -> bool | None:
    """Return whether two names have the same full pin; None where they have none of one kind, and say nothing of each other."""
    kind = kind_of_pin(first)
    return None if kind is None or kind != kind_of_pin(second) else first.rpartition("@")[2] == second.rpartition("@")[2]


def unpin(base_model: str) -> tuple[str, str | None]:
    """Return a name without its full pin, and the commit where that is one; a name without a full pin as it is."""
    match = _PINNED.fullmatch(base_model)
    if match is None:
        return base_model, None
    return match["name"], match["pin"] if match["kind"] is None else None


def unpinned_name(base_model: str) -> str:
    """Return a base model's name without the revision or digest behind ``@``."""
    return base_model.partition("@")[0]
