"""Every door of the service that answers with files takes one of its account's places for downloads, and waits where all are taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx2
import pytest

from hub.signing import Signer
from infra.auth import create_token
from infra.database import writing
from tests.http_clients import patient_client
from tests.hub import format_files as made
from tests.hub.fault_run import service_app
from tests.hub.serving import NOW, listening, made_hub
from tests.hub.test_store_shares import HoldingStore
from wegeft.contracts.adapter import CONFIG_FILE, digest_of
from wegeft.contracts.signing_keys import SigningKey

MOST = 2
VERSION = "/api/v1/adapters/demo/x/versions/1"
DOORS = (
    f"{VERSION}/pull",
    f"{VERSION}/files/{CONFIG_FILE}",
    f"{VERSION}/formats/lora/float32/files/{CONFIG_FILE}",
    f"/demo/x/resolve/main/{CONFIG_FILE}",
)
LONG_ENOUGH_TO_COME_SECONDS = 0.3


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HoldingStore, httpx2.Client, list[dict[str, str]]]]:
    """A store, a client of its hub, and headers of one account by two tokens, and of another."""
    folder: Path = tmp_path_factory.mktemp("hub")
    store = HoldingStore()
    with made_hub(f"sqlite:///{folder / 'hub.db'}", store, Signer(key=SigningKey(bytes(32)))) as hub:
        with writing(hub.engine) as connection:
            tokens = [create_token(connection, name, "write", NOW)[1] for name in ("Ada", "ada", "bob")]
        # What was read lately is read again, so that it is seen who comes to the store.
        app = service_app(hub, downloads_at_once=MOST, recent_bytes=0)
        with listening(app) as url, patient_client(base_url=url) as http:
            headers = [{"Authorization": f"Bearer {token}"} for token in tokens]
            files = made.lora(made.factors(made.publish(hub)))
            for content in files.values():
                http.put(f"/api/v1/blobs/{digest_of(content)}", content=content, headers=headers[0])
            attached = http.put(f"{VERSION}/formats/lora/float32", json=made.attachment(files), headers=headers[0])
            assert attached.status_code == 200
            yield store, http, headers


@pytest.mark.parametrize("door", DOORS)
def test_a_door_takes_a_place(served: tuple[HoldingStore, httpx2.Client, list[dict[str, str]]], door: str) -> None:
    store, http, headers = served
    store.free.clear()
    store.waiting = 0
    with ThreadPoolExecutor(2 * MOST + 1) as readers:
        asked = [readers.submit(http.get, door, headers=headers[number % 2]) for number in range(2 * MOST)]
        wait_for(store, MOST)
        time.sleep(LONG_ENOUGH_TO_COME_SECONDS)
        assert store.waiting == MOST, "the next ones of an account wait, whichever token they have"
        other = readers.submit(http.get, door, headers=headers[2])
        wait_for(store, MOST + 1)
        store.free.set()
        assert {answer.result(60).status_code for answer in (*asked, other)} == {200}


def wait_for(store: HoldingStore, waiting: int) -> None:
    end = time.monotonic() + 30
    while store.waiting < waiting:
        assert time.monotonic() < end, "not so many came to the store"
        time.sleep(0.01)
