"""How a list finds what a filter selects: among the few that one of its conditions leaves, or by walking in the order of the list.

Databases choose by averages, and adapters are nowhere near even: a base model that half the hub edits and one that nobody has heard of
look alike to them. So conditions are counted first, up to a bound. Where one leaves no more than :data:`FEW`, those are looked at one by
one; where two leave a few times as many, those that both leave; where all leave more, a walk in the order of the list meets enough of
them soon, unless they never come together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never

from sqlalchemy import ColumnElement, Connection, Select, case, cast, exists, false, func, or_, select, true
from sqlalchemy import literal as sql_literal
from sqlalchemy.dialects.postgresql import TSQUERY, TSVECTOR

from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.search import SIGNS, AdapterFilter, MetricBound, Order, Selected
from hub.catalog.tables import LISTING_METRICS, LISTING_TAGS, LISTING_WORDS, LISTINGS, MAX_BASE_NAME
from hub.catalog.words import Wording, read_search

FEW = 4000
"""Adapters that are looked at one by one."""
_WIDER = 5
"""Times :data:`FEW`: what each of two conditions may leave to be put together before anything is looked at."""
LOOKED_AT = 3000
"""Adapters that counting by property looks at, where there are more and they must be looked at one by one."""
_SAMPLE, _FREQUENT = 1000, 10
"""PostgreSQL's full-text index counts nothing without reading all of it, so that words are frequent which so many of the newest have."""
_COLUMNS = ("rank", "licence", "task", "method", "format", "is_signed")

Kind = Literal["column", "tag", "elsewhere", "search"]
"""Where a condition looks; ``elsewhere`` is a table that knows no order of the list, as of metrics."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One condition of a filter."""

    kind: Kind
    check: ColumnElement[bool]
    """Asked of one listing, without the full-text index."""
    ids: Select[Any]
    """``version_id`` of those that it leaves, and perhaps of others, by an index."""
    tag: str = ""


def select_listings(connection: Connection, wanted: AdapterFilter, order: Order = "updated", few: int = FEW) -> Selected:
    """Return the listings that a filter selects, for a list in an order; ``few`` changes how they are found, never which they are."""
    wording = read_search(wanted.search or "")
    if wording is None:
        return _plain((false(),))
    is_sqlite = connection.dialect.name == "sqlite"
    parts = tuple(_parts(wanted, wording, is_sqlite=is_sqlite))
    is_in_order = len(parts) < 2 and all(_is_in_order(part, order, is_sqlite=is_sqlite) for part in parts)
    ids, ranked = (None, list(parts)) if is_in_order else _plan(connection, parts, few, is_sqlite=is_sqlite)
    if ids is not None:
        return _plain((LISTINGS.c.version_id.in_(ids), *(part.check for part in ranked)))
    return _walk(sorted(ranked, key=lambda part: part.kind not in ("tag", "column")), order, wording if is_sqlite else None)


def _plain(conditions: tuple[ColumnElement[bool], ...], floor: ColumnElement[int] | None = None) -> Selected:
    return Selected(source=LISTINGS, conditions=conditions, newness=LISTINGS.c.version_id, key=LISTINGS.c.key, floor=floor)


def _is_in_order(part: Part, order: Order, *, is_sqlite: bool) -> bool:
    """Whether an index gives what a condition leaves in the order of the list."""
    match part.kind:
        case "column" | "tag":
            return order in ("updated", "name")
        case "search":
            return is_sqlite and order == "updated"
        case "elsewhere":
            return False
        case _:
            assert_never(part.kind)


def _parts(wanted: AdapterFilter, wording: Wording, *, is_sqlite: bool) -> Iterator[Part]:
    yield from (_tag_part(tag.lower()) for tag in wanted.tags)
    if wanted.base_model is not None:
        yield _base_part(wanted.base_model)
    if wanted.namespace is not None:
        yield _column_part("namespace", wanted.namespace.lower())
    yield from (_column_part(name, getattr(wanted, name)) for name in _COLUMNS if getattr(wanted, name) is not None)
    yield from (_metric_part(bound) for bound in wanted.metrics)
    if wanted.attached is not None:
        yield _attached_part(wanted.attached)
    if len(wording):
        yield _sqlite_search(wording) if is_sqlite else _postgres_search(wording)


def _tag_part(tag: str) -> Part:
    has, one = LISTING_TAGS.alias(), LISTING_TAGS.alias()
    check = exists().where(has.c.version_id == LISTINGS.c.version_id, has.c.tag == tag)
    return Part(kind="tag", tag=tag, check=check, ids=select(one.c.version_id).where(one.c.tag == tag))


def _column_part(name: str, value: object, and_also: Callable[[], ColumnElement[bool]] = true) -> Part:
    one = LISTINGS.alias()
    return Part(kind="column", check=(LISTINGS.c[name] == value) & and_also(), ids=select(one.c.version_id).where(one.c[name] == value))


def _base_part(base_model: str) -> Part:
    name, at, _ = base_model.partition("@")
    exact, whole = LISTINGS.c.base_model, base_model if at else name

    def is_exact() -> ColumnElement[bool]:
        return or_(exact == whole, exact.startswith(f"{whole}@", autoescape=True))

    return _column_part("base_name", name[:MAX_BASE_NAME], is_exact if at or len(name) >= MAX_BASE_NAME else true)


def _metric_part(bound: MetricBound) -> Part:
    has, one = LISTING_METRICS.alias(), LISTING_METRICS.alias()
    within = SIGNS[bound.sign]
    check = exists().where(has.c.version_id == LISTINGS.c.version_id, has.c.name == bound.name, within(has.c.value, bound.value))
    return Part(
        kind="elsewhere", check=check, ids=select(one.c.version_id).where(one.c.name == bound.name, within(one.c.value, bound.value))
    )


def _attached_part(derived: str) -> Part:
    has, one = DERIVED_FORMATS.alias(), DERIVED_FORMATS.alias()
    check = exists().where(has.c.version_id == LISTINGS.c.version_id, has.c.format == derived)
    # Once a version, however many types of numbers it is attached in.
    return Part(kind="elsewhere", check=check, ids=select(one.c.version_id).where(one.c.format == derived).distinct())


def _sqlite_search(wording: Wording) -> Part:
    words = " " + LISTINGS.c.words.concat(" ")
    asked = (*(f" {word} " for word in wording.whole), *(f" {word}" for word in wording.begun))
    check = sql_literal(1) == 1
    for text in asked:
        check &= func.instr(words, text) > 0
    ids = select(LISTING_WORDS.c.rowid.label("version_id")).where(LISTING_WORDS.c.listing_words.op("MATCH")(wording.fts5))
    return Part(kind="search", check=check, ids=ids)


def _postgres_search(wording: Wording) -> Part:
    asked, one = cast(wording.tsquery, TSQUERY), LISTINGS.alias()
    unindexed = LISTINGS.c.words.op("||")(cast("", TSVECTOR))
    return Part(kind="search", check=unindexed.op("@@")(asked), ids=select(one.c.version_id).where(one.c.words.op("@@")(asked)))


def _plan(connection: Connection, parts: Sequence[Part], few: int, *, is_sqlite: bool) -> tuple[Select[Any] | None, list[Part]]:
    """Return what gives the few that are looked at, where they are few, and the conditions, those that leave the fewest first."""
    counted = [part for part in parts if is_sqlite or part.kind != "search"]
    words = [part for part in parts if part not in counted]
    most = few * _WIDER if len(counted) > 1 else few
    numbers = dict(zip(map(id, counted), _count_each(connection, counted, most), strict=True))
    ranked = sorted(counted, key=lambda part: numbers[id(part)])
    narrow = [part for part in ranked if numbers[id(part)] <= most]
    if narrow and numbers[id(narrow[0])] <= few:
        return narrow[0].ids, [*ranked, *words]
    if len(narrow) > 1:
        # A full-text index gives all that it finds at once, and is slow to be asked of one after the other.
        inner, outer = sorted(narrow[:2], key=lambda part: part.kind != "search")
        return outer.ids.where(outer.ids.selected_columns[0].in_(inner.ids)), [*ranked, *words]
    is_rare = bool(words and few) and not _is_frequent(connection, words[0])
    return words[0].ids if is_rare else None, [*ranked, *words]


def _count_each(connection: Connection, parts: Sequence[Part], most: int) -> list[int]:
    """Return how many each condition leaves, or one more than ``most``."""
    if not parts:
        return []
    limited = [part.ids.limit(most + 1).subquery() for part in parts]
    return list(connection.execute(select(*(select(func.count()).select_from(one).scalar_subquery() for one in limited))).one())


def _is_frequent(connection: Connection, words: Part) -> bool:
    newest = select(LISTINGS.c.version_id, words.check.label("has")).order_by(LISTINGS.c.version_id.desc()).limit(_SAMPLE).subquery()
    return connection.execute(select(func.count()).where(newest.c.has)).scalar_one() >= _FREQUENT


def _walk(parts: Sequence[Part], order: Order, fts5: Wording | None) -> Selected:
    """Return what an index gives in the order of the list, each of which is checked for the rest."""
    floor = _floor(parts[0]) if len(parts) > 1 or (parts and parts[0].kind in ("elsewhere", "search")) else None
    first, *others = parts or (None,)
    if first is None or order not in ("updated", "name"):
        # As values, so that no index on what is asked for leads away from the order.
        return _plain(tuple(case((part.check, 1), else_=0) == 1 for part in parts), floor)
    if first.kind == "tag":
        source = LISTING_TAGS.join(LISTINGS, LISTINGS.c.version_id == LISTING_TAGS.c.version_id)
        conditions = (LISTING_TAGS.c.tag == first.tag, *(part.check for part in others))
        return Selected(source=source, conditions=conditions, newness=LISTING_TAGS.c.version_id, key=LISTING_TAGS.c.key, floor=floor)
    if first.kind == "search" and fts5 is not None and order == "updated":
        source = LISTING_WORDS.join(LISTINGS, LISTINGS.c.version_id == LISTING_WORDS.c.rowid)
        is_found = LISTING_WORDS.c.listing_words.op("MATCH")(fts5.fts5)
        return Selected(source=source, conditions=(is_found,), newness=LISTING_WORDS.c.rowid, key=LISTINGS.c.key)
    return _plain(tuple(part.check for part in parts), floor)


def _floor(first: Part) -> ColumnElement[int]:
    walked = first.ids if first.kind in ("tag", "column") else select(LISTINGS.alias().c.version_id)
    last = walked.order_by(walked.selected_columns[0].desc()).offset(LOOKED_AT).limit(1)
    return func.coalesce(last.scalar_subquery(), 0)
