"""What is sent and not published yet is bounded before it is taken in: who is refused, and when the room is free again."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub import api, catalog
from hub.catalog import Coming, Sender, quotas
from hub.collection import Collector
from hub.objects import MemoryStore
from hub.publication import Publication
from infra.auth import Guard, create_token
from infra.database import reading, writing
from infra.http import create_app
from infra.principals import Principal, Role
from tests.hub.serving import CONFIG, NOW, Hub, made_hub
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, FileEntry, digest_of
from wegeft.contracts.errors import QuotaExceeded
from wegeft.contracts.quotas import QuotaLimits

MOST = 10_000
UNTIL = NOW + timedelta(days=1)


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Hub]:
    """Where one account may have ten thousand bytes waiting."""
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        hub.services = replace(hub.services, max_staged_bytes=MOST)
        router = api.make_router(hub.services, Guard(engine=hub.engine, clock=lambda: NOW))
        hub.app = create_app([router], title="hub", version="test")
        yield hub


@pytest.fixture
def ada(small: Hub) -> Iterator[TestClient]:
    with writing(small.engine) as connection:
        token = create_token(connection, "Ada", Role.WRITE, NOW)[1]
    with TestClient(small.app, headers={"Authorization": f"Bearer {token}"}) as client:
        yield client


def put(client: TestClient, content: bytes, sent: Any = None) -> Any:
    return client.put(f"/api/v1/blobs/{digest_of(content)}", content=content if sent is None else sent)


def waiting(hub: Hub, name: str = "ada") -> int:
    with reading(hub.engine) as connection:
        return catalog.count_staged(connection, name, NOW)


def test_more_than_may_wait_is_refused_before_it_is_taken_in(small: Hub, ada: TestClient) -> None:
    assert put(ada, b"a" * 6000).status_code == 201
    refused = put(ada, b"b" * 5000)
    assert (refused.status_code, refused.json()["code"]) == (413, "quota_exceeded")
    [problem] = refused.json()["problems"]
    assert (problem["path"], problem["value"]) == ("bytes", "5000")
    assert "4000 bytes are left" in refused.json()["detail"]
    assert "WEGEFT_KEEP_SECONDS" in problem["hint"]
    assert small.store.has(digest_of(b"b" * 5000)) is None
    assert put(ada, b"a" * 6000).status_code == 200, "the same again takes no more room"
    assert put(ada, b"c" * 4000).status_code == 201
    assert (waiting(small), put(ada, b"d").status_code) == (MOST, 413)
    with TestClient(small.app, headers=small.bearer("write")) as other:
        assert put(other, b"b" * 5000).status_code == 201, "another account has room of its own"


def test_all_tokens_of_an_account_share_its_room(small: Hub, ada: TestClient) -> None:
    with writing(small.engine) as connection:
        token = create_token(connection, "ada", Role.WRITE, NOW)[1]
    assert put(ada, b"a" * 6000).status_code == 201
    with TestClient(small.app, headers={"Authorization": f"Bearer {token}"}) as second:
        assert put(second, b"a" * 6000).status_code == 201, "the same bytes count once"
        assert waiting(small) == 6000
        assert put(second, b"b" * 5000).status_code == 413


@pytest.mark.parametrize(("length", "status"), [(4000, 201), (4001, 413)])
def test_of_a_body_without_a_length_no_more_comes_than_has_room(small: Hub, ada: TestClient, length: int, status: int) -> None:
    assert put(ada, b"a" * 6000).status_code == 201
    content = b"b" * length
    assert put(ada, content, iter([content[:2000], content[2000:]])).status_code == status
    assert waiting(small) == (MOST if status == 201 else 6000)


def test_what_does_not_come_counts_no_more(small: Hub, ada: TestClient) -> None:
    assert put(ada, b"a" * 6000, b"b" * 6000).status_code == 422
    assert waiting(small) == 0
    address, content = "/api/v1/adapters/ada/one/uploads", b"c" * 9000
    opened = ada.post(address, json={"digest": digest_of(content), "size": len(content)})
    assert (opened.status_code, waiting(small)) == (201, 9000)
    assert put(ada, b"d" * 2000).status_code == 413
    assert ada.post(address, json={"digest": digest_of(b"e"), "size": 2000}).status_code == 413
    assert ada.delete(f"{address}/{opened.json()['id']}").status_code == 204
    assert waiting(small) == 0
    assert put(ada, content).status_code == 201
    opened = ada.post(address, json={"digest": digest_of(content), "size": len(content)})
    assert (opened.status_code, waiting(small)) == (200, 9000), "it is there, so nothing is to come"


def test_what_failed_once_takes_nothing_else_with_it(small: Hub, ada: TestClient) -> None:
    content = b"p" * 6000
    opened = ada.post("/api/v1/adapters/ada/one/uploads", json={"digest": digest_of(content), "size": 6000}).json()
    assert put(ada, content, b"wrong").status_code == 422
    assert waiting(small) == 6000, "the parts may still come"
    address = f"/api/v1/adapters/ada/one/uploads/{opened['id']}"
    assert ada.delete(address).status_code == 204
    assert put(ada, content).status_code == 201
    assert put(ada, content, iter([b"wrong"])).status_code == 422
    assert waiting(small) == 6000, "as long as it is, not as long as it might have been"


def test_of_two_who_send_the_same_one_may_fail(small: Hub) -> None:
    sender = Sender(caller=Principal(name="ada", role=Role.WRITE, token_id="1"), most_bytes=MOST)
    intake, digest = small.services.intake, digest_of(b"s" * 4000)
    with writing(small.engine) as connection:
        for _ in range(2):
            intake.stage(connection, digest, 4000, sender)
        catalog.unstage(connection, sender, digest)
        catalog.expect(connection, digest, UNTIL)
        assert intake.own_staged(connection, digest, 4000, sender)
    assert waiting(small) == 4000


def test_parts_count_whatever_their_digest_says(small: Hub, ada: TestClient) -> None:
    weights = b"w" * 3000
    small.publish("job:1", "acme/open", weights)
    opened = ada.post("/api/v1/adapters/ada/one/uploads", json={"digest": digest_of(weights), "size": 9000})
    assert opened.status_code == 201
    assert waiting(small) == 9000


def test_a_namespace_is_not_forgotten(small: Hub, ada: TestClient) -> None:
    with writing(small.engine) as connection:
        sender = Sender(caller=Principal(name="ada", role=Role.WRITE, token_id="1"), most_bytes=MOST, namespace="acme")
        for one in (sender, replace(sender, namespace=None)):
            catalog.stage(connection, one, Coming(digest=digest_of(b"n"), size=100, until=UNTIL), NOW)
    assert waiting(small, "acme") == 100


def test_a_version_that_names_them_makes_room(small: Hub, ada: TestClient) -> None:
    weights = b"w" * (6000 - len(CONFIG))
    for content in (CONFIG, weights):
        assert put(ada, content).status_code == 201
    assert waiting(small) == 6000
    small.publish("job:1", "ada/one", weights, created_by="Ada")
    assert waiting(small) == 0
    assert put(ada, weights).status_code == 200
    assert waiting(small) == 0, "whoever may read the version has no more of them by sending them again"


def test_a_quota_of_the_namespace_counts_what_is_on_its_way(small: Hub, ada: TestClient) -> None:
    small.publish("job:1", "acme/one", b"x" * 1000)
    with writing(small.engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=5000))
        quotas.set_quota(connection, "ada", QuotaLimits(bytes=7000))
    room = 4000 - len(CONFIG)
    address = "/api/v1/adapters/acme/one/uploads"
    assert ada.post(address, json={"digest": digest_of(b"1"), "size": room}).status_code == 201
    assert ada.post(address, json={"digest": digest_of(b"2"), "size": 1}).status_code == 413
    assert put(ada, b"a" * 3000).status_code == 201, "for nobody knows which namespace, so the account's own quota bounds it"
    assert put(ada, b"b" * 200).status_code == 413
    shown = TestClient(small.app).get("/api/v1/namespaces/acme/quota", headers=small.bearer("admin")).json()
    assert shown["staged_bytes"] == room


def test_what_is_collected_makes_room(small: Hub, ada: TestClient) -> None:
    assert put(ada, b"a" * MOST).status_code == 201
    after = NOW + timedelta(days=2)
    with reading(small.engine) as connection:
        assert catalog.count_staged(connection, "ada", after) == MOST, "it is stored still"
    Collector(engine=small.engine, store=small.store).collect(after, 10)
    assert waiting(small) == 0


def sender(account: str, token: str, most: int = 5, namespace: str | None = None) -> Sender:
    return Sender(caller=Principal(name=account, role=Role.WRITE, token_id=token), most_bytes=most, namespace=namespace)


@pytest.mark.parametrize("namespace", [None, "acme"])
def test_of_senders_at_the_same_moment_only_as_many_as_have_room(engine: Engine, namespace: str | None) -> None:
    """Twelve of one byte each for five: of one account, or for one namespace. On SQLite and PostgreSQL."""
    with writing(engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=5))

    def send(number: int) -> bool:
        who = sender("ada", "t") if namespace is None else sender(f"account{number}", "t", 100, namespace)
        try:
            with writing(engine) as connection:
                catalog.stage(connection, who, Coming(digest=digest_of(bytes([number])), size=1, until=UNTIL), NOW)
        except QuotaExceeded:
            return False
        return True

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(send, range(12))) == 5


def test_publishing_and_sending_at_the_same_moment_wait_in_no_circle(engine: Engine) -> None:
    """Both count in one namespace; on SQLite and PostgreSQL."""
    with writing(engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=1 << 20))

    def act(number: int) -> None:
        content = bytes([number])
        with writing(engine) as connection:
            catalog.stage(connection, sender("ada", "t", 100, "acme"), Coming(digest=digest_of(content), size=1, until=UNTIL), NOW)
            catalog.expect(connection, digest_of(content), UNTIL)
        files = tuple(FileEntry(path=path, digest=digest_of(content), size=1) for path in (CONFIG_FILE, WEIGHTS_FILE))
        described = {"base_model": "org/base", "method": "wegeft", "rank": 8, "created_by": "Ada", "source": f"job:{number}"}
        with writing(engine) as connection:
            catalog.publish(connection, Publication(adapter=AdapterName.parse("acme/one"), files=files, **described), NOW)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(act, range(12)))
    with reading(engine) as connection:
        assert catalog.count_staged(connection, "ada", NOW) == 0
