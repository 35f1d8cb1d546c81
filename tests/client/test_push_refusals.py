"""Whoever may not publish somewhere hears it before the weights are sent, and why; a push that is let in takes no more requests by it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save
from starlette.testclient import TestClient

from hub import catalog
from hub.catalog.quotas import set_quota
from hub.objects import MemoryStore
from infra.auth import authenticate, create_token
from infra.database import reading, writing
from tests.hub.fault_run import Witness
from tests.hub.hf_clients import sound_files
from tests.hub.serving import NOW, Hub, listening, made_hub
from wegeft.client import Client
from wegeft.client.blobs import ASKED_FROM_BYTES, upload
from wegeft.contracts.adapter import CONFIG_FILE, WEIGHTS_FILE, AdapterName, digest_of
from wegeft.contracts.errors import Forbidden, QuotaExceeded
from wegeft.contracts.quotas import QuotaLimits

SIZES = (ASKED_FROM_BYTES // 2, 2 * ASKED_FROM_BYTES)
"""Of weights that are sent at once, and of some that it is asked about whether they are there."""


@dataclass
class Served:
    """A hub whose every request is noted, with a namespace that is Ada's and an adapter in it."""

    hub: Hub
    witness: Witness
    client: Client

    @property
    def asked(self) -> list[str]:
        """The methods of all requests."""
        return [answer.request.partition(" ")[0] for answer in self.witness.answers]

    def holds(self, folder: Path) -> bool:
        return self.hub.store.has(digest_of((folder / WEIGHTS_FILE).read_bytes())) is not None

    def limit(self, **limits: int) -> None:
        with writing(self.hub.engine) as connection:
            set_quota(connection, "ada", QuotaLimits(**limits))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        with writing(hub.engine) as connection:
            token = create_token(connection, "ada", "write", NOW)[1]
            bob = authenticate(connection, create_token(connection, "bob", "write", NOW)[1], NOW)
            catalog.claim(connection, "bobs", bob, NOW, is_private_by_default=True)
            catalog.claim(connection, "ada", authenticate(connection, token, NOW), NOW, is_private_by_default=True)
        hub.publish("job:1", "ada/one")
        hub.publish("job:2", "bobs/one")
        witness = Witness(hub.app)
        with listening(witness) as url, Client(url, token, patience_seconds=0) as client:  # type: ignore[arg-type]  # any application
            yield Served(hub, witness, client)


def adapter(folder: Path, size: int, seed: int = 1) -> Path:
    """Write an adapter of about so many bytes."""
    name = "base_model.model.model.layers.0.self_attn.q_proj"
    values = np.random.default_rng(seed).standard_normal((4, size // 32), np.float32)
    folder.mkdir()
    (folder / CONFIG_FILE).write_text(json.dumps(json.loads(sound_files()[CONFIG_FILE]) | {"target_modules": ["q_proj"]}))
    (folder / WEIGHTS_FILE).write_bytes(save({f"{name}.lora_A.weight": values, f"{name}.lora_B.weight": np.ascontiguousarray(values.T)}))
    return folder


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["bobs/one", "bobs/new"])
def test_who_may_not_publish_there_sends_no_weights(served: Served, tmp_path: Path, size: int, name: str) -> None:
    """Whether or not there is such an adapter is not told."""
    folder = adapter(tmp_path / "one", size)
    with pytest.raises(Forbidden, match="ask who owns bobs"):
        served.client.push(folder, name)
    assert not served.holds(folder)
    assert served.asked == (["PUT"] if size == SIZES[0] else ["HEAD", "POST"])


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("limits", [{"versions": 1}, {"bytes": 100}, {"bytes": 20_000}])
def test_where_there_is_no_room_no_weights_are_sent(served: Served, tmp_path: Path, size: int, limits: dict[str, int]) -> None:
    served.limit(**limits)
    folder = adapter(tmp_path / "one", size)
    with pytest.raises(QuotaExceeded, match="no room"):
        served.client.push(folder, "ada/one")
    assert not served.holds(folder)
    assert served.asked == (["PUT"] if size == SIZES[0] else ["HEAD", "POST"])


def test_a_push_that_is_let_in_takes_two_requests_and_again_where_there_is_no_room(served: Served, tmp_path: Path) -> None:
    folder = adapter(tmp_path / "one", SIZES[0])
    made = served.client.push(folder, "ada/one")
    assert served.asked == ["PUT", "POST"]
    served.limit(versions=2, bytes=1)
    assert served.client.push(folder, "ada/one").ref == made.ref == "ada/one@2"


def test_what_is_sent_for_an_adapter_counts_in_its_namespace(served: Served, tmp_path: Path) -> None:
    upload(served.client._transport, "/blobs", bytes(1000), adapter=AdapterName.parse("Ada/new"))
    with reading(served.hub.engine) as connection:
        assert catalog.count_staged(connection, "ada", NOW) == 1000


@pytest.mark.parametrize("name", ["", "ada", "ada/one/two", "../one", "ada/" + "x" * 300])
def test_what_is_no_adapter_is_refused(served: Served, name: str) -> None:
    with TestClient(served.hub.app, headers=served.hub.bearer("write")) as client:
        address = f"/api/v1/blobs/{digest_of(b'x')}"
        assert client.put(address, params={"adapter": name}, content=b"x").status_code == 422
        assert client.head(address, params={"adapter": name}).status_code == 422
        assert client.head(address, params={"adapter": "ada/one", "size": -1}).status_code == 422


def test_who_reads_only_sends_nothing(served: Served) -> None:
    """A token that may write elsewhere, and a role that may write nowhere."""
    with TestClient(served.hub.app) as client:
        for role in ("read", "write"):
            answer = client.put(f"/api/v1/blobs/{digest_of(b'x')}?adapter=ada/one", content=b"x", headers=served.hub.bearer(role))
            assert answer.status_code == 403
