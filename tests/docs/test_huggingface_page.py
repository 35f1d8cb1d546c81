"""docs/huggingface.md names exactly the addresses, roles and files that there are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from hub.hf_api import dialect, files, models, references, repositories, uploads
from hub.objects import MemoryStore
from infra.auth import Guard
from infra.http import create_app
from infra.settings import PREFIX, Settings
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import PUBLISHABLE_FILES

PAGE = (Path(__file__).parents[2] / "docs" / "huggingface.md").read_text(encoding="utf-8")
ROLES = ("", "read", "write", "admin")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path_factory.mktemp('page') / 'hub.db'}", MemoryStore()) as hub:
        yield hub


def told() -> dict[tuple[str, str], str]:
    rows = re.findall(r"^\| ([A-Z, ]+) \| `([^`]+)` \| (\w+) \|", PAGE, re.MULTILINE)
    return {(method, path): role for methods, path, role in rows for method in methods.split(", ")}


def test_every_address_is_on_the_page_and_no_other(hub: Hub) -> None:
    doors = dialect.make_doors(hub.services, Guard(engine=hub.engine, clock=lambda: NOW))
    app = create_app([part.make_router(doors) for part in (models, references, repositories, uploads, files)], title="hf", version="1")
    paths = app.openapi()["paths"]
    there = {(method.upper(), path.replace(":path}", "}")) for path, methods in paths.items() for method in methods}
    without_namespace = {("GET", "/api/models/{model}")} | {(method, "/{model}/resolve/{revision}/{path}") for method in ("GET", "HEAD")}
    service = {("GET", path) for path in ("/healthz", "/readyz", "/metrics")}
    assert there - without_namespace - service == set(told())


def test_the_role_is_what_is_needed_and_less_is_not_enough(hub: Hub) -> None:
    client = TestClient(hub.app, raise_server_exceptions=False)
    for (method, path), needed in told().items():
        address = re.sub(r"\{\w+\}", "x", path)
        for role in ROLES:
            headers = hub.bearer(role) if role else {}
            status = client.request(method, address, headers=headers, json={} if method in ("POST", "DELETE") else None).status_code
            is_refused = 401 if not role else 403 if ROLES.index(role) < ROLES.index(needed) else None
            assert status == is_refused if is_refused else status in (200, 400, 404), (method, path, role, status)


def test_what_the_page_names_exists() -> None:
    """The files that a version may hold, and the settings."""
    held = PAGE.partition("## What a version may hold")[2].partition("by exactly")[0]
    assert set(re.findall(r"`([^`]+)`", held)) == PUBLISHABLE_FILES
    settings = {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    assert set(re.findall(r"WEGEFT_\w+", PAGE)) <= settings
