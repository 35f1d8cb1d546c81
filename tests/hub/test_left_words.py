"""PostgreSQL forgets the words that no listing has any more, and never one that a listing has."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import Connection, text

from hub import catalog
from hub.catalog import left_words
from hub.catalog.search_terms import complete
from hub.catalog.tables import LISTINGS
from hub.collection import Collector
from hub.objects import MemoryStore
from infra.database import reading, writing
from tests.databases import open_database
from tests.hub.serving import NOW
from tests.hub.test_search import Shelf
from tests.servers import PostgresServer
from wegeft.contracts.adapter import AdapterName


@pytest.fixture
def shelf(postgres_server: PostgresServer) -> Iterator[Shelf]:
    engine = open_database(postgres_server.new_database())
    shelf = Shelf(engine, random.Random(5))
    shelf.publish("demo/zebra-stays")
    yield shelf
    engine.dispose()


def delete(connection: Connection, name: str) -> None:
    catalog.delete_adapter(connection, AdapterName.parse(name), NOW)


def known(shelf: Shelf) -> set[str]:
    with reading(shelf.engine) as connection:
        return set(connection.execute(text("SELECT word FROM listing_words_known")).scalars())


def left(shelf: Shelf) -> set[str]:
    with reading(shelf.engine) as connection:
        return set(connection.execute(text("SELECT word FROM listing_words_left")).scalars())


def test_words_of_what_was_deleted_are_forgotten_by_a_collection(shelf: Shelf) -> None:
    before = known(shelf)
    names = [f"demo/zebra-zeb{number}" for number in range(70)]
    for name in names:
        shelf.publish(name)
    with reading(shelf.engine) as connection:
        assert "zeb" not in complete(connection, ["zeb"]), "too many words begin so"
    with writing(shelf.engine) as connection:
        for name in names:
            delete(connection, name)
    assert {"zeb1", "zebra"} <= left(shelf)
    collector = Collector(engine=shelf.engine, store=MemoryStore())
    while not collector.collect(NOW, 100).is_done:
        pass
    with reading(shelf.engine) as connection:
        assert complete(connection, ["zeb"]) == {"zeb": ("zebra",)}
    assert before <= known(shelf)
    assert left(shelf) == set()


def test_a_few_words_are_looked_at_in_one_go(shelf: Shelf) -> None:
    shelf.publish("demo/okapi-quagga")
    with writing(shelf.engine) as connection:
        delete(connection, "demo/okapi-quagga")
    count = len(left(shelf))
    assert count > 2
    assert catalog.forget_words(shelf.engine, 2) is False
    assert len(left(shelf)) == count - 2
    assert catalog.forget_words(shelf.engine, count) is True
    assert left(shelf) == set()
    assert not {"okapi", "quagga"} & known(shelf)


def test_a_new_version_leaves_only_the_words_that_it_has_no_more(shelf: Shelf) -> None:
    with writing(shelf.engine) as connection:
        connection.execute(text("UPDATE listings SET words = words || 'okapi'"))
    shelf.publish("demo/zebra-stays")
    assert {"okapi"} <= left(shelf)
    assert not {"demo", "zebra", "stays"} & left(shelf)


def test_words_that_a_listing_has_no_more_are_forgotten(shelf: Shelf) -> None:
    with writing(shelf.engine) as connection:
        connection.execute(text("UPDATE listings SET words = words || 'okapi quagga'::tsvector"))
        connection.execute(text("UPDATE listings SET words = ts_delete(words, 'okapi')"))
    assert left(shelf) == {"okapi"}
    assert catalog.forget_words(shelf.engine, 10)
    assert {"okapi", "quagga"} & known(shelf) == {"quagga"}


@pytest.mark.parametrize("word_comes", [True, False], ids=["is published", "is deleted"])
def test_nothing_is_forgotten_or_missed_while_a_word_comes_or_goes(shelf: Shelf, word_comes: bool) -> None:
    """What is not committed yet nobody sees: neither that a listing has a word, nor that it has it no more."""
    shelf.publish("demo/okapi")
    with writing(shelf.engine) as connection:
        connection.execute(text("INSERT INTO listing_words_left VALUES ('okapi')"))
        if word_comes:
            delete(connection, "demo/okapi")
    with writing(shelf.engine) as connection:
        if word_comes:
            connection.execute(text("UPDATE listings SET words = words || 'okapi'"))
        else:
            delete(connection, "demo/okapi")
        catalog.forget_words(shelf.engine, 100)
    assert "okapi" in known(shelf)
    assert "okapi" in left(shelf)
    catalog.forget_words(shelf.engine, 100)
    assert ("okapi" in known(shelf)) is word_comes
    assert left(shelf) == set()


def test_who_publishes_a_word_that_is_being_forgotten_waits_and_has_it(shelf: Shelf) -> None:
    with writing(shelf.engine) as connection:
        connection.execute(text("INSERT INTO listing_words_known VALUES ('okapi')"))
    publisher = threading.Thread(target=shelf.publish, args=("demo/okapi",))
    with writing(shelf.engine) as connection:
        assert connection.execute(text("SELECT pg_try_advisory_xact_lock(7318349394477057)")).scalar_one()
        publisher.start()
        publisher.join(0.3)
        assert publisher.is_alive()
        connection.execute(text("DELETE FROM listing_words_known WHERE word = 'okapi'"))
    publisher.join(20)
    assert "okapi" in known(shelf)


def test_words_are_looked_up_in_their_index(shelf: Shelf) -> None:
    """Of words that no listing has any more, every other way reads all listings."""
    with writing(shelf.engine) as connection:
        left_words._ask_index(connection)
        plan = connection.exec_driver_sql(
            f"EXPLAIN SELECT word, (SELECT version_id FROM {LISTINGS.name} WHERE {left_words.TERMS} @@ word::tsquery LIMIT 1)"
            " FROM listing_words_left"
        ).scalars()
        assert any("Bitmap Index Scan on ix_listings_words" in line for line in plan)
