"""A federation whose server is killed with SIGKILL, over and over, comes to the same bytes as one that is left alone."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from hub.folder_store import FolderStore
from infra.database import writing
from orchestrator.ledger import sites
from tests.orchestrator.federating import FakeSite, Server, now
from tests.orchestrator.samples import at, new_sqlite
from tests.orchestrator.serving import listening
from tests.servers import free_ports
from wegeft.contracts.federation import SignedReceipt

START_SECONDS = 60.0


@contextmanager
def process(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a process of its own, ready; it is killed at the end."""
    command = [sys.executable, "-m", "tests.orchestrator.federation_process", f"sqlite:///{folder / 'a.db'}", str(folder / "blobs")]
    with (folder / "log").open("ab") as log:
        running = subprocess.Popen([*command, str(port)], stdout=log, stderr=log, cwd=Path(__file__).parents[2])
    try:
        end = time.monotonic() + START_SECONDS
        while not is_up(port):
            assert running.poll() is None, (folder / "log").read_text()[-4000:]
            assert time.monotonic() < end
            time.sleep(0.05)
        yield running
    finally:
        running.kill()
        running.wait(30)


def is_up(port: int) -> bool:
    try:
        return httpx2.get(f"http://127.0.0.1:{port}/healthz", trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def prepare(folder: Path) -> tuple[Server, str]:
    """A federation of three sites under a fixed id, with the sites' invitations."""
    folder.mkdir()
    server = Server(new_sqlite(folder / "a.db"), store=FolderStore(folder / "blobs"))
    job_id = server.add(rounds=2, min_sites=3, grace="60s")
    with writing(server.engine) as connection:
        for index in range(3):
            sites.invite(connection, job_id, f"site-{index}", token(index), (now(), at(10**9)), is_approval=True)
    return server, job_id


def token(index: int) -> str:
    return f"wgi_{index:012}_{index:064}"


def take_part(site: FakeSite) -> SignedReceipt:
    """One round of a site, from its offer to its receipt."""
    offer = site.offer(20)
    assert offer is not None
    return site.answer(offer)


def finish(server: Server, job_id: str) -> list[str]:
    end = time.monotonic() + START_SECONDS
    while not server.view(job_id).state.is_final:
        assert time.monotonic() < end, server.view(job_id)
        time.sleep(0.05)
    return server.results(job_id)


@pytest.fixture
def undisturbed(tmp_path: Path) -> list[str]:
    """The digests that the federation comes to when nobody dies."""
    server, job_id = prepare(tmp_path / "quiet")
    thread = server.thread()
    with listening(server.app()) as url:
        found = [FakeSite(url, index) for index in range(3)]
        for site in found:
            site.enrol(token(site.index))
        thread.start()
        for _ in range(2):
            for site in found:
                take_part(site)
        results = finish(server, job_id)
        thread.close()
        for site in found:
            site.http.close()
    server.engine.dispose()
    return results


@pytest.mark.slow
def test_killing_the_server_changes_no_bit_and_asks_nobody_twice(tmp_path: Path, undisturbed: list[str]) -> None:
    folder, port = tmp_path / "killed", free_ports(1)[0]
    server, job_id = prepare(folder)
    found = [FakeSite(f"http://127.0.0.1:{port}", index) for index in range(3)]
    with process(folder, port):
        for site in found:
            site.enrol(token(site.index))
        first = found[0].offer(20)
        assert first is not None
        receipt = found[0].answer(first)
    with process(folder, port):  # killed while it collected
        assert found[0].offer(0) is None
        assert found[0].submit_again(first) == receipt
        for site in found[1:]:
            take_part(site)
    with process(folder, port):  # killed as soon as it had everything: closing, aggregating or committing
        for site in (found[2], found[0], found[1]):
            take_part(site)
    with process(folder, port):
        assert finish(server, job_id) == undisturbed
    assert [(view.round, view.attempt, view.accepted) for view in server.rounds(job_id)] == [(1, 1, 3), (2, 1, 3)]
    for site in found:
        site.http.close()
    server.engine.dispose()
