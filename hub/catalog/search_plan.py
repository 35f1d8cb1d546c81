"""How a list finds what a filter selects: among the few that some of its conditions leave, or by walking in the order of the list.

Databases choose by averages, and adapters are nowhere near even: a base model that half the hub edits and one that nobody has heard of
look alike to them. So it is estimated first what each condition leaves. Looking costs as many listings as indexes leave; walking costs
as many as are met before a page is full, which are few where what is asked for is frequent. The cheapest way is gone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import prod

from sqlalchemy import ColumnElement, Connection, FromClause, column, false, func, select, table, true

from hub.catalog.conditions import Condition, conditions_of
from hub.catalog.estimates import Estimate, estimate
from hub.catalog.search import AdapterFilter, Order, Selected
from hub.catalog.search_marks import MARKS, MISTAKEN, bear_marks
from hub.catalog.search_terms import complete, have_all
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
_APART = 2.0
"""What it costs at least where only some of the listings are walked, which seldom lie beside one another."""
_MARKED, _BITS = 0.05, 0.03
"""What it costs to walk past the marks of a listing, of a look at it; and to see whether it bears those of a lexeme."""
_READ = 0.15
"""What it costs to read one entry of an index, of a look at a listing."""
_MET = 0.05
"""What it costs to meet an entry of the rarest term, and as much again to find out whether another lexeme has it."""
_PASSED = 0.0025
"""What it costs to pass over an entry of another term, which the index has by the page."""
_ON_A_PAGE = 4000
"""Entries of a term, about."""
_BY_ID = 1.5
"""What it costs to look at a listing that its marks have told of."""
_SHOWN = tuple(one for one in LISTINGS.c if one.name != "words")
_LOOKED = table("looked", *(column(one.name, one.type) for one in _SHOWN))
_READ_AT_ONCE = 40_000
"""Entries of another index that are read at once, at the most."""
_Floor = Callable[[], ColumnElement[int]] | None


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is wanted of a list; it changes how listings are found, and never which they are."""

    order: Order = "updated"
    page: float = PAGE
    """Listings that are wanted of those that are selected."""
    few: int = FEW
    """How many may be looked at."""
    is_counted: bool = False
    """Whether what is met is counted, so that a walk ends soon, and the one that meets more is better."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to find what a filter selects; all find the same."""

    cost: float
    """In looks at a listing somewhere."""
    select: Callable[[], Selected]


@dataclass(frozen=True, kw_only=True)
class _Case:
    """What is known where a way is chosen."""

    conditions: tuple[Condition, ...]
    guess: Estimate
    wish: Wish
    is_sqlite: bool

    @property
    def ranked(self) -> list[tuple[Condition, float]]:
        """The conditions and what each leaves, the rarest first."""
        return sorted(zip(self.conditions, self.guess.left, strict=True), key=lambda one: one[1])

    @property
    def elsewhere(self) -> int:
        """For how many conditions another table is asked of each listing."""
        return sum(condition.kind == "elsewhere" for condition in self.conditions)

    @property
    def asked_elsewhere(self) -> float:
        """Of which part of all listings another table is asked."""
        # PostgreSQL asks last what costs most.
        inside = [position for position, condition in enumerate(self.conditions) if condition.kind != "elsewhere"]
        return 1.0 if self.is_sqlite else self.guess.together(inside)


def select_listings(connection: Connection, wanted: AdapterFilter, wish: Wish | None = None) -> Selected:
    """Return the listings that a filter selects, for a list in an order."""
    return min(ways_to(connection, wanted, wish or Wish()), key=lambda way: way.cost).select()


def ways_to(connection: Connection, wanted: AdapterFilter, wish: Wish) -> list[Way]:
    """Return the ways to find what a filter selects; one alone, whose cost nobody needs, where it is plainly the best."""
    wording = read_search(wanted.search or "")
    is_sqlite = connection.dialect.name == "sqlite"
    completed = {} if wording is None or is_sqlite else complete(connection, wording.begun)
    if wording is None:
        return [Way(cost=0, select=partial(_plain, (false(),)))]
    conditions = tuple(conditions_of(wanted, wording, completed, is_sqlite=is_sqlite))
    if not conditions or (len(conditions) == 1 and conditions[0].is_in_order(wish.order)):
        return [Way(cost=0, select=partial(_walk, conditions[0] if conditions else None, (), is_sqlite=is_sqlite))]
    case = _Case(conditions=conditions, guess=estimate(connection, conditions), wish=wish, is_sqlite=is_sqlite)
    return [*_looks(case), *_walks(case), *_marked_walks(case)]


def _walks(case: _Case) -> Iterator[Way]:
    """Yield the walk through all listings, and those in the indexes of conditions."""
    yield _way_along(case, None)
    yield from (_way_along(case, at) for at, condition in enumerate(case.conditions) if condition.is_in_order(case.wish.order))


def _way_along(case: _Case, first: int | None) -> Way:
    """Return the walk to the end of what an index gives, or until the page is full."""
    guess, order = case.guess, case.wish.order
    most, share = (guess.listings, 1.0) if first is None else (guess.left[first], guess.share(first))
    others = min(guess.together(range(len(case.conditions))) / share, 1.0)
    apart = _STEP["name"] if case.wish.is_counted else _APART
    step = (_STEP[order] if first is None else max(_STEP[order], apart)) + case.elsewhere * min(case.asked_elsewhere / share, 1.0)
    walked = None if first is None else case.conditions[first]
    met = min(most, case.wish.page / others)
    asked = (min(met, LOOKED_AT) if case.wish.is_counted else met) * min(case.asked_elsewhere / share, 1.0)
    rest = [condition.asked_of(asked, left) for condition, left in case.ranked if condition is not walked]
    cost = met * step
    return Way(cost=cost, select=partial(_walk, walked, rest, is_sqlite=case.is_sqlite))


def _marked_walks(case: _Case) -> Iterator[Way]:
    """Yield the walk past marks, where there are any to look for: it looks at what bears them all."""
    guess, order = case.guess, case.wish.order
    marked = [at for at, condition in enumerate(case.conditions) if condition.is_marked]
    if case.is_sqlite or order not in ("updated", "name") or not marked:
        return
    met = min(guess.listings, case.wish.page / guess.together(range(len(case.conditions))))
    # Where one lexeme is looked for, less is to be done than for one of several; of most listings nothing more is asked.
    marked.sort(key=lambda at: (len(case.conditions[at].lexemes), guess.left[at]))
    terms = [case.conditions[at].lexemes for at in marked]
    mistaken = MISTAKEN if guess.sample is None else guess.sample.mistaken
    passed = guess.together(marked) + prod(min(guess.share(at) + len(case.conditions[at].lexemes) * mistaken, 1) for at in marked)
    cost = met * (_MARKED + len(terms[0]) * _BITS + passed * (_BY_ID + case.elsewhere))
    yield Way(cost=cost, select=partial(_walk_marked, terms, [condition for condition, _ in case.ranked]))


def _looks(case: _Case) -> Iterator[Way]:
    """Yield the ways to look at what indexes leave, as far as they leave few."""
    ranked, guess = case.ranked, case.guess
    if ranked[0][1] <= case.wish.few:
        yield Way(cost=_looking(case), select=partial(_look, ranked, is_sqlite=case.is_sqlite))
    if not case.is_sqlite and (terms := _terms_worth(case)):
        looked = guess.listings * guess.together(terms)
        if looked <= case.wish.few:
            rest = [one.asked_of(looked, guess.left[at]) for at, one in enumerate(case.conditions) if at not in terms]
            by_terms = partial(_look_by_terms, [case.conditions[at] for at in terms], rest)
            yield Way(cost=_meeting(case, terms) + looked * (1 + case.elsewhere), select=by_terms)


def _terms_worth(case: _Case) -> list[int]:
    """Return the conditions whose terms are put together, the rarest first: each spares more looks than it costs."""
    # The beginning of any number of words is read to its end, and spares nothing.
    named = [at for at, condition in enumerate(case.conditions) if condition.term and not condition.begun]
    chosen: list[int] = []
    for at in sorted(named, key=lambda at: case.guess.left[at]):
        spared = case.guess.together(chosen) - case.guess.together([*chosen, at])
        if not chosen or spared * case.guess.listings > _probing(case, chosen[0], at):
            chosen.append(at)
    return chosen


def _meeting(case: _Case, terms: Sequence[int]) -> float:
    """Return what it costs to find in the index of terms those that have all of some, the rarest first."""
    first, *others = terms
    return case.guess.left[first] * _MET + sum(_probing(case, first, at) for at in others)


def _probing(case: _Case, first: int, at: int) -> float:
    """Return what it costs to ask of each entry of the rarest term whether it has another: of each lexeme, and all of them at the most."""
    met, left = case.guess.left[first], case.guess.left[at]
    return min(met * len(case.conditions[at].lexemes), met + left) * _MET + min(left, met * _ON_A_PAGE) * _PASSED


def _looking(case: _Case) -> float:
    """Return what it costs to look at what the rarest condition leaves."""
    ranked = case.ranked
    fewest, beside = ranked[0][1], _beside(ranked)
    if beside is None:
        return fewest * (1 + sum(condition.kind == "elsewhere" for condition, _ in ranked[1:]))
    return (fewest + beside[1]) * _READ + fewest * beside[1] / max(case.guess.listings, 1)


def _look_by_terms(terms: Sequence[Condition], rest: Sequence[Condition]) -> Selected:
    """Return those that have all terms, as far as they pass the rest, before anything is sorted."""
    inexact = [condition.value for condition in terms if not condition.is_exact]
    return _looked(have_all([condition.term for condition in terms]), *inexact, *(condition.value for condition in rest), is_sqlite=False)


def _plain(conditions: tuple[ColumnElement[bool], ...], floor: _Floor = None) -> Selected:
    return Selected(
        source=LISTINGS, listed=LISTINGS.c, conditions=conditions, newness=LISTINGS.c.version_id, key=LISTINGS.c.key, floor=floor
    )


def _look(ranked: Sequence[tuple[Condition, float]], *, is_sqlite: bool) -> Selected:
    """Return those that the rarest condition leaves, as far as they pass the others, before anything is sorted."""
    (rarest, fewest), *others = ranked
    conditions = [_joined(ranked)]
    conditions += [] if rarest.is_exact else [rarest.value]
    for condition, left in others:
        # PostgreSQL puts what several indexes find together before it looks at a listing, where reading them costs less than looking.
        if not is_sqlite and condition.sieve is not None and left * _READ < fewest:
            conditions += [condition.sieve] if condition.is_exact else [condition.sieve, condition.value]
        else:
            conditions += [condition.asked_of(fewest, left).value]
    return _looked(*conditions, is_sqlite=is_sqlite)


def _looked(*conditions: ColumnElement[bool], is_sqlite: bool) -> Selected:
    # Named and not derived from the query, because deriving its columns takes longer than all the rest.
    query = select(*_SHOWN).where(*conditions)
    if is_sqlite:
        found = query.cte(_LOOKED.name).prefix_with("MATERIALIZED")
    else:
        # An offset keeps the order of the list away from the choice of an index as well, and keeps no copy of what is looked at.
        found = query.offset(0).cte(_LOOKED.name).prefix_with("NOT MATERIALIZED")
    return Selected(source=_LOOKED, listed=_LOOKED.c, conditions=(), newness=_LOOKED.c.version_id, key=_LOOKED.c.key, found=found)


def _beside(ranked: Sequence[tuple[Condition, float]]) -> tuple[Condition, float] | None:
    """Return what is put together with the rarest condition before any listing is looked at, where both are of other tables."""
    rarest, *others = ranked
    if rarest[0].make_sieve is not None:
        return None
    return next((one for one in others if one[0].make_sieve is None and one[1] <= _READ_AT_ONCE), None)


def _joined(ranked: Sequence[tuple[Condition, float]]) -> ColumnElement[bool]:
    """Return what holds for those that the rarest condition leaves; with the next one, where that is of other tables too."""
    rarest, beside = ranked[0][0], _beside(ranked)
    if beside is None:
        return rarest.found
    # SQLite's full-text index gives all that it finds at once, and is slow to be asked of one after the other.
    outer, inner = sorted((rarest, beside[0]), key=lambda condition: condition.kind == "words")
    return LISTINGS.c.version_id.in_(outer.ids.where(outer.ids.selected_columns[0].in_(inner.ids)))


def _walk(first: Condition | None, rest: Sequence[Condition], *, is_sqlite: bool) -> Selected:
    """Return what an index gives in the order of the list, each of which is checked for the rest, in their order."""
    others = tuple(condition.value for condition in rest)
    floor = partial(_floor, first) if others else None
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


def _walk_tag(tag: str, others: tuple[ColumnElement[bool], ...], floor: _Floor, *, is_sqlite: bool) -> Selected:
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


def _walk_marked(terms: Sequence[Sequence[str]], conditions: Sequence[Condition]) -> Selected:
    """Return those that bear the marks of all terms, in the order of the list, each of which is checked for all conditions."""
    is_it = LISTINGS.c.version_id == MARKS.c.version_id
    checked = select(*_SHOWN).where(is_it, *(condition.value for condition in conditions)).offset(0).correlate(MARKS).lateral("looked")
    source, found = MARKS.join(checked, true()), (bear_marks(terms),)
    newness, key = MARKS.c.version_id, MARKS.c.key
    return Selected(source=source, listed=checked.c, conditions=found, newness=newness, key=key, floor=partial(_floor, None))


def _floor(first: Condition | None) -> ColumnElement[int]:
    walked = select(LISTINGS.alias().c.version_id) if first is None else first.ids
    last = walked.order_by(walked.selected_columns[0].desc()).offset(LOOKED_AT).limit(1)
    return func.coalesce(last.scalar_subquery(), 0)
