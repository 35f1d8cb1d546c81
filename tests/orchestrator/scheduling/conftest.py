"""A scheduler over an empty ledger and a pool of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from orchestrator.scheduler import Scheduler
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.scheduling.hand_pool import LIMITS, SERVER, HandPool


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """SQLite is enough: the ledger itself is tested on both."""
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


@pytest.fixture
def pool() -> HandPool:
    return HandPool()


@pytest.fixture
def scheduler(engine: Engine, pool: HandPool) -> Scheduler:
    return Scheduler(engine, pool, LIMITS, SERVER)
