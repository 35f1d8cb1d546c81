"""Publishers of one adapter behind a network that loses, cuts, repeats and reorders: each push makes one version, whoever publishes too."""

from __future__ import annotations

import json
import os
import time
from base64 import b64encode
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from hub.objects import MemoryStore
from tests.flows.disturbed_link import disturbed
from tests.hub.fault_run import Witness, make_pushes, push_all
from tests.hub.hf_clients import sound_files
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
        assert sum(link.fates.values()) > len(made) / 2  # of two requests a push, half are disturbed
        for push, view in made:
            assert {entry.digest for entry in view.manifest.files} == push.digests
        witness.check()


def test_each_push_to_one_adapter_is_one_version(tmp_path: Path) -> None:
    run_through_network(tmp_path / "run", seed=3, sizes=(3, 2))


def test_a_commit_is_known_by_its_key(tmp_path: Path) -> None:
    """After others have published, too; under another key, or from somebody else, the same files are a new version."""
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub, TestClient(hub.app) as http:
        assert http.post("/api/repos/create", json={"name": "shared", "organization": "demo"}, headers=hub.bearer("write")).is_success

        def commit(fill: float, key: str | None, role: str = "write") -> str:
            header: dict[str, Any] = {"key": "header", "value": {"summary": "a push"}}
            files = [
                {"key": "file", "value": {"path": path, "content": b64encode(content).decode(), "encoding": "base64"}}
                for path, content in sound_files(fill).items()
            ]
            headers = hub.bearer(role) | ({} if key is None else {"Idempotency-Key": key})
            content = "".join(f"{json.dumps(line)}\n" for line in [header, *files])
            answer = http.post(f"/api/models/{NAME}/commit/main", content=content, headers=headers)
            assert answer.status_code == (400 if key == "a b" else 200)
            return str(answer.json().get("commitOid"))

        first, other = commit(1, "one"), commit(2, "two")
        assert [commit(1, "one"), commit(2, "two"), commit(2, "three")] == [first, other, other]
        made = [commit(1, "three"), commit(2, None), commit(1, "one", "admin"), commit(2, "one")]
        assert len({first, other, *made}) == 2 + len(made)
        assert commit(1, "a b") == "None"


@pytest.mark.soak
def test_many_runs_behind_a_bad_network(tmp_path: Path) -> None:
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 4
    for number in range(100):
        run_through_network(tmp_path / str(number), seed * 1000 + number, sizes=(6, 4))
        if time.monotonic() > end:
            break
