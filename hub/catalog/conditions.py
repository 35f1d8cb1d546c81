"""The conditions that a filter is made of, each as it is asked of one listing and as an index finds what it leaves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, assert_never

from sqlalchemy import ColumnElement, Select, case, cast, exists, false, func, or_, select, true
from sqlalchemy import literal as sql_literal
from sqlalchemy.dialects.postgresql import TSQUERY

from hub.catalog.format_tables import DERIVED_FORMATS
from hub.catalog.search import SIGNS, AdapterFilter, MetricBound, Order
from hub.catalog.search_marks import MOST_LEXEMES
from hub.catalog.search_terms import any_of, have_all, lexeme_of, term_of
from hub.catalog.tables import LISTING_METRICS, LISTING_TAGS, LISTING_WORDS, LISTINGS, MAX_BASE_NAME
from hub.catalog.words import Wording

_COLUMNS = ("rank", "licence", "task", "method", "format", "is_signed")
_ALL = LISTINGS.alias("all_listings")
_ONE_TAG = LISTING_TAGS.alias("one_tag")
"""For what stands by itself, both; made once, because an alias takes longer than the rest of a condition."""
_TAG_LINES = "\n" + LISTINGS.c.tags.concat("\n")
_READ_FASTER = 10
"""How many that a condition leaves PostgreSQL reads while it asks for one."""

Kind = Literal["column", "tag", "elsewhere", "words"]
"""Where a condition looks; ``elsewhere`` is a table that knows no order of the list, as of metrics."""


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One condition of a filter. What is asked of a database is made when it is needed, for making it takes longer than most of a plan."""

    kind: Kind
    make_check: Callable[[], ColumnElement[bool]]
    make_ids: Callable[[], Select[Any]]
    make_sieve: Callable[[], ColumnElement[bool]] | None = None
    make_probe: Callable[[], ColumnElement[bool]] | None = None
    """The check in a form for which PostgreSQL does not read first all that it leaves."""
    is_exact: bool = True
    """Whether ``ids`` and ``sieve`` have no others than it leaves."""
    tag: str = ""
    column: str = ""
    """What is looked at, where one value of it is asked for; of a tag, ``tag``."""
    wanted: object = None
    """That value."""
    term: str = ""
    """What PostgreSQL's index of terms is asked, in the language of ``tsquery``; it leaves as many as ``ids``."""
    lexemes: tuple[str, ...] = ()
    """Of which listings have one."""
    begun: str = ""
    """The beginning of a lexeme that listings have, where these are too many: the index reads all that it leaves."""
    fts5: str = ""
    """What is asked of SQLite's full-text index, whose order is that of publishing."""

    @cached_property
    def check(self) -> ColumnElement[bool]:
        """Asked of one listing."""
        return self.make_check()

    @cached_property
    def ids(self) -> Select[Any]:
        """``version_id`` of those that it leaves, and perhaps of others, by an index."""
        return self.make_ids()

    @cached_property
    def sieve(self) -> ColumnElement[bool] | None:
        """Asked of listings, in a form that an index of theirs answers; it holds for those of ``ids``."""
        return None if self.make_sieve is None else self.make_sieve()

    @property
    def value(self) -> ColumnElement[bool]:
        """The check as a value, so that no index on what it asks leads a database elsewhere."""
        return case((self.check, true()), else_=false())

    @property
    def found(self) -> ColumnElement[bool]:
        """What holds for the listings that it leaves, and perhaps for others, found by an index."""
        return LISTINGS.c.version_id.in_(self.ids) if self.sieve is None else self.sieve

    def asked_of(self, listings: float, left: float) -> Condition:
        """Return it as it is best asked of so many listings, where it leaves ``left`` of all."""
        return replace(self, make_check=self.make_probe) if self.make_probe and listings * _READ_FASTER < left else self

    @property
    def is_marked(self) -> bool:
        """Whether listings are asked for the marks of its lexemes, on PostgreSQL."""
        return bool(self.term) and 0 < len(self.lexemes) <= MOST_LEXEMES

    def is_in_order(self, order: Order) -> bool:
        """Whether an index gives what it leaves in the order of the list."""
        match self.kind:
            case "column" | "tag":
                return order in ("updated", "name")
            case "words":
                return bool(self.fts5) and order == "updated"
            case "elsewhere":
                return False
            case _:
                assert_never(self.kind)


Completed = Mapping[str, tuple[str, ...]]
"""The words that begin as is asked, by the beginning, as far as they are known."""


def conditions_of(wanted: AdapterFilter, wording: Wording, completed: Completed, *, is_sqlite: bool) -> Iterator[Condition]:
    """Yield the conditions of a filter, whose search is ``wording``; ``completed`` is for PostgreSQL."""
    yield from (_tag_condition(tag.lower(), is_sqlite=is_sqlite) for tag in dict.fromkeys(wanted.tags))
    if wanted.base_model is not None:
        yield _base_condition(wanted.base_model)
    if wanted.namespace is not None:
        yield _column_condition("namespace", wanted.namespace.lower())
    yield from (_column_condition(name, getattr(wanted, name)) for name in _COLUMNS if getattr(wanted, name) is not None)
    yield from (_metric_condition(bound, is_sqlite=is_sqlite) for bound in wanted.metrics)
    if wanted.attached is not None:
        yield _attached_condition(wanted.attached)
    if len(wording) and is_sqlite:
        yield _sqlite_words(wording)
    elif len(wording):
        yield from (_postgres_word(each, completed) for each in wording.each)


def _tag_condition(tag: str, *, is_sqlite: bool) -> Condition:
    place = func.instr if is_sqlite else func.strpos

    def check() -> ColumnElement[bool]:
        # No tag is empty, and none has an end of line in it.
        return place(_TAG_LINES, f"\n{tag}\n") > 0 if tag else false()

    def ids() -> Select[Any]:
        return select(_ONE_TAG.c.version_id).where(_ONE_TAG.c.tag == tag).correlate(None)

    lexemes = (lexeme_of("tag", tag),)
    return Condition(
        kind="tag", tag=tag, column="tag", wanted=tag, make_check=check, make_ids=ids, term=term_of("tag", tag), lexemes=lexemes
    )


def _column_condition(name: str, value: object, and_also: Callable[[], ColumnElement[bool]] | None = None) -> Condition:
    def sieve() -> ColumnElement[bool]:
        return LISTINGS.c[name] == value

    return Condition(
        kind="column",
        make_check=sieve if and_also is None else lambda: sieve() & and_also(),
        make_ids=lambda: select(_ALL.c.version_id).where(_ALL.c[name] == value).correlate(None),
        make_sieve=sieve,
        is_exact=and_also is None,
        column=name,
        wanted=value,
        term=term_of(name, value) if isinstance(value, str) else "",
        lexemes=(lexeme_of(name, value),),
    )


def _base_condition(base_model: str) -> Condition:
    name, at, _ = base_model.partition("@")
    exact, whole = LISTINGS.c.base_model, base_model if at else name

    def is_exact() -> ColumnElement[bool]:
        return or_(exact == whole, exact.startswith(f"{whole}@", autoescape=True))

    return _column_condition("base_name", name[:MAX_BASE_NAME], is_exact if at or len(name) >= MAX_BASE_NAME else None)


def _metric_condition(bound: MetricBound, *, is_sqlite: bool) -> Condition:
    within = SIGNS[bound.sign]

    def values() -> Select[Any]:
        has = LISTING_METRICS.alias()
        its = select(has.c.version_id).where(has.c.version_id == LISTINGS.c.version_id, has.c.name == bound.name)
        return its.where(within(has.c.value, bound.value)).correlate(LISTINGS)

    def ids() -> Select[Any]:
        one = LISTING_METRICS.alias()
        return select(one.c.version_id).where(one.c.name == bound.name, within(one.c.value, bound.value))

    def probe() -> ColumnElement[bool]:
        return values().offset(0).exists()

    return Condition(kind="elsewhere", make_check=lambda: values().exists(), make_ids=ids, make_probe=None if is_sqlite else probe)


def _attached_condition(derived: str) -> Condition:
    def check() -> ColumnElement[bool]:
        has = DERIVED_FORMATS.alias()
        return exists().where(has.c.version_id == LISTINGS.c.version_id, has.c.format == derived)

    def ids() -> Select[Any]:
        one = DERIVED_FORMATS.alias()
        # Once a version, however many types of numbers it is attached in.
        return select(one.c.version_id).where(one.c.format == derived).distinct()

    return Condition(kind="elsewhere", make_check=check, make_ids=ids)


def _sqlite_words(wording: Wording) -> Condition:
    def check() -> ColumnElement[bool]:
        words = " " + LISTINGS.c.words.concat(" ")
        asked = (*(f" {word} " for word in wording.whole), *(f" {word}" for word in wording.begun))
        every = sql_literal(1) == 1
        for text in asked:
            every &= func.instr(words, text) > 0
        return every

    def ids() -> Select[Any]:
        return select(LISTING_WORDS.c.rowid.label("version_id")).where(LISTING_WORDS.c.listing_words.op("MATCH")(wording.fts5))

    return Condition(kind="words", make_check=check, make_ids=ids, fts5=wording.fts5)


def _postgres_word(wording: Wording, completed: Completed) -> Condition:
    [asked] = wording.whole or wording.begun
    words = wording.whole or completed.get(asked) or ()
    term = any_of(words) if words else wording.tsquery
    return Condition(
        kind="words",
        make_check=lambda: LISTINGS.c.words.op("@@", is_comparison=True)(cast(wording.tsquery, TSQUERY)),
        make_sieve=lambda: have_all([term]),
        make_ids=lambda: select(_ALL.c.version_id).where(_ALL.c.words.op("@@")(cast(term, TSQUERY))).correlate(None),
        term=term,
        lexemes=words,
        begun="" if words else asked,
    )
