"""Which adapters a list shows, and in which order."""

from __future__ import annotations

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, assert_never

from sqlalchemy import CTE, ColumnElement, FromClause, Row, Select, TextClause, literal, select, tuple_

from hub.catalog.cursors import Position, make_cursor, read_cursor
from hub.catalog.tables import Columns
from hub.catalog.words import read_search
from wegeft.contracts.errors import InvalidRequest, Problem, shorten
from wegeft.contracts.formats import DerivedFormat
from wegeft.contracts.native_formats import NativeFormat

Order = Literal["name", "updated", "created", "size"]
"""By name; the last published to, the last made, or the largest first."""

MAX_WORDS = 8
MAX_TAGS = 8
MAX_BOUNDS = 8
_MAX_TEXT = 4200
_MAX_SEARCHED = 24
"""Words of a search after what stands together without spaces is taken apart."""
_BOUND = re.compile(r"(?P<name>[^<>=]{1,100}?)\s*(?P<sign><=|>=|<|>)\s*(?P<value>[+-]?[0-9.eE+-]{1,40})\Z")
SIGNS = {"<=": operator.le, ">=": operator.ge, "<": operator.lt, ">": operator.gt}


@dataclass(frozen=True, kw_only=True)
class MetricBound:
    """What a metric of the newest version must be; a version without the metric is not listed."""

    name: str
    sign: Literal["<=", ">=", "<", ">"]
    value: float


def parse_bound(text: str) -> MetricBound:
    """Return the bound that a text such as ``eval_loss<=0.5`` says; raise :class:`InvalidRequest` where it says none."""
    match = _BOUND.match(text) if text.isprintable() else None
    try:
        value = float(match["value"]) if match else math.nan
    except ValueError:
        value = math.nan
    if match is None or not math.isfinite(value):
        hint = "a name, one of <= >= < >, and a number, as in eval_loss<=0.5"
        raise InvalidRequest("not a bound of a metric", path="metric", value=shorten(ascii(text)), hint=hint)
    sign: Any = match["sign"]
    return MetricBound(name=match["name"].strip(), sign=sign, value=value)


@dataclass(frozen=True, kw_only=True)
class AdapterFilter:
    """What the newest version of every listed adapter must be; None leaves it open."""

    search: str | None = None
    """Words, each at the beginning of a word of its names, tags, task, licence or card, in any case."""
    namespace: str | None = None
    base_model: str | None = None
    """As published, with or without the pinned revision after ``@``."""
    method: str | None = None
    rank: int | None = None
    task: str | None = None
    licence: str | None = None
    tags: tuple[str, ...] = ()
    """All of which it must have, in any case."""
    metrics: tuple[MetricBound, ...] = ()
    """Each must hold for one of the metric's values, whether its job has measured it or somebody has reported it."""
    format: NativeFormat | None = None
    is_signed: bool | None = None
    """Whether the hub has signed it."""
    attached: DerivedFormat | None = None
    """A derived format that is attached to it."""

    def __post_init__(self) -> None:
        problems = [problem for field in fields(self) if (problem := problem_with(field.name, getattr(self, field.name)))]
        if problems:
            raise InvalidRequest("the list cannot be filtered so", problems=problems)


def problem_with(name: str, value: object) -> Problem | None:
    """Return what is wrong with one part of a filter, by its name in :class:`AdapterFilter`."""
    match name, value:
        case "tags" | "metrics", tuple():
            most = MAX_TAGS if name == "tags" else MAX_BOUNDS
            if len(value) > most:
                return Problem(path=name, message=f"too many {name}", value=str(len(value)), hint=f"at most {most}")
            return next((problem for text in value if isinstance(text, str) and (problem := _text_problem(name, text))), None)
        case _, str(text):
            return _text_problem(name, text) or (_search_problem(text) if name == "search" else None)
        case _:
            return None


def _text_problem(name: str, text: str) -> Problem | None:
    if text.isprintable() and len(text) <= _MAX_TEXT:
        return None
    hint = f"at most {_MAX_TEXT} long"
    return Problem(path=name, message="not a printable text of a fitting length", value=shorten(ascii(text)), hint=hint)


def _search_problem(text: str) -> Problem | None:
    wording = read_search(text)
    if len(text.split()) <= MAX_WORDS and (wording is None or len(wording) <= _MAX_SEARCHED):
        return None
    return Problem(path="search", message="too many words", hint=f"at most {MAX_WORDS}")


@dataclass(frozen=True, kw_only=True)
class Selected:
    """The listings that a filter selects, as a query is made of them."""

    source: FromClause
    listed: Columns
    """The listings' columns in it."""
    conditions: tuple[ColumnElement[bool] | TextClause, ...]
    newness: ColumnElement[int]
    """Grows with the moment of publishing; read from the index that finds the listings, where it has it."""
    key: ColumnElement[str]
    floor: Callable[[], ColumnElement[int]] | None = None
    """The least ``newness`` that counting by property looks at; None where it can look at all that are selected."""
    found: CTE | None = None
    """What ``source`` names, where it is no table."""

    def query(self, names: Sequence[str]) -> Select[Any]:
        """Return a query of some of the listings' columns."""
        query = select(*(self.listed[name] for name in names)).select_from(self.source).where(*self.conditions)
        return query if self.found is None else query.add_cte(self.found)


def ordering(order: Order, selected: Selected) -> tuple[ColumnElement[Any], ...]:
    """Return what a list is sorted by; no two adapters are equal in it."""
    match order:
        case "name":
            return (selected.key,)
        case "updated":
            return (selected.newness.desc(),)
        case "created":
            return (selected.listed.adapter_id.desc(),)
        case "size":
            return (selected.listed.size.desc(), selected.newness.desc())
        case _:
            assert_never(order)


def cursor_at(order: Order, row: Row[tuple[object, ...]]) -> str:
    """Return the cursor behind a row that has ``key``, ``version_id``, ``id`` and ``size``."""
    position: Position
    match order:
        case "name":
            position = [row.key]
        case "updated":
            position = [row.version_id]
        case "created":
            position = [row.id]
        case "size":
            position = [row.size, row.version_id]
        case _:
            assert_never(order)
    return make_cursor(_list_name(order), position)


def check_cursor(order: Order, cursor: str) -> Position:
    """Return the position in a cursor; raise :class:`InvalidRequest` where it is not one of a list in this order."""
    kinds: dict[Order, tuple[type[str] | type[int], ...]] = {"name": (str,), "updated": (int,), "created": (int,), "size": (int, int)}
    return read_cursor(cursor, _list_name(order), kinds[order])


def _list_name(order: Order) -> str:
    return f"adapters by {order}"


def behind(order: Order, cursor: str, selected: Selected) -> ColumnElement[bool]:
    """Return what holds for the rows behind a cursor; raise :class:`InvalidRequest` where it is not one of this list."""
    first, *rest = check_cursor(order, cursor)
    match order:
        case "name":
            return selected.key > first
        case "updated":
            return selected.newness < first
        case "created":
            return selected.listed.adapter_id < first
        case "size":
            # As one comparison, which an index answers.
            return tuple_(selected.listed.size, selected.newness) < tuple_(literal(first), literal(rest[0]))
        case _:
            assert_never(order)
