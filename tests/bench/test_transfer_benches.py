"""The benches of pulls and of publishing, small; and the round trips that they count, which do not depend on the machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from bench._adapter_files import write_adapter
from bench._counting_proxy import counting
from bench._hub_process import HubProcess
from bench.publish import run_contest
from bench.pull import MEGABYTE, NAME
from hub.folder_store import FolderStore
from hub.signing import Signer
from tests.hub.serving import listening, made_hub
from wegeft.client import Client
from wegeft.contracts.adapter import WEIGHTS_FILE
from wegeft.contracts.signing_keys import SigningKey

MOST_ROUND_TRIPS = 1


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    folder = tmp_path_factory.mktemp("hub")
    with (
        made_hub(f"sqlite:///{folder / 'hub.db'}", FolderStore(folder / "blobs"), Signer(key=SigningKey(bytes(32)))) as made,
        listening(made.app) as url,
    ):
        yield HubProcess(url, made.tokens["write"], 0)


def test_a_megabyte_is_pulled_in_one_round_trip_and_verified(hub: HubProcess, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "adapter", MEGABYTE)
    with Client(hub.url, hub.token) as client:
        client.push(folder, NAME)
    with counting(urlsplit(hub.url).port or 0) as front, Client(front.url, hub.token) as client:
        client.download(NAME, tmp_path / "first")
        assert front.round_trips <= MOST_ROUND_TRIPS
        seen = front.round_trips
        client.download(NAME, tmp_path / "second")
        assert front.round_trips - seen <= MOST_ROUND_TRIPS
    assert (tmp_path / "second" / WEIGHTS_FILE).read_bytes() == (folder / WEIGHTS_FILE).read_bytes()


def test_of_writers_at_once_one_wins_for_each_parent_and_none_is_lost(
    hub: HubProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_contest(hub, tmp_path, 4)
    shown = capsys.readouterr().out
    assert "4 parents, one winner each" in shown
    assert "no version is lost" in shown
