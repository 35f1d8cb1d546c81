"""What plans are made of on PostgreSQL: as its own planner counts, and as the newest listings are."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, text

from hub.catalog.conditions import Condition, conditions_of
from hub.catalog.estimates import estimate
from hub.catalog.search import AdapterFilter
from hub.catalog.statistics import Newest, read_statistics, statistics_of
from hub.catalog.words import read_search
from infra.database import reading
from tests.databases import noted_statements, open_database
from tests.hub.test_search import BASES, Shelf, filters
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer) -> Iterator[Shelf]:
    engine = open_database(postgres_server.new_database())
    shelf = Shelf(engine, random.Random(13))
    for _ in range(60):
        shelf.publish()
    with engine.connect() as connection, connection.begin():
        connection.execute(text("ANALYZE listings, listing_tags"))
    yield shelf
    engine.dispose()


def conditions(wanted: AdapterFilter) -> tuple[Condition, ...]:
    wording = read_search(wanted.search or "")
    assert wording is not None
    return tuple(conditions_of(wanted, wording, {word: (word,) for word in wording.begun}, is_sqlite=False))


def planned(engine: Engine, condition: Condition) -> float:
    """How many PostgreSQL itself takes a condition to leave."""
    with engine.connect() as connection:
        query = condition.ids.compile(connection)
        return float(connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", query.params).scalar_one()[0]["Plan"]["Plan Rows"])


def test_what_is_looked_up_is_what_the_planner_would_say(shelf: Shelf) -> None:
    """But for its rounding, and that it never expects less than one."""
    each = {value: AdapterFilter(**{name: value}) for name, value in (("method", "lora"), ("method", "ia3"), ("rank", 8), ("task", ""))}
    each |= {name: AdapterFilter(is_signed=name) for name in (True, False)} | {base: AdapterFilter(base_model=base) for base in BASES}
    each |= {tag: AdapterFilter(tags=(tag,)) for tag in ("math", "deutsch", "nothing")} | {"lora": AdapterFilter(search="lora")}
    with reading(shelf.engine) as connection:
        for value, wanted in each.items():
            [condition] = conditions(wanted)
            assert estimate(connection, [condition]).left[0] == pytest.approx(planned(shelf.engine, condition), abs=1.01), value


def test_a_plan_asks_the_database_nothing_twice(shelf: Shelf) -> None:
    asked = conditions(AdapterFilter(search="lora", tags=("math",), method="lora", rank=8))
    with reading(shelf.engine) as connection:
        statistics_of(connection)
        with noted_statements(shelf.engine) as statements:
            assert estimate(connection, asked).listings == len(shelf.newest)
    assert statements == []


def test_what_is_together_is_counted_in_the_newest(shelf: Shelf) -> None:
    with reading(shelf.engine) as connection:
        for wanted in filters(random.Random(4)):
            asked = [one for one in conditions(wanted) if one.kind != "elsewhere"] if wanted.search != "" else []
            if wanted.search is None and not wanted.metrics and "@" not in (wanted.base_model or "") and len(asked) > 1:
                share = len(shelf.brute(wanted)) / len(shelf.newest)
                told = estimate(connection, asked).together(range(len(asked)))
                assert told == pytest.approx(share, abs=1e-9) or share * len(shelf.newest) < 3, wanted


def test_a_lexeme_is_known_by_its_beginning() -> None:
    newest = Newest(number=3, having={"sum": 0b001, "sums": 0b010, "words": 0b100}, vocabulary=["sum", "sums", "words"])
    assert (newest.has((), "sum"), newest.has(("words",)), newest.has(("sum", "words"))) == (0b011, 0b100, 0b101)
    assert (newest.has(()), newest.has(("x",), "x")) == (0, 0)


def test_of_a_catalog_that_is_not_counted_the_planner_is_asked(postgres_server: PostgresServer) -> None:
    engine = open_database(postgres_server.new_database())
    with reading(engine) as connection:
        assert read_statistics(connection).newest.number == 0
        found = estimate(connection, conditions(AdapterFilter(tags=("math",), search="lora", method="lora")))
    assert found.listings > 0
    assert len(found.left) == 3
    engine.dispose()
