"""What PostgreSQL has counted of listings, and what the newest of them have: read now and then, and kept in memory between.

Plans are made of it, so that making one asks the database nothing. It is up to five minutes old, which changes how listings are found, and
never which they are.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import prod
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, func, select, text

from hub.catalog.search_marks import MISTAKEN, share_mistaken
from hub.catalog.search_terms import LEXEMES, lexeme_of
from hub.catalog.tables import LISTING_TAGS, LISTINGS

NEWEST = 1000
"""Listings of which it is known what they have, and so what is found together."""
_MOST_LEXEMES = 200_000
"""That they have all together: fewer of the newest are looked at where they have more, lest who publishes long texts fills the memory."""
_KEPT_SECONDS = 300
_FEW, _KEPT_OF_FEW_SECONDS = 10_000, 30
"""A catalog of few may be a hundred times as large in five minutes, as by an import, and is read quickly."""
_BESIDE_TERMS = ("rank", "format", "is_signed")
"""Columns of listings that are no terms."""
_UNCOUNTED = 0.005
"""The share that PostgreSQL takes a lexeme to have at the most where it has not counted it."""
_COUNTED = text(
    "SELECT tablename, attname, n_distinct, null_frac, most_common_vals::text::text[] AS vals, most_common_freqs AS freqs,"
    " most_common_elems::text::text[] AS elems, most_common_elem_freqs AS elem_freqs"
    " FROM pg_stats WHERE schemaname = current_schema() AND tablename IN ('listings', 'listing_tags')"
    " AND attname IN ('namespace', 'base_name', 'method', 'rank', 'task', 'licence', 'format', 'is_signed', 'words', 'tag')"
)
_ROWS = text(
    "SELECT relname, reltuples / relpages * (pg_relation_size(oid) / current_setting('block_size')::int) AS number"
    " FROM pg_class WHERE oid IN ('listings'::regclass, 'listing_tags'::regclass) AND reltuples >= 0 AND relpages > 0"
)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """Which part of all rows has a value."""

    counted: Mapping[str, float]
    other: float
    """The part of any that is not counted."""

    def of(self, value: str) -> float:
        """Return the part that has a value."""
        return self.counted.get(value, self.other)


@dataclass(frozen=True, kw_only=True)
class Newest:
    """What the newest listings have: for each lexeme the listings that have it, as the bits of a number."""

    number: int
    having: Mapping[str, int]
    vocabulary: Sequence[str] = field(default=(), repr=False)
    """The lexemes, sorted."""
    mistaken: float = MISTAKEN
    """The part of them that bears the marks of a lexeme without having it."""

    def has(self, lexemes: Sequence[str], begun: str = "") -> int:
        """Return the listings that have one of some lexemes, or one that begins so."""
        beginning = takewhile(lambda lexeme: lexeme.startswith(begun), self.vocabulary[bisect_left(self.vocabulary, begun) :])
        found = 0
        for lexeme in (*lexemes, *(beginning if begun else ())):
            found |= self.having.get(lexeme, 0)
        return found


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """What is known of the catalog's listings."""

    rows: Mapping[str, float]
    """Of tables; one that PostgreSQL has not counted is not there."""
    shares: Mapping[str, Shares]
    """By the column; what PostgreSQL has not counted is not there."""
    newest: Newest

    @property
    def kept_seconds(self) -> int:
        """How long plans are made of it."""
        return _KEPT_SECONDS if self.rows.get(LISTINGS.name, 0) >= _FEW else _KEPT_OF_FEW_SECONDS

    def left(self, column: str, value: object) -> float | None:
        """Return how many listings have a value in a column, or as their ``tag``; None where that is not known."""
        rows = self.rows.get(LISTING_TAGS.name if column == "tag" else LISTINGS.name)
        if rows is None or column not in self.shares:
            return None
        return rows * self.shares[column].of(_as_text(value))

    def share_of_words(self, words: Sequence[str]) -> tuple[float, bool]:
        """Return which part of all listings has one of some words, and whether that is known; else it is the most that may."""
        terms = self.shares.get("words")
        if terms is None or not words:
            return 1.0, False
        share = 1 - prod(1 - terms.of(word) for word in words)
        return share, len(words) == 1 or not terms.counted.keys().isdisjoint(words)


def _as_text(value: object) -> str:
    """Return a value as PostgreSQL writes it."""
    return {True: "t", False: "f"}[value] if isinstance(value, bool) else str(value)


_kept: WeakKeyDictionary[Engine, tuple[float, Statistics]] = WeakKeyDictionary()


def statistics_of(connection: Connection) -> Statistics:
    """Return what is known of a PostgreSQL's catalog; read anew where what is kept is old."""
    engine, now = connection.engine, time.monotonic()
    kept = _kept.get(engine)
    if kept is not None and now - kept[0] < kept[1].kept_seconds:
        return kept[1]
    if kept is not None:
        # Whoever else asks meanwhile takes what there is.
        _kept[engine] = (now, kept[1])
    found = read_statistics(connection)
    _kept[engine] = (now, found)
    return found


def read_statistics(connection: Connection) -> Statistics:
    """Read what PostgreSQL knows now."""
    rows = {row.relname: float(row.number) for row in connection.execute(_ROWS)}
    shares = {row.attname: _shares_of(row, rows.get(row.tablename, 0)) for row in connection.execute(_COUNTED)}
    return Statistics(rows=rows, shares=shares, newest=_read_newest(connection))


def _shares_of(row: Any, rows: float) -> Shares:
    if row.elems is not None:
        # The least, the greatest and the nulls' frequency stand behind those of the elements.
        counted = dict(zip(row.elems, row.elem_freqs, strict=False))
        return Shares(counted=counted, other=min(_UNCOUNTED, row.elem_freqs[len(row.elems)] / 2))
    counted = dict(zip(row.vals or (), row.freqs or (), strict=True))
    different = row.n_distinct if row.n_distinct >= 0 else -row.n_distinct * rows
    left = max(1 - sum(counted.values()) - row.null_frac, 0.0)
    other = left / max(different - len(counted), 1)
    return Shares(counted=counted, other=min(other, *counted.values()) if counted else other)


def _read_newest(connection: Connection) -> Newest:
    newest = LISTINGS.alias("newest")
    so_far = func.sum(func.length(newest.c.words)).over(order_by=newest.c.version_id.desc()).label("so_far")
    few = select(newest.c.version_id, so_far).order_by(newest.c.version_id.desc()).limit(NEWEST).subquery("few")
    asked = select(func.array_to_string(func.tsvector_to_array(LEXEMES), "\n"), *(LISTINGS.c[name] for name in _BESIDE_TERMS))
    asked = asked.join(few, few.c.version_id == LISTINGS.c.version_id).where(few.c.so_far <= _MOST_LEXEMES)
    having: defaultdict[str, int] = defaultdict(int)
    number, mistaken = 0, 0.0
    for joined, *values in connection.execute(asked):
        lexemes = joined.split("\n")
        for lexeme in (*lexemes, *map(lexeme_of, _BESIDE_TERMS, values)):
            having[lexeme] |= 1 << number
        number += 1
        mistaken += share_mistaken(len(lexemes))
    return Newest(number=number, having=dict(having), vocabulary=sorted(having), mistaken=max(mistaken / max(number, 1), MISTAKEN))
