"""The YAML at the head of a card, looked at before it is committed: is it a plain mapping, and does it say what readers look for?"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date

from wegeft.contracts.card import read_front_matter, split_card
from wegeft.contracts.errors import InvalidInput
from wegeft.contracts.yaml_source import Data

_MAX_TOLD = 10
_DATE = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z")


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a card's front matter, and what a reader will miss."""
    front, body = split_card(text)
    if not front:
        is_headless = body == text
        return [], ["no metadata: the card does not begin with YAML between two lines of ---" if is_headless else "the metadata is empty"]
    try:
        data = read_front_matter(text)
    except InvalidInput as error:
        return [" ".join(f"{error.message}: {problem}".split()) for problem in error.problems[:_MAX_TOLD]] or [error.message], []
    return [], list(_warnings(data))[:_MAX_TOLD]


def _warnings(data: Mapping[str, Data]) -> Iterator[str]:
    if not data:
        yield "the metadata is empty"
    if "base_model" in data and not data["base_model"]:
        yield "base_model is empty"
    for name, value in data.items():
        if isinstance(value, str) and _DATE.match(value) and not _is_date(value):
            yield f"{name[:100]}: readers of YAML 1.1 stumble over {value}, which is no date, unless it is quoted"


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
