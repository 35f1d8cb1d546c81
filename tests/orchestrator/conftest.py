"""A real database for the ledger's tests: SQLite and PostgreSQL in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from infra.database import make_engine, upgrade
from tests.orchestrator.samples import new_sqlite


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new database with our tables."""
    if database_url.startswith("sqlite"):
        engine = new_sqlite(Path(database_url.removeprefix("sqlite:///")))
    else:
        engine = make_engine(database_url)
        upgrade(engine)
    yield engine
    engine.dispose()
