"""The S3 store down, slow, cut, and failing after the write, behind a real S3 server: nothing lost, nothing twice, no orphan left."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import urllib3

from hub import s3
from hub.objects import ObjectStore
from hub.s3 import S3Access, open_store
from infra.bodies import MAX_STORE_READERS
from tests.http_clients import patient_client
from tests.hub.failing_link import FailingLink, Trouble, by_chance, failing_link
from tests.hub.fault_run import (
    Witness,
    abandon_uploads,
    check_published,
    collect_all,
    make_pushes,
    needed_digests,
    push_all,
    service_app,
)
from tests.hub.serving import listening, made_hub
from tests.servers import S3Server
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import StorageUnavailable

READ_SECONDS = 0.5


@pytest.fixture
def link(s3_server: S3Server) -> Iterator[FailingLink]:
    with failing_link(s3_server.ports[0]) as link:
        yield link


def open_bucket(server: S3Server, endpoint: str, bucket: str) -> ObjectStore:
    return open_store(f"s3://{bucket}", S3Access(endpoint=endpoint, access_key=server.access_key, secret_key=server.secret_key))


def stored_in(server: S3Server, bucket: str) -> set[str]:
    """The digests of all that the bucket holds."""
    with urllib3.PoolManager() as connections:
        return {f"sha256:{item.object_name[-64:]}" for item in server.client(connections).list_objects(bucket, recursive=True)}


def run_through_faults(server: S3Server, link: FailingLink, folder: Path, seed: int, sizes: tuple[int, int]) -> None:
    """Publish while the store fails, and check what is there afterwards."""
    folder.mkdir()
    link.choose = lambda _request: None  # a hub does not begin to serve on a store that fails
    bucket = server.new_bucket()
    plain, failing = open_bucket(server, server.endpoint, bucket), open_bucket(server, link.url, bucket)
    with made_hub(f"sqlite:///{folder / 'hub.db'}", failing) as hub:
        witness = Witness(hub.app)
        with listening(witness) as url:
            link.choose = by_chance(seed, share=0.45)
            made = push_all(url, hub.tokens["write"], make_pushes(folder, *sizes))
            abandon_uploads(url, hub.tokens["write"], seed, 3)
            link.choose = lambda _request: None
            check_published(url, hub.tokens["admin"], made, plain)
        assert witness.check() <= {"storage_unavailable", "adapter_not_found", "conflict"}
        link.choose = by_chance(seed + 1, share=0.3)
        collect_through_faults(lambda: collect_all(hub, failing))
        assert stored_in(server, bucket) == needed_digests(made)


def collect_through_faults(collect: object) -> None:
    """Collect again and again, as upkeep does, until nothing stops it."""
    assert callable(collect)
    for _ in range(100):
        try:
            collect()
        except StorageUnavailable:
            continue
        return
    raise AssertionError("the collection never ends")


def test_publishers_come_through_a_store_that_fails(
    s3_server: S3Server, link: FailingLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", READ_SECONDS)
    run_through_faults(s3_server, link, tmp_path / "run", seed=1, sizes=(2, 2))
    assert len(link.troubles) >= 5, link.troubles


READERS = 50
"""More than the threads that serve any requests."""


def test_what_needs_no_store_is_answered_while_it_hangs(s3_server: S3Server, link: FailingLink, tmp_path: Path) -> None:
    """Probes, metrics and lists, though every thread for the store hangs with it; and who waited is answered in the end."""
    failing = open_bucket(s3_server, link.url, s3_server.new_bucket())
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", failing) as hub, ThreadPoolExecutor(READERS + 1) as readers:
        hub.publish()
        with listening(service_app(hub)) as url, patient_client(base_url=url) as http:
            assert http.get("/readyz").json() == {"status": "ready"}
            link.choose = lambda _request: Trouble.SILENT
            address = "/api/v1/adapters/demo/arithmetic/versions/1/files/adapter_model.safetensors"
            asked = [readers.submit(http.get, address, headers=hub.bearer("read")) for _ in range(READERS)]
            while link.troubles[Trouble.SILENT] < MAX_STORE_READERS:
                time.sleep(0.02)
            metrics, refusal = readers.submit(http.get, "/metrics"), http.get("/readyz")
            told = {problem["path"]: problem["message"] for problem in refusal.json()["problems"]}
            assert (refusal.status_code, told) == (503, {"store": "no answer within 2 s"})
            assert http.get("/healthz").status_code == 200
            assert len(http.get("/api/v1/adapters", headers=hub.bearer("read")).json()["adapters"]) == 1
            assert 'wegeft_part_up{part="store"} 0.0' in metrics.result(30).text
            assert not any(answer.done() for answer in asked)
            link.choose = lambda _request: None
            link.hang_up()
            assert {answer.result(60).status_code for answer in asked} == {200}
            assert http.get("/readyz").status_code == 200


def test_a_silent_store_is_asked_twice_and_no_more(s3_server: S3Server, link: FailingLink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", READ_SECONDS)
    store = open_bucket(s3_server, link.url, s3_server.new_bucket())
    link.choose = lambda _request: Trouble.SILENT
    with pytest.raises(StorageUnavailable):
        store.has(digest_of(b"x"))
    assert link.troubles[Trouble.SILENT] == 2


@pytest.mark.soak
def test_many_runs_through_a_store_that_fails(
    s3_server: S3Server, link: FailingLink, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(s3, "READ_SECONDS", READ_SECONDS)
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 4
    for number in range(100):
        run_through_faults(s3_server, link, tmp_path / str(number), seed * 1000 + number, sizes=(4, 3))
        if time.monotonic() > end:
            break
    assert set(link.troubles) == set(Trouble) - {Trouble.SILENT}
