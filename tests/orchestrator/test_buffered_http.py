"""A buffered federation over real HTTP: sites in threads of their own, of which a slow one holds nobody up."""

from __future__ import annotations

import threading
import time

import pytest

from tests.orchestrator.federating import FakeSite, train
from tests.orchestrator.federation_world import World
from wegeft.contracts.federation import Offer

ROUNDS = 6


@pytest.fixture
def world(any_world: World) -> World:
    """On SQLite and on PostgreSQL, where several requests write at once."""
    return any_world


def take(site: FakeSite) -> Offer | None:
    """Ask until there is an offer; None once the federation is over."""
    while True:
        answer = site.call("GET", "offer?wait=5")
        if answer.status_code == 410:
            return None
        if answer.status_code == 200:
            return Offer.model_validate_json(answer.content)


def send(site: FakeSite, offer: Offer) -> int:
    signed, content = train(offer, site.index)
    stored = site.put(content).status_code
    return site.submit(signed).status_code if stored in (200, 201) else stored


def work(site: FakeSite, codes: list[int]) -> None:
    while (offer := take(site)) is not None:
        codes.append(send(site, offer))


def test_fast_sites_make_versions_while_a_slow_one_trains(world: World) -> None:
    mode = {"name": "buffered", "buffer_size": 2, "max_staleness": ROUNDS}
    job_id, (slow, *fast) = world.begin(0, 1, 2, 3, rounds=ROUNDS, min_sites=4, mode=mode)
    codes: list[int] = []
    offer = take(slow)
    assert offer is not None
    threads = [threading.Thread(target=work, args=(site, codes), daemon=True) for site in fast[:2]]
    for thread in threads:
        thread.start()
    while world.look(job_id).rounds_committed < ROUNDS - 2:
        time.sleep(0.02)
    # Four versions later, while another one joins in: the slow site's bytes and its update are still taken.
    assert send(slow, offer) == 201
    threads.append(threading.Thread(target=work, args=(fast[2], codes), daemon=True))
    threads[-1].start()
    world.wait_for(job_id, "succeeded")
    for thread in threads:
        thread.join()
    assert set(codes) <= {201, 404, 409, 410}
    records = [view.record for view in world.server.rounds(job_id) if view.record is not None]
    members = [member for record in records for member in record.members]
    assert [record.round for record in records] == list(range(1, ROUNDS + 1))
    assert sorted(member.position or 0 for member in members) == list(range(1, 2 * ROUNDS + 1))
    stale = [member for member in members if member.site == slow.pseudonym]
    assert [member.staleness is not None and member.staleness >= ROUNDS - 3 for member in stale] == [True]
    assert all(len({member.site for member in record.members}) == 2 for record in records)


def test_too_stale_update_is_a_409_with_its_code(world: World) -> None:
    mode = {"name": "buffered", "buffer_size": 1, "max_staleness": 0}
    job_id, (slow, fast) = world.begin(0, 1, rounds=3, min_sites=2, mode=mode)
    old, offer = take(slow), take(fast)
    assert old is not None
    assert offer is not None
    assert send(fast, offer) == 201
    while world.look(job_id).rounds_committed < 1:
        time.sleep(0.02)
    signed, content = train(old, slow.index)
    assert slow.put(content).status_code == 201
    for _ in range(2):
        answer = slow.submit(signed)
        assert (answer.status_code, answer.json()["code"]) == (409, "too_stale")
    newest = take(slow)
    assert newest is not None
    assert newest.round == 2
    assert send(slow, newest) == 201
