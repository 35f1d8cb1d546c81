"""Bytes that lie in the store count for who sent them until a collection has deleted them, and what counts tells nothing of others."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog import STAGED, Coming, quotas
from hub.collection import Collector
from hub.objects import MemoryStore
from hub.uploads import PART_BYTES
from infra.database import writing
from tests.hub.serving import NOW, Hub, made_hub
from tests.hub.test_reservations import ADDRESS, PARTS, begin, client_at, waiting
from tests.hub.test_transfers_apart import halfway, put, sender
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.collection import Collected
from wegeft.contracts.errors import StorageUnavailable
from wegeft.contracts.quotas import QuotaLimits

DAYS = timedelta(days=2)
LATER = NOW + DAYS
FIRST = PARTS[:PART_BYTES]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        yield hub


def send(client: TestClient, upload_id: str, content: bytes = FIRST, offset: int = 0) -> int:
    return client.put(f"{ADDRESS}/{upload_id}/parts/{offset}/{digest_of(content)}", content=content).status_code


def collect(hub: Hub, after: timedelta = timedelta(0), limit: int = 100) -> Collected:
    return Collector(engine=hub.engine, store=hub.store).collect(NOW + after, limit)


class Refusing(MemoryStore):
    """A store that keeps some blobs whatever it is told."""

    kept: frozenset[str] = frozenset()

    def delete(self, digest: str) -> None:
        if digest in self.kept:
            raise StorageUnavailable("the store keeps this blob")
        super().delete(digest)


def give_up(client: TestClient, upload_id: str) -> None:
    assert client.delete(f"{ADDRESS}/{upload_id}").status_code == 204


def test_what_was_given_up_counts_until_it_is_collected(hub: Hub) -> None:
    """Else whoever sends and gives up in turns fills the store between two collections."""
    with writing(hub.engine) as connection:
        quotas.set_quota(connection, "acme", QuotaLimits(bytes=len(PARTS)))
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        give_up(ada, begun)
        assert waiting(hub.engine) == waiting(hub.engine, name="ada") == PART_BYTES
        assert begin(ada, PARTS).status_code == 413
        assert collect(hub).bytes == PART_BYTES
        assert waiting(hub.engine) == 0
        assert begin(ada, PARTS).status_code == 201


@pytest.mark.parametrize(("refused", "left"), [(1, 0), (3, PART_BYTES)])
def test_a_blob_that_the_store_does_not_delete_keeps_no_others(tmp_path: Path, refused: int, left: int) -> None:
    """It is chosen first in each collection; a store that deletes none of several is left alone."""
    store = Refusing()
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", store) as hub, client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        give_up(ada, begun)
        blobs = {digest: content for number in range(200) if (digest := digest_of(content := bytes([number]))) < digest_of(FIRST)}
        store.kept = frozenset(hub.put(blobs[digest]) for digest in sorted(blobs)[:refused])
        for _ in range(2):
            with pytest.raises(StorageUnavailable, match="keeps this blob"):
                collect(hub, DAYS)
        assert waiting(hub.engine, LATER) == left
        store.kept = frozenset()
        assert collect(hub, DAYS).is_done
        assert waiting(hub.engine, LATER) == 0


def test_what_nobody_went_on_with_counts_until_it_is_collected(hub: Hub) -> None:
    with client_at(hub, NOW) as ada, client_at(hub, LATER) as late:
        assert send(ada, begin(ada, PARTS).json()["id"]) == 200
        assert waiting(hub.engine, LATER) == PART_BYTES
        begun = begin(late, PARTS).json()
        assert begun["offset"] == 0
        assert waiting(hub.engine, LATER) == PART_BYTES + len(PARTS)
        give_up(late, begun["id"])
    assert waiting(hub.engine, LATER) == PART_BYTES
    assert collect(hub, DAYS).bytes == PART_BYTES
    assert waiting(hub.engine, LATER) == 0


def test_what_was_kept_for_long_enough_counts_until_it_is_collected(hub: Hub) -> None:
    with client_at(hub, NOW) as ada:
        assert put(ada, FIRST) == 201
    assert waiting(hub.engine, LATER, "ada") == PART_BYTES
    assert collect(hub, DAYS).bytes == PART_BYTES
    assert waiting(hub.engine, LATER, "ada") == 0


def test_parts_that_come_at_once_and_are_refused_count_until_they_are_collected(hub: Hub) -> None:
    others = [bytes([number]) * PART_BYTES for number in range(1, 4)]
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        with ThreadPoolExecutor(3) as pool:
            answers = list(pool.map(lambda content: send(ada, begun, content), others))
        assert answers.count(200) == 1
        give_up(ada, begun)
    stored = sum(hub.store.has(digest_of(content)) or 0 for content in others)
    assert waiting(hub.engine) == stored
    assert collect(hub).bytes == stored
    assert waiting(hub.engine) == 0


def test_a_part_that_comes_while_its_upload_is_given_up_counts(hub: Hub) -> None:
    with client_at(hub, NOW) as ada, client_at(hub, NOW) as beside:
        begun = begin(ada, PARTS).json()["id"]
        sent = halfway(FIRST, lambda: give_up(beside, begun))
        assert ada.put(f"{ADDRESS}/{begun}/parts/0/{digest_of(FIRST)}", content=sent).status_code == 404
        assert send(ada, begun) == 404, "an upload that is over is not counted anew"
    assert waiting(hub.engine) == PART_BYTES
    assert collect(hub).bytes == PART_BYTES
    assert waiting(hub.engine) == 0


def test_parts_of_what_counts_nothing_when_it_is_whole_count_until_they_are_collected(hub: Hub) -> None:
    """Whoever may read the whole has no more by sending it, but for a while its parts."""
    with client_at(hub, NOW) as ada:
        begun = begin(ada, PARTS).json()["id"]
        hub.publish("job:1", "acme/one", PARTS, created_by="Bob")
        for offset in range(0, len(PARTS), PART_BYTES):
            assert send(ada, begun, PARTS[offset : offset + PART_BYTES], offset) == 200
        assert ada.post(f"{ADDRESS}/{begun}/finish").status_code == 201
    assert waiting(hub.engine) == len(PARTS)
    assert collect(hub).blobs == 2
    assert waiting(hub.engine) == 0


@pytest.mark.parametrize("others", ["have it", "have nothing"])
def test_what_counts_tells_nobody_what_others_have(hub: Hub, others: str) -> None:
    """Neither what was sent, nor the parts of what was given up, before the collection has come to its end, or after it."""
    rest = [bytes([number]) * 10 for number in range(1, 6)]
    with client_at(hub, NOW, "Bob") as bob, client_at(hub, LATER, "Bob") as late_bob, client_at(hub, NOW) as ada:
        for content in (FIRST, b"sent"):
            assert put(bob, content) == 201
        for content in rest:
            assert put(ada, content) == 201
        begun = begin(ada, PARTS).json()["id"]
        assert send(ada, begun) == 200
        assert put(ada, b"sent") == 201
        give_up(ada, begun)
        if others == "have it":
            for content in (FIRST, b"sent"):
                assert put(late_bob, content) == 200
    while not collect(hub, DAYS, limit=3).is_done:
        assert waiting(hub.engine, LATER, "ada") == PART_BYTES + len(b"sent") + 50
    assert waiting(hub.engine, LATER, "ada") == 0


def test_a_few_rows_are_looked_at_in_one_go_and_none_keeps_the_others_back(engine: Engine) -> None:
    """Those that lie there still are looked at last the next time."""
    lying = [digest_of(bytes([number])) for number in range(3)]
    with writing(engine) as connection:
        for digest in lying:
            catalog.expect(connection, digest, NOW)
        for number in range(7):
            digest = lying[number] if number < 3 else digest_of(bytes([number]))
            catalog.stage(connection, sender(), Coming(digest=digest, size=1, until=NOW + timedelta(seconds=number)), NOW)
        catalog.stage(connection, sender(), Coming(digest=digest_of(b"on its way"), size=1, until=LATER + DAYS), NOW)
        answers = [catalog.forget_staged(connection, LATER + timedelta(seconds=number), 3) for number in range(4)]
        assert answers == [True, False, True, True]
        left = connection.execute(select(STAGED.c.digest).order_by(STAGED.c.until)).scalars().all()
    assert set(left) == {*lying, digest_of(b"on its way")}
