"""A real database for the ledger's tests, SQLite and PostgreSQL in turn, and a federation's server over it."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.databases import open_database
from tests.orchestrator.federation_world import World, serving
from tests.orchestrator.samples import new_sqlite


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new database with our tables."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def engines(tmp_path: Path) -> Iterator[Iterator[Engine]]:
    """New SQLite databases, as many as one likes."""
    made: list[Engine] = []

    def make() -> Iterator[Engine]:
        for number in itertools.count():
            made.append(new_sqlite(tmp_path / f"{number}.db"))
            yield made[-1]

    yield make()
    for engine in made:
        engine.dispose()


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A federation's server that listens, on SQLite."""
    engine = new_sqlite(tmp_path / "a.db")
    with serving(engine) as world:
        yield world
    engine.dispose()


@pytest.fixture
def any_world(engine: Engine) -> Iterator[World]:
    """The same, on SQLite and on PostgreSQL in turn."""
    with serving(engine) as world:
        yield world
