"""One site's long updates: putting many together at once leaves the other sites their slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from infra.bodies import LONG_READS_A_SENDER
from tests.infra.test_gate import wait_until
from tests.orchestrator.test_site_uploads import PART, Twice, begin_upload, begun, put_part, world

__all__ = ["world"]


def test_one_site_holds_a_few_of_the_slots(world: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    (site, other), _, content = begun(world, 0, 1)
    ends = []
    for sender in (site, other):
        upload = begin_upload(sender, content).json()["id"]
        for offset in range(0, len(content), PART):
            assert put_part(sender, upload, content, offset).status_code == 200
        ends.append(f"uploads/{upload}/finish")
    free, readers, get = threading.Event(), list[int](), world.server.store.get

    def held(digest: str) -> Iterator[bytes]:
        readers.append(threading.get_ident())
        free.wait(30)
        yield from get(digest)

    monkeypatch.setattr(world.server.store, "get", held)
    with ThreadPoolExecutor(20) as senders:
        asked = [senders.submit(site.call, "POST", ends[0]) for _ in range(2 * LONG_READS_A_SENDER + 2)]
        wait_until(lambda: len(readers) >= LONG_READS_A_SENDER)
        time.sleep(0.3)
        others = senders.submit(other.call, "POST", ends[1])
        wait_until(lambda: len(readers) > LONG_READS_A_SENDER)
        assert len(set(readers)) == LONG_READS_A_SENDER + 1
        free.set()
        assert {answer.result(60).status_code for answer in asked} <= {200, 201, 404}
        assert others.result(60).status_code == 201
