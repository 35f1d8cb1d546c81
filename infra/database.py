"""The SQL engine, the tables' registry and the way to write: the same on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from select import POLLIN, poll
from typing import Any

import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, DateTime, Dialect, Engine, MetaData, TypeDecorator, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.exc import DatabaseError, DataError, DBAPIError, InvalidatePoolError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.pool import ConnectionPoolEntry

from wegeft.contracts.errors import DatabaseUnavailable, InvalidRequest, StorageFull

METADATA = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)
"""Every table of ours registers here; the migrations must produce the same."""

Act = Callable[[Connection], None]

BUSY_SECONDS = 30
_POSTGRES_ARGUMENTS = {
    "connect_timeout": 10,
    # A server that vanishes without a word, as with its network, is given up soon instead of after the kernel's two hours.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 20_000,
}
_LOG = structlog.get_logger("database")
MIGRATION_LOCK = 7_318_349_394_477_056


class UtcTime(TypeDecorator[datetime]):
    """A moment in UTC; a naive datetime is refused, and none is ever returned."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return the moment in UTC; raise ValueError when it has no time zone."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment needs a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002 - the base class's signature
        """Return the moment with its time zone."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def make_engine(url: str) -> Engine:
    """Return an engine for ``sqlite:///…`` or ``postgresql+psycopg://…``; connect lazily.

    SQLite runs in WAL mode, with foreign keys, and begins every transaction of :func:`writing` as a writer,
    so that two writers wait for each other instead of failing half way.
    """
    if url.startswith("sqlite"):
        engine = create_engine(url, connect_args={"timeout": BUSY_SECONDS, "check_same_thread": False})
        event.listen(engine, "connect", _prepare_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    engine = create_engine(url, pool_size=10, max_overflow=20, connect_args=_POSTGRES_ARGUMENTS)
    event.listen(engine, "connect", _prepare_postgres)
    event.listen(engine, "checkout", _check_postgres)
    return engine


def _prepare_postgres(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    # A plan for whatever value may come suits neither a tag that everybody has nor one that nobody has.
    with _at_once(connection), closing(connection.cursor()) as cursor:
        cursor.execute("SET plan_cache_mode = force_custom_plan")


def _check_postgres(connection: DBAPIConnection, _entry: ConnectionPoolEntry, _proxy: object) -> None:
    """Let the pool forget its connections where this one's server is gone.

    A server that ends, or dies, closes its sockets, so that one with nothing to read needs not be asked.
    """
    try:
        waiting = poll()
        waiting.register(connection.fileno(), POLLIN)
        if waiting.poll(0):
            with _at_once(connection), closing(connection.cursor()) as cursor:
                cursor.execute("SELECT 1")
    except Exception as error:
        raise InvalidatePoolError from error


@contextmanager
def _at_once(connection: DBAPIConnection) -> Iterator[None]:
    """Leave no transaction behind."""
    connection.autocommit = True
    try:
        yield
    finally:
        connection.autocommit = False


def _prepare_sqlite(connection: DBAPIConnection, _entry: ConnectionPoolEntry) -> None:
    connection.isolation_level = None  # pysqlite's own BEGIN comes too late to lock
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "cache_size=-32768"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    if connection.get_execution_options().get("writer", False):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        # By the driver itself, which takes a tenth of the time: every request does it twice, and nothing can go wrong before it reads.
        connection.connection.cursor().execute("BEGIN").close()


@contextmanager
def writing(engine: Engine) -> Iterator[Connection]:
    """Open one transaction that commits at the end, or rolls back on any error.

    Raises :class:`DatabaseUnavailable` where the database does not answer and :class:`StorageFull` where its disk is full.
    """
    last_acts: list[Act] = []
    with _named_errors(), engine.connect().execution_options(writer=True, last_acts=last_acts) as connection, connection.begin():
        yield connection
        for act in last_acts:
            act(connection)


def before_commit(connection: Connection, act: Act) -> None:
    """Do something as the last thing of a transaction of :func:`writing`, in the order of asking; in any other transaction at once."""
    last_acts: list[Act] | None = connection.get_execution_options().get("last_acts")
    if last_acts is None:
        act(connection)
    else:
        last_acts.append(act)


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """Open the database to read from it; raise :class:`DatabaseUnavailable` where it does not answer.

    On SQLite all that is read is of one moment; on PostgreSQL each statement is of its own, as it is in a transaction of :func:`writing`.
    """
    # Without a transaction, PostgreSQL is spared its beginning and its end, which would be half of what most readers ask.
    options = {"isolation_level": "AUTOCOMMIT"} if engine.dialect.name == "postgresql" else {}
    with _named_errors(), engine.connect().execution_options(**options) as connection, connection.begin():
        yield connection


@contextmanager
def _named_errors(*, is_starting: bool = False) -> Iterator[None]:
    """Name what goes wrong. A server's own words, which may name hosts and users, are logged, and told only to who starts the service."""
    try:
        yield
    except PoolTimeout as error:
        raise DatabaseUnavailable("every connection to the database is busy", hint="try again") from error
    except (DataError, OverflowError) as error:
        # Doors check what they take; what passes them nevertheless is the caller's mistake, and a check that is missing.
        _LOG.warning("a value that the database cannot hold", reason=" ".join(str(error).split())[:200])
        raise InvalidRequest("a value that the database cannot hold", hint="a text with a NUL, or a number beyond 64 bits") from error
    except DBAPIError as error:
        if not _is_outage(error):
            raise
        reason = " ".join(str(error.orig).split())
        if "disk is full" in reason or "No space left" in reason:
            raise StorageFull("the database's disk is full", hint="free some space; nothing was changed") from error
        _LOG.warning("the database does not answer", reason=reason)
        is_told = is_starting or type(error.orig).__module__.startswith("sqlite3")
        raise DatabaseUnavailable(f"the database does not answer{f': {reason}' if is_told else ''}") from error


def _is_outage(error: DBAPIError) -> bool:
    # The bare DatabaseError is SQLite's word for a damaged file; its subclasses are bugs of ours or broken constraints.
    return isinstance(error, OperationalError) or error.connection_invalidated or type(error) is DatabaseError


def upgrade(engine: Engine) -> None:
    """Bring the schema to this version of the code; safe to run from several processes at once."""
    with _named_errors(is_starting=True), engine.connect().execution_options(writer=True) as connection, connection.begin():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SET LOCAL statement_timeout = 0"))  # one that is set for the role is meant for requests
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": MIGRATION_LOCK})
        command.upgrade(migration_config(connection), "head")


def migration_config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration for our migrations, over ``connection`` where one is given."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.set_main_option("path_separator", "os")
    attributes: dict[str, Any] = config.attributes
    attributes["connection"] = connection
    return config
