"""A real service over a real socket, for the clients' tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, listening
from wegeft.client import Client


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """The service's parts, on SQLite and in memory."""
    engine = new_sqlite(tmp_path / "service.db")
    yield Site(engine)
    engine.dispose()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    """Where it listens."""
    with listening(site.app()) as url:
        yield url


@pytest.fixture
def client(site: Site, url: str) -> Iterator[Client]:
    """A client that may write."""
    with Client(url, site.tokens["write"]) as client:
        yield client
