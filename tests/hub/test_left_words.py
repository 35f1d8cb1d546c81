"""PostgreSQL forgets the words that no listing has any more, and never one that a listing has, whoever publishes meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from cli import serve
from cli.home import Home
from hub import catalog, forgetting
from hub.catalog import left_words
from hub.catalog.search_terms import complete
from infra.database import reading, writing
from infra.settings import load_settings
from tests.databases import open_database
from tests.hub.serving import NOW
from tests.hub.test_search import Shelf
from tests.servers import PostgresServer
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import DatabaseUnavailable

ALL = 10_000
"""Words, more than there are."""


@pytest.fixture
def shelf(postgres_server: PostgresServer) -> Iterator[Shelf]:
    engine = open_database(postgres_server.new_database())
    shelf = Shelf(engine, random.Random(5))
    shelf.publish("demo/zebra-stays")
    with writing(engine) as connection:
        connection.execute(text("INSERT INTO listing_words_known VALUES ('okapi'), ('o''ka\\pi & !z:*')"))
    yield shelf
    engine.dispose()


def known(shelf: Shelf) -> set[str]:
    with reading(shelf.engine) as connection:
        return set(connection.execute(text("SELECT word FROM listing_words_known")).scalars())


def add_word(connection: Connection, word: str = "okapi") -> None:
    """Let a listing have a word from now on, as publishing does."""
    connection.execute(text(f"UPDATE listings SET words = words || '{word}'"))


def after_the_deletion(shelf: Shelf, act: Callable[[], object]) -> list[threading.Thread]:
    """Let something happen once, beside a transaction that has just deleted words."""
    acts: list[threading.Thread] = []

    def look(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("DELETE FROM listing_words_known") and not acts:
            acts.append(threading.Thread(target=act))
            acts[0].start()
            acts[0].join(timeout=0.1)

    event.listen(shelf.engine, "after_cursor_execute", look)
    return acts


def test_words_of_what_was_deleted_are_forgotten(shelf: Shelf) -> None:
    names = [f"demo/zebra-zeb{number}" for number in range(4)]
    for name in names:
        shelf.publish(name)
    with writing(shelf.engine) as connection:
        connection.execute(text("INSERT INTO listing_words_known SELECT 'zeb' || i FROM generate_series(4, 70) i"))
    with reading(shelf.engine) as connection:
        assert "zeb" not in complete(connection, ["zeb"]), "too many words begin so"
    with writing(shelf.engine) as connection:
        for name in names:
            catalog.delete_adapter(connection, AdapterName.parse(name), NOW)
    with reading(shelf.engine) as connection:
        had = set(connection.execute(text("SELECT unnest(tsvector_to_array(words)) FROM listings")).scalars())
    position, looks = catalog.forget_words(shelf.engine, "", 30), 1
    while position:
        position, looks = catalog.forget_words(shelf.engine, position, 30), looks + 1
    assert looks > 2
    assert known(shelf) == had


def test_a_word_that_most_listings_have_is_not_forgotten(shelf: Shelf) -> None:
    """However few of them are looked at together."""
    for number in range(left_words._LISTINGS + 1):
        with writing(shelf.engine) as connection:
            connection.execute(
                text(
                    "INSERT INTO adapters SELECT :id, key || :id, namespace, name || :id, 1, 2, now(), now(), false FROM adapters LIMIT 1"
                ),
                {"id": 1000 + number},
            )
            copied = "base_name, base_model, method, rank, size, task, licence, format, is_signed, is_private, tags, words"
            connection.execute(
                text(
                    f"INSERT INTO listings (version_id, adapter_id, key, namespace, {copied})"
                    f" SELECT :id, :id, key || :id, namespace, {copied} FROM listings LIMIT 1"
                ),
                {"id": 1000 + number},
            )
    before = known(shelf)
    assert catalog.forget_words(shelf.engine, "", ALL) == ""
    assert before - known(shelf) == {"okapi", "o'ka\\pi & !z:*"}


@pytest.mark.parametrize("ends_soon", [True, False])
def test_a_word_that_somebody_is_publishing_stays(shelf: Shelf, ends_soon: bool) -> None:
    """It was known when they began, so they have not noted it: they are waited for, or it is left for another time."""
    may_end, has_begun = threading.Event(), threading.Event()

    def publish() -> None:
        with writing(shelf.engine) as connection:
            add_word(connection)
            has_begun.set()
            assert may_end.wait(20)

    publisher = threading.Thread(target=publish)
    publisher.start()
    assert has_begun.wait(20)
    if ends_soon:
        after_the_deletion(shelf, may_end.set)
    catalog.forget_words(shelf.engine, "", ALL)
    may_end.set()
    publisher.join(20)
    assert "okapi" in known(shelf)
    assert ("o'ka\\pi & !z:*" in known(shelf)) is not ends_soon
    catalog.forget_words(shelf.engine, "", ALL)
    assert "okapi" in known(shelf)


def test_who_begins_to_publish_a_word_that_is_being_forgotten_has_it(shelf: Shelf) -> None:
    publishers = after_the_deletion(shelf, lambda: shelf.publish("demo/okapi"))
    catalog.forget_words(shelf.engine, "", ALL)
    publishers[0].join(20)
    assert "okapi" in known(shelf)
    with reading(shelf.engine) as connection:
        assert complete(connection, ["oka"]) == {"oka": ("okapi",)}


def test_who_is_waited_for_and_waits_goes_first(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """A publisher that has begun, and comes to a word that is being forgotten, does not wait for as long as it would be waited for."""
    monkeypatch.setattr(left_words, "_PUBLISHERS_SECONDS", 60.0)
    may_go_on, has_begun = threading.Event(), threading.Event()

    def publish() -> None:
        with writing(shelf.engine) as connection:
            add_word(connection, "quagga")
            has_begun.set()
            assert may_go_on.wait(20)
            add_word(connection)

    publisher = threading.Thread(target=publish)
    publisher.start()
    assert has_begun.wait(20)
    after_the_deletion(shelf, may_go_on.set)
    forgetting = threading.Thread(target=catalog.forget_words, args=(shelf.engine, "", ALL))
    forgetting.start()
    forgetting.join(20)
    publisher.join(20)
    assert not forgetting.is_alive()
    assert {"okapi", "quagga"} <= known(shelf)


def test_publishing_deleting_and_forgetting_at_once_lose_no_word(shelf: Shelf) -> None:
    """Some words, that come and go: each that a listing has in the end is known."""
    is_over = threading.Event()

    def forget() -> None:
        while not is_over.is_set():
            catalog.forget_words(shelf.engine, "", ALL)

    def publish(worker: int) -> None:
        chance = random.Random(worker)
        for _ in range(8):
            name = f"demo/{chance.choice(('okapi', 'quagga', 'zorilla'))}-by{worker}"
            shelf.publish(name)
            if chance.random() < 0.6:
                with writing(shelf.engine) as connection:
                    catalog.delete_adapter(connection, AdapterName.parse(name), NOW)

    forgetters = [threading.Thread(target=forget) for _ in range(2)]
    publishers = [threading.Thread(target=publish, args=(number,)) for number in range(3)]
    for thread in (*forgetters, *publishers):
        thread.start()
    for thread in publishers:
        thread.join(60)
    is_over.set()
    for thread in forgetters:
        thread.join(60)
    with reading(shelf.engine) as connection:
        had = set(connection.execute(text("SELECT unnest(tsvector_to_array(words)) FROM listings")).scalars())
    assert had <= known(shelf)
    catalog.forget_words(shelf.engine, "", ALL)
    assert had == known(shelf)


def test_a_thread_goes_through_all_words_a_little_at_a_time(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    """It outlives a database that is away, and goes on behind the words that it has looked at."""
    monkeypatch.setattr(forgetting, "_WORDS", 9)
    monkeypatch.setattr(forgetting, "_SECONDS", 0.0)
    fails = [DatabaseUnavailable("away"), ValueError("odd")]

    def fail(*_: Any) -> None:
        if fails and threading.current_thread() is not threading.main_thread():
            raise fails.pop()

    event.listen(shelf.engine, "before_cursor_execute", fail)
    end = time.monotonic() + 20
    with forgetting.forgetting_words(shelf.engine, 0.0), forgetting.forgetting_words(shelf.engine, 0.01):
        while "okapi" in known(shelf) and time.monotonic() < end:
            time.sleep(0.01)
    assert fails == []
    assert "zebra" in known(shelf)
    assert "okapi" not in known(shelf)


def test_a_hub_that_is_served_forgets_words(shelf: Shelf, tmp_path: Path) -> None:
    url = shelf.engine.url.render_as_string(hide_password=False)
    settings = load_settings(home=tmp_path, database_url=url, collect_seconds=0.05)
    end = time.monotonic() + 20
    with serve._assembled(settings, Home(tmp_path), "http://localhost", "hub"):
        while "okapi" in known(shelf) and time.monotonic() < end:
            time.sleep(0.01)
    assert "okapi" not in known(shelf)


def test_sqlite_keeps_no_words_apart(tmp_path: Path) -> None:
    assert catalog.forget_words(open_database(f"sqlite:///{tmp_path / 'hub.db'}"), "", ALL) == ""
