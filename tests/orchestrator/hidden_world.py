"""A service with a private adapter of Ada's, its job, and a stranger who should not be able to tell that it is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine
from starlette.routing import Route
from starlette.testclient import TestClient

from cli import serve
from hub import catalog
from hub.provenance import publish_keys
from hub.publication import Publication
from hub.signing import Signer
from infra.auth import Guard, create_token
from infra.database import writing
from infra.http import create_app
from infra.settings import Settings
from orchestrator import ledger
from orchestrator.ids import make_job_id
from tests.orchestrator.serving import Site, adapter_files, now, plain_spec
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, AdapterRef, FileEntry, digest_of
from wegeft.contracts.formats import FormatAttachment
from wegeft.contracts.signing_keys import SigningKey

ADAPTER = "acme/secret"
MISSING = "acme/absent"


@dataclass
class HiddenWorld:
    """An application, its tokens by whom they are of, and what is hidden."""

    site: Site
    app: FastAPI
    tokens: dict[str, str]
    job_id: str
    missing_job_id: str
    files: dict[str, bytes]
    upload_id: str = ""
    """Of a file of the adapter that Ada has begun to send."""
    clients: dict[str | None, TestClient] = field(default_factory=dict)

    def client(self, who: str | None) -> TestClient:
        """Somebody's client, entered once so that a request costs no thread of its own."""
        if who not in self.clients:
            headers = {} if who is None else {"Authorization": f"Bearer {self.tokens[who]}"}
            self.clients[who] = TestClient(self.app, headers=headers, raise_server_exceptions=False).__enter__()
        return self.clients[who]

    def close(self) -> None:
        for client in self.clients.values():
            client.__exit__()
        self.site.engine.dispose()

    @property
    def digest(self) -> str:
        """Of the private weights."""
        return digest_of(self.files[WEIGHTS_FILE])


def make_world(engine: Engine, **tokens: tuple[str, str]) -> HiddenWorld:
    """Let Ada queue a job for a namespace that nobody has, and publish what it makes; ``tokens`` are others', by name and role."""
    site = Site(engine, signer=Signer(key=SigningKey(bytes(32))))
    assert site.signer is not None
    publish_keys(engine, site.signer, now())
    named = {"ada": ("ada", "write"), "stranger": ("mallory", "write"), "operator": ("root", "admin")} | tokens
    with writing(engine) as connection:
        made = {who: create_token(connection, name, role, now())[1] for who, (name, role) in named.items()}
        site.tokens |= made
    digest = plain_spec()["datasets"][0]["path"]
    with writing(engine) as connection:
        assert site.services.intake.own(connection, digest, 1, catalog.upload_of(made["ada"].split("_")[1]))
    world = HiddenWorld(site, whole_app(site), made, "", make_job_id(now(), bytes(10)), adapter_files(seed=7))
    answer = world.client("ada").post("/api/v1/jobs", json={"spec": plain_spec(output={"adapter": ADAPTER})})
    assert answer.status_code == 201, answer.text
    world.job_id = answer.json()["id"]
    publish(site, ADAPTER, f"job:{world.job_id}", world.files)
    attach_lora(site)
    begun = world.client("ada").post(f"/api/v1/adapters/{ADAPTER}/uploads", json={"digest": digest_of(b"long"), "size": 9 << 20})
    assert begun.status_code == 201, begun.text
    world.upload_id = begun.json()["id"]
    return world


def attach_lora(site: Site) -> None:
    """Attach a derived format to the private version, of its own files: what it is, the gate is asked about elsewhere."""
    with writing(site.engine) as connection:
        version = catalog.resolve(connection, AdapterRef.parse(ADAPTER))
        files = tuple(entry for entry in version.manifest.files if entry.path in (CONFIG_FILE, WEIGHTS_FILE))
        told = {"base_model": "org/model", "largest_error": 0.0, "largest_error_layer": "x", "layers": 1, "made_by": "x"}
        stamp = ("ada", now(), now() + timedelta(days=30))
        catalog.attach_format(connection, version, ("lora", "float32"), FormatAttachment.model_validate({"files": files, **told}), stamp)


def whole_app(site: Site) -> FastAPI:
    """The application with every router that the service has, as its composition root puts them together."""
    guard = Guard(engine=site.engine, clock=now, checks=(catalog.check_path, ledger.check_path))
    plain: dict[str, Any] = {"engine": site.engine, "store": site.store, "guard": guard, "settings": Settings(), "signer": site.signer}
    parts = serve._Parts(registry=CollectorRegistry(), jobs=replace(site.services, federation_key=bytes(32)), **plain)
    return create_app(serve._routers(parts, None), title="test", version="1")


def publish(site: Site, name: str, source: str, files: dict[str, bytes], **changes: Any) -> int:
    """Publish a version as a job's end does; return its number."""
    entries = tuple(FileEntry(path=path, digest=site.put(content), size=len(content)) for path, content in files.items())
    described: dict[str, Any] = {"base_model": "org/model", "method": "wegeft", "rank": 2, "created_by": "ada"}
    publication = Publication(adapter=AdapterName.parse(name), files=entries, source=source, **(described | changes))
    with writing(site.engine) as connection:
        return catalog.publish(connection, publication, now()).version


def routes_of(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path that the application answers, those of nested routers too."""
    for route in app.routes:
        yield from _routes_in(route)


def _routes_in(route: Any) -> Iterator[tuple[str, str]]:
    nested = getattr(route, "effective_candidates", None)
    if nested is not None:
        for candidate in nested():
            yield from _routes_in(candidate)
        return
    plain = getattr(route, "starlette_route", None) or route
    path, methods = plain.path, plain.methods
    assert isinstance(path, str), f"what is {Route}?"
    for method in sorted(methods or ()):
        yield method, path
