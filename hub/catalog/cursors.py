"""Opaque cursors: where a page of a list ended."""

from __future__ import annotations

import base64
import json

from wegeft.contracts.errors import InvalidRequest

Position = list[str | int]


def make_cursor(list_name: str, position: Position) -> str:
    """Return a cursor that only :func:`read_cursor` of the same list takes."""
    return base64.urlsafe_b64encode(json.dumps([list_name, *position]).encode()).decode().rstrip("=")


def read_cursor(cursor: str, list_name: str, kinds: tuple[type[str] | type[int], ...]) -> Position:
    """Return the position in a cursor, of these kinds; raise :class:`InvalidRequest` for what is no cursor of this list."""
    try:
        found = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, list) or len(found) != 1 + len(kinds) or found[0] != list_name or not _fits(found[1:], kinds):
        raise InvalidRequest("not a cursor of this list", path="after", value=cursor, hint="pass next_cursor of the page before, unchanged")
    return found[1:]


def _fits(position: list[object], kinds: tuple[type, ...]) -> bool:
    return all(type(item) is kind and _is_storable(item) for item, kind in zip(position, kinds, strict=True))


def _is_storable(item: object) -> bool:
    """Whether a database can compare with it: PostgreSQL has no NUL, and its integers end."""
    return item.isprintable() if isinstance(item, str) else isinstance(item, int) and 0 <= item < 2**63
