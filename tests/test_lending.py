"""Lent applications: each borrower's own, one borrower at a time, and again for the next."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from hub.objects import MemoryStore
from hub.services import HubServices
from tests.hub.serving import Hub, hub_app, made_hub
from tests.lending import StandIn, lend


def count_adapters(hub: Hub) -> int:
    with TestClient(hub.app, headers=hub.bearer("read")) as client:
        return len(client.get("/api/v1/adapters").json()["adapters"])


def test_two_borrowers_at_once_have_two_applications(tmp_path: Path) -> None:
    first_url, second_url = (f"sqlite:///{tmp_path / name}" for name in ("first.db", "second.db"))
    with made_hub(first_url, MemoryStore()) as first, made_hub(second_url, MemoryStore()) as second:
        first.publish()
        assert (count_adapters(first), count_adapters(second)) == (1, 0)
        assert first.app.router is not second.app.router


def test_the_next_borrower_gets_the_application_and_nothing_of_the_one_before(tmp_path: Path) -> None:
    with made_hub(f"sqlite:///{tmp_path / 'first.db'}", MemoryStore()) as hub:
        hub.publish()
        before, token = hub.app.router, hub.bearer("read")
        assert count_adapters(hub) == 1
    del hub
    gc.collect()
    with made_hub(f"sqlite:///{tmp_path / 'second.db'}", MemoryStore()) as hub:
        assert hub.app.router is before
        assert count_adapters(hub) == 0
        assert TestClient(hub.app).get("/api/v1/adapters", headers=token).status_code == 401


def test_other_services_have_another_application(tmp_path: Path) -> None:
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub:
        before = hub.app.router
    del hub
    gc.collect()
    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore(), direct_from_bytes=1) as hub:
        assert hub.app.router is not before


def test_an_application_that_reads_a_tests_part_while_it_is_built_is_refused(tmp_path: Path) -> None:
    def reads_early(services: HubServices) -> object:
        services.engine.connect()
        return hub_app(services)

    with made_hub(f"sqlite:///{tmp_path / 'hub.db'}", MemoryStore()) as hub, pytest.raises(AttributeError, match="connect"):
        lend(reads_early, hub.services)  # type: ignore[arg-type]


def test_who_stands_in_is_of_the_kind_of_whom_it_stands_for() -> None:
    stand_in = StandIn()
    assert not isinstance(stand_in, MemoryStore)
    stand_in.take_the_place_of(MemoryStore())
    assert isinstance(stand_in, MemoryStore)


def test_what_is_set_on_a_part_goes_to_no_other_borrower() -> None:
    stand_in, first, second = StandIn(), MemoryStore(), MemoryStore()
    stand_in.take_the_place_of(first)
    stand_in.marked = True
    assert first.marked is True  # type: ignore[attr-defined]
    stand_in.take_the_place_of(second)
    assert not hasattr(stand_in, "marked")
