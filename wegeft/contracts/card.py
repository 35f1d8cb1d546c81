"""A model card: Markdown under a YAML front matter in the Hugging Face form, and what is checked in it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression
from pydantic import BaseModel, ConfigDict, Field

from wegeft.contracts.adapter import Digest
from wegeft.contracts.errors import InvalidInput, Problem, WegeftError, shorten
from wegeft.contracts.yaml_source import Data, parse_yaml

MAX_CARD_BYTES = 256 << 10
"""Of a card that is edited."""
MAX_FRONT_MATTER_BYTES = 64 << 10
MAX_ITEMS = 200
"""Of tags, data sets and languages."""
UNLISTED_LICENSES = frozenset(
    ["other", "unknown", "llama2", "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "gemma", "openrail", "bigscience-bloom-rail-1.0"]
)
"""Names that the Hugging Face Hub knows beside the SPDX list."""

_FENCE = re.compile(r"---[ \t]*\r?\n(?P<front>(?:[^\n]*\n)*?)---[ \t]*(?:\r?\n|\Z)")
_SPECIAL = re.compile(r"([\\`*_{}\[\]()<>#+!|~&$:-])")
_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*\Z")
_WORDS = frozenset(["y", "n", "yes", "no", "on", "off", "true", "false", "null"])
_TEXTS = ("license", "license_name", "license_link", "library_name", "pipeline_tag", "base_model_relation")
_LISTS = ("tags", "datasets", "language", "metrics", "base_model")


class CardView(BaseModel):
    """An adapter's card as it is shown: the one that was edited, or else that of its latest version."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    adapter: str
    markdown: str
    digest: Digest
    """Of the text; an edit names the one that it replaces."""
    license: str | None = None
    """An SPDX expression, or a name that the Hugging Face Hub knows beside them."""
    tags: tuple[str, ...] = ()
    is_edited: bool
    updated_at: datetime


class CardEdit(BaseModel):
    """A new card for an adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    markdown: str = Field(max_length=MAX_CARD_BYTES)
    expected: Digest | None = None
    """Digest of the card that it replaces; None for any."""


def split_card(text: str) -> tuple[str, str]:
    """Return a card's front matter, empty where it has none, and the Markdown behind it."""
    found = _FENCE.match(text.removeprefix("\ufeff"))
    return (found["front"].rstrip(), text.removeprefix("\ufeff")[found.end() :]) if found else ("", text)


def read_front_matter(text: str) -> dict[str, Data]:
    """Return what a card's front matter says; raise :class:`InvalidInput` where it is not a bounded mapping of plain data."""
    front, _ = split_card(text)
    if len(front.encode(errors="replace")) > MAX_FRONT_MATTER_BYTES:
        raise InvalidInput("the front matter is too long", path="README.md", hint=f"at most {MAX_FRONT_MATTER_BYTES} bytes")
    try:
        data = parse_yaml(front).data if front.strip() else {}
    except WegeftError as error:
        raise InvalidInput("the front matter is not YAML", problems=error.problems) from error
    if not isinstance(data, dict):
        raise InvalidInput("the front matter is not a mapping", path="README.md", hint="lines such as license: apache-2.0")
    return data


def check_card(text: str) -> dict[str, Data]:
    """Return a card's front matter; raise :class:`InvalidInput` with everything that is wrong with the card."""
    if len(text.encode(errors="replace")) > MAX_CARD_BYTES:
        raise InvalidInput("the card is too long", path="README.md", hint=f"at most {MAX_CARD_BYTES} bytes")
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise InvalidInput("the card is not UTF-8 text", path="README.md")
    data = read_front_matter(text)
    if problems := list(_front_problems(data)):
        raise InvalidInput("the card's front matter is not right", problems=problems)
    return data


def _front_problems(data: Mapping[str, Data]) -> Iterator[Problem]:
    for name in _TEXTS:
        if (value := data.get(name)) is not None and not (isinstance(value, str) and len(value) <= 1000):
            yield Problem(path=name, message="must be a text of at most 1000 characters", value=shorten(value))
    for name in _LISTS:
        if not _is_texts(data.get(name)):
            yield Problem(
                path=name, message="must be a text or a list of texts", value=shorten(data.get(name)), hint=f"at most {MAX_ITEMS}"
            )
    license_ = data.get("license")
    if isinstance(license_, str) and canonical_license(license_) is None:
        hint = "an SPDX id such as apache-2.0 or mit, or other with license_name and license_link"
        yield Problem(path="license", message="not a licence of the SPDX list", value=shorten(license_), hint=hint)


def _is_texts(value: Data) -> bool:
    items = value if isinstance(value, list) else [] if value is None else [value]
    return len(items) <= MAX_ITEMS and all(isinstance(item, str) and len(item) <= 1000 for item in items)


def canonical_license(text: str) -> str | None:
    """Return a licence as SPDX spells it, or a name of :data:`UNLISTED_LICENSES`; None where it is neither."""
    if text.lower() in UNLISTED_LICENSES:
        return text.lower()
    try:
        return str(canonicalize_license_expression(text)) if len(text) <= 500 else None
    except InvalidLicenseExpression:
        return None


def license_of(data: Mapping[str, Data]) -> str | None:
    """Return the licence that a front matter names, as SPDX spells it; None where it names none that is known."""
    found = data.get("license")
    return canonical_license(found) if isinstance(found, str) else None


def tags_of(data: Mapping[str, Data]) -> tuple[str, ...]:
    """Return the tags of a front matter, each once."""
    found = data.get("tags")
    items = found if isinstance(found, list) else [found]
    return tuple(dict.fromkeys(item for item in items if isinstance(item, str)))[:MAX_ITEMS]


def join_card(data: Mapping[str, Any], body: str) -> str:
    """Return a card of a front matter and the Markdown under it; what it reads is what was given."""
    front = "".join(f"{name}: {_yaml(value)}\n" for name, value in data.items())
    return f"---\n{front}---\n{body}" if front else body


def _yaml(value: Any) -> str:
    if isinstance(value, list | tuple) and value and not any(isinstance(item, list | tuple | dict) for item in value):
        return "".join(f"\n- {_yaml(item)}" for item in value)
    if isinstance(value, str) and _PLAIN.match(value) and value.lower() not in _WORDS:
        return value
    # JSON is YAML, but for characters that YAML does not take as they are.
    text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    return "".join(char if char.isprintable() else f"\\U{ord(char):08x}" for char in text)


def escape_markdown(text: object) -> str:
    """Return foreign text so that Markdown shows it on one line as it is, and nothing in it steers the page."""
    line = "".join(char if char.isprintable() else " " for char in str(text))
    return _SPECIAL.sub(r"\\\1", " ".join(line.split()))


def code_span(text: object) -> str:
    """Return foreign text as code of Markdown, whatever backticks it holds (CommonMark 0.31, section 6.1)."""
    line = " ".join("".join(char if char.isprintable() else " " for char in str(text)).split()).replace("|", "\\|")
    fence = "`" * (max((len(run) for run in re.findall(r"`+", line)), default=0) + 1)
    pad = " " if not line or line[0] == "`" or line[-1] == "`" else ""
    return f"{fence}{pad}{line}{pad}{fence}"
