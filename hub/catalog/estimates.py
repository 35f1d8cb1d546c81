"""How many adapters each condition of a filter leaves, as far as a plan has to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ClauseElement, Connection, Executable, Select, cast, func, select, union_all
from sqlalchemy.dialects.postgresql import TSQUERY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.visitors import InternalTraversal

from hub.catalog.conditions import Part
from hub.catalog.tables import LISTINGS

COUNTED = 10_000
"""SQLite counts what a condition leaves up to here."""
_OF_MANY = 0.05
"""The share of all listings that a condition is taken to leave where it leaves more than are counted."""

_NO_WORD = "'=':*"
"""No word begins so. PostgreSQL takes as much for the beginning of any that it has not counted, which many may share nevertheless."""
_NEWEST = 1000
"""Listings that are counted for those."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """How many listings there are, and how many of them each condition leaves, in the order of the conditions."""

    listings: float
    left: tuple[float, ...]

    def share(self, position: int) -> float:
        """Return which part of all listings a condition leaves; never 0."""
        return min(max(self.left[position], 0.5) / max(self.listings, 1), 1.0)


def estimate(connection: Connection, parts: Sequence[Part]) -> Estimate:
    """Count up to a bound on SQLite, and ask PostgreSQL's planner, whose statistics know the frequent values and words."""
    return _counted(connection, parts) if connection.dialect.name == "sqlite" else _explained(connection, parts)


def _counted(connection: Connection, parts: Sequence[Part]) -> Estimate:
    limited = [part.ids.limit(COUNTED + 1).subquery() for part in parts]
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


def _explained(connection: Connection, parts: Sequence[Part]) -> Estimate:
    # Each with a limit: its number is that of the whole, however many processes would share in the work.
    everything: Select[Any] = select(LISTINGS.c.version_id)
    nothing = everything.where(LISTINGS.c.words.op("@@")(cast(_NO_WORD, TSQUERY)))
    asked = [query.limit(2**40).subquery() for query in (everything, nothing, *(part.ids for part in parts))]
    told = connection.execute(_Plan(union_all(*(select(one) for one in asked)))).scalar_one()
    [listings, least, *left] = [float(plan["Plan Rows"]) for plan in told[0]["Plan"]["Plans"]]
    unknown = [at for at, part in enumerate(parts) if part.is_begun and left[at] <= least]
    for at, share in zip(unknown, _shares_of_newest(connection, [parts[at] for at in unknown]), strict=True):
        left[at] = listings * share
    return Estimate(listings=listings, left=tuple(left))


def _shares_of_newest(connection: Connection, parts: Sequence[Part]) -> list[float]:
    """Return which part of the newest listings each condition leaves."""
    if not parts:
        return []
    newest = select(*(part.check.label(f"has_{at}") for at, part in enumerate(parts))).order_by(LISTINGS.c.version_id.desc()).limit(_NEWEST)
    has = newest.subquery()
    total, *counts = connection.execute(select(func.count(), *(func.count().filter(column) for column in has.c)).select_from(has)).one()
    return [max(count, 0.5) / max(total, 1) for count in counts]
