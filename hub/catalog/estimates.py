"""How many adapters each condition of a filter leaves, as far as a plan has to know it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from sqlalchemy import ClauseElement, Connection, Executable, Select, cast, func, select, union_all
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from hub.catalog.conditions import Condition
from hub.catalog.tables import LISTINGS

COUNTED = 10_000
"""SQLite counts what a condition leaves up to here."""
_OF_MANY = 0.05
"""The share of all listings that a condition is taken to leave where it leaves more than are counted."""

_NO_WORD = "'=':*"
"""No word begins so. PostgreSQL takes as much for the beginning of any that it has not counted, which many may share nevertheless."""
_NEWEST = 1000
"""Listings that are looked at for those, and for how many listings have several conditions together."""
_ENOUGH = 3
"""So many of them say something; fewer say that there are no more."""
_WORTH_SAMPLING = 4000
"""Where a condition leaves no more, nobody asks what it leaves together with others."""


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
    """What some listings have."""

    positions: tuple[int, ...]
    """Of the conditions that they were asked for."""
    counts: Mapping[frozenset[int], int]
    """How many there are that have these conditions, and no others."""

    def share(self, positions: Collection[int], unless: float) -> float:
        """Return which part has all of some conditions; where those are few, ``unless``, as far as they do not gainsay it."""
        total = max(sum(self.counts.values()), 1)
        count = sum(number for has, number in self.counts.items() if has.issuperset(positions))
        return count / total if count >= _ENOUGH else min(unless, _ENOUGH / total)


def estimate(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    """Count up to a bound on SQLite, and ask PostgreSQL's planner, whose statistics know the frequent values and words."""
    return _counted(connection, conditions) if connection.dialect.name == "sqlite" else _explained(connection, conditions)


def _counted(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    limited = [condition.ids.limit(COUNTED + 1).subquery() for condition in conditions]
    numbers = (select(func.count()).select_from(one).scalar_subquery() for one in limited)
    listings, *found = connection.execute(select(func.coalesce(func.max(LISTINGS.c.version_id), 0), *numbers)).one()
    many = max(COUNTED + 1, listings * _OF_MANY)
    return Estimate(listings=listings, left=tuple(many if number > COUNTED else number for number in found))


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


def _explained(connection: Connection, conditions: Sequence[Condition]) -> Estimate:
    # Each with a limit: its number is that of the whole, however many processes would share in the work.
    everything: Select[Any] = select(LISTINGS.c.version_id)
    nothing = everything.where(LISTINGS.c.words.op("@@")(cast(_NO_WORD, TSQUERY)))
    asked = [query.limit(2**40).subquery() for query in (everything, nothing, *(condition.ids for condition in conditions))]
    told = connection.execute(_Plan(union_all(*(select(one) for one in asked)))).scalar_one()
    [listings, least, *left] = [float(plan["Plan Rows"]) for plan in told[0]["Plan"]["Plans"]]
    unknown = [at for at, condition in enumerate(conditions) if _is_guessed(condition, left[at], least)]
    inside = [at for at, condition in enumerate(conditions) if condition.kind != "elsewhere"]
    if not unknown and (len(inside) < 2 or min(left[at] for at in inside) <= _WORTH_SAMPLING):
        return Estimate(listings=listings, left=tuple(left))
    sample = _sample_newest(connection, {at: conditions[at] for at in inside})
    for at in unknown:
        left[at] = listings * sample.share([at], 0.5 / _NEWEST)
    return Estimate(listings=listings, left=tuple(left), sample=sample)


def _is_guessed(condition: Condition, left: float, least: float) -> bool:
    """Return whether PostgreSQL has counted no word that a condition asks for, and more than one may be meant."""
    return condition.kind == "words" and (condition.is_open or condition.lexemes > 1) and left <= least * condition.lexemes


def _sample_newest(connection: Connection, conditions: Mapping[int, Condition]) -> Sample:
    """Ask the newest listings for conditions, which are given by their positions."""
    asked = (condition.check.label(f"has_{at}") for at, condition in conditions.items())
    has = select(*asked).order_by(LISTINGS.c.version_id.desc()).limit(_NEWEST).subquery()
    counts: dict[frozenset[int], int] = {}
    for *held, number in connection.execute(select(*has.c, func.count()).group_by(*has.c)):
        counts[frozenset(at for at, is_held in zip(conditions, held, strict=True) if is_held)] = number
    return Sample(positions=tuple(conditions), counts=counts)
