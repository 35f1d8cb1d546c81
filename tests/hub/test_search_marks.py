"""The marks of listings on PostgreSQL: in step with them, and never a reason to list what lacks a term or to leave out what has it."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from threading import Thread

import pytest
from alembic import command
from sqlalchemy import Connection, select, text, true

from hub import catalog
from hub.catalog.conditions import Condition
from hub.catalog.search import AdapterFilter, ordering
from hub.catalog.search_marks import MARKS, MOST_LEXEMES, _bearing, bear_marks
from hub.catalog.search_plan import Wish, ways_to
from hub.catalog.search_terms import LEXEMES
from infra.database import migration_config, reading, upgrade, writing
from tests.databases import open_database
from tests.hub.test_search import Shelf, filters
from tests.servers import PostgresServer

_WRONG = text(
    "SELECT count(*) FROM listings FULL JOIN listing_words_marks AS marked ON marked.version_id = listings.version_id AND"
    f" marked.key = listings.key WHERE marked.marks IS DISTINCT FROM mark_terms({LEXEMES})"
)


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer) -> Iterator[Shelf]:
    engine = open_database(postgres_server.new_database())
    shelf = Shelf(engine, random.Random(5))
    for _ in range(40):
        shelf.publish()
    yield shelf
    engine.dispose()


def found_by_marks(connection: Connection, wanted: AdapterFilter) -> list[list[str]]:
    """What the walks past marks find, in both orders that they have."""
    found = []
    for order in ("name", "updated"):
        ways = [way.select() for way in ways_to(connection, wanted, Wish(order=order))]
        marked = [one for one in ways if one.key is MARKS.c.key]
        found += [list(connection.execute(one.query(["key"]).order_by(*ordering(order, one))).scalars()) for one in marked]
    return found


def expected_of(shelf: Shelf, wanted: AdapterFilter) -> list[list[str]]:
    names = shelf.brute(wanted)
    return [[name.lower() for name in shelf.sort(names, order)] for order in ("name", "updated")]


def test_marks_that_say_nothing_change_no_list(shelf: Shelf) -> None:
    """As those of a listing with thousands of words do: every bit may be another term's."""
    asked = 0
    with shelf.engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text("UPDATE listing_words_marks SET marks = decode(repeat('ff', 64), 'hex')"))
        for wanted in filters(random.Random(3)):
            if found := found_by_marks(connection, wanted):
                assert found == expected_of(shelf, wanted), wanted
                asked += 1
        transaction.rollback()
    assert asked > 10


def test_marks_pass_over_what_lacks_a_term(shelf: Shelf) -> None:
    """Else walking past them would spare nothing."""
    with reading(shelf.engine) as connection:
        bearing = set(connection.execute(select(MARKS.c.key).where(bear_marks([("sums", "sum"), ("=t=math",)]))).scalars())
    having = {
        name.lower() for name, row in shelf.newest.items() if "math" in row["tags"] and name.split("/")[1].split("-")[0] in ("sum", "sums")
    }
    assert having
    assert having <= bearing < {name.lower() for name in shelf.newest}


def test_searches_of_any_shape_leave_little_behind() -> None:
    """Whoever searches chooses how many words each beginning stands for."""
    for count in range(1, 200):
        bear_marks([("word",) * (count % MOST_LEXEMES + 1), ("other",) * (count // MOST_LEXEMES + 1)])
    assert 0 < _bearing.cache_info().currsize <= 64


@pytest.mark.parametrize(("lexemes", "is_marked"), [(0, False), (1, True), (MOST_LEXEMES, True), (MOST_LEXEMES + 1, False)])
def test_a_beginning_of_many_words_asks_for_no_marks(lexemes: int, is_marked: bool) -> None:
    words = tuple(f"su{number}" for number in range(lexemes))
    condition = Condition(kind="words", make_check=true, make_ids=lambda: select(1), term="'su':*", lexemes=words)
    assert condition.is_marked is is_marked


def test_marks_follow_what_becomes_of_a_listing(shelf: Shelf) -> None:
    with writing(shelf.engine) as connection:
        assert connection.execute(_WRONG).scalar_one() == 0
        [one, other] = connection.execute(select(catalog.LISTINGS.c.adapter_id).limit(2)).scalars()
        connection.execute(
            text("UPDATE listings SET words = 'zebra', tags = 'it''s =a\\b&!c|d:*', task = '' WHERE adapter_id = :one"), {"one": one}
        )
        assert connection.execute(_WRONG).scalar_one() == 0
        catalog.unlist(connection, other)
        assert connection.execute(_WRONG).scalar_one() == 0
        connection.rollback()


def test_what_was_published_before_is_marked(shelf: Shelf) -> None:
    for step, direction in (("0021", command.downgrade), ("head", command.upgrade)):
        with shelf.engine.connect().execution_options(writer=True) as connection, connection.begin():
            direction(migration_config(connection), step)
    with reading(shelf.engine) as connection:
        assert connection.execute(_WRONG).scalar_one() == 0
        wanted = AdapterFilter(tags=("math",), method="lora")
        assert found_by_marks(connection, wanted) == expected_of(shelf, wanted)


def test_what_is_published_while_others_are_marked_is_marked(shelf: Shelf) -> None:
    """By a process that began before the upgrade, and ends its publication while that runs."""
    with shelf.engine.connect().execution_options(writer=True) as connection, connection.begin():
        command.downgrade(migration_config(connection), "0021")
    marking = Thread(target=upgrade, args=(shelf.engine,))
    with writing(shelf.engine) as connection:
        connection.execute(text("UPDATE listings SET words = words || 'zebra'::tsvector"))
        marking.start()
        end = time.monotonic() + 30
        while not _is_waiting(shelf) and time.monotonic() < end:
            time.sleep(0.01)
        assert _is_waiting(shelf)
    marking.join(timeout=30)
    with reading(shelf.engine) as connection:
        assert connection.execute(_WRONG).scalar_one() == 0


def _is_waiting(shelf: Shelf) -> bool:
    waiting = text("SELECT count(*) FROM pg_locks WHERE relation = 'listings'::regclass AND NOT granted")
    with reading(shelf.engine) as connection:
        return bool(connection.execute(waiting).scalar_one())


def test_every_table_has_a_primary_key(shelf: Shelf) -> None:
    """Else a PostgreSQL that is replicated by rows refuses to change or to delete any of it, and so to publish."""
    without = (
        "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
        " AND oid NOT IN (SELECT indrelid FROM pg_index WHERE indisprimary)"
    )
    with reading(shelf.engine) as connection:
        assert connection.execute(text(without)).scalars().all() == []
