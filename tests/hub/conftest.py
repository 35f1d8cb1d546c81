"""What most of the hub's tests begin with; a module that needs another hub makes its own under the same name."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub.folder_store import FolderStore
from tests.databases import open_database
from tests.hub.serving import Hub, made_hub


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A new database with our tables, SQLite and PostgreSQL in turn."""
    engine = open_database(database_url)
    yield engine
    engine.dispose()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Empty, on SQLite and the folder ``blobs``."""
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", FolderStore(tmp_path / "blobs")) as hub:
        yield hub


@pytest.fixture
def client(hub: Hub) -> Iterator[TestClient]:
    """A writer's."""
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        yield client


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A client of a hub that holds demo/arithmetic@1, for tests that change nothing."""
    folder = tmp_path_factory.mktemp("published")
    with made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")) as hub:
        hub.publish()
        with TestClient(hub.app, headers=hub.bearer("write")) as client:
            yield client
