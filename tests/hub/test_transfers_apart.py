"""Transfers of the same bytes at the same moment: none makes another count for less, or be kept for less long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, select
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog import HOLDS, STAGED, Coming, Sender
from hub.collection import Collector
from hub.objects import MemoryStore
from hub.uploads import PART_BYTES
from infra.database import reading, writing
from infra.principals import Principal, Role
from tests.hub.serving import NOW, Hub, made_hub
from tests.hub.test_reservations import ADDRESS, PARTS, begin, client_at, send
from tests.hub.test_reservations import waiting as waiting_for
from wegeft.contracts.adapter import digest_of

MOST = 10_000
UNTIL = NOW + timedelta(days=1)
FIRST = PARTS[:PART_BYTES]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """Where one account may have ten thousand bytes waiting."""
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        yield hub


@pytest.fixture
def small(hub: Hub) -> Hub:
    hub.services = replace(hub.services, max_staged_bytes=MOST)
    return hub


def waiting(hub: Hub, name: str = "ada") -> int:
    return waiting_for(hub.engine, name=name)


def put(client: TestClient, content: bytes, sent: Any = None, length: int | None = None) -> int:
    headers = {} if length is None else {"Content-Length": str(length)}
    sent = content if sent is None else sent
    return client.put(f"/api/v1/blobs/{digest_of(content)}", content=sent, headers=headers).status_code


def halfway(content: bytes, act: Callable[[], object]) -> Iterator[bytes]:
    """Bytes, while something happens between them."""
    yield content[: len(content) // 2]
    act()
    yield content[len(content) // 2 :]


def collect(hub: Hub, after: timedelta = timedelta(0)) -> int:
    return Collector(engine=hub.engine, store=hub.store).collect(NOW + after, 100).blobs


def test_a_short_transfer_of_the_same_digest_takes_nothing_from_a_long_one(small: Hub) -> None:
    """Else whoever sends some short ones beside long ones has room for any number of those."""
    content, counted = b"a" * 6000, list[int]()
    with client_at(small, NOW) as ada, client_at(small, NOW) as beside:

        def attack() -> None:
            assert put(beside, content, iter([b"x"]), 1) == 422
            counted.append(waiting(small))
            assert put(beside, b"b" * 5000) == 413, "there is no room beside what is on its way"

        def shrink() -> None:
            assert put(beside, content, halfway(b"xy", lambda: counted.append(waiting(small))), 2) == 422
            attack()

        assert put(ada, content, halfway(content, shrink), len(content)) == 201
        assert counted == [6000, 6000]
        assert waiting(small) == 6000


def test_one_that_fails_takes_back_what_it_has_added(small: Hub) -> None:
    content = b"a" * 100
    with client_at(small, NOW) as ada, client_at(small, NOW) as beside:

        def fail() -> None:
            assert put(beside, content, iter([b"x" * 9000]), 9000) == 422
            assert waiting(small) == 100

        assert put(ada, content, halfway(content, fail), 100) == 201
        assert put(ada, content, iter([b"x" * 50])) == 422
    assert waiting(small) == 100
    with reading(small.engine) as connection:
        assert connection.execute(select(STAGED.c.size)).scalars().all() == [100]
        assert len(connection.execute(select(HOLDS)).all()) == 1, "nothing is left of the transfers"


def sender(token: str = "t", most: int = MOST) -> Sender:
    return Sender(caller=Principal(name="ada", role=Role.WRITE, token_id=token), most_bytes=most)


def test_of_transfers_of_the_same_bytes_the_largest_counts(engine: Engine) -> None:
    """On SQLite and PostgreSQL, of one token and of several."""
    digest = digest_of(b"s")
    senders = [sender(), sender(), sender("u")]
    with writing(engine) as connection:
        for one, size in zip(senders, (300, 4000, 20), strict=True):
            catalog.stage(connection, one, Coming(digest=digest, size=size, until=UNTIL), NOW)
        assert catalog.count_staged(connection, "ada", NOW) == 4000
        catalog.unstage(connection, senders[1], digest)
        assert catalog.count_staged(connection, "ada", NOW) == 300
        catalog.settle(connection, senders[2], digest, 20, UNTIL)
        assert catalog.count_staged(connection, "ada", NOW) == 300
        catalog.unstage(connection, senders[0], digest)
        assert catalog.count_staged(connection, "ada", NOW) == 20, "what has come stays"


@pytest.mark.parametrize("is_refused", [True, False], ids=["a part is refused", "an upload is given up"])
def test_who_lets_bytes_go_does_not_shorten_anothers_transfer(hub: Hub, is_refused: bool) -> None:
    with client_at(hub, NOW) as ada, client_at(hub, NOW, "Bob") as bob:
        begun = begin(ada, PARTS).json()["id"]
        content = FIRST[:1000] if is_refused else FIRST

        def let_go() -> None:
            if is_refused:
                address = f"{ADDRESS}/{begun}/parts/0/{digest_of(content)}"
                assert ada.put(address, content=iter([content])).status_code == 422
            else:
                assert send(ada, begun, 0).status_code == 200
                assert ada.delete(f"{ADDRESS}/{begun}").status_code == 204
            assert collect(hub) == 0

        assert put(bob, content, halfway(content, let_go), len(content)) == 201
    assert hub.store.has(digest_of(content)) == len(content)
    assert waiting(hub, "bob") == len(content)


@pytest.mark.parametrize("sent", ["too few", "too many", "other bytes"])
def test_who_only_begins_to_send_bytes_does_not_keep_those_that_lie_there(hub: Hub, sent: str) -> None:
    """Neither while it sends what cannot be them, nor, whatever it sends, afterwards."""
    content, after = b"a" * 6000, timedelta(days=2)
    wrong = {"too few": b"x" * 10, "too many": b"x" * 7000, "other bytes": b"x" * 6000}[sent]
    gone = list[int]()
    with client_at(hub, NOW) as ada, client_at(hub, NOW + after, "Bob") as late:
        assert put(ada, content) == 201
        assert put(late, content, halfway(wrong, lambda: gone.append(collect(hub, after))), len(wrong)) == 422
    assert gone == [int(sent != "other bytes")]
    collect(hub, after)
    assert hub.store.has(digest_of(content)) is None
    assert waiting(hub) == 0


def test_what_came_and_was_not_owned_is_kept_for_a_while(hub: Hub) -> None:
    """A hub that dies between the bytes and their row leaves what the next collection after their time finds."""
    who, digest = sender(), digest_of(b"x" * 50)
    with hub.services.intake.expecting(digest, 50, who):
        pass
    assert (waiting(hub), collect(hub)) == (50, 0)
    assert collect(hub, timedelta(days=1)) == 1
    assert waiting(hub) == 0
