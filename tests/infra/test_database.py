"""The engine: moments in UTC, transactions that are whole, errors by name."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, String, Table, event, insert, select
from sqlalchemy.exc import IntegrityError, StatementError

from infra.database import UtcTime, make_engine, reading, writing
from wegeft.contracts.errors import DatabaseUnavailable, InvalidRequest, StorageFull

THINGS = Table("things", MetaData(), Column("id", Integer, primary_key=True), Column("name", String(9)), Column("at", UtcTime))
NOON = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A database with one table."""
    engine = make_engine(database_url)
    with writing(engine) as connection:
        THINGS.create(connection)
    yield engine
    engine.dispose()


def names(engine: Engine) -> list[str]:
    """What is stored."""
    with reading(engine) as connection:
        return list(connection.execute(select(THINGS.c.name).order_by(THINGS.c.id)).scalars())


def test_moments_come_back_in_utc(engine: Engine) -> None:
    """To the microsecond, from whatever zone; none stays none; one without a zone is refused."""
    there = NOON.astimezone(timezone(timedelta(hours=9)))
    with writing(engine) as connection:
        connection.execute(insert(THINGS), [{"id": 1, "at": NOON}, {"id": 2, "at": there}, {"id": 3, "at": None}])
    with reading(engine) as connection:
        moments = list(connection.execute(select(THINGS.c.at).order_by(THINGS.c.id)).scalars())
        assert moments == [NOON, NOON, None]
        assert moments[1].tzinfo == UTC
        assert connection.execute(select(THINGS.c.id).where(THINGS.c.at < NOON + timedelta(microseconds=1))).scalars().all() == [1, 2]
        assert connection.execute(select(THINGS.c.id).where(THINGS.c.at < NOON)).scalars().all() == []
    with pytest.raises(StatementError, match="needs a time zone"), writing(engine) as connection:
        connection.execute(insert(THINGS).values(id=4, at=NOON.replace(tzinfo=None)))


def test_a_transaction_is_whole(engine: Engine) -> None:
    """Everything or nothing; what is a mistake of ours keeps its own name."""
    with writing(engine) as connection:
        connection.execute(insert(THINGS).values(id=1, name="a"))
    with pytest.raises(IntegrityError), writing(engine) as connection:
        connection.execute(insert(THINGS), [{"id": 2, "name": "b"}, {"id": 1, "name": "c"}])
    assert names(engine) == ["a"]


def test_what_a_database_cannot_hold_is_the_callers_mistake(engine: Engine) -> None:
    """Each has values of its own that it stumbles over; neither is the service's fault."""
    row = {"id": 1, "name": "\0"} if engine.dialect.name == "postgresql" else {"id": 1 << 80, "name": "a"}
    with pytest.raises(InvalidRequest), writing(engine) as connection:
        connection.execute(insert(THINGS).values(row))
    assert names(engine) == []


def test_writers_wait_for_each_other(engine: Engine) -> None:
    """Counting up in sixteen threads loses nothing."""
    with writing(engine) as connection:
        connection.execute(insert(THINGS).values(id=1, name="0"))

    def count(_: int) -> None:
        for _ in range(10):
            with writing(engine) as connection:
                row = connection.execute(select(THINGS).with_for_update()).one()
                connection.execute(THINGS.update().values(name=str(int(row.name) + 1)))

    threads = [threading.Thread(target=count, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert names(engine) == ["160"]


def test_a_database_that_is_not_there() -> None:
    """Is told by name, with the reason and without the password."""
    for url in ("sqlite:////nonexistent/folder/a.db", "postgresql+psycopg://me:hunter2@127.0.0.1:1/x"):
        engine = make_engine(url)
        with pytest.raises(DatabaseUnavailable) as caught, reading(engine):
            pass
        assert "hunter2" not in str(caught.value) + repr(caught.value.body())


def test_a_damaged_file(tmp_path: Path) -> None:
    """Is told by name, too."""
    (tmp_path / "a.db").write_bytes(b"this is no database" * 1000)
    engine = make_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with pytest.raises(DatabaseUnavailable, match="not a database"), reading(engine) as connection:
        connection.execute(select(THINGS))
    engine.dispose()


def test_a_full_disk(tmp_path: Path) -> None:
    """SQLite's own limit stands in for the disk's: the transaction is undone, and there is a name for it."""
    engine = make_engine(f"sqlite:///{tmp_path / 'a.db'}")
    with writing(engine) as connection:
        THINGS.create(connection)
        connection.execute(insert(THINGS).values(id=1, name="a"))

    def limit(connection: Connection) -> None:
        connection.exec_driver_sql("PRAGMA max_page_count=3")

    event.listen(engine, "begin", limit, insert=True)
    with pytest.raises(StorageFull, match="disk is full"), writing(engine) as connection:
        connection.execute(insert(THINGS), [{"id": n, "name": "x" * 9} for n in range(2, 20_000)])
    event.remove(engine, "begin", limit)
    assert names(engine) == ["a"]
    engine.dispose()


def test_a_server_that_ends_our_sessions(engine: Engine) -> None:
    """In the middle of a transaction that is an outage, and nothing of it is kept; the next one has a new session."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no server")
    end_all = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with pytest.raises(DatabaseUnavailable), writing(engine) as connection:  # noqa: PT012 - the second statement is the one that fails
        connection.execute(insert(THINGS).values(id=1, name="a"))
        with reading(engine) as other:
            other.exec_driver_sql(end_all)
        connection.execute(insert(THINGS).values(id=2, name="b"))
    assert names(engine) == []
    with reading(engine) as other:
        other.exec_driver_sql(end_all)
    with writing(engine) as connection:
        connection.execute(insert(THINGS).values(id=3, name="c"))
    assert names(engine) == ["c"]


def test_a_reader_holds_no_transaction_open_in_a_server(engine: Engine) -> None:
    """So that each statement is one message; a writer's are one transaction."""
    if engine.dialect.name == "sqlite":
        pytest.skip("SQLite has no server")
    own, state = "SELECT pg_backend_pid()", "SELECT state FROM pg_stat_activity WHERE pid = {}"
    with reading(engine) as reader, writing(engine) as writer, reading(engine) as witness:
        pids = [one.exec_driver_sql(own).scalar_one() for one in (reader, writer)]
        states = [witness.exec_driver_sql(state.format(pid)).scalar_one() for pid in pids]
    assert states == ["idle", "idle in transaction"]
    with writing(engine) as again:
        driver: Any = again.connection.driver_connection
        assert not driver.autocommit


def test_too_many_at_once_is_an_outage_and_not_a_crash(tmp_path: Path) -> None:
    """When every connection is taken for too long."""
    engine = make_engine(f"sqlite:///{tmp_path / 'a.db'}")
    pool = engine.pool
    pool._timeout = 0.05  # type: ignore[attr-defined]
    taken = [engine.connect() for _ in range(15)]
    with pytest.raises(DatabaseUnavailable, match="every connection to the database is busy"), reading(engine):
        pass
    for connection in taken:
        connection.close()
    with reading(engine):
        pass
    engine.dispose()
