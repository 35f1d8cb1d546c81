"""Every door of the service, in whatever dialect: who gets in, how much they may bring, and what is written down of what they do."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from fastapi import FastAPI
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient

from cli import serve
from hub.signing import Signer
from infra.audit import read_page
from infra.auth import Guard
from infra.database import reading
from infra.gate import MAX_FORM_BYTES, SITES_ENTRANCES
from infra.settings import Settings
from tests.hub.hf_clients import sound_files
from tests.orchestrator.hidden_world import ADAPTER, HiddenWorld, make_world, routes_of
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import listening, now
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.signing_keys import SigningKey

OPEN = {"/healthz", "/readyz", "/metrics", "/api/v1/openapi.json", "/.well-known/wegeft-keys.json"}
"""What anybody may ask; beside them the frame's own files and the page to sign in."""
METHODS = ("POST", "PUT", "PATCH", "DELETE", "GET")


def service(world: HiddenWorld) -> FastAPI:
    """The application as ``wgctl serve`` puts it together: its gate, its pages, every router."""
    site = world.site
    plain: dict[str, Any] = {"engine": site.engine, "store": site.store, "guard": Guard(engine=site.engine, clock=now)}
    signer = Signer(key=SigningKey(bytes(32)))
    parts = serve._Parts(**plain, settings=Settings(), registry=CollectorRegistry(), jobs=site.services, signer=signer)
    return serve._make_app(parts, None, "http://testserver")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HiddenWorld]:
    world = make_world(new_sqlite(Path(tmp_path_factory.mktemp("doors")) / "a.db"))
    world.site.services = replace(world.site.services, federation_key=bytes(32))
    yield world
    world.close()


@pytest.fixture(scope="module")
def app(world: HiddenWorld) -> FastAPI:
    return service(world)


@pytest.fixture(scope="module")
def url(app: FastAPI) -> Iterator[str]:
    with listening(app) as url:
        yield url


def addresses(app: FastAPI) -> list[tuple[str, str]]:
    """Every method and address, its parameters filled in with what may well be there."""
    namespace, _, name = ADAPTER.partition("/")
    known = {
        "namespace": namespace,
        "name": name,
        "selector": "1",
        "revision": "main",
        "path": "adapter_config.json",
        "number": "1",
        "attempt": "1",
        "digest": f"sha256:{'0' * 64}",
    }
    return [
        (method, re.sub(r"\{(\w+)(?::\w+)?\}", lambda match: quote(known.get(match[1], "x")), path))
        for method, path in sorted(set(routes_of(app)))
        if method not in ("HEAD", "OPTIONS")
    ]


def begin(url: str, head: str, headers: dict[str, str]) -> socket.socket:
    """Send a request's head and nothing of its body."""
    parts = urlsplit(url)
    connection = socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=20)
    lines = [head, *(f"{name}: {value}" for name, value in ({"Host": "127.0.0.1", "Connection": "close"} | headers).items()), "", ""]
    connection.sendall("\r\n".join(lines).encode())
    return connection


def status_of(connection: socket.socket) -> int:
    return int(connection.recv(1 << 16).split(b" ")[1])


def test_nobody_without_a_token_sends_a_body_anywhere(url: str, app: FastAPI) -> None:
    """The refusal comes before the body, at every address with every method; even where there is nothing, or something only to be read."""
    there = addresses(app)
    others = {(METHODS[len(path) % len(METHODS)], path) for _, path in there}
    asked = {*there, *others, ("POST", "/acme/secret.git/info/lfs/objects/batch"), ("POST", "/nothing/there/is/here")}
    kinds = ("application/json", "application/x-www-form-urlencoded")
    for method, path in sorted(asked):
        if path in SITES_ENTRANCES:
            continue
        headers = {"Content-Length": str(MAX_FORM_BYTES + 1), "Content-Type": kinds[len(path) % 2]}
        with begin(url, f"{method} {path} HTTP/1.1", headers) as connection:
            assert status_of(connection) == 401, (method, path)


def test_who_may_not_write_is_answered_before_too_long_a_body_comes(url: str, world: HiddenWorld, app: FastAPI) -> None:
    """With a good token, too: but for streams, whose limit is the operator's, no body is longer than a report."""
    token = world.tokens["stranger"]
    with ExitStack() as opened:
        waiting = {}
        for method, path in addresses(app):
            if method != "GET" and path not in SITES_ENTRANCES:
                headers = {"Authorization": f"Bearer {token}", "Content-Length": str(8 << 40), "Content-Type": "application/json"}
                waiting[method, path] = opened.enter_context(begin(url, f"{method} {path} HTTP/1.1", headers))
        statuses = {asked: status_of(connection) for asked, connection in waiting.items()}
    assert {status for status in statuses.values() if status < 400} == set(), statuses
    assert {status for status in statuses.values() if status >= 500} == set(), statuses


def test_nobody_without_a_token_reads_anything_but_what_is_open(app: FastAPI) -> None:
    with TestClient(app) as http:
        for method, path in addresses(app):
            answer = http.request(method, path, follow_redirects=False)
            if method == "GET" and (path in OPEN or path.startswith("/-/s")):
                assert answer.status_code in (200, 404), path
            elif path in SITES_ENTRANCES or (method == "POST" and not path.startswith("/api/") and "/info/lfs/" not in path):
                assert answer.status_code == 422, path  # neither a body nor a form of a page
            else:
                assert answer.status_code in (401, 403), (method, path, answer.status_code)
                assert ADAPTER.partition("/")[2] not in answer.text.replace(path, "")


def test_a_form_is_short_and_for_pages_alone(app: FastAPI) -> None:
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    with TestClient(app) as http:
        for path, content in (("/-/sign-in", b"a" * (MAX_FORM_BYTES + 1)), ("/-/sign-in", iter([b"a=1"])), ("/api/repos/create", b"a=1")):
            assert http.post(path, content=content, headers=form).status_code == 401
        assert http.post("/-/sign-in", content=b"a=1", headers=form).status_code == 403
        assert http.post("/-/sign-in", json={}).status_code == 401


def test_every_change_through_a_door_is_in_the_log(app: FastAPI, world: HiddenWorld) -> None:
    """Whatever the dialect, with who did it and as part of which request."""
    name, ada = "acme/logged", {"Authorization": f"Bearer {world.tokens['ada']}", "X-Request-Id": "mine"}
    blobs = sound_files()
    lines: list[Any] = [{"key": "header", "value": {"summary": "first"}}]
    lines += [{"key": "lfsFile", "value": {"path": path, "oid": digest_of(content)[7:]}} for path, content in blobs.items()]
    root, own = f"/api/models/{name}", f"/api/v1/adapters/{name}"
    changes: list[tuple[str, str, dict[str, Any], list[str]]] = [
        ("POST", "/api/repos/create", {"json": {"name": "logged", "organization": "acme"}}, ["adapter.create"]),
        ("POST", f"{root}/commit/main", {"content": "\n".join(map(json.dumps, lines)) + "\n"}, ["version.publish"]),
        ("POST", f"{root}/tag/main", {"json": {"tag": "v1"}}, ["tag.create"]),
        ("DELETE", f"{root}/tag/v1", {}, ["tag.delete"]),
        ("POST", f"{root}/branch/stable", {"json": {}}, ["alias.set"]),
        ("DELETE", f"{root}/branch/stable", {}, ["alias.delete"]),
        ("PUT", f"{own}/aliases/best", {"json": {"version": 1}}, ["alias.set"]),
        ("DELETE", f"{own}/aliases/best", {}, ["alias.delete"]),
        ("PUT", f"{own}/card", {"json": {"markdown": "# Mine"}}, ["card.set"]),
        ("DELETE", f"{own}/card", {}, ["card.delete"]),
        ("POST", f"{own}/versions/1/evaluations", {"json": {"metric": "accuracy", "value": 0.5}}, ["evaluation.report"]),
        ("PUT", f"{own}/visibility", {"json": {"visibility": "public"}}, ["adapter.visibility"]),
        ("POST", "/api/v1/organisations", {"json": {"name": "logged-org"}}, ["namespace.create"]),
        ("PUT", "/api/v1/organisations/logged-org/members/mallory", {"json": {"role": "read"}}, ["member.set"]),
        ("DELETE", "/api/v1/organisations/logged-org/members/mallory", {}, ["member.remove"]),
        ("POST", f"/api/v1/jobs/{world.job_id}/cancel", {}, ["job.cancel"]),
        ("DELETE", "/api/repos/delete", {"json": {"name": "logged", "organization": "acme"}}, ["adapter.delete"]),
    ]
    with TestClient(app, headers=ada) as http:
        for content in blobs.values():
            assert http.put(f"/api/v1/blobs/{digest_of(content)}", content=content).status_code == 201
        for method, path, more, actions in changes:
            before = log_of(world)
            answer = http.request(method, path, **more)
            assert answer.status_code < 300, (method, path, answer.text)
            entries = log_of(world)[len(before) :]
            assert [entry.action for entry in entries] == actions, (method, path)
            assert {(entry.actor, entry.request_id) for entry in entries} == {("ada", "mine")}


def log_of(world: HiddenWorld) -> list[Any]:
    with reading(world.site.engine) as connection:
        return list(read_page(connection, 0, 1000).entries)
