"""Aliases that only admins move: at every door, in the audit log, and at the end of a job."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub import catalog
from hub.objects import MemoryStore
from infra import audit
from infra.auth import create_token
from infra.database import reading, writing
from infra.principals import Principal, Role
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import AdapterName, AliasMove
from wegeft.contracts.errors import AliasMoved, Forbidden

API = "/api/v1/adapters/demo/arithmetic"
NAME = AdapterName.parse("demo/arithmetic")
OPEN, SHUT = {"is_protected": False}, {"is_protected": True}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def hub(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """Two versions; each test sets production to the first of them."""
    if request.param == "sqlite":
        url = f"sqlite:///{tmp_path_factory.mktemp('hub') / 'hub.db'}"
    else:
        url = request.getfixturevalue("postgres_server").new_database()
    with made_hub(url, MemoryStore()) as hub:
        for number in (1, 2):
            hub.publish(f"job:{number}")
        yield hub


@pytest.fixture(autouse=True)
def production(hub: Hub) -> None:
    """Version 1, and not protected."""
    hub.move("production", AliasMove(version=1))
    with writing(hub.engine) as connection:
        catalog.protect_alias(connection, NAME, "production", NOW, is_protected=False)


@pytest.fixture
def writer(hub: Hub) -> Iterator[TestClient]:
    with TestClient(hub.app, headers=hub.bearer("write")) as client:
        yield client


@pytest.fixture
def admin(hub: Hub) -> Iterator[TestClient]:
    with TestClient(hub.app, headers=hub.bearer("admin")) as client:
        yield client


def actions(engine: Engine) -> list[str]:
    with reading(engine) as connection:
        return [entry.action for entry in audit.read_page(connection, 0, 100).entries]


def test_only_admins_move_and_delete_what_is_protected(hub: Hub, writer: TestClient, admin: TestClient) -> None:
    before = len(actions(hub.engine))
    assert writer.put(f"{API}/aliases/production/protection", json=SHUT).status_code == 403
    shown = admin.put(f"{API}/aliases/production/protection", json=SHUT)
    assert (shown.status_code, shown.json()["protected_aliases"], shown.json()["aliases"]["production"]) == (200, ["production"], 1)
    for expected in (None, 1, 0):
        moved = writer.put(f"{API}/aliases/production", json={"version": 2, "expected": expected})
        assert (moved.status_code, moved.json()["code"]) == (403, "forbidden")
    assert writer.delete(f"{API}/aliases/production").status_code == 403
    assert writer.delete("/api/models/demo/arithmetic/branch/production").status_code == 403
    assert writer.put(f"{API}/aliases/staging", json={"version": 2}).status_code == 200
    stale = admin.put(f"{API}/aliases/production", json={"version": 2, "expected": 2})
    assert (stale.status_code, stale.json()["code"]) == (409, "alias_moved")
    moved = admin.put(f"{API}/aliases/production", json={"version": 2, "expected": 1})
    assert (moved.json()["aliases"]["production"], moved.json()["protected_aliases"]) == (2, ["production"])
    assert admin.put(f"{API}/aliases/production/protection", json=OPEN).json()["protected_aliases"] == []
    assert writer.put(f"{API}/aliases/production", json={"version": 1}).status_code == 200
    said = actions(hub.engine)[before:]
    assert said == ["alias.protect", "alias.set", "alias.set", "alias.unprotect", "alias.set"]


def test_a_protected_alias_that_is_deleted_leaves_no_protection(hub: Hub, writer: TestClient, admin: TestClient) -> None:
    admin.put(f"{API}/aliases/production/protection", json=SHUT)
    assert admin.delete(f"{API}/aliases/production").status_code == 204
    assert writer.put(f"{API}/aliases/production", json={"version": 2}).json()["protected_aliases"] == []


@pytest.mark.parametrize(
    ("alias", "body", "status"),
    [
        ("absent", SHUT, 404),
        ("latest", SHUT, 422),
        ("Not An Alias", SHUT, 422),
        ("production", {}, 422),
        ("production", {"is_protected": "perhaps"}, 422),
        ("production", {"is_protected": True, "more": 1}, 422),
    ],
)
def test_what_cannot_be_protected(hub: Hub, admin: TestClient, alias: str, body: dict[str, object], status: int) -> None:
    assert admin.put(f"{API}/aliases/{alias}/protection", json=body).status_code == status
    assert admin.get(API).json()["protected_aliases"] == []


def test_no_job_moves_what_is_protected(hub: Hub) -> None:
    with writing(hub.engine) as connection:
        catalog.protect_alias(connection, NAME, "production", NOW, is_protected=True)
        assert catalog.point_open_aliases(connection, NAME, ("production", "newest"), 2, NOW) == ("production",)
        aliases = catalog.find_adapter(connection, NAME).aliases
        assert (aliases["production"], aliases["newest"]) == (1, 2)
        with pytest.raises(Forbidden, match="protected") as refused:
            catalog.refuse_protected(connection, NAME, ("newest", "production"))
        assert [problem.value for problem in refused.value.problems] == ["production"]
        catalog.refuse_protected(connection, NAME, ("newest",))


def test_a_token_limited_to_writing_moves_nothing_that_is_protected(hub: Hub) -> None:
    person = Principal(name="ada", role=Role.WRITE, token_id="t")
    with writing(hub.engine) as connection:
        catalog.check_mover(connection, person, NAME, "production")
        catalog.protect_alias(connection, NAME, "production", NOW, is_protected=True)
        with pytest.raises(Forbidden):
            catalog.check_mover(connection, person, NAME, "production")
        with pytest.raises(AliasMoved):
            catalog.set_alias(connection, NAME, "production", AliasMove(version=2, expected=2), NOW)


def test_nobody_protects_what_a_job_is_moving(hub: Hub) -> None:
    def protect() -> None:
        with writing(hub.engine) as connection:
            catalog.protect_alias(connection, NAME, "production", NOW, is_protected=True)

    with ThreadPoolExecutor(1) as pool:
        with writing(hub.engine) as connection:
            catalog.refuse_protected(connection, NAME, ("production",))
            later = pool.submit(protect)
            with pytest.raises(TimeoutError):
                later.result(timeout=0.5)
            catalog.set_alias(connection, NAME, "production", AliasMove(version=2), NOW)
        later.result(timeout=30)


def test_owners_protect_with_the_token_that_they_publish_with(hub: Hub) -> None:
    with writing(hub.engine) as connection:
        token = create_token(connection, "owner", Role.WRITE, NOW)[1]
    with TestClient(hub.app, headers={"Authorization": f"Bearer {token}"}) as owner:
        assert owner.post("/api/v1/organisations", json={"name": "house"}).status_code == 201
        hub.publish("job:house", "house/helper")
        hub.move("prod", AliasMove(version=1), "house/helper")
        shut = owner.put("/api/v1/adapters/house/helper/aliases/prod/protection", json=SHUT)
        assert (shut.status_code, shut.json()["protected_aliases"]) == (200, ["prod"])
