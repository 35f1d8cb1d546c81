"""The real hub application over real parts, in a test client or behind a real uvicorn."""

from __future__ import annotations

import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import uvicorn
from fastapi import FastAPI
from sqlalchemy import Engine
from starlette.types import ASGIApp

from hub import api, catalog
from hub.objects import ObjectStore
from hub.provenance import publish_keys
from hub.publication import Publication
from hub.services import HubServices
from hub.signing import Signer
from infra.auth import Guard, Role, create_token
from infra.database import writing
from infra.http import create_app
from tests.databases import open_database
from tests.lending import LentApp, lend
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, AliasMove, FileEntry, digest_of

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
MAX_BLOB_BYTES = 24 << 20
CONFIG = b'{"peft_type": "WEGEFT"}'
WEIGHTS = bytes(range(256)) * 20


@dataclass
class Hub:
    """A hub, its parts at hand."""

    app: FastAPI | LentApp
    engine: Engine
    store: ObjectStore
    tokens: dict[str, str]
    """By role."""
    services: HubServices

    def bearer(self, role: str) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.tokens[role]}"}

    def put(self, content: bytes) -> str:
        """Store bytes as somebody's who is not asked about; return their digest."""
        self.services.intake.store_bytes(digest_of(content), io.BytesIO(content))
        return digest_of(content)

    def publish(self, source: str = "job:1", name: str = "demo/arithmetic", weights: bytes = WEIGHTS, **changes: Any) -> int:
        return self.publish_files(source, name, {CONFIG_FILE: CONFIG, WEIGHTS_FILE: weights}, **changes)

    def publish_files(self, source: str, name: str, files: dict[str, bytes], **changes: Any) -> int:
        described: dict[str, Any] = {"base_model": "org/base", "method": "wegeft", "rank": 8, "created_by": "ada"}
        entries = tuple(FileEntry(path=path, digest=self.put(body), size=len(body)) for path, body in files.items())
        publication = Publication(adapter=AdapterName.parse(name), files=entries, source=source, **(described | changes))
        with writing(self.engine) as connection:
            return catalog.publish(connection, publication, NOW, self.services.signer).version

    def move(self, alias: str, move: AliasMove, name: str = "demo/arithmetic") -> None:
        with writing(self.engine) as connection:
            catalog.set_alias(connection, AdapterName.parse(name), alias, move, NOW)


@contextmanager
def made_hub(database_url: str, store: ObjectStore, signer: Signer | None = None, direct_from_bytes: int | None = None) -> Iterator[Hub]:
    engine = open_database(database_url)
    try:
        with writing(engine) as connection:
            tokens = {role.value: create_token(connection, role.value, role, NOW)[1] for role in Role}
        services = HubServices(
            engine=engine,
            store=store,
            clock=lambda: NOW,
            max_blob_bytes=MAX_BLOB_BYTES,
            signer=signer,
            is_private_by_default=False,
            direct_from_bytes=direct_from_bytes,
        )
        if signer is not None:
            publish_keys(engine, signer, NOW)
        yield Hub(lend(hub_app, services), engine, store, tokens, services)
    finally:
        engine.dispose()


def hub_app(services: HubServices) -> FastAPI:
    """The hub's application, built anew."""
    router = api.make_router(services, Guard(engine=services.engine, clock=services.clock))
    return create_app([router], title="hub", version="test")


@contextmanager
def listening(app: ASGIApp) -> Iterator[str]:
    """Serve ``app`` by uvicorn on a free port; give its URL."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            while not server.started:
                time.sleep(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            assert not thread.is_alive()
