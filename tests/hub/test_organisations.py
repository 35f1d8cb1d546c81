"""Organisations over HTTP: who may make them, join them and leave them, and what a member may do."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub import api, catalog
from hub.catalog.namespaces import skeleton_of
from hub.catalog.organisations import create_organisation, find_organisation, remove_member, set_member
from hub.catalog.visibility import Standing, decide
from hub.objects import MemoryStore
from hub.services import HubServices
from infra.auth import Guard, Principal, Role, authenticate, create_token
from infra.database import reading, writing
from infra.http import create_app
from infra.principals import Scope
from tests.databases import open_database
from tests.orchestrator.samples import new_sqlite
from wegeft.contracts.adapter import AdapterName
from wegeft.contracts.errors import Conflict, WegeftError

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
PEOPLE = {"ada": "write", "bob": "write", "eve": "write", "rita": "read", "root": "admin"}


class Office:
    """A hub, and a client for each of its people."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        guard = Guard(engine=engine, clock=lambda: NOW)
        services = HubServices(engine=engine, store=MemoryStore(), clock=lambda: NOW)
        self.client = TestClient(create_app([api.make_router(services, guard)], title="t", version="1"))
        with writing(engine) as connection:
            self.tokens = {name: create_token(connection, name, role, NOW)[1] for name, role in PEOPLE.items()}

    def ask(self, who: str, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {self.tokens[who]}"}
        answer = self.client.request(method, f"/api/v1/organisations{path}", json=body, headers=headers)
        return answer.status_code, answer.json() if answer.content else None

    def caller(self, who: str) -> Principal:
        with reading(self.engine) as connection:
            return authenticate(connection, self.tokens[who], NOW)


@pytest.fixture
def office(database_url: str) -> Iterator[Office]:
    """On SQLite and on PostgreSQL."""
    engine = open_database(database_url)
    office = Office(engine)
    with office.client:
        yield office
    engine.dispose()


@pytest.fixture
def small(tmp_path: Any) -> Iterator[Office]:
    """On SQLite alone."""
    engine = new_sqlite(tmp_path / "a.db")
    office = Office(engine)
    with office.client:
        yield office
    engine.dispose()


def test_an_organisation_from_its_first_member_to_its_last(office: Office) -> None:
    """Made, joined, promoted and left; who is no member hears that there is none."""
    status, made = office.ask("ada", "POST", "", {"name": "Acme"})
    assert (status, made["name"], made["kind"], made["new_adapters"]) == (201, "Acme", "organisation", "private")
    assert [(member["account"], member["role"]) for member in made["members"]] == [("ada", "admin")]
    assert office.ask("bob", "GET", "/acme")[0] == office.ask("bob", "GET", "/unknown")[0] == 404
    assert office.ask("bob", "PUT", "/acme/members/bob", {"role": "admin"})[0] == 404
    assert office.ask("ada", "PUT", "/acme/members/BOB", {"role": "read"})[0] == 200
    assert office.ask("bob", "GET", "/ACME")[1]["members"][1] == {
        "account": "bob",
        "role": "read",
        "added_at": NOW.isoformat().replace("+00:00", "Z"),
    }
    assert office.ask("bob", "PUT", "/acme/members/eve", {"role": "read"})[0] == 403
    assert office.ask("bob", "DELETE", "/acme/members/ada")[0] == 403
    assert office.ask("ada", "DELETE", "/acme/members/ada")[0] == 409
    assert office.ask("ada", "PUT", "/acme/members/ada", {"role": "write"})[0] == 409
    assert office.ask("ada", "PUT", "/acme/members/bob", {"role": "admin"})[0] == 200
    assert office.ask("ada", "DELETE", "/acme/members/ada")[0] == 204
    assert office.ask("ada", "GET", "/acme")[0] == 404
    assert office.ask("bob", "DELETE", "/acme/members/bob")[0] == 409
    assert office.ask("root", "PUT", "/acme/members/eve", {"role": "write"})[0] == 200
    assert (
        [view["name"] for view in office.ask("eve", "GET", "")[1]]
        == ["Acme"]
        == [view["name"] for view in office.ask("root", "GET", "")[1]]
    )
    assert office.ask("eve", "DELETE", "/acme/members/eve")[0] == 204
    assert office.ask("eve", "GET", "")[1] == []
    assert office.ask("bob", "DELETE", "/acme/members/eve")[0] == 404


@pytest.mark.parametrize(
    ("who", "name", "status"),
    [
        ("rita", "acme", 403),
        ("ada", "", 422),
        ("ada", "a/b", 422),
        ("ada", "api", 422),
        ("ada", "x" * 97, 422),
        ("ada", "a--b", 422),
        ("ada", "local", 409),
        ("ada", "Bob", 409),
        ("ada", "taken", 409),
        ("ada", "TAKEN", 409),
        ("ada", "tak-en", 409),
        ("bob", "taker1", 201),
        ("ada", "old", 403),
        ("root", "old", 201),
        ("ada", "ada", 201),
    ],
)
def test_names_of_organisations(small: Office, who: str, name: str, status: int) -> None:
    """Not one that is taken, looks like it, is somebody's account, or has adapters that are nobody's."""
    assert small.ask("eve", "POST", "", {"name": "taken"})[0] == 201
    with writing(small.engine) as connection:
        row = {
            "key": "old/one",
            "namespace": "old",
            "name": "one",
            "latest_number": 0,
            "next_number": 1,
            "created_at": NOW,
            "updated_at": NOW,
        }
        connection.execute(catalog.ADAPTERS.insert().values(row))
    assert small.ask(who, "POST", "", {"name": name})[0] == status


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("PUT", "/acme/members/nobody", {"role": "read"}, 404),
        ("PUT", "/acme/members/bob", {"role": "owner"}, 422),
        ("PUT", "/acme/members/bob", {}, 422),
        ("PUT", f"/acme/members/{'x' * 65}", {"role": "read"}, 422),
        ("DELETE", "/acme/members/bob", None, 404),
        ("DELETE", "/unknown/members/bob", None, 404),
        ("POST", "", {"name": "x", "extra": 1}, 422),
        ("PUT", "/home/members/bob", {"role": "read"}, 422),
    ],
)
def test_members_that_cannot_be(small: Office, method: str, path: str, body: Any, status: int) -> None:
    """Each is refused with its reason; a namespace of one account has no members."""
    small.ask("ada", "POST", "", {"name": "acme"})
    with writing(small.engine) as connection:
        catalog.claim(connection, "home", small.caller("ada"), NOW, is_private_by_default=True)
    assert small.ask("ada", method, path, body)[0] == status


def test_two_admins_who_remove_each_other(office: Office) -> None:
    """At the same moment, many times: one of them always stays."""
    for number in range(4):
        name = f"team{number}x{'yz'[number % 2] * number}"
        with writing(office.engine) as connection:
            create_organisation(connection, name, office.caller("ada"), NOW, is_private_by_default=True)
            set_member(connection, name, "bob", "admin", office.caller("ada"), NOW)

        def leave(who: str, name: str = name) -> str:
            try:
                with writing(office.engine) as connection:
                    remove_member(connection, name, who, office.caller(who))
            except WegeftError as error:
                return error.code
            return "left"

        with ThreadPoolExecutor(2) as pool:
            assert sorted(pool.map(leave, ("ada", "bob"))) == ["conflict", "left"]
        with reading(office.engine) as connection:
            assert len(find_organisation(connection, name, office.caller("root")).members) == 1


def test_a_namespace_goes_to_who_publishes_first(small: Office) -> None:
    """Not to the next one, not where the name looks like another's, and never the one that is everybody's."""
    with writing(small.engine) as connection:
        for name in ("Acme", "local"):
            catalog.claim(connection, name, small.caller("ada"), NOW, is_private_by_default=True)
            catalog.claim(connection, name.lower(), small.caller("bob"), NOW, is_private_by_default=True)
        assert catalog.namespaces_of(connection, "ada") == ("acme",)
        assert catalog.namespaces_of(connection, "bob") == ()
        with pytest.raises(Conflict, match="looks like"):
            catalog.claim(connection, "ac-rne", small.caller("bob"), NOW, is_private_by_default=True)


@pytest.mark.parametrize(
    ("one", "other"), [("acme", "ACME"), ("rnodel", "model"), ("b0b", "bob"), ("a1", "al"), ("a-b", "a.b"), ("ai", "al")]
)
def test_names_that_look_alike(one: str, other: str) -> None:
    """Have one skeleton."""
    assert skeleton_of(one) == skeleton_of(other) != skeleton_of(one + "x")


def test_a_namespace_of_ones_own_becomes_an_organisation(small: Office) -> None:
    """With what is in it; nobody else can do that, and the name of an account is kept for it."""
    with writing(small.engine) as connection:
        catalog.claim(connection, "home", small.caller("ada"), NOW, is_private_by_default=True)
        with pytest.raises(Conflict, match="kept for the account"):
            catalog.claim(connection, "Eve", small.caller("bob"), NOW, is_private_by_default=True)
        catalog.claim(connection, "eve", small.caller("root"), NOW, is_private_by_default=True)
        assert catalog.namespaces_of(connection, "eve") == ("eve",)
    assert small.ask("bob", "POST", "", {"name": "home"})[0] == 409
    assert small.ask("ada", "POST", "", {"name": "home"})[1]["kind"] == "organisation"
    assert small.ask("ada", "PUT", "/home/members/bob", {"role": "write"})[0] == 200
    assert small.ask("ada", "POST", "", {"name": "home"})[0] == 409


READS, WRITES, ADMINS = Role.READ, Role.WRITE, Role.ADMIN
HERE, THERE, ONE = (Scope.parse(text) for text in ("write:acme", "admin:other", "read:acme/helper"))


@pytest.mark.parametrize(
    ("role", "scopes", "is_known", "is_private", "owner", "right"),
    [
        (ADMINS, (), False, False, None, ADMINS),
        (WRITES, (), True, False, "nobody", WRITES),
        (READS, (), False, False, "nobody", READS),
        (WRITES, (), True, True, None, None),
        (WRITES, (), False, False, None, None),
        (WRITES, (), True, False, None, READS),
        (WRITES, (), True, True, READS, READS),
        (WRITES, (), True, True, ADMINS, ADMINS),
        (READS, (), True, True, ADMINS, READS),
        (WRITES, (HERE,), True, True, ADMINS, WRITES),
        (WRITES, (HERE,), True, True, READS, READS),
        (WRITES, (HERE,), True, True, None, None),
        (WRITES, (THERE,), True, True, ADMINS, None),
        (WRITES, (THERE,), True, False, ADMINS, READS),
        (WRITES, (THERE,), False, False, ADMINS, None),
        (READS, (ONE,), True, True, ADMINS, READS),
        (READS, (ONE, HERE), True, True, ADMINS, WRITES),
        (WRITES, (THERE,), True, False, "nobody", READS),
        (WRITES, (HERE,), False, False, "nobody", WRITES),
        (ADMINS, (ONE,), True, True, ADMINS, READS),
    ],
)
def test_what_a_caller_may_do(
    role: Role, scopes: tuple[Scope, ...], is_known: bool, is_private: bool, owner: Role | str | None, right: Role | None
) -> None:
    """By role, scopes, who owns the namespace and whether the adapter is private; none is not even to know of it."""
    caller = Principal(name="ada", role=role, token_id="t", scopes=scopes)
    member = owner if isinstance(owner, Role) else None
    standing = Standing(is_known=is_known, is_private=is_private, is_owned=owner != "nobody", member_role=member)
    assert decide(caller, AdapterName.parse("Acme/Helper"), standing) == right
