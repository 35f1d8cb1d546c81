"""New databases with our tables: copies of one that is migrated once, for the migrations, which have tests of their own, take a while."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, NullPool, create_engine, event, inspect, make_url

from infra.database import make_engine, upgrade

_TEMPLATE = "with_our_tables"


def open_database(url: str | URL) -> Engine:
    """Return an engine of a database that has our tables; a new one gets them."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        path = Path(str(address.database))
        if not path.exists():
            path.write_bytes(_migrated_file())
    elif not _has_tables(address):
        _copy_template(address)
    return make_engine(address.render_as_string(hide_password=False))


@contextmanager
def noted_statements(engine: Engine) -> Iterator[list[str]]:
    """Give a list that every statement of the engine is added to until the end."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


@cache
def _migrated_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "template.db"
        engine = make_engine(f"sqlite:///{path}")
        upgrade(engine)
        engine.dispose()
        return path.read_bytes()


def _has_tables(address: URL) -> bool:
    return bool(inspect(create_engine(address, poolclass=NullPool)).get_table_names())


def _copy_template(address: URL) -> None:
    maintenance = address.set(database="postgres")
    _make_template(maintenance)
    _execute(maintenance, f"DROP DATABASE {address.database}", f"CREATE DATABASE {address.database} TEMPLATE {_TEMPLATE}")


@cache
def _make_template(maintenance: URL) -> None:
    _execute(maintenance, f"CREATE DATABASE {_TEMPLATE}")
    engine = make_engine(maintenance.set(database=_TEMPLATE).render_as_string(hide_password=False))
    upgrade(engine)
    engine.dispose()  # nobody may be in a database that is copied


def _execute(address: URL, *statements: str) -> None:
    engine = create_engine(address, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    with engine.connect() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
