"""A real database for the ledger's tests: SQLite and PostgreSQL in turn."""

from collections.abc import Iterator

import pytest
from sqlalchemy import Engine

from infra.database import make_engine, upgrade


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new database with our tables."""
    engine = make_engine(database_url)
    upgrade(engine)
    yield engine
    engine.dispose()
