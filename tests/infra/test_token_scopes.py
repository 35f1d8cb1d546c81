"""Tokens with scopes: what they are made of, and that none makes one that may do more than itself."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, update
from starlette.testclient import TestClient

from infra import accounts
from infra.auth import TOKENS, Guard, create_token
from infra.database import reading, writing
from infra.http import create_app
from infra.offers import check_offer
from infra.principals import Principal, Role, Scope, weaker
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.accounts import TokenRequest
from wegeft.contracts.errors import InvalidRequest, WegeftError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


class Desk:
    """The accounts' API with a clock that the test moves."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.now = engine, NOW
        guard = Guard(engine=engine, clock=lambda: self.now)
        app = create_app([accounts.make_router(engine, guard, lambda: self.now)], title="t", version="1")
        self.client = TestClient(app)

    def token(self, name: str, role: str, expires_at: datetime | None = None) -> str:
        with writing(self.engine) as connection:
            return create_token(connection, name, role, NOW, expires_at)[1]

    def ask(self, token: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        answer = self.client.request(method, f"/api/v1{path}", headers={"Authorization": f"Bearer {token}"}, json=body)
        return answer.status_code, answer.json() if answer.content else None

    def make(self, token: str, **body: Any) -> str:
        status, made = self.ask(token, "POST", "/tokens", body)
        assert status == 201, made
        made_token: str = made["token"]
        return made_token


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """On SQLite."""
    engine = new_sqlite(tmp_path / "a.db")
    desk = Desk(engine)
    with desk.client:
        yield desk
    engine.dispose()


def test_a_token_for_one_adapter(desk: Desk) -> None:
    """It is its maker's account, says what it may do, and is no administrator."""
    ada = desk.token("ada", "write")
    small = desk.make(ada, scopes=["write:Acme/Helper", "read:acme", "write:acme/helper"], expires_at="2026-12-21T00:00:00Z")
    assert desk.ask(small, "GET", "/whoami")[1] == {"name": "ada", "role": "write", "scopes": ["write:acme/helper", "read:acme"]}
    mine = {view["id"]: view for view in desk.ask(ada, "GET", "/tokens")[1]}
    shown = mine[small.split("_")[1]]
    assert (shown["scopes"], shown["made_by"]) == (["write:acme/helper", "read:acme"], ada.split("_")[1])
    assert small.rpartition("_")[2] not in str(mine)
    root = desk.token("root", "admin")
    scoped = desk.make(root, scopes=["admin:acme"])
    assert desk.ask(scoped, "GET", "/audit")[0] == 403
    assert desk.ask(desk.make(root, name="bob", scopes=["read:acme"]), "GET", "/whoami")[1]["name"] == "bob"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"role": "admin"}, 403),
        ({"role": "write"}, 403),
        ({"role": "read"}, 403),
        ({"name": "bob", "scopes": ["read:acme"]}, 403),
        ({"scopes": ["admin:acme"]}, 403),
        ({"scopes": ["write:other"]}, 403),
        ({"scopes": ["write:acme", "read:other"]}, 403),
        ({"scopes": ["write:other/one"]}, 403),
        ({"scopes": ["read:other/two"]}, 403),
        ({"scopes": ["read:acme"], "expires_at": "2026-11-23T00:00:01Z"}, 403),
        ({"scopes": ["read:acme"], "role": "read"}, 422),
        ({"scopes": []}, 422),
        ({"scopes": ["read"]}, 422),
        ({"scopes": ["own:acme"]}, 422),
        ({"scopes": ["read:"]}, 422),
        ({"scopes": ["read:acme/"]}, 422),
        ({"scopes": ["read:a/b/c"]}, 422),
        ({"scopes": ["read:acme\u0000"]}, 422),
        ({"scopes": ["read:a"] * 51}, 422),
        ({"scopes": ["write:acme/x", "read:other/one"]}, 201),
        ({"scopes": ["write:acme"], "expires_at": "2026-11-23T00:00:00Z"}, 201),
    ],
)
def test_what_a_token_with_scopes_makes(desk: Desk, body: dict[str, Any], status: int) -> None:
    """Never one that may do more, elsewhere, or for longer."""
    root = desk.token("root", "admin")
    maker = desk.make(root, name="ada", scopes=["write:acme", "read:other/one"], expires_at="2026-11-23T00:00:00Z")
    found, answer = desk.ask(maker, "POST", "/tokens", body)
    assert found == status, answer
    if found == 201:
        made = {view["id"]: view for view in desk.ask(maker, "GET", "/tokens")[1]}[answer["id"]]
        assert made["expires_at"] == "2026-11-23T00:00:00Z"


ROLES = st.sampled_from(list(Role))
SCOPES = st.builds(Scope, role=ROLES, namespace=st.sampled_from("ab"), name=st.sampled_from([None, "x", "y"]))
MAKERS = st.builds(Principal, name=st.just("ada"), role=ROLES, token_id=st.just("t"), scopes=st.lists(SCOPES, max_size=3).map(tuple))
REQUESTS = st.builds(
    TokenRequest,
    role=st.sampled_from([None, "read", "write", "admin"]),
    scopes=st.lists(SCOPES.map(str), max_size=3).map(tuple),
)


@settings(max_examples=100, deadline=None)
@given(maker=MAKERS, request=REQUESTS)
def test_no_token_is_stronger_than_its_maker(maker: Principal, request: TokenRequest) -> None:
    """Whatever is asked for: nowhere may the new one do more, and only an administrator makes administrators."""
    try:
        grant = check_offer(maker, request)
    except WegeftError:
        return
    made = Principal(name=grant.name, role=Role(grant.role), token_id="n", scopes=grant.scopes)
    assert maker.role.covers(made.role)
    assert maker.is_operator or not made.is_operator
    for namespace in "ab":
        for name in (None, "x", "y"):
            limit = made.limit_on(namespace, name)
            # A maker without scopes may do what its account may; what a scope says beyond that is worth nothing.
            assert weaker(limit, maker.limit_on(namespace, name)) == limit or not maker.scopes


def test_who_sees_and_revokes_which(desk: Desk) -> None:
    """An account its own that may do no more; a token with scopes itself and what it made; an administrator all."""
    root, ada, bob = (desk.token(name, role) for name, role in (("root", "admin"), ("ada", "write"), ("bob", "write")))
    strong = desk.token("ADA", "admin")
    small = desk.make(ada, scopes=["write:acme"])
    smaller = desk.make(small, scopes=["read:acme"])
    ids = {token.split("_")[1]: name for name, token in (("ada", ada), ("bob", bob), ("small", small), ("smaller", smaller))}
    seen = {
        who: {ids.get(view["id"], "other") for view in desk.ask(token, "GET", "/tokens")[1]}
        for who, token in (("ada", ada), ("small", small))
    }
    assert seen == {"ada": {"ada", "small", "smaller"}, "small": {"small", "smaller"}}
    assert len(desk.ask(root, "GET", "/tokens")[1]) == 6
    for hidden in (strong, bob, root):
        assert desk.ask(ada, "DELETE", f"/tokens/{hidden.split('_')[1]}")[0] == 404
    assert desk.ask(small, "DELETE", f"/tokens/{ada.split('_')[1]}")[0] == 404
    assert desk.ask(small, "DELETE", f"/tokens/{smaller.split('_')[1]}")[0] == 204
    assert desk.ask(smaller, "GET", "/whoami")[0] == 401
    assert desk.ask(desk.token("ada", "read"), "GET", "/tokens")[0] == 403


def test_when_a_token_was_used_last(desk: Desk) -> None:
    """To the hour; a token of the time before scopes has never been, and goes on."""
    ada = desk.token("ada", "write")

    def used() -> datetime | None:
        with reading(desk.engine) as connection:
            found: datetime | None = connection.execute(TOKENS.select()).one().last_used_at
            return found

    assert used() is None
    for minutes, noted in ((0, 0), (59, 0), (60, 60), (100, 60), (200, 200)):
        desk.now = NOW + timedelta(minutes=minutes)
        assert desk.ask(ada, "GET", "/whoami")[0] == 200
        assert used() == NOW + timedelta(minutes=noted)


@pytest.mark.parametrize(
    "text", ["", "read", "read:", ":acme", "write:a b", "Read:acme", "read:acme/x/y", "read:acme/", "read:/x", "admin:api"]
)
def test_what_is_no_scope(text: str) -> None:
    """Each is refused with what would be one."""
    with pytest.raises(InvalidRequest) as caught:
        Scope.parse(text)
    assert "read:acme" in str(caught.value)


def test_scopes_that_were_tampered_with_let_nobody_in(desk: Desk) -> None:
    """A row that says nonsense is no token with every right."""
    ada = desk.token("ada", "write")
    with writing(desk.engine) as connection:
        connection.execute(update(TOKENS).values(scopes="everything"))
    assert desk.ask(ada, "GET", "/whoami")[0] >= 400
