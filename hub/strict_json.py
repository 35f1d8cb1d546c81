"""JSON from outside, read as strictly as it should be written: UTF-8, an object, no name twice, no NaN, not too deep."""

from __future__ import annotations

import json
import re
from typing import Any

from wegeft.contracts.errors import shorten
from wegeft.contracts.json_names import collect_unique

MAX_DEPTH = 32
MAX_INTEGER = 2**63 - 1
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def parse_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that ``content`` is; raise ValueError, saying what is wrong in a line."""
    try:
        value = json.loads(content.decode(), object_pairs_hook=collect_unique, parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - callers expect one kind
    _check(value, MAX_DEPTH)
    return value


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _check(value: object, depth: int) -> None:
    """Refuse what Python reads and other readers stumble over: deep nesting, lone surrogates, numbers beyond a double or 64 bits."""
    if depth < 0:
        raise ValueError("nested too deeply")
    match value:
        case dict():
            for name, item in value.items():
                _check(name, depth - 1)
                _check(item, depth - 1)
        case list():
            for item in value:
                _check(item, depth - 1)
        case str() if _LONE_SURROGATE.search(value):
            raise ValueError(f"{shorten(ascii(value), 40)} is not text")
        case float() if value in (float("inf"), float("-inf")):
            raise ValueError("a number is too large")
        case int() if abs(value) > MAX_INTEGER:
            raise ValueError("a number is too large")
        case _:
            pass
