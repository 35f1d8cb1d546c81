"""Nobody is left out of a round without a reason: every site that was asked is a member or named, and every reason there is comes to be."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine

from infra.database import reading, writing
from orchestrator.buffer import leave_out
from orchestrator.ledger import rounds, sites
from orchestrator.rounds import Aggregate, Arrival, Closing, Fail, Round, Wait, decide
from orchestrator.update_intake import Caller
from tests.orchestrator.test_federation_crashes import Story
from tests.orchestrator.test_federation_round import Simulation, a_federation, sites_of
from wegeft.contracts.federation import Decline, ReasonCode, RoundState, SiteState
from wegeft.contracts.training import JobState

START = datetime(2026, 11, 21, tzinfo=UTC)
CLOSING = Closing(min_sites=2, grace=timedelta(seconds=5), deadline=timedelta(seconds=30))
ANSWERS = [None, ReasonCode.REFUSED, ReasonCode.DECLINED, ReasonCode.TRAINING_FAILED]


def a_round(*asked: str) -> Round:
    return Round(number=1, state=RoundState.COLLECTING, closing=CLOSING, since=START, asked=frozenset(asked))


def sent(site: str, second: float, reason: ReasonCode | None = None) -> Arrival:
    return Arrival(site=site, digest=f"{site}{second}", received_at=START + timedelta(seconds=second), reason=reason)


ARRIVAL = st.tuples(st.sampled_from("abcdefg"), st.integers(0, 40), st.sampled_from(ANSWERS))


@settings(deadline=None, max_examples=150)
@given(st.lists(ARRIVAL, max_size=14), st.sets(st.sampled_from("abcde"), min_size=1), st.sets(st.sampled_from("abcdefg"), max_size=2))
def test_whoever_was_asked_or_sent_is_a_member_or_named_once(
    came: list[tuple[str, int, ReasonCode | None]], asked: set[str], revoked: set[str]
) -> None:
    arrivals = [sent(*one) for one in came]
    decision = decide(a_round(*asked), arrivals, START + timedelta(seconds=31), revoked)
    assert not isinstance(decision, Wait)
    named = [one.site for one in decision.left_out]
    members = {one.site for one in decision.members} if isinstance(decision, Aggregate) else set()
    accepted = {one.site for one in arrivals if one.reason is None and one.received_at <= START + timedelta(seconds=30)}
    assert len(named) == len(set(named))
    assert not members & set(named)
    everybody = asked | {one.site for one in arrivals}
    assert set(named) | members | (accepted if isinstance(decision, Fail) else set()) == everybody


def test_every_reason_that_there_is_comes_to_be() -> None:
    arrivals = [sent("a", 1), sent("b", 2), sent("c", 3, ReasonCode.DECLINED), sent("d", 3, ReasonCode.TRAINING_FAILED)]
    arrivals += [sent("e", 4, ReasonCode.REFUSED), sent("f", 29), sent("x", 3)]
    decision = decide(a_round(*"abcdefgh"), arrivals, START + timedelta(seconds=30), {"h"})
    assert isinstance(decision, Aggregate)
    by_rounds = {one.reason for one in decision.left_out}
    krum = a_federation(min_sites=5, defence={"name": "krum", "malicious": 1})
    by_defence = {one.reason for one in Simulation(krum, sites_of(5), seed=4).run_round(1, 1).left_out}
    sent_before = [sent("b", 1, ReasonCode.TOO_STALE), sent("c", 1, ReasonCode.ROLLED_BACK)]
    by_buffer = {one.reason for one in leave_out({"a"}, set(), {"a"}, sent_before, set())}
    assert by_rounds | by_defence | by_buffer == set(ReasonCode)


def tell(engine: Engine, dies_at: int = -1) -> Story:
    """One round: two sites answer, one declines, one is revoked, one says nothing."""
    story = Story(engine, rounds=1, min_sites=2, grace="30s", deadline="60s")
    story.join(0, 1, 2, 3, 4)
    story.fate.dies_at = dies_at
    for _ in range(4):
        story.tick()
    for index in (0, 1):
        story.answer(index)
    with reading(engine) as connection:
        caller = Caller(job_id=story.job_id, site=sites.find_site(connection, "s-2"))
    story.intake.take_decline(caller, Decline(job_id=story.job_id, round=1, site="s-2", reason=ReasonCode.DECLINED))
    with writing(engine) as connection:
        sites.move_site(connection, "s-3", SiteState.REVOKED)
    story.time = 50
    for _ in range(4):
        story.tick()
    return story


@pytest.mark.parametrize("stride", [17, pytest.param(1, marks=pytest.mark.soak)])
def test_exclusions_are_the_same_whenever_the_server_dies(engines: Iterator[Engine], stride: int) -> None:
    expected = [("s-2", "declined"), ("s-3", "revoked"), ("s-4", "no_answer")]
    quiet = tell(next(engines))
    for dies_at in [-1, *range(1, quiet.fate.steps + 1, stride)]:
        story = tell(next(engines), dies_at)
        assert story.server.view(story.job_id).state is JobState.SUCCEEDED
        record = story.server.rounds(story.job_id)[0].record
        assert record is not None
        assert [(one.site, one.reason.value) for one in record.left_out] == expected, f"died at step {dies_at}"
        assert [one.site for one in record.members] == ["s-0", "s-1"]
        with reading(story.server.engine) as connection:
            newest = rounds.last_round(connection, story.job_id)
        assert newest is not None
        assert newest[1] is RoundState.COMMITTED
