"""How many adapters each condition of a filter leaves, as far as a plan has to know it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod
from operator import and_
from typing import Any

from sqlalchemy import ClauseElement, Connection, Executable, Select, func, select, union_all
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from hub.catalog.conditions import Condition
from hub.catalog.search_marks import MISTAKEN
from hub.catalog.statistics import statistics_of
from hub.catalog.tables import LISTINGS

COUNTED = 10_000
"""SQLite counts what a condition leaves up to here."""
_OF_MANY = 0.05
"""The share of all listings that a condition is taken to leave where it leaves more than are counted."""

_BELIEVED = 2
"""So many of the newest weigh as much as what conditions would leave together if they had nothing to do with one another."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How many listings there are, and how many of them each condition leaves, in the order of the conditions."""

    listings: float
    left: tuple[float, ...]
    sample: Sample | None = None

    def share(self, position: int) -> float:
        """Return which part of all listings a condition leaves; never 0."""
        return min(max(self.left[position], 0.5) / max(self.listings, 1), 1.0)

    def together(self, positions: Collection[int]) -> float:
        """Return which part of all listings some conditions leave together; never 0."""
        sampled = {position for position in positions if self.sample is not None and position in self.sample.positions}
        apart = prod(self.share(position) for position in sampled)
        if self.sample is not None and len(sampled) > 1:
            # What is asked for at once often goes together: the words of a name, or a base model and a task.
            apart = self.sample.share(sampled, apart)
        return apart * prod(self.share(position) for position in positions if position not in sampled)


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the newest listings have."""

    number: int
    having: Mapping[int, int]
    """By the position of a condition: which of them it leaves, as the bits of a number."""
    mistaken: float = MISTAKEN
    """The part that bears the marks of a lexeme without having it."""

    @property
    def positions(self) -> Collection[int]:
        """Of the conditions of which it is known."""
        return self.having.keys()

    def share_alone(self, position: int) -> float:
        """Return which part a condition leaves; never 0."""
        return (self.having[position].bit_count() + 0.5) / (self.number + 1)

    def share(self, positions: Collection[int], unless: float) -> float:
        """Return which part has all of some conditions, near to ``unless`` where few of the newest have them."""
        count = reduce(and_, (self.having[position] for position in positions)).bit_count()
        return (count + _BELIEVED) / (self.number + _BELIEVED / unless)


def estimate(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    """Count up to a bound on SQLite; on PostgreSQL look up what it has counted, and ask its planner for what that does not say."""
    return _counted(connection, conditions) if connection.dialect.name == "sqlite" else _looked_up(connection, conditions)


def _counted(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    limited = [condition.ids.limit(COUNTED + 1).subquery() for condition in conditions]
    numbers = (select(func.count()).select_from(one).scalar_subquery() for one in limited)
    listings, *found = connection.execute(select(func.coalesce(func.max(LISTINGS.c.version_id), 0), *numbers)).one()
    many = max(COUNTED + 1, listings * _OF_MANY)
    return Estimate(listings=listings, left=tuple(many if number > COUNTED else number for number in found))


def _looked_up(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    known = statistics_of(connection)
    having = {at: known.newest.has(one.lexemes, one.begun) for at, one in enumerate(conditions) if one.kind != "elsewhere"}
    sample = Sample(number=known.newest.number, having=having, mistaken=known.newest.mistaken)
    counted = {at: number for at, one in enumerate(conditions) if (number := known.left(one.column, one.wanted)) is not None}
    listings = known.rows.get(LISTINGS.name)
    asked = [at for at, one in enumerate(conditions) if at not in counted and one.kind != "words"]
    if asked or listings is None:
        listings, *explained = _explained(connection, [conditions[at] for at in asked])
        counted |= zip(asked, explained, strict=True)
    for at, condition in enumerate(conditions):
        if condition.kind == "words":
            share, is_counted = known.share_of_words(condition.lexemes)
            counted[at] = listings * (share if is_counted else min(sample.share_alone(at), share))
    return Estimate(listings=listings, left=tuple(counted[at] for at in range(len(conditions))), sample=sample)


class _Plan(Executable, ClauseElement):
    """PostgreSQL's plan for a query that is not run."""

    # By this SQLAlchemy knows when the text is the same as before.
    _traverse_internals = [("query", InternalTraversal.dp_clauseelement)]  # noqa: RUF012 - SQLAlchemy's own way

    @property
    def _all_selected_columns(self) -> Any:
        return ()

    def __init__(self, query: ClauseElement) -> None:
        self.query = query


@compiles(_Plan, "postgresql")
def _compile_plan(plan: _Plan, compiler: SQLCompiler, **given: Any) -> str:
    return f"EXPLAIN (FORMAT JSON) {compiler.process(plan.query, **given)}"


def _explained(connection: Connection, conditions: Sequence[Condition]) -> list[float]:
    """Return how many listings PostgreSQL's planner takes there to be, and how many of them each condition to leave."""
    # Each with a limit: its number is that of the whole, however many processes would share in the work.
    everything: Select[Any] = select(LISTINGS.c.version_id)
    asked = [query.limit(2**40).subquery() for query in (everything, *(condition.ids for condition in conditions))]
    told = connection.execute(_Plan(union_all(*(select(one) for one in asked)))).scalar_one()
    plan = told[0]["Plan"]
    return [float(one["Plan Rows"]) for one in (plan["Plans"] if conditions else [plan])]
