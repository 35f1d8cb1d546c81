"""The marks of listings: a few bits for each of their terms, by which PostgreSQL passes over nearly all that lack one.

They lie in indexes in the order of publishing and in that of names, so that a list in such an order walks past listings without looking at
any; what bears every mark is looked at, for bits may be another term's. A trigger keeps them in step with the listings.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from sqlalchemy import String, TextClause, bindparam, column, table, text

from hub.catalog.tables import LISTINGS

MARKS = table("listing_words_marks", *(column(name, LISTINGS.c[name].type) for name in ("version_id", "key")))
MISTAKEN = 0.02
"""The part of all listings that bears a term's marks without having it, of listings with few words."""
_BITS = 512
MOST_LEXEMES = 16
"""Of one of which a listing bears the marks; nearly all bear those of one of more, so that asking would spare nothing."""
_KEPT_CONDITIONS = 64


def share_mistaken(lexemes: int) -> float:
    """Return how likely a listing with so many lexemes bears the marks of one that it has not."""
    return float((1 - (1 - 1 / _BITS) ** (2 * lexemes)) ** 2)


def bear_marks(terms: Sequence[Sequence[str]]) -> TextClause:
    """Return what holds for the marks of listings that have, of each of ``terms``, one of its lexemes, and perhaps for others."""
    given = {_name_of(at, place): lexeme for at, lexemes in enumerate(terms) for place, lexeme in enumerate(lexemes)}
    return _bearing(tuple(map(len, terms))).bindparams(**given)


@lru_cache(maxsize=_KEPT_CONDITIONS)
def _bearing(counts: tuple[int, ...]) -> TextClause:
    """Return the condition for terms of so many lexemes. Beginnings of words are those of any number, so that only some are kept."""
    each = []
    for at, count in enumerate(counts):
        names = [_name_of(at, place) for place in range(count)]
        each.append(f"({' OR '.join(map(_has_both, names))})")
    names = [_name_of(at, place) for at, count in enumerate(counts) for place in range(count)]
    # As a value, which PostgreSQL takes to hold for every other row: else it would expect so few that it sorts them.
    return text(f"CASE WHEN {' AND '.join(each)} THEN true ELSE false END").bindparams(*(bindparam(one, type_=String()) for one in names))


def _has_both(name: str) -> str:
    """As ``mark_terms`` of the migration sets them."""
    hashed, marks = f"hashtextextended(:{name}, 0)", "listing_words_marks.marks"
    return f"(get_bit({marks}, {hashed} & 511) = 1 AND get_bit({marks}, ({hashed} >> 9) & 511) = 1)"


def _name_of(at: int, place: int) -> str:
    return f"mark_{at}_{place}"
