"""SIGKILL of the hub between a blob and its row, and between a commit and its answer: nothing twice, nothing missing, no orphan left."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from hub.collection import Collector
from hub.folder_store import FolderStore
from tests.hub.fault_run import abandon_uploads, check_published, make_pushes, needed_digests, push_all
from tests.hub.serving import made_hub
from tests.servers import free_ports

STEPS = ("stored", "answering")


@dataclass
class Hubs:
    """One hub after the other at the same address; each but the last dies at a step."""

    port: int
    database: str
    folder: Path
    deaths: list[tuple[str, int]]
    """Where the next ones die."""
    died: int = 0
    _is_over: bool = False
    _process: subprocess.Popen[bytes] | None = None

    def work(self) -> None:
        """Start a hub whenever there is none."""
        while not self._is_over:
            step, count = self.deaths.pop(0) if self.deaths else ("", 0)
            command = [sys.executable, "-m", "tests.hub.dying_hub", str(self.port), self.database, str(self.folder), step, str(count)]
            self._process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
            self.died += self._process.wait() == -9 and not self._is_over

    def close(self) -> None:
        """End the hub that runs."""
        self._is_over = True
        if self._process is not None:
            self._process.kill()


@contextmanager
def dying_hubs(folder: Path, database: str, deaths: list[tuple[str, int]]) -> Iterator[Hubs]:
    hubs = Hubs(free_ports(1)[0], database, folder, list(deaths))
    thread = threading.Thread(target=hubs.work)
    thread.start()
    try:
        yield hubs
    finally:
        hubs.close()
        thread.join(30)


def run_through_kills(folder: Path, seed: int, deaths: list[tuple[str, int]], sizes: tuple[int, int]) -> None:
    """Publish while hubs die, and check what is there afterwards."""
    folder.mkdir()
    database, store = f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs")
    with made_hub(database, store) as hub:
        with dying_hubs(folder / "blobs", database, deaths) as hubs:
            url = f"http://127.0.0.1:{hubs.port}"
            made = push_all(url, hub.tokens["write"], make_pushes(folder, *sizes))
            abandon_uploads(url, hub.tokens["write"], seed, 2)
            check_published(url, hub.tokens["admin"], made, store)
        assert hubs.died == len(deaths), "not every hub has met its death"
        collector, later = Collector(engine=hub.engine, store=store), datetime.now(UTC) + timedelta(days=30)
        assert {f"sha256:{path.name}" for path in (folder / "blobs").rglob("?" * 64)} > needed_digests(made)
        while not collector.collect(later, 20).is_done:
            pass
        assert {f"sha256:{path.name}" for path in (folder / "blobs").rglob("?" * 64)} == needed_digests(made)


def test_publishers_come_through_a_kill_of_the_hub(tmp_path: Path) -> None:
    run_through_kills(tmp_path / "run", 1, [("stored", 2)], sizes=(2, 1))


@pytest.mark.soak
def test_a_hundred_kills(tmp_path: Path) -> None:
    """Fewer where ``SOAK_SECONDS`` are over first; ``-rP`` shows how many they were, and another seed goes on with others."""
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600"))
    chance = random.Random(seed)
    for number in range(25):
        deaths = [(chance.choice(STEPS), chance.randint(1, 3)) for _ in range(4)]
        run_through_kills(tmp_path / str(number), seed * 1000 + number, deaths, sizes=(4, 4))
        print(f"{4 * (number + 1)} kills")
        if time.monotonic() > end:
            break
