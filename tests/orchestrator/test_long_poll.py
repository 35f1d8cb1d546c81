"""Waiting for news of a job, over real connections: told at once, given up when nobody listens, and no burden meanwhile."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event

from infra.database import writing
from orchestrator import ledger
from orchestrator.api import _LOOK_AGAIN_SECONDS, LONGEST_WAIT_SECONDS
from tests.http_clients import patient_client
from tests.orchestrator.samples import new_sqlite
from tests.orchestrator.serving import Site, listening, now
from tests.orchestrator.working import queue

PATIENCE_SECONDS = 90
"""How long a busy machine may take."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """A server's parts."""
    engine = new_sqlite(tmp_path / "a.db")
    yield Site(engine)
    engine.dispose()


@pytest.fixture
def url(site: Site) -> Iterator[str]:
    """Where it listens."""
    with listening(site.app()) as url:
        yield url


def ask(site: Site, url: str, job_id: str, after: int, wait_seconds: float) -> tuple[Any, float]:
    """Ask for news; return the answer, and how long it took."""
    started = time.monotonic()
    with patient_client(base_url=url, headers=site.bearer("read")) as http:
        answer = http.get(f"/api/v1/jobs/{job_id}/events", params={"after": after, "wait_seconds": wait_seconds})
    return answer, time.monotonic() - started


def cancel(site: Site, job_id: str) -> None:
    """Make news."""
    with writing(site.engine) as connection:
        ledger.cancel(connection, job_id, now())


class Looks:
    """Counts how often the server looks into the database."""

    def __init__(self, site: Site) -> None:
        self.count = 0
        event.listen(site.engine, "begin", self._note)

    def _note(self, _connection: object) -> None:
        self.count += 1

    def wait_for(self, more: int) -> None:
        """Wait until there were so many more."""
        wanted, end = self.count + more, time.monotonic() + PATIENCE_SECONDS
        while self.count < wanted:
            assert time.monotonic() < end, "nobody looks"
            time.sleep(0.02)

    def wait_for_calm(self) -> None:
        """Wait until there were none for three times as long as lies between two looks of a reader."""
        end = time.monotonic() + PATIENCE_SECONDS
        seen, since = self.count, time.monotonic()
        while time.monotonic() < since + 3 * _LOOK_AGAIN_SECONDS:
            assert time.monotonic() < end, "somebody looks for ever"
            time.sleep(0.02)
            if self.count != seen:
                seen, since = self.count, time.monotonic()


def test_news_are_told_at_once(site: Site, url: str) -> None:
    """Not only when the wait is over."""
    job_id, looks = queue(site), Looks(site)
    with ThreadPoolExecutor(1) as pool:
        reader = pool.submit(ask, site, url, job_id, 1, LONGEST_WAIT_SECONDS)
        looks.wait_for(3)
        cancel(site, job_id)
        answer, seconds = reader.result(PATIENCE_SECONDS)
    assert [record["event"]["state"] for record in answer.json()["records"]] == ["cancelled"]
    assert seconds < LONGEST_WAIT_SECONDS


def test_without_news_the_wait_ends(site: Site, url: str) -> None:
    """With an empty page; and at once where there is nothing to come."""
    job_id = queue(site)
    answer, seconds = ask(site, url, job_id, 1, 1)
    assert (answer.json()["records"], answer.json()["state"]) == ([], "queued")
    assert 0.9 < seconds < LONGEST_WAIT_SECONDS
    cancel(site, job_id)
    answer, seconds = ask(site, url, job_id, 2, LONGEST_WAIT_SECONDS)
    assert (answer.json()["records"], answer.json()["state"]) == ([], "cancelled")
    assert seconds < LONGEST_WAIT_SECONDS


def test_nobody_listens_any_more(site: Site, url: str) -> None:
    """The server stops looking as soon as the reader has gone."""
    job_id, looks = queue(site), Looks(site)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port))) as connection:
        head = f"GET /api/v1/jobs/{job_id}/events?after=1&wait_seconds=30 HTTP/1.1\r\nHost: x\r\n"
        connection.sendall(f"{head}Authorization: {site.bearer('read')['Authorization']}\r\n\r\n".encode())
        looks.wait_for(4)
        gone_at = time.monotonic()
    looks.wait_for_calm()
    assert time.monotonic() - gone_at < LONGEST_WAIT_SECONDS


def test_a_hundred_readers_keep_nobody_waiting(site: Site, url: str) -> None:
    """They hold no thread and no connection to the database; all of them hear the news."""
    job_id, looks = queue(site), Looks(site)
    with ThreadPoolExecutor(100) as pool:
        readers = [pool.submit(ask, site, url, job_id, 1, LONGEST_WAIT_SECONDS) for _ in range(100)]
        looks.wait_for(300)
        _, seconds = ask(site, url, job_id, 0, 0)
        assert seconds < LONGEST_WAIT_SECONDS
        cancel(site, job_id)
        answers = [reader.result(PATIENCE_SECONDS)[0] for reader in readers]
    assert {answer.json()["state"] for answer in answers} == {"cancelled"}


def test_a_server_that_ends_tells_its_readers(site: Site) -> None:
    """So that they ask again elsewhere or later."""
    job_id, looks = queue(site), Looks(site)
    with ThreadPoolExecutor(1) as pool:
        with listening(site.app()) as url:
            reader = pool.submit(ask, site, url, job_id, 1, LONGEST_WAIT_SECONDS)
            looks.wait_for(4)
        answer, seconds = reader.result(PATIENCE_SECONDS)
    assert (answer.status_code, answer.json()["detail"]) == (503, "the service is shutting down")
    assert seconds < LONGEST_WAIT_SECONDS
