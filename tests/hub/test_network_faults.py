"""Publishers of one adapter behind a network that loses, cuts, repeats and reorders: each push makes one version, whoever publishes too."""

from __future__ import annotations

import os
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from hub.objects import MemoryStore
from tests.flows.disturbed_link import disturbed
from tests.hub.fault_run import Witness, make_pushes, push_all
from tests.hub.serving import listening, made_hub
from wegeft.client import Client

NAME = "demo/shared"


def run_through_network(folder: Path, seed: int, sizes: tuple[int, int]) -> None:
    """Publish to one adapter from several places, and check what is there afterwards."""
    folder.mkdir()
    pushes = make_pushes(folder, *sizes, adapter=NAME)
    with made_hub(f"sqlite:///{folder / 'hub.db'}", MemoryStore()) as hub:
        witness = Witness(hub.app)
        with listening(witness) as url, disturbed(urlsplit(url).port or 0, seed) as link:
            made = push_all(link.url, hub.tokens["write"], pushes)
            time.sleep(0.1)  # for what the link still holds back
            with Client(url, hub.tokens["read"]) as client:
                there = client.versions(NAME)
        assert {view.ref for view in there} == {view.ref for _, view in made}
        assert len(there) == len(made) == sizes[0] * sizes[1]
        assert sum(link.fates.values()) > len(made)
        for push, view in made:
            assert {entry.digest for entry in view.manifest.files} == push.digests
        witness.check()


def test_each_push_to_one_adapter_is_one_version(tmp_path: Path) -> None:
    run_through_network(tmp_path / "run", seed=3, sizes=(4, 2))


@pytest.mark.soak
def test_many_runs_behind_a_bad_network(tmp_path: Path) -> None:
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 4
    for number in range(100):
        run_through_network(tmp_path / str(number), seed * 1000 + number, sizes=(6, 4))
        if time.monotonic() > end:
            break
