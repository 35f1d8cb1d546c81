"""Tokens and roles."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from infra import accounts
from infra.auth import (
    TOKENS,
    Guard,
    Role,
    authenticate,
    create_token,
    hash_secret,
    is_attempt_token,
    is_same_secret,
    list_tokens,
    make_attempt_token,
    revoke_token,
)
from infra.database import reading, writing
from infra.http import create_app
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.errors import InvalidRequest, NotFound, Unauthenticated

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A database with our tables."""
    engine = new_sqlite(tmp_path / "a.db")
    yield engine
    engine.dispose()


def make(engine: Engine, role: str = "write", expires_at: datetime | None = None) -> tuple[str, str]:
    """A new token: its id and itself."""
    with writing(engine) as connection:
        return create_token(connection, "ada", role, NOW, expires_at)


def who(engine: Engine, token: str, now: datetime = NOW) -> str:
    """The role of whoever holds a token."""
    with reading(engine) as connection:
        return authenticate(connection, token, now).role


def test_a_token_is_its_holders(engine: Engine) -> None:
    """With the name and role that it was made with."""
    token_id, token = make(engine)
    with reading(engine) as connection:
        principal = authenticate(connection, token, NOW)
    assert (principal.name, principal.role, principal.token_id) == ("ada", Role.WRITE, token_id)
    assert token.startswith(f"wgt_{token_id}_")
    assert len(token) == 4 + 12 + 1 + 64


def test_nothing_that_opens_anything_is_stored(engine: Engine) -> None:
    """Only hashes lie in the database."""
    _, token = make(engine)
    secret = token.rpartition("_")[2]
    with reading(engine) as connection:
        dump = str(connection.execute(TOKENS.select()).all()) + str(list_tokens(connection))
    assert secret not in dump
    assert hash_secret(secret) in dump


@pytest.mark.parametrize(
    "change",
    [
        lambda token: "",
        lambda token: token[:-1],
        lambda token: token + "0",
        lambda token: token[:-1] + ("0" if token[-1] != "0" else "1"),
        lambda token: token.replace(token[4:16], "0" * 12),
        lambda token: token.upper(),
        lambda token: token + "\n",
        lambda token: f" {token}",
        lambda token: "wgt__",
        lambda token: "é" * 81,
        lambda token: make_attempt_token(),
    ],
)
def test_what_is_no_token(engine: Engine, change: Any) -> None:
    """However near it comes."""
    _, token = make(engine)
    with pytest.raises(Unauthenticated):
        who(engine, change(token))
    assert who(engine, token) == "write"


def test_an_expired_token(engine: Engine) -> None:
    """To the moment."""
    _, token = make(engine, expires_at=NOW + timedelta(seconds=10))
    assert who(engine, token, NOW + timedelta(seconds=9.999)) == "write"
    with pytest.raises(Unauthenticated):
        who(engine, token, NOW + timedelta(seconds=10))


def test_a_revoked_token(engine: Engine) -> None:
    """At once and for ever; again is harmless; others go on."""
    token_id, token = make(engine)
    _, other = make(engine)
    for _ in range(2):
        with writing(engine) as connection:
            revoke_token(connection, token_id, NOW)
    with pytest.raises(Unauthenticated):
        who(engine, token)
    assert who(engine, other) == "write"
    with writing(engine) as connection, pytest.raises(NotFound):
        revoke_token(connection, "0" * 12, NOW)
    with reading(engine) as connection:
        assert [info.revoked_at for info in list_tokens(connection)].count(NOW) == 1


@pytest.mark.parametrize(("name", "role"), [("", "read"), ("a\nb", "read"), ("x" * 65, "read"), ("ada", "root"), ("ada", "")])
def test_tokens_that_cannot_be_made(engine: Engine, name: str, role: str) -> None:
    """Each is refused by name."""
    with writing(engine) as connection, pytest.raises(InvalidRequest):
        create_token(connection, name, role, NOW)
    with writing(engine) as connection, pytest.raises(InvalidRequest, match="expired already"):
        create_token(connection, "ada", "read", NOW, NOW)


@pytest.mark.parametrize("role", Role)
def test_roles_are_a_ladder(role: Role) -> None:
    """Each may do what the ones below may."""
    assert [role.covers(needed) for needed in Role] == [list(Role).index(needed) <= list(Role).index(role) for needed in Role]


def test_secrets_are_compared_by_hash() -> None:
    """And attempts' tokens are known by their form."""
    token = make_attempt_token()
    assert is_attempt_token(token)
    assert not is_attempt_token(token[:-1])
    assert is_same_secret(token, hash_secret(token))
    assert not is_same_secret(token, hash_secret(token + "x"))
    assert not is_same_secret(token, "")
    assert make_attempt_token() != token


@pytest.fixture
def http(engine: Engine) -> Iterator[TestClient]:
    """The accounts' API, called by an admin."""
    guard = Guard(engine=engine, clock=lambda: NOW)
    _, token = make(engine, "admin")
    with TestClient(
        create_app([accounts.make_router(engine, guard, lambda: NOW)], title="t", version="1"), headers={"Authorization": f"Bearer {token}"}
    ) as client:
        yield client


def test_an_admin_looks_after_tokens(http: TestClient) -> None:
    """Makes one, which works; sees it without its secret; revokes it, and it works no more."""
    made = http.post("/api/v1/tokens", json={"name": "bob", "role": "read", "expires_at": "2026-11-22T00:00:00+01:00"})
    assert made.status_code == 201
    theirs = {"Authorization": f"Bearer {made.json()['token']}"}
    assert http.get("/api/v1/whoami", headers=theirs).json() == {"name": "bob", "role": "read"}
    listed = http.get("/api/v1/tokens")
    assert {token["name"] for token in listed.json()} == {"ada", "bob"}
    assert made.json()["token"].rpartition("_")[2] not in listed.text
    assert http.delete(f"/api/v1/tokens/{made.json()['id']}").status_code == 204
    assert http.get("/api/v1/whoami", headers=theirs).status_code == 401
    assert http.delete("/api/v1/tokens/nobody").status_code == 404


def test_nobody_else_does(http: TestClient, engine: Engine) -> None:
    """A reader makes none at all, and a writer none of another account and no admin's."""
    reader, writer = ({"Authorization": f"Bearer {make(engine, role)[1]}"} for role in ("read", "write"))
    for method, path in (("GET", "/tokens"), ("POST", "/tokens"), ("DELETE", "/tokens/x")):
        body = {"role": "read"} if method == "POST" else None
        assert http.request(method, f"/api/v1{path}", headers=reader, json=body).status_code == 403
    for wrong in ({"name": "x", "role": "read"}, {"role": "admin"}):
        assert http.post("/api/v1/tokens", headers=writer, json=wrong).status_code == 403


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "x"},
        {"name": "x", "role": "root"},
        {"name": "\0", "role": "read"},
        {"name": "x", "role": "read", "expires_at": "2026-11-22T00:00:00"},
        {"name": "x", "role": "read", "expires_at": "yesterday"},
        {"name": "x", "role": "read", "expires_at": "2020-01-01T00:00:00Z"},
        {"name": "x", "role": "read", "expires_at": "9999-12-31T23:59:59-23:59"},
        {"name": "x", "role": "read", "expires_at": "0001-01-01T00:00:00+23:59"},
        {"name": "x", "role": "read", "extra": 1},
    ],
)
def test_tokens_that_cannot_be_asked_for(http: TestClient, body: dict[str, Any]) -> None:
    """Each is refused, and none is made."""
    answer = http.post("/api/v1/tokens", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert len(http.get("/api/v1/tokens").json()) == 1


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Basic YTpi", "bearer x", "Token x", "Bearer a b c"])
def test_headers_that_name_nobody(http: TestClient, header: str) -> None:
    """A 401 that says how to do it."""
    answer = http.get("/api/v1/whoami", headers={"Authorization": header})
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
