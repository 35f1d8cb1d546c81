"""How a list finds what a filter selects: among the few that one of its conditions leaves, or by walking in the order of the list.

Databases choose by averages, and adapters are nowhere near even: a base model that half the hub edits and one that nobody has heard of
look alike to them. So it is estimated first what each condition leaves. Looking costs as many listings as the rarest condition leaves;
walking costs as many as are met before a page is full, which are few where what is asked for is frequent. The cheaper of the two is done.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from sqlalchemy import ColumnElement, Connection, FromClause, column, false, func, select, table, true

from hub.catalog.conditions import Part, parts_of
from hub.catalog.estimates import Estimate, estimate
from hub.catalog.search import AdapterFilter, Order, Selected
from hub.catalog.tables import LISTING_TAGS, LISTING_WORDS, LISTINGS
from hub.catalog.words import read_search

FEW = 20_000
"""Adapters that are looked at one by one, at the most."""
PAGE = 51
"""Adapters that a list is read for, where nobody says how many."""
LOOKED_AT = 3000
"""Adapters that counting by property looks at, where there are more and they must be looked at one by one."""
_STEP: dict[Order, float] = {"updated": 0.2, "created": 0.4, "name": 0.6, "size": 0.6}
"""What a step of a walk costs, of a look at a listing somewhere: those published one after the other lie beside one another."""
_APART = 0.6
"""What it costs at least where only some of the listings are walked, which seldom lie beside one another."""
_READ = 0.15
"""What it costs to read one entry of an index, of a look at a listing."""
_SHOWN = tuple(one for one in LISTINGS.c if one.name != "words")
_LOOKED = table("looked", *(column(one.name, one.type) for one in _SHOWN))


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What a plan is made for."""

    order: Order = "updated"
    page: float = PAGE
    """Listings that are wanted of those that are selected."""
    few: int = FEW
    """How many may be looked at."""
    dearness: float = 1.0
    """How dear a walk is taken to be; all but the order change how listings are found, never which they are."""


def select_listings(connection: Connection, wanted: AdapterFilter, wish: Wish | None = None) -> Selected:
    """Return the listings that a filter selects, for a list in an order."""
    wish = wish or Wish()
    wording = read_search(wanted.search or "")
    if wording is None:
        return _plain((false(),))
    is_sqlite = connection.dialect.name == "sqlite"
    parts = tuple(parts_of(wanted, wording, is_sqlite=is_sqlite))
    if not parts or (len(parts) == 1 and parts[0].is_in_order(wish.order)):
        return _walk(parts[0] if parts else None, (), is_sqlite=is_sqlite)
    guess = estimate(connection, parts)
    ranked = sorted(zip(parts, guess.left, strict=True), key=lambda one: one[1])
    costs = {position: _walking(parts, guess, position, wish) for position in _ways(parts, wish.order)}
    cheapest = min(costs, key=lambda position: costs[position])
    if ranked[0][1] <= wish.few and _looking(ranked, guess) <= costs[cheapest]:
        return _look(ranked, is_sqlite=is_sqlite)
    first = None if cheapest is None else parts[cheapest]
    return _walk(first, [part for part, _ in ranked if part is not first], is_sqlite=is_sqlite)


def _ways(parts: Sequence[Part], order: Order) -> list[int | None]:
    """Return the conditions in whose index one can walk; None is the order of all listings."""
    return [None, *(position for position, part in enumerate(parts) if part.is_in_order(order))]


def _walking(parts: Sequence[Part], guess: Estimate, first: int | None, wish: Wish) -> float:
    """Return what a walk costs, in looks: to the end of what its index gives, or until the page is full."""
    others = prod(guess.share(position) for position in range(len(parts)) if position != first)
    most = guess.listings if first is None else guess.left[first]
    step = _STEP[wish.order] if first is None else max(_STEP[wish.order], _APART)
    step += sum(part.kind == "elsewhere" for position, part in enumerate(parts) if position != first)
    return min(most, wish.page / others) * step * wish.dearness


def _looking(ranked: Sequence[tuple[Part, float]], guess: Estimate) -> float:
    """Return what it costs to look at what the rarest condition leaves."""
    fewest = ranked[0][1]
    beside = _beside(ranked)
    if beside is None:
        return fewest * (1 + sum(part.kind == "elsewhere" for part, _ in ranked[1:]))
    return (fewest + beside[1]) * _READ + fewest * beside[1] / max(guess.listings, 1)


def _plain(conditions: tuple[ColumnElement[bool], ...], floor: ColumnElement[int] | None = None) -> Selected:
    return Selected(
        source=LISTINGS, listed=LISTINGS.c, conditions=conditions, newness=LISTINGS.c.version_id, key=LISTINGS.c.key, floor=floor
    )


def _look(ranked: Sequence[tuple[Part, float]], *, is_sqlite: bool) -> Selected:
    """Return those that the rarest condition leaves, as far as they pass the others, before anything is sorted."""
    (rarest, fewest), *others = ranked
    conditions = [_joined(ranked)]
    conditions += [] if rarest.is_exact else [rarest.value]
    for part, left in others:
        # PostgreSQL puts what several indexes find together before it looks at a listing, where reading them costs less than looking.
        is_worth_reading = not is_sqlite and part.sieve is not None and left * _READ < fewest
        conditions += [part.check if is_worth_reading else part.value]
    # Named and not derived from the query, because deriving its columns takes longer than all the rest.
    found = select(*_SHOWN).where(*conditions).cte(_LOOKED.name).prefix_with("MATERIALIZED")
    return Selected(source=_LOOKED, listed=_LOOKED.c, conditions=(), newness=_LOOKED.c.version_id, key=_LOOKED.c.key, found=found)


def _beside(ranked: Sequence[tuple[Part, float]]) -> tuple[Part, float] | None:
    """Return what is put together with the rarest condition before any listing is looked at, where both are of other tables."""
    rarest, *others = ranked
    return None if rarest[0].sieve is not None else next((one for one in others if one[0].sieve is None and one[1] <= FEW), None)


def _joined(ranked: Sequence[tuple[Part, float]]) -> ColumnElement[bool]:
    """Return what holds for those that the rarest condition leaves; with the next one, where that is of other tables too."""
    rarest, beside = ranked[0][0], _beside(ranked)
    if beside is None:
        return rarest.found
    # SQLite's full-text index gives all that it finds at once, and is slow to be asked of one after the other.
    outer, inner = sorted((rarest, beside[0]), key=lambda part: part.kind == "words")
    return LISTINGS.c.version_id.in_(outer.ids.where(outer.ids.selected_columns[0].in_(inner.ids)))


def _walk(first: Part | None, rest: Sequence[Part], *, is_sqlite: bool) -> Selected:
    """Return what an index gives in the order of the list, each of which is checked for the rest, in their order."""
    others = tuple(part.value for part in rest)
    floor = _floor(first) if others else None
    if first is None:
        return _plain(others, floor)
    if first.kind == "tag":
        return _walk_tag(first.tag, others, floor, is_sqlite=is_sqlite)
    if first.fts5:
        source = LISTING_WORDS.join(LISTINGS, LISTINGS.c.version_id == LISTING_WORDS.c.rowid)
        is_found = LISTING_WORDS.c.listing_words.op("MATCH")(first.fts5)
        found = (is_found, *others)
        rowid = LISTING_WORDS.c.rowid
        return Selected(source=source, listed=LISTINGS.c, conditions=found, newness=rowid, key=LISTINGS.c.key, floor=floor)
    return _plain((first.found, *(() if first.is_exact else (first.value,)), *others), floor)


def _walk_tag(tag: str, others: tuple[ColumnElement[bool], ...], floor: ColumnElement[int] | None, *, is_sqlite: bool) -> Selected:
    listings: FromClause = LISTINGS
    is_its = LISTINGS.c.version_id == LISTING_TAGS.c.version_id
    if others and not is_sqlite:
        # One after the other: PostgreSQL would rather check all listings that lie between those of the tag.
        listings = select(*_SHOWN).where(is_its, *others).offset(0).correlate(LISTING_TAGS).lateral("looked")
        source, others = LISTING_TAGS.join(listings, true()), ()
    else:
        source = LISTING_TAGS.join(listings, is_its)
    conditions = (LISTING_TAGS.c.tag == tag, *others)
    newness, key = LISTING_TAGS.c.version_id, LISTING_TAGS.c.key
    return Selected(source=source, listed=listings.c, conditions=conditions, newness=newness, key=key, floor=floor)


def _floor(first: Part | None) -> ColumnElement[int]:
    walked = select(LISTINGS.alias().c.version_id) if first is None else first.ids
    last = walked.order_by(walked.selected_columns[0].desc()).offset(LOOKED_AT).limit(1)
    return func.coalesce(last.scalar_subquery(), 0)
