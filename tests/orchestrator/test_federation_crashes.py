"""A server that dies at any step of a round: the next one goes on from SQL and the store, and comes to the same bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, event

from hub import catalog
from hub.objects import MemoryStore, Readable, read_verified
from infra.database import reading, writing
from orchestrator.aggregate import FederationState
from orchestrator.federation_files import read_state
from orchestrator.federation_round import closing_of, recompute
from orchestrator.federations import Federations
from orchestrator.jobs import Limits
from orchestrator.ledger import federations, rounds, sites
from orchestrator.ledger.rounds import RoundKey
from orchestrator.round_steps import federation_of, sent_of
from orchestrator.update_intake import Caller, UpdateIntake
from tests.orchestrator.federating import SERVER_KEY, Server, key_of, train
from tests.orchestrator.samples import at
from wegeft.contracts.adapter import AdapterName, digest_of
from wegeft.contracts.errors import StaleRound
from wegeft.contracts.federation import SiteState
from wegeft.contracts.signatures import public_key_of
from wegeft.contracts.training import JobState


class Killed(BaseException):
    """The server's process is gone."""


class Fate:
    """Kills whoever drives federations at a numbered step: before a blob is read or written, before and after a commit."""

    def __init__(self) -> None:
        self.steps, self.dies_at = 0, -1
        self.is_driving = False

    def step(self) -> None:
        if self.is_driving:
            self.steps += 1
            if self.steps == self.dies_at:
                raise Killed


class MortalStore(MemoryStore):
    """A store whose user may die before it does anything."""

    def __init__(self, fate: Fate) -> None:
        super().__init__()
        self._fate = fate

    def put(self, digest: str, source: Readable, size: int | None = None) -> int:
        self._fate.step()
        return super().put(digest, source, size)

    def get(self, digest: str) -> Iterator[bytes]:
        self._fate.step()
        return super().get(digest)


class Story:
    """A federation of scripted sites on a clock of its own, driven by servers that may die."""

    def __init__(self, engine: Engine, store: type[MortalStore] = MortalStore, **section: Any) -> None:
        self.fate, self.time = Fate(), 0.0
        event.listen(engine, "commit", self._on_commit)
        self.server = Server(engine, store=store(self.fate), limits=Limits(lease_seconds=5), clock=self.clock)
        self.job_id = self.server.add(**section)
        self.driver: Federations = self.server.driver()
        self.intake = UpdateIntake(self.server.services, SERVER_KEY)
        self.deaths = 0

    def _on_commit(self, _connection: Connection) -> None:
        self.fate.step()

    def clock(self) -> datetime:
        return at(self.time)

    def join(self, *indices: int) -> None:
        with writing(self.server.engine) as connection:
            for index in indices:
                sites.invite(connection, self.job_id, f"site-{index}", f"t{index}", (at(0), at(99)), is_approval=True)
                sites.enrol(connection, f"t{index}", (f"s-{index}", public_key_of(key_of(index)), 100), at(1))

    def tick(self) -> None:
        """Drive; where the server dies, another one takes over once the lease has run out."""
        self.fate.is_driving = True
        try:
            self.driver.tick(self.clock())
        except Killed:
            self.deaths += 1
            self.time += 6
            self.driver = self.server.driver()
        finally:
            self.fate.is_driving = False

    def answer(self, index: int, **options: Any) -> None:
        """Let a site do what it is asked, if anything."""
        with reading(self.server.engine) as connection:
            offer = rounds.find_open_offer(connection, self.job_id, f"s-{index}")
            site = sites.find_site(connection, f"s-{index}")
        if offer is None:
            return
        signed, content = train(offer, index, **options)
        self.server.services.keep_for_rounds(self.job_id, content)
        key = RoundKey(job_id=self.job_id, number=offer.round, attempt=offer.attempt)
        with writing(self.server.engine) as connection:
            rounds.note_blob(connection, key, f"s-{index}", digest_of(content), 8)
        try:
            self.intake.take_update(Caller(job_id=self.job_id, site=site), signed)
        except StaleRound:
            return

    def run(self, order: tuple[int, ...]) -> None:
        """Go on until the job is over."""
        for _ in range(100):
            self.time += 0.1
            self.tick()
            if self.server.view(self.job_id).state.is_final:
                return
            for index in order:
                self.time += 0.1
                self.answer(index)
        raise AssertionError(self.server.view(self.job_id))


def tell(engine: Engine, order: tuple[int, ...] = (0, 1, 2), dies_at: int = -1, **section: Any) -> Story:
    """A whole federation of three sites, which all answer."""
    story = Story(engine, **{"rounds": 2, "min_sites": 3, **section})
    story.join(*order)
    story.fate.dies_at = dies_at
    story.run(order)
    return story


@pytest.mark.parametrize("stride", [9, pytest.param(1, marks=pytest.mark.soak)])
def test_a_server_may_die_before_any_step(engines: Iterator[Engine], stride: int) -> None:
    quiet = tell(next(engines))
    expected, steps = quiet.server.results(quiet.job_id), quiet.fate.steps
    assert (len(expected), quiet.deaths) == (2, 0)
    assert steps > 20
    for dies_at in range(1, steps + 1, stride):
        story = tell(next(engines), dies_at=dies_at)
        assert story.server.view(story.job_id).state is JobState.SUCCEEDED
        assert (story.deaths, story.server.results(story.job_id)) == (1, expected), f"died at step {dies_at}"
        with reading(story.server.engine) as connection:
            versions = catalog.list_versions(connection, AdapterName.parse("local/sums"), 10, None).versions
        assert [version.version for version in versions] == [2, 1], f"died at step {dies_at}"
        tries = [(view.round, view.attempt) for view in story.server.rounds(story.job_id)]
        assert tries == [(1, 1), (2, 1)], f"died at step {dies_at}"


@pytest.mark.parametrize("rule", ["generator_exact", "factor_mean"])
def test_the_order_of_arrival_changes_nothing(engines: Iterator[Engine], rule: str) -> None:
    told = [tell(next(engines), order, rule=rule) for order in [(0, 1, 2), (2, 0, 1), (1, 2, 0)]]
    results = {tuple(story.server.results(story.job_id)) for story in told}
    assert len(results) == 1
    assert len(set(results.pop())) == 2


def test_a_record_is_enough_to_compute_a_round_again(engine: Engine) -> None:
    story = tell(engine, server_optimizer="fedadam")
    store, views = story.server.store, story.server.rounds(story.job_id)
    assert len(views) == 2
    for view in views:
        assert view.record is not None
        with reading(engine) as connection:
            job = federations.find_federated(connection, story.job_id)
            federation = federation_of(job, sites.list_sites(connection, story.job_id))
            kept = rounds.load_round(connection, RoundKey(job_id=story.job_id, number=view.round), closing_of(job.section))
        before: FederationState = read_state(read_verified(store, view.record.start, 1 << 30))
        sent = sent_of(kept, before)
        assert [(one.update.digest, one.update.tensors) for one in sent] == [(one.update, one.tensors) for one in view.record.members]
        assert recompute(federation, view.record, sent, lambda digest: read_verified(store, digest, 1 << 30)) == view.record.result
        assert recompute(replace(federation, seed=8), view.record, sent[1:], lambda digest: read_verified(store, digest, 1 << 30)) != (
            view.record.result
        )


def test_two_servers_never_drive_one_federation(engine: Engine) -> None:
    story = Story(engine)
    story.join(0, 1)
    other = story.server.driver()
    story.tick()
    for index in (0, 1):
        story.answer(index)
    other.tick(story.clock())
    assert [view.state for view in story.server.rounds(story.job_id)] == ["collecting"]
    story.time = 6  # the first one's lease has run out, unheard
    other.tick(story.clock())
    assert story.server.rounds(story.job_id)[0].state == "committed"
    before = story.server.results(story.job_id)
    story.driver.tick(story.clock())
    assert story.server.results(story.job_id) == before
    other.close(story.clock())
    story.driver.tick(story.clock())
    for index in (0, 1):
        story.answer(index)
    story.driver.tick(story.clock())
    assert story.server.view(story.job_id).state is JobState.SUCCEEDED


def test_a_round_waits_for_stragglers_as_long_as_it_says(engine: Engine) -> None:
    story = Story(engine, rounds=1, min_sites=2, grace="10s", deadline="60s")
    story.join(0, 1, 2)
    story.tick()
    story.answer(0)
    story.time = 30
    story.answer(1)
    for seconds in (31.0, 39.9):
        story.time = seconds
        story.tick()
        assert story.server.view(story.job_id).state is JobState.RUNNING
    story.time = 41
    story.tick()
    assert story.server.view(story.job_id).state is JobState.SUCCEEDED
    record = story.server.rounds(story.job_id)[0].record
    assert record is not None
    assert [(one.site, one.reason) for one in record.left_out] == [("s-2", "no_answer")]
    assert record.closed_at is not None
    assert abs(record.closed_at - at(40)) < timedelta(seconds=1)


def test_a_federation_ends_when_it_takes_too_long_or_loses_its_sites(engine: Engine) -> None:
    story = Story(engine, rounds=1, deadline="10s", max_failed_rounds=0)
    assert story.server.view(story.job_id).waiting_for == "the scheduler"
    story.join(0)
    story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, view.waiting_for) == (JobState.QUEUED, "sites: 1 of at least 2 are approved")
    story.join(1)
    story.tick()
    assert story.server.view(story.job_id).waiting_for is None
    with writing(engine) as connection:
        sites.move_site(connection, "s-1", SiteState.REVOKED)
    story.answer(0)
    story.time += 1
    story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, view.error.code if view.error else None) == (JobState.FAILED, "rounds_failed")
    assert view.waiting_for is None


def test_a_federation_that_runs_too_long_fails_and_its_round_with_it(engine: Engine) -> None:
    story = Story(engine, job={"max_duration": "1m"}, deadline="1h")
    story.join(0, 1)
    story.tick()
    story.time = 59
    story.tick()
    assert story.server.view(story.job_id).state is JobState.RUNNING
    story.time = 61
    story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, view.error.code if view.error else None) == (JobState.FAILED, "duration_exceeded")
    assert [one.record.failure if one.record else None for one in story.server.rounds(story.job_id)] == ["cancelled"]


def test_a_draw_that_is_too_small_fails_the_try_at_once(engine: Engine) -> None:
    story = Story(engine, sampling={"name": "poisson", "rate": 1e-9}, max_failed_rounds=2)
    story.join(0, 1, 2)
    story.tick()
    tries = story.server.rounds(story.job_id)
    assert [(one.attempt, one.record.failure if one.record else None) for one in tries] == [(n, "not_enough_sites") for n in (1, 2, 3)]
    assert story.server.view(story.job_id).state is JobState.FAILED


def test_a_federation_that_cannot_go_on_says_so_and_stops_no_other(engine: Engine) -> None:
    story = Story(engine, rounds=1)
    config = story.server.spec().model_dump()["federation"]["start"]["config"]
    broken = story.server.add(entropy=0, start={"config": config, "weights": f"sha256:{'0' * 64}"})
    story.join(0, 1)
    with writing(engine) as connection:
        for index in (5, 6):
            sites.invite(connection, broken, f"site-{index}", f"t{index}", (at(0), at(99)), is_approval=True)
            sites.enrol(connection, f"t{index}", (f"s-{index}", public_key_of(key_of(index)), 100), at(1))
    story.tick()
    view = story.server.view(broken)
    assert view.state is JobState.RUNNING
    assert str(view.waiting_for).startswith("invalid_job: 1 problem with the adapter to start from")
    story.run((0, 1))
    assert story.server.view(story.job_id).state is JobState.SUCCEEDED
