"""Uploads in parts keep room for what has come of them and a little more, for minutes: nobody keeps others out by sending nothing."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from starlette.testclient import TestClient

from hub import api, catalog
from hub.catalog import Upload, bytes_ahead, quotas
from hub.catalog.reservations import AHEAD_SECONDS, LEAST_AHEAD_BYTES, MOST_AHEAD_BYTES
from hub.catalog.staged import Sender
from hub.collection import Collector
from hub.objects import MemoryStore
from hub.serving import DIRECT_SECONDS
from hub.uploads import PART_BYTES
from infra.auth import Guard, create_token
from infra.database import reading, writing
from infra.http import create_app
from infra.principals import Principal, Role
from tests.hub.serving import NOW, Hub, made_hub
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import QuotaExceeded
from wegeft.contracts.quotas import QuotaLimits
from wegeft.contracts.uploads import ONE_REQUEST_BYTES

GIB = 1 << 30
LAPSED = NOW + timedelta(seconds=AHEAD_SECONDS)
PARTS = bytes(2 * PART_BYTES + 5)


@pytest.mark.parametrize(
    ("come", "whole", "ahead"),
    [
        (0, 5, 5),
        (0, 4 * GIB, LEAST_AHEAD_BYTES),
        (LEAST_AHEAD_BYTES + 1, 4 * GIB, LEAST_AHEAD_BYTES + 1),
        (2 * GIB, 4 * GIB, MOST_AHEAD_BYTES),
        (4 * GIB - 7, 4 * GIB, 7),
        (5, 5, 0),
    ],
)
def test_an_upload_keeps_room_for_as_much_again_within_bounds(come: int, whole: int, ahead: int) -> None:
    assert bytes_ahead(come, whole) == ahead


def sender(account: str, namespace: str | None = "acme") -> Sender:
    return Sender(caller=Principal(name=account, role=Role.WRITE, token_id=account), most_bytes=100 * GIB, namespace=namespace)


def upload(name: str, size: int, now: datetime = NOW) -> Upload:
    return Upload(id=name, owner="o", digest="d", size=size, part_bytes=1, expires_at=now + timedelta(days=1), parts=())


def reserve(engine: Engine, account: str, name: str, size: int, come: int = 0, now: datetime = NOW) -> int | None:
    """Let an upload count; return the bytes that count in the namespace then, None where there is no room."""
    try:
        with writing(engine) as connection:
            catalog.reserve(connection, sender(account), upload(name, size, now), come, now)
            return catalog.count_staged(connection, "acme", now)
    except QuotaExceeded:
        return None


def waiting(engine: Engine, now: datetime = NOW, name: str = "acme") -> int:
    with reading(engine) as connection:
        return catalog.count_staged(connection, name, now)


def test_room_is_kept_for_longer_than_an_address_of_the_store_is_good() -> None:
    assert AHEAD_SECONDS > DIRECT_SECONDS


def test_who_sends_nothing_keeps_little_room_and_not_for_long(engine: Engine) -> None:
    """On SQLite and PostgreSQL: eight uploads of a gibibyte each leave others most of a namespace's, and all of it minutes later."""
    with writing(engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=GIB))
    for number in range(4):
        assert reserve(engine, "eve", f"idle{number}", GIB - number * LEAST_AHEAD_BYTES) == (number + 1) * LEAST_AHEAD_BYTES
    assert reserve(engine, "ada", "large", GIB) is None, "what is not there is not promised"
    assert reserve(engine, "ada", "small", GIB // 2) == 5 * LEAST_AHEAD_BYTES
    assert reserve(engine, "ada", "small", GIB // 2, GIB // 2) == 4 * LEAST_AHEAD_BYTES + GIB // 2
    assert waiting(engine, LAPSED) == GIB // 2
    assert reserve(engine, "ada", "other", GIB // 2, now=LAPSED) == GIB // 2 + LEAST_AHEAD_BYTES


def test_who_goes_on_later_needs_room_again_for_what_comes(engine: Engine) -> None:
    with writing(engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=1000))
    assert reserve(engine, "ada", "slow", 1000, 100) == 1000
    assert reserve(engine, "bob", "quick", 800) is None
    assert reserve(engine, "bob", "quick", 800, now=LAPSED) == 900
    assert reserve(engine, "ada", "slow", 1000, 200, LAPSED) == 800 + 1000
    assert reserve(engine, "ada", "slow", 1000, 201, LAPSED) is None, "bob is before her"


def test_of_uploads_that_go_on_at_the_same_moment_only_as_many_as_have_room(engine: Engine) -> None:
    with writing(engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=5))

    def go_on(number: int) -> bool:
        return reserve(engine, f"account{number % 3}", f"one{number}", 1, number % 2) is not None

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(go_on, range(12))) == 5


def test_an_upload_that_is_over_counts_no_more(engine: Engine) -> None:
    assert reserve(engine, "ada", "one", 500, 100) == 500
    with writing(engine) as connection:
        catalog.end_reservation(connection, upload("two", 500), NOW)
        assert catalog.count_staged(connection, "acme", NOW) == 500
        catalog.end_reservation(connection, upload("one", 500), NOW)
    assert waiting(engine) == 0


# Over HTTP


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        yield hub


def client_at(hub: Hub, now: datetime, name: str = "Ada") -> TestClient:
    """A client of a hub whose clock shows that moment."""
    services = replace(hub.services, clock=lambda: now)
    app = create_app([api.make_router(services, Guard(engine=hub.engine, clock=lambda: now))], title="hub", version="test")
    with writing(hub.engine) as connection:
        token = create_token(connection, name, Role.WRITE, NOW)[1] if name not in hub.tokens else hub.tokens[name]
    hub.tokens[name] = token
    return TestClient(app, headers={"Authorization": f"Bearer {token}"})


ADDRESS = "/api/v1/adapters/acme/one/uploads"


def begin(client: TestClient, content: bytes) -> Any:
    return client.post(ADDRESS, json={"digest": digest_of(content), "size": len(content)})


def send(client: TestClient, upload_id: str, offset: int) -> Any:
    part = PARTS[offset : offset + PART_BYTES]
    return client.put(f"{ADDRESS}/{upload_id}/parts/{offset}/{digest_of(part)}", content=part)


def test_a_part_without_room_is_refused_before_it_is_taken_in(small: Hub) -> None:
    with writing(small.engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=len(PARTS)))
    with client_at(small, NOW) as ada, client_at(small, LAPSED) as late, client_at(small, LAPSED, "Bob") as bob:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun, 0).status_code == 200
        assert (waiting(small.engine), waiting(small.engine, LAPSED)) == (len(PARTS), PART_BYTES)
        assert begin(client_at(small, NOW, "Bob"), b"b" * 1000).status_code == 413
        others = begin(bob, b"b" * (PART_BYTES + 1))
        assert others.status_code == 201
        refused = send(late, begun, PART_BYTES)
        assert (refused.status_code, refused.json()["code"]) == (413, "quota_exceeded")
        assert late.get(f"{ADDRESS}/{begun}").json()["offset"] == PART_BYTES, "what has come is there still"
        assert bob.delete(f"{ADDRESS}/{others.json()['id']}").status_code == 204
        for offset in (PART_BYTES, 2 * PART_BYTES):
            assert send(late, begun, offset).status_code == 200
        assert late.post(f"{ADDRESS}/{begun}/finish").status_code == 201
    assert waiting(small.engine, LAPSED) == len(PARTS), "the whole counts, and its parts no more"


def test_a_version_that_names_other_bytes_of_that_digest_leaves_the_parts_counted(small: Hub) -> None:
    """Parts may be anything: whoever can have the bytes of their digest published has not sent these."""
    weights = bytes([7]) * len(PARTS)
    with client_at(small, NOW) as ada:
        begun = ada.post(ADDRESS, json={"digest": digest_of(weights), "size": len(weights)}).json()["id"]
        assert send(ada, begun, 0).status_code == 200
        small.publish("job:1", "acme/one", weights, created_by="Ada")
        assert waiting(small.engine) == len(PARTS)
        assert waiting(small.engine, LAPSED) == PART_BYTES
        assert send(ada, begun, PART_BYTES).status_code == 200
        assert send(ada, begun, 2 * PART_BYTES).status_code == 200
        assert ada.post(f"{ADDRESS}/{begun}/finish").status_code == 422
    assert waiting(small.engine) == len(PARTS), "they are stored still"
    Collector(engine=small.engine, store=small.store).collect(NOW, 10)
    assert waiting(small.engine) == 0


def test_an_upload_that_was_begun_twice_at_once_counts_once(small: Hub) -> None:
    """The rooms that both kept are one upload's in the end, and what nobody uses lapses."""
    with client_at(small, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert begin(ada, PARTS).json()["id"] == begun
        assert send(ada, begun, 0).status_code == 200
        assert begin(ada, PARTS).json()["offset"] == PART_BYTES
    assert (waiting(small.engine), waiting(small.engine, LAPSED)) == (len(PARTS), PART_BYTES)


@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_part_that_is_refused_is_not_kept(small: Hub, is_chunked: bool) -> None:
    """Neither a short one nor a second one in its place: what counts nowhere must not lie there for a day."""
    short, other = PARTS[:100], b"o" * PART_BYTES
    with client_at(small, NOW) as ada, client_at(small, NOW) as beside:
        address = f"{ADDRESS}/{begin(ada, PARTS).json()['id']}/parts"
        refused = ada.put(f"{address}/0/{digest_of(short)}", content=iter([short]) if is_chunked else short)
        assert (refused.status_code, refused.json()["problems"][0]["value"]) == (422, "100")

        def interrupted() -> Iterator[bytes]:
            yield other[:1000]
            assert send(beside, address.split("/")[-2], 0).status_code == 200
            yield other[1000:]

        assert ada.put(f"{address}/0/{digest_of(other)}", content=interrupted()).status_code == 409
    Collector(engine=small.engine, store=small.store).collect(NOW, 10)
    assert [small.store.has(digest_of(content)) for content in (short, other)] == [None, None]
    assert small.store.has(digest_of(PARTS[:PART_BYTES])) == PART_BYTES


def test_no_one_request_keeps_much_of_a_namespaces_room(small: Hub) -> None:
    """Bytes for an adapter say how long they are, and are few: longer ones come in parts, which keep room for what has come."""
    content = b"a" * (ONE_REQUEST_BYTES + 1)
    with client_at(small, NOW) as ada:
        for body in (content, iter([content[:5]])):
            refused = ada.put(f"/api/v1/blobs/{digest_of(content)}", params={"adapter": "acme/one"}, content=body)
            assert (refused.status_code, refused.json()["problems"][0]["path"]) == (422, "content-length")
    assert waiting(small.engine) == 0
