"""The YAML at the head of a card, looked at before it is committed: is it a plain mapping, and does it say what readers look for?

It is read as a stream of events, and no object is made of it before it is known to be small and without aliases.
"""

from __future__ import annotations

import re

import yaml

_FENCED = re.compile(r"\A\ufeff?---[ \t]*\r?\n(?P<yaml>.*?)^---[ \t]*\r?$", re.DOTALL | re.MULTILINE)
_MAX_CHARACTERS = 1 << 16
_MAX_EVENTS = 5000
_MAX_DEPTH = 16


def check_card(text: str) -> tuple[list[str], list[str]]:
    """Return what is wrong with a card's front matter, and what a reader will miss."""
    match = _FENCED.match(text)
    if match is None:
        return [], ["no metadata: the card does not begin with YAML between two lines of ---"]
    source = match["yaml"]
    if len(source) > _MAX_CHARACTERS:
        return [f"the metadata is longer than {_MAX_CHARACTERS} characters"], []
    try:
        if found := _structure_problem(source):
            return [found], []
        data = yaml.safe_load(source)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        return [" ".join(f"the metadata is not YAML: {error}".split())], []
    if data is None:
        return [], ["the metadata is empty"]
    if not isinstance(data, dict):
        return ["the metadata is not a mapping of names to values"], []
    return [], ["base_model is empty"] if "base_model" in data and not data["base_model"] else []


def _structure_problem(source: str) -> str | None:
    depth = 0
    for number, event in enumerate(yaml.parse(source, Loader=yaml.SafeLoader)):
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            return "the metadata has an alias or an anchor; write out what it means"
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH or number > _MAX_EVENTS:
            return "the metadata is too deep or too long"
    return None
