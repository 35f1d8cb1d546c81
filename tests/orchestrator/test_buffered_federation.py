"""A buffered federation from offers to versions: stale updates count less, too stale ones are refused, and no death changes a bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Engine

from hub.objects import read_verified
from infra.database import reading, writing
from orchestrator.federation_files import read_state
from orchestrator.federation_round import closing_of, recompute
from orchestrator.ledger import buffers, federations, rounds, sites
from orchestrator.ledger.rounds import RoundKey
from orchestrator.rollbacks import roll_back
from orchestrator.round_steps import federation_of, sent_from_buffer
from orchestrator.update_intake import Caller
from tests.orchestrator.federating import train
from tests.orchestrator.test_federation_crashes import Story
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import Conflict, FederationOver, NotFound, StaleRound, TooStale
from wegeft.contracts.federation import Decline, Offer, ReasonCode, RoundRecord, SignedReceipt, SiteState
from wegeft.contracts.rollback import RollbackRequest
from wegeft.contracts.training import JobState

MODE = {"name": "buffered", "buffer_size": 2, "max_staleness": 2}


class BufferedStory(Story):
    """Sites that take offers and answer them when the script says so."""

    def __init__(self, engine: Engine, **section: Any) -> None:
        super().__init__(engine, **{"rounds": 4, "min_sites": 3, "mode": MODE, **section})

    def take(self, index: int) -> Offer | None:
        with reading(self.server.engine) as connection:
            return buffers.find_open_offer(connection, self.job_id, f"s-{index}")

    def must_take(self, index: int) -> Offer:
        offer = self.take(index)
        assert offer is not None
        return offer

    def send(self, index: int, offer: Offer) -> SignedReceipt:
        with reading(self.server.engine) as connection:
            site = sites.find_site(connection, f"s-{index}")
            place = buffers.find_unanswered_offer(connection, self.job_id, f"s-{index}") or offer
        signed, content = train(offer, index)
        self.server.services.keep_for_rounds(self.job_id, content)
        with writing(self.server.engine) as connection:
            key = RoundKey(job_id=self.job_id, number=place.round, attempt=place.attempt)
            rounds.note_blob(connection, key, f"s-{index}", digest_of(content), 8)
        return self.intake.take_update(Caller(job_id=self.job_id, site=site), signed)

    def advance(self, number: int) -> None:
        """Drive until round ``number`` collects, or the job is over; every look is a moment later."""
        for _ in range(30):
            self.time += 0.01
            self.tick()
            views = self.server.rounds(self.job_id)
            if self.server.view(self.job_id).state.is_final or (views and (views[-1].round, views[-1].state) == (number, "collecting")):
                return
        raise AssertionError(views)

    def answer(self, *indices: int) -> None:
        """Send what these sites make of what they are asked, in this order."""
        for index in indices:
            self.send(index, self.must_take(index))

    def record(self, number: int) -> RoundRecord:
        record = next(view.record for view in self.server.rounds(self.job_id) if view.round == number)
        assert record is not None
        return record


def begin(engine: Engine, **section: Any) -> BufferedStory:
    """Three sites, and a first version that waits for two of them."""
    story = BufferedStory(engine, **section)
    story.join(0, 1, 2)
    story.advance(1)
    return story


def tell(engine: Engine, dies_at: int = -1, **section: Any) -> BufferedStory:
    """Three sites, of which the third is slow: what it makes of version 0 is in version 3, and of version 2 in version 4."""
    story = BufferedStory(engine, **section)
    story.join(0, 1, 2)
    story.fate.dies_at = dies_at
    story.advance(1)
    slow = story.must_take(2)
    for number in (1, 2):
        story.answer(0, 1)
        story.advance(number + 1)
    story.send(1, story.must_take(1))
    story.send(2, slow)
    story.advance(4)
    story.send(2, story.must_take(2))
    story.send(0, story.must_take(0))
    story.advance(5)
    return story


@pytest.mark.parametrize("rule", ["generator_exact", {"name": "factor_mean", "align": False}])
def test_slow_site_holds_nobody_up_and_its_work_counts(engine: Engine, rule: object) -> None:
    story = tell(engine, rule=rule)
    assert story.server.view(story.job_id).state is JobState.SUCCEEDED
    found = [{one.site: (one.staleness, one.position) for one in story.record(number).members} for number in (1, 2, 3, 4)]
    assert found == [
        {"s-0": (0, 1), "s-1": (0, 2)},
        {"s-0": (0, 3), "s-1": (0, 4)},
        {"s-1": (0, 5), "s-2": (2, 6)},
        {"s-0": (0, 8), "s-2": (0, 7)},
    ]
    third = {one.site: one for one in story.record(3).members}
    assert third["s-2"].weight == pytest.approx(12 / 23 / 3**0.5)
    assert third["s-1"].weight == pytest.approx(11 / 23)
    assert (third["s-1"].start, third["s-2"].start) == (None, story.record(1).start)
    assert {one.site: one.reason.value for one in story.record(3).left_out} == {"s-0": "no_answer"}


@pytest.fixture
def sqlite(engines: Iterator[Engine]) -> Engine:
    return next(engines)


@pytest.mark.parametrize("stride", [61, pytest.param(1, marks=pytest.mark.soak)])
def test_a_server_may_die_before_any_step_of_a_buffered_federation(engines: Iterator[Engine], stride: int) -> None:
    quiet = tell(next(engines))
    expected, steps = quiet.server.results(quiet.job_id), quiet.fate.steps
    assert (len(expected), quiet.deaths) == (4, 0)
    for dies_at in range(1, steps + 1, stride):
        story = tell(next(engines), dies_at=dies_at)
        assert story.server.view(story.job_id).state is JobState.SUCCEEDED
        assert (story.deaths, story.server.results(story.job_id)) == (1, expected), f"died at step {dies_at}"
        assert [(view.round, view.attempt) for view in story.server.rounds(story.job_id)] == [(n, 1) for n in (1, 2, 3, 4)]


def test_a_member_computes_a_buffered_version_again_from_its_record(sqlite: Engine) -> None:
    story = tell(sqlite)
    store = story.server.store
    for number in (1, 2, 3, 4):
        with reading(sqlite) as connection:
            job = federations.find_federated(connection, story.job_id)
            federation = federation_of(job, sites.list_sites(connection, story.job_id))
            kept = rounds.load_round(connection, RoundKey(job_id=story.job_id, number=number), closing_of(job.section))
            members = buffers.load_members(connection, story.job_id, kept)
        record = story.record(number)
        sent = sent_from_buffer(members, kept, read_state(read_verified(store, record.start, 1 << 30)))
        assert {(one.update.site, one.start, one.position) for one in sent} == {(m.site, m.start, m.position) for m in record.members}
        assert recompute(federation, record, sent[::-1], lambda digest: read_verified(store, digest, 1 << 30)) == record.result
        if number == 3:
            fresh = [replace(one, update=one.update.model_copy(update={"round": 3})) for one in sent]
            assert recompute(federation, record, fresh, lambda digest: read_verified(store, digest, 1 << 30)) != record.result


def test_update_that_is_too_stale_is_refused_and_named(sqlite: Engine) -> None:
    story = begin(sqlite, mode={**MODE, "max_staleness": 1})
    slow = story.must_take(2)
    for number in (1, 2):
        story.answer(0, 1)
        story.advance(number + 1)
    for _ in range(2):  # again is the same
        with pytest.raises(TooStale) as caught:
            story.send(2, slow)
        assert (caught.value.code, caught.value.http_status, caught.value.problems[0].value) == ("too_stale", 409, "1")
    assert story.must_take(2).round == 3
    story.answer(0, 1)
    story.advance(4)
    assert [(one.site, one.reason) for one in story.record(3).left_out] == [("s-2", ReasonCode.TOO_STALE)]


def test_site_has_one_update_in_the_buffer_and_is_asked_again_when_it_is_used_up(sqlite: Engine) -> None:
    story = begin(sqlite)
    old = story.must_take(0)
    story.answer(1, 2)
    story.advance(2)
    new = story.must_take(0)
    receipt = story.send(0, new)
    assert story.send(0, new) == receipt
    assert story.take(0) is None
    with pytest.raises(Conflict, match="waits in the buffer"):
        story.send(0, old)
    view = story.server.rounds(story.job_id)[-1]
    assert (view.accepted, view.buffer_size) == (1, 2)
    story.send(1, story.must_take(1))
    story.advance(3)
    assert story.must_take(0).round == 3
    with pytest.raises(NotFound):
        story.send(0, new.model_copy(update={"round": 9}))


def test_accepted_update_waits_through_a_failed_try_and_revoked_ones_do_not_count(sqlite: Engine) -> None:
    story = begin(sqlite, max_failed_rounds=2, deadline="10s")
    closes_at = story.server.rounds(story.job_id)[-1].closes_at
    assert closes_at is not None
    assert story.must_take(0).deadline_at == closes_at + 2 * timedelta(seconds=10)
    story.send(0, story.must_take(0))
    with writing(sqlite) as connection:
        sites.move_site(connection, "s-1", SiteState.REVOKED)
    story.join(3)
    story.time += 11
    story.tick()
    assert [(view.attempt, view.state) for view in story.server.rounds(story.job_id)] == [(1, "failed"), (2, "collecting")]
    assert story.take(0) is None
    story.send(3, story.must_take(3))
    story.advance(2)
    committed = story.server.rounds(story.job_id)[1].record
    assert committed is not None
    assert [(one.site, one.position) for one in committed.members] == [("s-0", 1), ("s-3", 2)]


def test_federation_without_enough_updates_ends(sqlite: Engine) -> None:
    story = begin(sqlite, max_failed_rounds=1, deadline="10s")
    story.send(0, story.must_take(0))
    for _ in range(2):
        story.time += 11
        story.tick()
    view = story.server.view(story.job_id)
    assert (view.state, view.error.code if view.error else None) == (JobState.FAILED, "rounds_failed")
    with pytest.raises(FederationOver):
        story.send(1, train_offer(story))


def train_offer(story: BufferedStory) -> Offer:
    with reading(story.server.engine) as connection:
        offer = rounds.find_offer(connection, RoundKey(job_id=story.job_id, number=1), "s-1")
    assert offer is not None
    return offer


def test_decline_is_an_answer_to_its_offer_alone(sqlite: Engine) -> None:
    story = begin(sqlite)
    offer = story.must_take(2)
    with reading(sqlite) as connection:
        caller = Caller(job_id=story.job_id, site=sites.find_site(connection, "s-2"))
    decline = Decline(job_id=story.job_id, round=1, site="s-2", reason=ReasonCode.DECLINED)
    story.intake.take_decline(caller, decline)
    assert story.take(2) is None
    with pytest.raises(Conflict, match="was taken before"):
        story.send(2, offer)
    story.answer(0, 1)
    story.advance(2)
    assert [(one.site, one.reason) for one in story.record(1).left_out] == [("s-2", ReasonCode.DECLINED)]
    assert story.must_take(2).round == 2


def test_what_waits_when_the_federation_goes_back_counts_no_more(engines: Iterator[Engine]) -> None:
    """Sites are asked anew, what they are still working on is late, and the next version's record names who had waited."""
    story = begin(next(engines))
    slow = story.must_take(2)
    story.answer(0, 1)
    story.advance(2)
    asked = story.must_take(0)
    receipt = story.send(0, asked)
    with writing(story.server.engine) as connection:
        roll_back(connection, story.job_id, RollbackRequest(to=0, reason="it got worse"), "ada", story.clock())
    assert story.send(0, asked) == receipt, "what has a receipt keeps it"
    story.advance(3)
    with pytest.raises(StaleRound) as told:
        story.send(2, slow)
    assert told.value.problems[0].value == "3"
    story.answer(1, 2)
    story.advance(4)
    record = story.record(3)
    assert {one.site: (one.staleness, one.position) for one in record.members} == {"s-1": (0, 4), "s-2": (0, 5)}
    assert [(one.site, one.reason) for one in record.left_out] == [("s-0", ReasonCode.ROLLED_BACK)]
    story.answer(1, 2)
    story.advance(5)
    assert [(one.site, one.reason) for one in story.record(4).left_out] == [("s-0", ReasonCode.NO_ANSWER)]
