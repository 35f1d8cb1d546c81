"""The words by which adapters are found: the same on every database, whatever its own idea of a word, an accent or a case.

A word is a run of letters and digits. Accents and cases are put aside, and every character beyond ASCII is spelled by its number,
so that both databases store and compare plain ASCII words that none of their parsers touches.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

_LONGEST = 40
"""Characters of a word; longer ones are cut, in what is stored and in what is asked for."""
_MOST = 2000
"""Words that an adapter is found by."""
_WORD = re.compile(r"[a-z0-9]+")


def split_words(text: str) -> tuple[str, ...]:
    """Return the words of a text in their order, as they are stored."""
    folded = unicodedata.normalize("NFKD", text.casefold())
    spelled = "".join(_spell(character) for character in folded if not unicodedata.combining(character))
    return tuple(word[:_LONGEST] for word in _WORD.findall(spelled))


def _spell(character: str) -> str:
    if character.isascii():
        return character
    return f"u{ord(character):05x}" if character.isalnum() else " "


def stored_words(texts: Iterable[str]) -> str:
    """Return the words of texts, each once, separated by spaces; where there are too many, the first."""
    return " ".join(list(dict.fromkeys(word for text in texts for word in split_words(text)))[:_MOST])


@dataclass(frozen=True, kw_only=True)
class Wording:
    """What a search asks for: every one of these words."""

    whole: tuple[str, ...]
    """Words that must be there as they are."""
    begun: tuple[str, ...]
    """Words of which the beginning is given."""

    def __len__(self) -> int:
        return len(self.whole) + len(self.begun)

    @property
    def each(self) -> tuple[Wording, ...]:
        """What it asks for, word by word."""
        return (*(Wording(whole=(word,), begun=()) for word in self.whole), *(Wording(whole=(), begun=(word,)) for word in self.begun))

    @property
    def fts5(self) -> str:
        """The query in the language of SQLite's FTS5."""
        return " ".join([*(f'"{word}"' for word in self.whole), *(f'"{word}"*' for word in self.begun)])

    @property
    def tsquery(self) -> str:
        """The query as PostgreSQL writes a ``tsquery``."""
        return " & ".join([*(f"'{word}'" for word in self.whole), *(f"'{word}':*" for word in self.begun)])


def read_search(text: str) -> Wording | None:
    """Return what a search asks for; None where a part of it has neither letter nor digit, which nothing is found by.

    What stands between spaces ends with the beginning of a word: ``smollm2-13`` asks for ``smollm2`` and for what begins with 13.
    """
    parts = [split_words(part) for part in text.split()]
    if not all(parts):
        return None
    return Wording(whole=tuple(_each_once(word for part in parts for word in part[:-1])), begun=tuple(_each_once(p[-1] for p in parts)))


def _each_once(words: Iterable[str]) -> Iterator[str]:
    yield from dict.fromkeys(words)
