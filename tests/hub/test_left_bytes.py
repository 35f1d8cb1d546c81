"""Bytes that lie in the store count for who sent them until they are gone from it, however little they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog import quotas
from hub.collection import Collector
from hub.objects import MemoryStore
from hub.uploads import PART_BYTES
from infra.database import writing
from tests.hub.serving import CONFIG, NOW, Hub, made_hub
from tests.hub.test_departed_bytes import delete, used
from tests.hub.test_reservations import ADDRESS, PARTS, begin, client_at, waiting
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.quotas import QuotaLimits

LATER = NOW + timedelta(days=2)
FIRST = PARTS[:PART_BYTES]


@pytest.fixture
def hub(database_url: str) -> Iterator[Hub]:
    with made_hub(database_url, MemoryStore()) as hub:
        yield hub


def send(client: TestClient, upload_id: str, content: bytes = FIRST, offset: int = 0) -> int:
    return client.put(f"{ADDRESS}/{upload_id}/parts/{offset}/{digest_of(content)}", content=content).status_code


def collect(hub: Hub, after: timedelta = timedelta(0)) -> int:
    return Collector(engine=hub.engine, store=hub.store).collect(NOW + after, 100).bytes


def test_what_was_abandoned_counts_until_it_is_collected(hub: Hub) -> None:
    with writing(hub.engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=len(PARTS)))
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        assert ada.delete(f"{ADDRESS}/{begun}").status_code == 204
        assert waiting(hub.engine) == PART_BYTES
        assert waiting(hub.engine, name="ada") == PART_BYTES
        assert begin(ada, PARTS).status_code == 413
        assert collect(hub) == PART_BYTES
        assert waiting(hub.engine) == 0
        assert begin(ada, PARTS).status_code == 201


@pytest.mark.parametrize("is_begun_anew", [False, True])
def test_what_nobody_went_on_with_counts_until_it_is_collected(hub: Hub, is_begun_anew: bool) -> None:
    with client_at(hub, NOW) as ada, client_at(hub, LATER) as late:
        assert send(ada, begin(ada, PARTS).json()["id"]) == 200
        assert waiting(hub.engine, LATER) == PART_BYTES
        if is_begun_anew:
            begun = begin(late, PARTS).json()
            assert begun["offset"] == 0
            assert waiting(hub.engine, LATER) == PART_BYTES + len(PARTS)
            assert late.delete(f"{ADDRESS}/{begun['id']}").status_code == 204
        else:
            with writing(hub.engine) as connection:
                assert catalog.forget_expired_uploads(connection, LATER, 10) == 1
    assert waiting(hub.engine, LATER) == PART_BYTES
    assert collect(hub, LATER - NOW) == PART_BYTES
    assert waiting(hub.engine, LATER) == 0


def test_parts_that_come_at_once_and_are_refused_count_until_they_are_collected(hub: Hub) -> None:
    others = [bytes([number]) * PART_BYTES for number in range(1, 4)]
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda content: send(ada, begun, content), others))
        stored = sum(hub.store.has(digest_of(content)) or 0 for content in others)
        assert 200 in answers
        assert ada.delete(f"{ADDRESS}/{begun}").status_code == 204
    assert waiting(hub.engine) == stored
    assert collect(hub) == stored
    assert waiting(hub.engine) == 0


def test_a_part_that_comes_while_its_upload_is_abandoned_counts(hub: Hub) -> None:
    with client_at(hub, NOW) as ada, client_at(hub, NOW) as beside:
        begun = begin(ada, PARTS).json()["id"]

        def interrupted() -> Iterator[bytes]:
            yield FIRST[:1000]
            assert beside.delete(f"{ADDRESS}/{begun}").status_code == 204
            yield FIRST[1000:]

        refused = ada.put(f"{ADDRESS}/{begun}/parts/0/{digest_of(FIRST)}", content=interrupted())
        assert refused.status_code == 404
    assert waiting(hub.engine) == PART_BYTES
    assert collect(hub) == PART_BYTES
    assert waiting(hub.engine) == 0


def begin_to_send(client: TestClient, content: bytes, act: Callable[[], None]) -> int:
    """Send other bytes than the digest names, while something happens; return the status."""

    def slowly() -> Iterator[bytes]:
        act()
        yield b"wrong"

    address = f"/api/v1/blobs/{digest_of(content)}"
    return client.put(address, params={"adapter": "acme/one"}, content=slowly(), headers={"Content-Length": "5"}).status_code


def test_who_only_begins_to_send_what_was_abandoned_keeps_it_counted_and_not_for_long(hub: Hub) -> None:
    def look() -> None:
        assert collect(hub) == 0
        assert waiting(hub.engine) == PART_BYTES

    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        assert ada.delete(f"{ADDRESS}/{begun}").status_code == 204
        assert begin_to_send(ada, FIRST, look) == 422
        assert waiting(hub.engine) == PART_BYTES
    assert collect(hub) == PART_BYTES
    assert waiting(hub.engine) == 0


def test_who_only_begins_to_send_what_was_deleted_keeps_it_counted_and_not_for_long(hub: Hub) -> None:
    """Not even somebody else, who could fill the namespace for ever by it."""
    after = NOW + timedelta(hours=25)
    hub.publish("job:1", "acme/one", FIRST)
    delete(hub, "acme/one")

    def look() -> None:
        assert collect(hub, after - NOW) == len(CONFIG)
        assert used(hub, "acme").deleted_bytes == PART_BYTES

    with client_at(hub, after, "Bob") as bob:
        assert begin_to_send(bob, FIRST, look) == 422
    assert used(hub, "acme").deleted_bytes == PART_BYTES
    assert collect(hub, after - NOW) == PART_BYTES
    assert used(hub, "acme").deleted_bytes == 0


@pytest.mark.parametrize("is_chosen", [False, True], ids=["kept for long enough", "chosen by a collector"])
def test_who_only_begins_to_send_what_was_kept_for_long_enough_keeps_it_counted(hub: Hub, is_chosen: bool) -> None:
    def look() -> None:
        assert collect(hub, LATER - NOW) == 0
        assert waiting(hub.engine, LATER) >= PART_BYTES

    with client_at(hub, NOW) as ada, client_at(hub, LATER) as late:
        assert ada.put(f"/api/v1/blobs/{digest_of(FIRST)}", params={"adapter": "acme/one"}, content=FIRST).status_code == 201
        assert waiting(hub.engine, LATER) == PART_BYTES, "nobody has collected it yet"
        if is_chosen:
            with writing(hub.engine) as connection:
                assert catalog.choose_leaving(connection, LATER, 10) == (digest_of(FIRST),)
        assert begin_to_send(late, FIRST, look) == 422
    assert waiting(hub.engine, LATER) == PART_BYTES
    after = LATER if is_chosen else LATER + timedelta(days=2)  # whoever asks for what it has sent keeps it
    assert collect(hub, after - NOW) == PART_BYTES
    assert waiting(hub.engine, after) == 0


def test_what_others_need_is_theirs(hub: Hub) -> None:
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        hub.publish("job:1", "other/one", FIRST)
        assert ada.delete(f"{ADDRESS}/{begun}").status_code == 204
    assert waiting(hub.engine) == 0
    assert used(hub, "other").bytes == PART_BYTES + len(CONFIG)
