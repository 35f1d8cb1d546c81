"""Opaque cursors: where a page of a list ended."""

from __future__ import annotations

import base64
import json
from typing import TypeVar

from wegeft.contracts.errors import InvalidRequest

_Position = TypeVar("_Position", str, int)


def make_cursor(position: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode().rstrip("=")


def read_cursor(cursor: str, kind: type[_Position]) -> _Position:
    try:
        position = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, RecursionError):
        position = None
    if type(position) is not kind or not _is_storable(position):
        raise InvalidRequest("not a cursor of this list", path="after", value=cursor, hint="pass next_cursor of the page before, unchanged")
    return position


def _is_storable(position: str | int) -> bool:
    return position.isprintable() if isinstance(position, str) else 0 <= position < 2**31
