"""The database killed and restarted under the hub's feet, a real PostgreSQL: what was acknowledged is there, once."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hub.objects import MemoryStore
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
from tests.servers import PostgresServer, running_postgres

CODES = {"database_unavailable", "adapter_not_found", "conflict"}


@contextmanager
def restarting(server: PostgresServer, pause: Callable[[], float], most: int) -> Iterator[list[float]]:
    """Restart the server again and again, ``most`` times, as a crash would; give how long each took."""
    is_over, took = threading.Event(), list[float]()

    def work() -> None:
        while len(took) < most and not is_over.wait(pause()):
            began = time.monotonic()
            with server.stopped():
                time.sleep(pause() / 2)
            took.append(time.monotonic() - began)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield took
    finally:
        is_over.set()
        thread.join()


def run_through_restarts(server: PostgresServer, folder: Path, seed: int, most: int, sizes: tuple[int, int]) -> None:
    """Publish while the database is restarted, and check what is there afterwards."""
    folder.mkdir()
    url, chance, store = server.new_database(), random.Random(seed), MemoryStore()
    with made_hub(url, store) as hub:
        witness = Witness(hub.app)
        with listening(witness) as address:
            with restarting(server, lambda: chance.uniform(0.1, 0.5), most) as took:
                made = push_all(address, hub.tokens["write"], make_pushes(folder, *sizes))
                abandon_uploads(address, hub.tokens["write"], seed, 2)
                while len(took) < most:
                    time.sleep(0.05)
            check_published(address, hub.tokens["admin"], made, store)
        assert witness.check() <= CODES
        collect_all(hub, store)
        assert set(store._blobs) == needed_digests(made)
    server.drop_database(url)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server whose death disturbs nobody else."""
    with running_postgres() as server:
        yield server


def test_publishers_come_through_a_restart_of_the_database(server: PostgresServer, tmp_path: Path) -> None:
    run_through_restarts(server, tmp_path / "run", seed=1, most=1, sizes=(2, 2))


def test_the_probes_say_that_the_database_is_down(server: PostgresServer, tmp_path: Path) -> None:
    """Whatever is down, the process lives and tells its metrics; and once the database is back, everything is."""
    with made_hub(server.new_database(), MemoryStore()) as hub, TestClient(service_app(hub, is_whole=True)) as http:
        assert http.get("/readyz").json() == {"status": "ready"}
        assert 'wegeft_jobs{state="queued"} 0.0' in http.get("/metrics").text
        with server.stopped():
            refusal = http.get("/readyz")
            assert (refusal.status_code, refusal.headers["retry-after"]) == (503, "1")
            # Nobody is told where the database is, or as whom it is asked.
            assert [(each["path"], each["message"]) for each in refusal.json()["problems"]] == [
                ("database", "the database does not answer")
            ]
            assert http.get("/healthz").status_code == 200
            metrics = http.get("/metrics").text
            assert 'wegeft_part_up{part="database"} 0.0' in metrics
            assert 'wegeft_part_up{part="store"} 1.0' in metrics
            assert "wegeft_jobs{" not in metrics
            # Even what is refused before the endpoint is asked says when to come again.
            gate = http.post("/api/v1/organisations", json={"name": "acme"}, headers=hub.bearer("write"))
            assert (gate.status_code, gate.json()["code"], gate.headers["retry-after"]) == (503, "database_unavailable", "1")
        assert http.get("/readyz").json() == {"status": "ready"}
        assert http.post("/api/v1/organisations", json={"name": "acme"}, headers=hub.bearer("write")).status_code == 201


@pytest.mark.soak
def test_many_runs_through_restarts(server: PostgresServer, tmp_path: Path) -> None:
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 4
    for number in range(100):
        run_through_restarts(server, tmp_path / str(number), seed * 1000 + number, most=4, sizes=(4, 3))
        if time.monotonic() > end:
            break
