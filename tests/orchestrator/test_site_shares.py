"""Long requests of one site or of one attempt: many at once leave the others their slots."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hub.objects import MemoryStore
from infra.bodies import LONG_READS_A_SENDER
from tests.http_clients import patient_client
from tests.infra.test_gate import wait_until
from tests.orchestrator.federating import FakeSite, train
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, adapter_files, listening, result_of
from tests.orchestrator.test_site_uploads import PART, Twice, begin_upload, begun, put_part, world
from tests.orchestrator.working import claim, queue
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Offer
from wegeft.contracts.training import Checkpoint

__all__ = ["world"]

ASKED = 2 * LONG_READS_A_SENDER + 2
Act = Callable[[], httpx2.Response]


class Gate:
    """Lets nobody look at some blobs of a store until it is opened, and knows who waits."""

    def __init__(self, store: MemoryStore, digests: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.free, self.waiting = threading.Event(), set[int]()
        self._digests, self._get, self._has = digests, store.get, store.has
        monkeypatch.setattr(store, "get", self.get)
        monkeypatch.setattr(store, "has", self.has)

    def get(self, digest: str) -> Iterator[bytes]:
        self._wait(digest)
        yield from self._get(digest)

    def has(self, digest: str) -> int | None:
        self._wait(digest)
        return self._has(digest)

    def _wait(self, digest: str) -> None:
        if digest in self._digests and not self.free.is_set():
            self.waiting.add(threading.get_ident())
            self.free.wait(30)


def ask_at_once(gate: Gate, many: Act, other: Act) -> tuple[set[int], int]:
    """Ask often as one and once as another, who comes in although the first one waits; return how both were answered."""
    with ThreadPoolExecutor(ASKED + 1) as senders:
        asked = [senders.submit(many) for _ in range(ASKED)]
        wait_until(lambda: len(gate.waiting) >= LONG_READS_A_SENDER)
        time.sleep(0.3)
        others = senders.submit(other)
        wait_until(lambda: len(gate.waiting) > LONG_READS_A_SENDER)
        assert len(gate.waiting) == LONG_READS_A_SENDER + 1
        gate.free.set()
        return {answer.result(60).status_code for answer in asked}, others.result(60).status_code


def finisher(site: FakeSite, content: bytes) -> Act:
    """Send an upload but its end, and return what ends it."""
    upload = begin_upload(site, content).json()["id"]
    for offset in range(0, len(content), PART):
        assert put_part(site, upload, content, offset).status_code == 200
    return lambda: site.call("POST", f"uploads/{upload}/finish")


def submitter(site: FakeSite, offer: Offer) -> Act:
    """Send an update's tensors, and return what submits it."""
    signed, content = train(offer, site.index)
    assert site.put(content).status_code == 201
    return lambda: site.submit(signed)


def test_one_site_that_ends_uploads_holds_a_few_of_the_slots(world: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    sites, _, content = begun(world, 0, 1)
    acts = [finisher(site, content) for site in sites]
    parts = {digest_of(content[offset : offset + PART]) for offset in range(0, len(content), PART)}
    answers, other = ask_at_once(Gate(world.server.store, parts, monkeypatch), *acts)
    assert answers <= {200, 201, 404}, "those that come after an upload has ended find none"
    assert other == 201


def test_one_site_that_submits_holds_a_few_of_the_slots(world: Twice, monkeypatch: pytest.MonkeyPatch) -> None:
    sites, offers, _ = begun(world, 0, 1)
    acts = [submitter(site, offer) for site, offer in zip(sites, offers, strict=True)]
    tensors = {train(offer, site.index)[0].update.tensors for site, offer in zip(sites, offers, strict=True)}
    assert ask_at_once(Gate(world.server.store, tensors, monkeypatch), *acts) == ({201}, 201)


@pytest.mark.parametrize("what", ["result", "checkpoints"])
def test_one_attempt_holds_a_few_of_the_slots(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_sqlite(tmp_path / "a.db")
    site, files = Site(engine), adapter_files()
    body: Any = result_of(files) if what == "result" else Checkpoint(step=1, files=result_of(files).files)
    with listening(site.app()) as url, patient_client(base_url=url) as http:
        for _ in range(2):
            queue(site)
        workers = [claim(site, http) for _ in range(2)]
        for worker in workers:
            assert {worker.put(content).status_code for content in files.values()} <= {200, 201}
        acts: list[Act] = [lambda worker=worker: worker.post(what, body) for worker in workers]  # type: ignore[misc]
        gate = Gate(site.store, {entry.digest for entry in body.files}, monkeypatch)
        answers, other = ask_at_once(gate, *acts)
    assert answers | {other} == {200 if what == "result" else 204}
    engine.dispose()
