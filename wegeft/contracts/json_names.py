"""The names of a JSON object, each once: readers differ in which of two they take, and Python's takes the last without a word."""

from __future__ import annotations

from typing import Any

from wegeft.contracts.problems import shorten

_SHOWN_CHARACTERS = 40


def collect_unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object that ``pairs`` are, for :func:`json.loads` as its ``object_pairs_hook``.

    Raises ValueError where a name is there twice.
    """
    entries: dict[str, Any] = {}
    for name, value in pairs:
        if name in entries:
            raise ValueError(f"{shorten(ascii(name), _SHOWN_CHARACTERS)} is there more than once")
        entries[name] = value
    return entries
