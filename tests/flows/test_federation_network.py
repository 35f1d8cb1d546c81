"""A federation over links that lose, cut, delay, repeat and reorder comes to the same bytes, and asks nobody twice for accepted work."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import pytest

from infra.database import writing
from orchestrator.ledger import sites
from tests.flows.disturbed_link import DisturbedLink, Fate, disturbed
from tests.orchestrator.federating import Server, key_of, now, train
from tests.orchestrator.samples import at, new_sqlite
from tests.orchestrator.serving import listening
from wegeft.client.site import SiteClient, SiteCredentials
from wegeft.contracts.errors import FederationOver
from wegeft.contracts.federation import Offer, SignedReceipt
from wegeft.contracts.signatures import public_key_of
from workers.site_journal import Journal
from workers.site_patience import Around, Patience

SITES, ROUNDS = 3, 2
PATIENCE_SECONDS = 120


@dataclass
class Member:
    """What ``wgctl site run`` does, around training that is the same for the same site and round."""

    index: int
    job_id: str
    folder: Path
    receipts: dict[tuple[int, int], SignedReceipt] = field(default_factory=dict)
    asked_again: list[tuple[int, int]] = field(default_factory=list)
    """Rounds that it was asked for although it had a receipt."""
    error: BaseException | None = None

    def run(self, url: str) -> None:
        """Take part until the federation is over."""
        try:
            server_key = public_key_of(bytes(range(32)))
            who = SiteCredentials(job_id=self.job_id, pseudonym=f"s-{self.index}", server_key=server_key, private_key=key_of(self.index))
            with SiteClient(url, who, now, timeout_seconds=20, patience_seconds=0) as client:
                self._take_part(client)
        except BaseException as error:  # noqa: BLE001 - the test's thread raises it
            self.error = error

    def _take_part(self, client: SiteClient) -> None:
        around = Around(
            clock=now,
            monotonic=time.monotonic,
            sleep=lambda seconds: time.sleep(min(seconds, 0.02)),
            chance=lambda: 0.5,
            tell=lambda _event: None,
        )
        patience = Patience(client, around, timedelta(seconds=PATIENCE_SECONDS))
        while True:
            try:
                offer = patience.call(lambda: client.offer(1))
            except FederationOver:
                return
            if offer is not None:
                self._answer(client, patience, offer)

    def _answer(self, client: SiteClient, patience: Patience, offer: Offer) -> None:
        key = (offer.round, offer.attempt)
        if key in self.receipts:
            self.asked_again.append(key)
            return
        patience.call(lambda: client.fetch_blob(offer.start, Journal(self.folder).start_file(offer.start)))
        signed, content = train(offer, self.index)
        patience.call(lambda: client.store_blob(content))
        self.receipts[key] = patience.call(lambda: client.submit(signed.update))


@dataclass
class Outcome:
    """What a federation came to."""

    results: list[str]
    rounds: list[tuple[int, int, int]]
    """Round, try, accepted updates."""
    members: list[Member]
    fates: Counter[Fate] = field(default_factory=Counter)


def federate(folder: Path, seed: int | None, share: float = 0.5) -> Outcome:
    """Run a federation of three sites, each over a link of its own; with no seed, over none."""
    folder.mkdir()
    server = Server(new_sqlite(folder / "a.db"))
    job_id = server.add(rounds=ROUNDS, min_sites=SITES, grace="100s", deadline="200s")
    with writing(server.engine) as connection:
        for index in range(SITES):
            sites.invite(connection, job_id, f"site-{index}", f"t{index}", (at(0), at(10**9)), is_approval=True)
            sites.enrol(connection, f"t{index}", (f"s-{index}", public_key_of(key_of(index)), 100), at(1))
    thread = server.thread()
    with ExitStack() as stack:
        stack.callback(server.engine.dispose)
        url = stack.enter_context(listening(server.app()))
        port, members, links = int(url.rpartition(":")[2]), [], list[DisturbedLink]()
        for index in range(SITES):
            (folder / f"{index}").mkdir()
            members.append(Member(index, job_id, folder / f"{index}"))
            if seed is not None:
                links.append(stack.enter_context(disturbed(port, 100 * seed + index, share)))
        thread.start()
        stack.callback(thread.close)
        run_all(members, [link.url for link in links] or [url] * SITES)
        tries = [(view.round, view.attempt, view.accepted) for view in server.rounds(job_id)]
        return Outcome(server.results(job_id), tries, members, sum((link.fates for link in links), Counter[Fate]()))


def run_all(members: list[Member], urls: list[str]) -> None:
    """Let every site take part in a thread of its own; raise what one of them met."""
    threads = [threading.Thread(target=member.run, args=(url,), daemon=True) for member, url in zip(members, urls, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(2 * PATIENCE_SECONDS)
        assert not thread.is_alive()
    for member in members:
        if member.error is not None:
            raise member.error


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Outcome:
    outcome = federate(tmp_path_factory.mktemp("quiet") / "federation", None)
    assert len(outcome.results) == ROUNDS
    return outcome


def check(outcome: Outcome, undisturbed: Outcome) -> None:
    assert outcome.results == undisturbed.results
    assert outcome.rounds == [(number, 1, SITES) for number in range(1, ROUNDS + 1)]
    for member in outcome.members:
        assert member.asked_again == []
        assert sorted(member.receipts) == [(number, 1) for number in range(1, ROUNDS + 1)]


def test_disturbed_links_change_no_bit_and_ask_nobody_twice(tmp_path: Path, undisturbed: Outcome) -> None:
    outcome = federate(tmp_path / "federation", seed=1, share=0.6)
    check(outcome, undisturbed)
    assert set(outcome.fates) == set(Fate)


def seeds() -> Iterator[int]:
    """Yield seeds for as long as ``SOAK_SECONDS`` allow."""
    seed, end = int(os.environ.get("SOAK_SEED", "1")), time.monotonic() + float(os.environ.get("SOAK_SECONDS", "600")) / 2
    while time.monotonic() < end:
        seed += 1
        yield seed


@pytest.mark.soak
def test_no_seed_of_disturbances_changes_a_bit(tmp_path: Path, undisturbed: Outcome) -> None:
    for seed in seeds():
        check(federate(tmp_path / f"{seed}", seed, share=0.3 + 0.1 * (seed % 5)), undisturbed)
