"""What plans are made of on PostgreSQL: as its own planner counts, and as the newest listings are."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest
from sqlalchemy import Engine, select, text, true

from hub.catalog.conditions import Condition, conditions_of
from hub.catalog.estimates import Sample, estimate
from hub.catalog.search import AdapterFilter
from hub.catalog.search_marks import MISTAKEN, share_mistaken
from hub.catalog.statistics import Newest, Statistics, _kept, read_statistics, statistics_of
from hub.catalog.words import read_search, split_words
from infra.database import reading
from tests.databases import noted_statements, open_database
from tests.hub.test_search import BASES, Shelf
from tests.servers import PostgresServer

_WORDY = text(
    "INSERT INTO listings (version_id, adapter_id, key, namespace, base_name, base_model, method, rank, size, task, licence, words)"
    " SELECT one, one, one, '', '', '', '', 0, 0, '', '', (SELECT array_to_tsvector(array_agg('l' || one || 'x' || word))"
    " FROM generate_series(1, :words) word) FROM generate_series(CAST(:first AS integer), CAST(:last AS integer)) one"
)


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


def found_by(shelf: Shelf, name: str) -> set[str]:
    """The whole words that an adapter is found by."""
    row = shelf.newest[name]
    texts = (*name.split("/"), row["base_model"], row["method"], row["task"], row["licence"], *row["tags"], row["text"])
    return {word for text in texts for word in split_words(text)}


def planned(engine: Engine, condition: Condition) -> float:
    """How many PostgreSQL itself takes a condition to leave."""
    with engine.connect() as connection:
        query = condition.ids.compile(connection)
        return float(connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {query}", query.params).scalar_one()[0]["Plan"]["Plan Rows"])


def single_values() -> Iterator[AdapterFilter]:
    yield from (AdapterFilter(method=method) for method in ("lora", "wegeft", "ia3"))
    yield from (AdapterFilter(rank=rank) for rank in (0, 8, 3))
    yield from (AdapterFilter(task=task) for task in ("", "causal_lm"))
    yield from (AdapterFilter(is_signed=is_signed) for is_signed in (True, False))
    yield from (AdapterFilter(base_model=base) for base in ("Qwen/Qwen2.5-0.5B", *BASES[2:]))
    yield from (AdapterFilter(tags=(tag,)) for tag in ("math", "deutsch", "nothing"))
    yield from (AdapterFilter(search=word) for word in ("lora", "smollm2"))


def test_what_is_looked_up_is_what_the_planner_would_say(shelf: Shelf) -> None:
    """But for its rounding, and that it never expects less than one."""
    with reading(shelf.engine) as connection:
        for wanted in single_values():
            [condition] = conditions(wanted)
            assert estimate(connection, [condition]).left[0] == pytest.approx(planned(shelf.engine, condition), abs=1.01), wanted


def test_what_the_newest_have_is_what_was_published(shelf: Shelf) -> None:
    with reading(shelf.engine) as connection:
        newest = statistics_of(connection).newest
    for wanted in single_values():
        [condition] = conditions(wanted)
        expected = [name for name in shelf.brute(wanted) if not wanted.search or wanted.search in found_by(shelf, name)]
        assert newest.has(condition.lexemes).bit_count() == len(expected), wanted


def test_a_plan_asks_the_database_nothing_twice(shelf: Shelf) -> None:
    asked = conditions(AdapterFilter(search="lora", tags=("math",), method="lora", rank=8))
    with reading(shelf.engine) as connection:
        statistics_of(connection)
        with noted_statements(shelf.engine) as statements:
            assert estimate(connection, asked).listings == len(shelf.newest)
    assert statements == []


def test_what_is_together_is_seen_in_the_newest_as_far_as_they_are_enough() -> None:
    sample = Sample(number=1000, having={0: (1 << 500) - 1, 1: (1 << 400) - 1, 2: 1 << 999})
    assert sample.share([0, 1], 0.2) == pytest.approx(0.4, rel=0.01)
    assert 0 < sample.share([0, 2], 1e-6) < 5e-6
    assert sample.share([1, 2], 0.01) < 0.002
    assert (sample.share_alone(0), sample.share_alone(2)) == (pytest.approx(0.5, rel=0.01), pytest.approx(0.0015, rel=0.01))
    assert 0 < Sample(number=0, having={0: 0}).share_alone(0) < 1
    assert Sample(number=0, having={0: 0, 1: 0}).share([0, 1], 0.03) == pytest.approx(0.03)


def test_a_lexeme_is_known_by_its_beginning() -> None:
    newest = Newest(number=3, having={"sum": 0b001, "sums": 0b010, "words": 0b100}, vocabulary=["sum", "sums", "words"])
    assert (newest.has((), "sum"), newest.has(("words",)), newest.has(("sum", "words"))) == (0b011, 0b100, 0b101)
    assert (newest.has(()), newest.has(("x",), "x")) == (0, 0)


def test_words_that_are_not_counted_are_seen_in_the_newest(shelf: Shelf) -> None:
    """Of the many that begin so PostgreSQL would always say the same."""
    with reading(shelf.engine) as connection:
        known = statistics_of(connection)
        many = Condition(kind="words", make_check=true, make_ids=lambda: select(1), term="'su':*", begun="su")
        assert known.share_of_words(()) == (1.0, False)
        assert known.share_of_words(("nothing", "never")) == (pytest.approx(0, abs=0.02), False)
        assert estimate(connection, [many]).left[0] == pytest.approx(len(shelf.brute(AdapterFilter(search="su"))), abs=1.5)


def test_of_few_listings_it_is_seen_sooner_that_there_are_more(shelf: Shelf) -> None:
    """Else what was planned for a few before an import would be walked through very many for minutes."""
    with reading(shelf.engine) as connection:
        found = statistics_of(connection)
    for number, is_kept in ((0.0, False), (60.0, False), (1e5, True)):
        before = Statistics(rows={"listings": number} if number else {}, shares={}, newest=found.newest)
        _kept[shelf.engine] = (time.monotonic() - 60, before)
        with reading(shelf.engine) as connection:
            assert (statistics_of(connection) is before) is is_kept
    del _kept[shelf.engine]


def test_how_often_marks_mistake_is_as_random_bits_say() -> None:
    pick = random.Random(1)
    for lexemes in (20, 150, 400):
        marked = ({pick.randrange(512) for _ in range(2 * lexemes)} for _ in range(300))
        mistaken = sum({pick.randrange(512), pick.randrange(512)} <= marks for marks in marked for _ in range(20))
        assert mistaken / 6000 == pytest.approx(share_mistaken(lexemes), abs=0.03)


def test_of_listings_with_very_many_words_fewer_are_read(postgres_server: PostgresServer) -> None:
    """Else whoever publishes them fills the memory of every process, and holds up who searches next."""
    engine = open_database(postgres_server.new_database())
    with engine.connect() as connection, connection.begin() as transaction:
        connection.execute(text("SET LOCAL session_replication_role = replica"))
        connection.execute(_WORDY, {"first": 1, "last": 10, "words": 20})
        assert (read_statistics(connection).newest.number, read_statistics(connection).newest.mistaken) == (10, MISTAKEN)
        connection.execute(_WORDY, {"first": 11, "last": 130, "words": 2000})
        newest = read_statistics(connection).newest
        assert 90 <= newest.number <= 100
        assert newest.having["l130x1"] == newest.having["l130x2000"]
        # All bits of their marks are set, so that walking past marks passes over none of them.
        assert newest.mistaken > 0.99
        transaction.rollback()
    engine.dispose()


def test_of_a_catalog_that_is_not_counted_the_planner_is_asked(postgres_server: PostgresServer) -> None:
    engine = open_database(postgres_server.new_database())
    with reading(engine) as connection:
        assert read_statistics(connection).newest.number == 0
        found = estimate(connection, conditions(AdapterFilter(tags=("math",), search="lora", method="lora")))
    assert found.listings > 0
    assert len(found.left) == 3
    engine.dispose()
