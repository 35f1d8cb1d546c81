"""What reads whole files from the store: one account holds a few of its slots, however often and with however many tokens it asks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hub.objects import MemoryStore
from infra.auth import create_token
from infra.bodies import COMPUTATIONS_A_SENDER, LONG_READS_A_SENDER
from infra.database import writing
from tests.http_clients import patient_client
from tests.hub import format_files as made
from tests.hub.serving import NOW, Hub, listening, made_hub
from wegeft.contracts.adapter import digest_of

API = "/api/v1/adapters/demo/x"
ASKED = 2 * LONG_READS_A_SENDER + 2
CONTENT = b"some bytes"


class HoldingStore(MemoryStore):
    """A store that gives nothing away while it is held."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.free.set()
        self.waiting = 0
        self.counting = threading.Lock()

    def get(self, digest: str) -> Iterator[bytes]:
        with self.counting:
            self.waiting += not self.free.is_set()
        self.free.wait(30)
        yield from super().get(digest)


@dataclass
class Served:
    """A hub that listens, and two tokens of one account."""

    hub: Hub
    store: HoldingStore
    http: httpx2.Client
    tokens: tuple[str, str]
    factors: Any

    def finisher(self, token: str) -> Callable[[], httpx2.Response]:
        """Send an upload but its end, and return what ends it."""
        headers = {"Authorization": f"Bearer {token}"}
        wanted = {"digest": digest_of(CONTENT), "size": len(CONTENT)}
        upload = f"{API}/uploads/{self.http.post(f'{API}/uploads', json=wanted, headers=headers).json()['id']}"
        assert self.http.put(f"{upload}/parts/0/{wanted['digest']}", content=CONTENT, headers=headers).status_code == 200
        return lambda: self.http.post(f"{upload}/finish", headers=headers)

    def attacher(self, token: str) -> Callable[[], httpx2.Response]:
        """Send a derived format's files, and return what attaches it."""
        headers = {"Authorization": f"Bearer {token}"}
        files = made.lora(self.factors)
        for content in files.values():
            sent = self.http.put(f"/api/v1/blobs/{digest_of(content)}", content=content, headers=headers)
            assert sent.status_code in (200, 201)
        body = made.attachment(files)
        return lambda: self.http.put(f"{API}/versions/1/formats/lora/float32", json=body, headers=headers)

    def wait_for(self, waiting: int) -> None:
        end = time.monotonic() + 30
        while self.store.waiting < waiting:
            assert time.monotonic() < end, "not so many came to the store"
            time.sleep(0.01)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    store = HoldingStore()
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", store) as hub, listening(hub.app) as url:
        with writing(hub.engine) as connection:
            tokens = [create_token(connection, name, "write", NOW)[1] for name in ("The Writer", "the writer")]
        with patient_client(base_url=url) as http:
            yield Served(hub, store, http, (tokens[0], tokens[1]), made.factors(made.publish(hub)))


@pytest.mark.parametrize(("what", "most"), [("finisher", LONG_READS_A_SENDER), ("attacher", COMPUTATIONS_A_SENDER)])
def test_one_account_holds_a_few_of_the_slots(served: Served, what: str, most: int) -> None:
    acts = [getattr(served, what)(token) for token in (*served.tokens, served.hub.tokens["admin"])]
    served.store.free.clear()
    with ThreadPoolExecutor(ASKED + 1) as senders:
        asked = [senders.submit(acts[number % 2]) for number in range(ASKED)]
        served.wait_for(most)
        time.sleep(0.3)
        other = senders.submit(acts[2])
        served.wait_for(most + 1)
        assert served.store.waiting == most + 1
        served.store.free.set()
        statuses = {answer.result(60).status_code for answer in asked}
        assert other.result(60).status_code in (200, 201)
    assert statuses <= {200, 201, 404}, "those that come after an upload has ended find none"
