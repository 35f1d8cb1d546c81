"""The terms by which PostgreSQL finds listings: their words, and beside them what lists are mostly filtered by, in one index.

One index for all puts several conditions together before any listing is looked at, and passes over what a frequent term has between two
listings of a rare one. It does neither for the beginning of a word, of which it reads all that begins so; therefore the words that there
are are kept by themselves, by a trigger, and a beginning is asked for as the words that begin with it. Words that nobody has any more
are forgotten by :mod:`hub.catalog.left_words`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import ColumnElement, CompoundSelect, Connection, bindparam, cast, column, literal_column, select, table, union_all
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR
from sqlalchemy.types import String

from hub.catalog.tables import MAX_BASE_NAME

MOST_COMPLETIONS = 64
"""Words that a beginning is taken for; one of more words is asked for as a beginning."""
KNOWN = table("listing_words_known", column("word", String(collation="C")))
LEXEMES: ColumnElement[str] = literal_column(
    "(listings.words || array_to_tsvector(ARRAY['=n=' || listings.namespace, '=b=' || listings.base_name, '=m=' || listings.method,"
    " '=k=' || listings.task, '=l=' || listings.licence]"
    " || string_to_array('=t=' || replace(listings.tags, E'\\n', E'\\n=t='), E'\\n')))",
    TSVECTOR,
)
"""What a listing is found by, as ``ix_listings_words`` has it."""
_MARKS = {"namespace": "n", "base_name": "b", "method": "m", "task": "k", "licence": "l", "tag": "t"}
"""What is written before a value, so that it is no word."""
_BEHIND_ALL = "{"
"""Behind every character of a word."""


def lexeme_of(name: str, value: object) -> str:
    """Return what listings with a value in a column, or with a tag, have among their lexemes; no index has those of other columns."""
    return f"={_MARKS.get(name, name)}={value}"


def term_of(name: str, value: str) -> str:
    """Return the term, as a ``tsquery`` writes it, of listings that have a value in a column, or as a tag; empty where there is none."""
    return _quote(lexeme_of(name, value)) if name in _MARKS and 0 < len(value) <= MAX_BASE_NAME else ""


def any_of(words: Sequence[str]) -> str:
    """Return the term of listings that have one of these words."""
    return f"({' | '.join(map(_quote, words))})"


def have_all(terms: Sequence[str]) -> ColumnElement[bool]:
    """Return what holds for listings that have all these terms, in the form that the index answers."""
    return LEXEMES.op("@@", is_comparison=True)(cast(" & ".join(terms), TSQUERY))


def _quote(lexeme: str) -> str:
    return "'" + lexeme.replace("\\", "\\\\").replace("'", "''") + "'"


def complete(connection: Connection, begun: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the words that begin so, by the beginning; beginnings of more words than :data:`MOST_COMPLETIONS` are left out.

    A beginning that no word has is a word that no listing has, and is asked for as one: a shorter way would tell by its time which words
    there are in adapters that the caller may not see.
    """
    if not begun:
        return {}
    found: dict[str, list[str]] = {one: [] for one in begun}
    asked = {f"begun_{position}": one for position, one in enumerate(begun)}
    ends = {f"end_{position}": one + _BEHIND_ALL for position, one in enumerate(begun)}
    for row in connection.execute(_completing(len(begun)), asked | ends):
        found[row.begun].append(row.word)
    return {one: tuple(words) or (one,) for one, words in found.items() if len(words) <= MOST_COMPLETIONS}


@cache
def _completing(count: int) -> CompoundSelect[Any]:
    """Return the query for the words that so many beginnings have; as many are made as a search may have words."""
    word = KNOWN.c.word
    each = []
    for position in range(count):
        begun, end = (bindparam(f"{name}_{position}", type_=String()) for name in ("begun", "end"))
        each.append(select(begun.label("begun"), word).where(word >= begun, word < end).limit(MOST_COMPLETIONS + 1).subquery())
    return union_all(*(select(one) for one in each))
