"""The YAML at the head of a card, looked at before it is committed: is it a plain mapping, and does it say what readers look for?"""

from __future__ import annotations

from wegeft.contracts.card import read_front_matter, split_card
from wegeft.contracts.errors import InvalidInput

_MAX_ERRORS = 10


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a card's front matter, and what a reader will miss."""
    front, body = split_card(text)
    if not front:
        is_headless = body == text
        return [], ["no metadata: the card does not begin with YAML between two lines of ---" if is_headless else "the metadata is empty"]
    try:
        data = read_front_matter(text)
    except InvalidInput as error:
        return [" ".join(f"{error.message}: {problem}".split()) for problem in error.problems[:_MAX_ERRORS]] or [error.message], []
    if not data:
        return [], ["the metadata is empty"]
    return [], ["base_model is empty"] if "base_model" in data and not data["base_model"] else []
