"""Which adapters a list shows, and in which order."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, assert_never

from sqlalchemy import ColumnElement, Row, UnaryExpression, and_, func, or_

from hub.catalog.cursors import Position, make_cursor, read_cursor
from hub.catalog.tables import ADAPTERS, VERSIONS
from wegeft.contracts.errors import InvalidRequest, Problem, shorten

Order = Literal["name", "updated"]
"""By name, or the last published to first."""

MAX_WORDS = 8
_MAX_TEXT = 4200


@dataclass(frozen=True, kw_only=True)
class AdapterFilter:
    """What the newest version of every listed adapter must be; None leaves it open."""

    search: str | None = None
    """Words, each somewhere in the adapter's name or its base model's, in any case."""
    namespace: str | None = None
    base_model: str | None = None
    """As published, with or without the pinned revision after ``@``."""
    method: str | None = None
    rank: int | None = None

    def __post_init__(self) -> None:
        texts = {"search": self.search, "namespace": self.namespace, "base_model": self.base_model, "method": self.method}
        problems = [
            Problem(
                path=name, message="not a printable text of a fitting length", value=shorten(ascii(text)), hint=f"at most {_MAX_TEXT} long"
            )
            for name, text in texts.items()
            if text is not None and not (text.isprintable() and len(text) <= _MAX_TEXT)
        ]
        if len(self.words) > MAX_WORDS:
            problems.append(Problem(path="search", message="too many words", hint=f"at most {MAX_WORDS}"))
        if problems:
            raise InvalidRequest("the list cannot be filtered so", problems=problems)

    @property
    def words(self) -> tuple[str, ...]:
        """The words searched for, in lower case."""
        return tuple((self.search or "").lower().split())


def conditions(wanted: AdapterFilter) -> Iterator[ColumnElement[bool]]:
    """Yield what must hold for an adapter and its newest version."""
    base_model = VERSIONS.c.base_model
    for word in wanted.words:
        yield or_(ADAPTERS.c.key.contains(word, autoescape=True), func.lower(base_model).contains(word, autoescape=True))
    if wanted.namespace is not None:
        yield ADAPTERS.c.key.startswith(f"{wanted.namespace.lower()}/", autoescape=True)
    if wanted.base_model is not None:
        yield or_(base_model == wanted.base_model, base_model.startswith(f"{wanted.base_model}@", autoescape=True))
    if wanted.method is not None:
        yield VERSIONS.c.method == wanted.method
    if wanted.rank is not None:
        yield VERSIONS.c.rank == wanted.rank


def ordering(order: Order) -> tuple[ColumnElement[str] | UnaryExpression[object], ...]:
    """Return what a list is sorted by; no two adapters are equal in it."""
    match order:
        case "name":
            return (ADAPTERS.c.key,)
        case "updated":
            return (ADAPTERS.c.updated_at.desc(), ADAPTERS.c.id.desc())
        case _:
            assert_never(order)


def cursor_at(order: Order, row: Row[tuple[object, ...]]) -> str:
    """Return the cursor behind a row."""
    position: Position = [row.key] if order == "name" else [row.updated_at.isoformat(), row.id]
    return make_cursor(f"adapters by {order}", position)


def behind(order: Order, cursor: str) -> ColumnElement[bool]:
    """Return what holds for the rows behind a cursor; raise :class:`InvalidRequest` where it is not one of this list."""
    name = f"adapters by {order}"
    match order:
        case "name":
            [key] = read_cursor(cursor, name, (str,))
            return ADAPTERS.c.key > key
        case "updated":
            at, adapter_id = read_cursor(cursor, name, (str, int))
            moment = _moment(str(at))
            updated_at = ADAPTERS.c.updated_at
            return or_(updated_at < moment, and_(updated_at == moment, ADAPTERS.c.id < adapter_id))
        case _:
            assert_never(order)


def _moment(text: str) -> datetime:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise InvalidRequest("not a cursor of this list", path="after", value=text) from None
