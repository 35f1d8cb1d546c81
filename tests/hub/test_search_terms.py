"""PostgreSQL's index of terms: that queries use it, which words are known, and that it is made for what was published before."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from alembic import command
from sqlalchemy import Connection, select, text

from hub import catalog
from hub.catalog.search import AdapterFilter
from hub.catalog.search_plan import Wish, ways_to
from hub.catalog.search_terms import MOST_COMPLETIONS, complete, have_all, term_of
from hub.catalog.tables import LISTINGS
from infra.database import migration_config, reading, writing
from tests.databases import noted_statements, open_database
from tests.hub.test_search import Shelf
from tests.servers import PostgresServer


@pytest.fixture(scope="module")
def shelf(postgres_server: PostgresServer) -> Iterator[Shelf]:
    engine = open_database(postgres_server.new_database())
    shelf = Shelf(engine, random.Random(11))
    for _ in range(25):
        shelf.publish()
    yield shelf
    engine.dispose()


def listed(connection: Connection, wanted: AdapterFilter) -> list[list[str]]:
    """What each way finds, by name."""
    ways = [way.select() for way in ways_to(connection, wanted, Wish(order="name"))]
    return [list(connection.execute(one.query(["key"]).order_by(one.key)).scalars()) for one in ways]


def test_terms_are_looked_up_in_their_index(shelf: Shelf) -> None:
    terms = ["'sum'", term_of("tag", "math"), term_of("base_name", "org/SmolLM2-135M"), term_of("method", "lora")]
    query = select(LISTINGS.c.key).where(have_all(terms))
    with writing(shelf.engine) as connection:
        connection.execute(text("SET LOCAL enable_seqscan = off"))
        asked = query.compile(connection)
        plan = connection.exec_driver_sql(f"EXPLAIN {asked}", asked.params).scalars().all()
    assert any("ix_listings_words" in line for line in plan), plan


def test_a_beginning_is_known_by_the_words_that_begin_so(shelf: Shelf) -> None:
    shelf.publish("demo/zebra-zebu")
    with reading(shelf.engine) as connection:
        assert complete(connection, ["zeb", "zebr", "nothing"]) == {"zeb": ("zebra", "zebu"), "zebr": ("zebra",), "nothing": ("nothing",)}
        assert complete(connection, []) == {}


def test_words_of_what_is_not_published_after_all_are_not_known(shelf: Shelf) -> None:
    with shelf.engine.connect() as connection, connection.begin() as transaction:
        connection.execute(LISTINGS.update().values(words="quagga"))
        assert complete(connection, ["quagga"]) == {"quagga": ("quagga",)}
        transaction.rollback()
    with reading(shelf.engine) as connection:
        assert connection.execute(text("SELECT count(*) FROM listing_words_known WHERE word = 'quagga'")).scalar_one() == 0


def test_the_beginning_of_very_many_words_finds_what_each_of_them_does(shelf: Shelf) -> None:
    for wanted in (AdapterFilter(search="s"), AdapterFilter(search="s math"), AdapterFilter(search="s", tags=("math",), method="lora")):
        with reading(shelf.engine) as connection:
            before = listed(connection, wanted)
        with shelf.engine.connect() as connection, connection.begin() as transaction:
            words = [{"word": f"s{number}"} for number in range(MOST_COMPLETIONS)]
            connection.execute(text("INSERT INTO listing_words_known VALUES (:word)"), words)
            assert "s" not in complete(connection, ["s"])
            after = listed(connection, wanted)
            transaction.rollback()
        expected = [name.lower() for name in shelf.sort(shelf.brute(wanted), "name")]
        assert len(expected) > 1
        assert all(found == expected for found in (*before, *after)), wanted


def test_what_was_published_before_is_found_by_its_terms(shelf: Shelf) -> None:
    with shelf.engine.connect().execution_options(writer=True) as connection, connection.begin():
        command.downgrade(migration_config(connection), "0019")
    with shelf.engine.connect().execution_options(writer=True) as connection, connection.begin():
        command.upgrade(migration_config(connection), "head")
    for wanted in (catalog.AdapterFilter(search="su"), catalog.AdapterFilter(search="words", tags=("math",))):
        expected = [name.lower() for name in shelf.sort(shelf.brute(wanted), "name")]
        with reading(shelf.engine) as connection:
            assert expected
            assert all(found == expected for found in listed(connection, wanted)), wanted


def test_a_beginning_that_only_hidden_words_have_is_looked_for_as_one_that_none_has(shelf: Shelf) -> None:
    """Else the time of an answer would tell, letter by letter, which words there are in adapters that the caller may not see."""
    with writing(shelf.engine) as connection:
        connection.execute(text("INSERT INTO listing_words_known VALUES ('okapi')"))
    asked = []
    for beginning in ("okap", "zzyzx"):
        with noted_statements(shelf.engine) as statements, reading(shelf.engine) as connection:
            assert listed(connection, AdapterFilter(search=beginning)) == [[]] * len(
                ways_to(connection, AdapterFilter(search=beginning), Wish())
            )
        asked.append(len(statements))
    assert asked[0] == asked[1]
