"""Publications for the catalog's tests, and the catalog's calls in transactions of their own."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Engine

from hub import catalog
from hub.publication import Publication
from infra.database import reading, writing
from wegeft.contracts.adapter import (
    CONFIG_FILE,
    WEIGHTS_FILE,
    AdapterName,
    AdapterRef,
    AliasMove,
    FileEntry,
    VersionView,
    digest_of,
)

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
DEMO = AdapterName(namespace="demo", name="arithmetic")


def files(content: bytes = b"weights") -> tuple[FileEntry, ...]:
    entries = {CONFIG_FILE: b"{}", WEIGHTS_FILE: content}
    return tuple(FileEntry(path=path, digest=digest_of(body), size=len(body)) for path, body in entries.items())


def publication(source: str = "job:1", adapter: AdapterName = DEMO, **changes: Any) -> Publication:
    described: dict[str, Any] = {
        "base_model": "org/base@abc",
        "method": "wegeft",
        "rank": 8,
        "created_by": "ada",
        "metrics": {"eval_loss": 0.5},
    }
    return Publication(adapter=adapter, files=files(), source=source, **(described | changes))


def publish(engine: Engine, source: str = "job:1", adapter: AdapterName = DEMO, now: datetime = NOW, **changes: Any) -> int:
    with writing(engine) as connection:
        keep_files(connection)
        return catalog.publish(connection, publication(source, adapter, **changes), now).version


def keep_files(connection: Connection) -> None:
    """Let the files be stored, as far as the catalog knows."""
    for entry in files():
        catalog.expect(connection, entry.digest, NOW + timedelta(days=1))


def resolve(engine: Engine, ref: str) -> VersionView:
    with reading(engine) as connection:
        return catalog.resolve(connection, AdapterRef.parse(ref))


def move(engine: Engine, alias: str, version: int, expected: int | None = None) -> None:
    with writing(engine) as connection:
        catalog.set_alias(connection, DEMO, alias, AliasMove(version=version, expected=expected), NOW)
