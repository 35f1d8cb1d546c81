"""Rounds: every transition, every way to close, and properties that hold for any order of events."""

import itertools
import random
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.rounds import (
    Aggregate,
    Arrival,
    Ask,
    Closing,
    Fail,
    Move,
    Round,
    Wait,
    decide,
    decide_selection,
    draw,
    may_try_again,
    move,
)
from wegeft.contracts.errors import IllegalTransition, Problem
from wegeft.contracts.federation import FailureCode, ReasonCode, RoundState
from wegeft.contracts.federation_rules import FractionSampling, PoissonSampling

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
CLOSING = Closing(min_sites=2, grace=timedelta(seconds=10), deadline=timedelta(seconds=60))
LEGAL = {
    (RoundState.CREATED, Move.OPEN): RoundState.SELECTING,
    (RoundState.SELECTING, Move.ASK): RoundState.COLLECTING,
    (RoundState.COLLECTING, Move.CLOSE): RoundState.AGGREGATING,
    (RoundState.AGGREGATING, Move.COMMIT): RoundState.COMMITTED,
} | {(state, Move.FAIL): RoundState.FAILED for state in RoundState if not state.is_final}


def at(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


def a_round(*sites: str, state: RoundState = RoundState.COLLECTING, closing: Closing = CLOSING) -> Round:
    return Round(number=1, state=state, closing=closing, since=START, asked=frozenset(sites))


def arrival(site: str, seconds: float, reason: ReasonCode | None = None, digest: str = "d") -> Arrival:
    problems = () if reason is None else (Problem(message=f"{site} {reason}"),)
    return Arrival(site=site, digest=digest, received_at=at(seconds), reason=reason, problems=problems)


def reasons(decision: Aggregate | Fail) -> dict[str, str]:
    return {exclusion.site: exclusion.reason.value for exclusion in decision.left_out}


@pytest.mark.parametrize(("state", "what"), list(itertools.product(RoundState, Move)))
def test_every_transition_is_legal_or_refused(state: RoundState, what: Move) -> None:
    if (state, what) in LEGAL:
        assert move(state, what) is LEGAL[state, what]
    else:
        with pytest.raises(IllegalTransition, match=f"a round that is {state} cannot {what}"):
            move(state, what)


@pytest.mark.parametrize("state", [state for state in RoundState if state is not RoundState.COLLECTING])
def test_only_a_collecting_round_is_decided(state: RoundState) -> None:
    with pytest.raises(IllegalTransition):
        decide(a_round("a", state=state), [], START)
    if state is not RoundState.SELECTING:
        with pytest.raises(IllegalTransition):
            decide_selection(a_round(state=state), [], START)


def test_selection_waits_for_enough_sites_and_no_longer_than_the_deadline() -> None:
    selecting = a_round(state=RoundState.SELECTING)
    assert decide_selection(selecting, ["a"], at(0)) == Wait(until=at(60))
    assert decide_selection(selecting, ["b", "a"], at(59)) == Ask(sites=("a", "b"))
    assert decide_selection(selecting, ["a"], at(60)) == Fail(code=FailureCode.NOT_ENOUGH_SITES)


def test_a_round_closes_at_once_when_everyone_has_sent() -> None:
    sent = [arrival("b", 5), arrival("a", 3)]
    assert decide(a_round("a", "b"), sent[:1], at(6)) == Wait(until=at(60))
    decision = decide(a_round("a", "b"), sent, at(6))
    assert decision == Aggregate(members=(sent[1], sent[0]), left_out=(), closed_at=at(5))


def test_a_round_with_a_quorum_waits_for_the_grace_and_names_who_missed_it() -> None:
    sent = [arrival("a", 3), arrival("b", 5), arrival("c", 16)]
    assert decide(a_round("a", "b", "c", "d"), sent, at(14.9)) == Wait(until=at(15))
    decision = decide(a_round("a", "b", "c", "d"), sent, at(20))
    assert isinstance(decision, Aggregate)
    assert [member.site for member in decision.members] == ["a", "b"]
    assert (reasons(decision), decision.closed_at) == ({"c": "late", "d": "no_answer"}, at(15))


def test_an_update_within_the_grace_is_a_member() -> None:
    decision = decide(a_round("a", "b", "c", "d"), [arrival("a", 3), arrival("b", 5), arrival("c", 15)], at(15))
    assert isinstance(decision, Aggregate)
    assert [member.site for member in decision.members] == ["a", "b", "c"]


def test_grace_never_reaches_beyond_the_deadline() -> None:
    sent = [arrival("a", 3), arrival("b", 55)]
    assert decide(a_round("a", "b", "c"), sent, at(59)) == Wait(until=at(60))
    assert isinstance(decide(a_round("a", "b", "c"), sent, at(60)), Aggregate)


def test_without_a_quorum_a_round_fails_at_its_deadline() -> None:
    sent = [arrival("a", 3), arrival("b", 61)]
    assert decide(a_round("a", "b", "c"), sent, at(59)) == Wait(until=at(60))
    decision = decide(a_round("a", "b", "c"), sent, at(61))
    assert isinstance(decision, Fail)
    assert decision.code is FailureCode.NO_QUORUM
    assert reasons(decision) == {"b": "late", "c": "no_answer"}


def test_a_round_that_can_have_no_quorum_any_more_fails_at_once() -> None:
    sent = [arrival("a", 3), arrival("b", 4, ReasonCode.DECLINED), arrival("c", 7, ReasonCode.TRAINING_FAILED)]
    decision = decide(a_round("a", "b", "c"), sent, at(7))
    assert isinstance(decision, Fail)
    assert reasons(decision)["b"] == "declined"
    assert reasons(decision)["c"] == "training_failed"


def test_a_refused_update_may_be_mended() -> None:
    sent = [arrival("a", 3), arrival("b", 4, ReasonCode.REFUSED, "d1")]
    assert decide(a_round("a", "b"), sent, at(5)) == Wait(until=at(60))
    mended = decide(a_round("a", "b"), [*sent, arrival("b", 6, digest="d2")], at(6))
    assert isinstance(mended, Aggregate)
    assert [member.digest for member in mended.members] == ["d", "d2"]
    never = decide(a_round("a", "b"), sent, at(60))
    assert isinstance(never, Fail)
    assert never.left_out[-1].problems == (Problem(message="b refused"),)


def test_who_has_declined_is_out_and_who_was_accepted_is_in() -> None:
    turned = [arrival("a", 1), arrival("b", 2), arrival("c", 3, ReasonCode.DECLINED), arrival("c", 4), arrival("a", 5, ReasonCode.DECLINED)]
    decision = decide(a_round("a", "b", "c"), turned, at(9))
    assert isinstance(decision, Aggregate)
    assert ([member.site for member in decision.members], reasons(decision)) == (["a", "b"], {"c": "declined"})


def test_strangers_and_revoked_sites_do_not_count() -> None:
    sent = [arrival("x", 1), arrival("a", 2), arrival("b", 3), arrival("c", 4)]
    decision = decide(a_round("a", "b", "c"), sent, at(5), revoked={"b"})
    assert isinstance(decision, Aggregate)
    assert [member.site for member in decision.members] == ["a", "c"]
    assert reasons(decision) == {"b": "revoked", "x": "not_selected"}
    assert isinstance(decide(a_round("a", "b"), [], at(1), revoked={"a", "b"}), Fail)


def test_the_first_of_two_updates_counts() -> None:
    sent = [arrival("a", 4, digest="second"), arrival("a", 2, digest="first"), arrival("b", 5)]
    decision = decide(a_round("a", "b"), sent, at(5))
    assert isinstance(decision, Aggregate)
    assert decision.members[0].digest == "first"


ARRIVALS = st.lists(
    st.builds(
        arrival,
        st.sampled_from("abcdefx"),
        st.integers(0, 75),
        st.sampled_from([None, None, None, ReasonCode.REFUSED, ReasonCode.DECLINED, ReasonCode.TRAINING_FAILED]),
        st.sampled_from(["d1", "d2"]),
    ),
    max_size=14,
)
ROUNDS = st.builds(
    lambda sites, least, grace: a_round(
        *sites, closing=Closing(min_sites=least, grace=timedelta(seconds=grace), deadline=timedelta(seconds=60))
    ),
    st.sets(st.sampled_from("abcdef"), min_size=1),
    st.integers(1, 4),
    st.integers(0, 80),
)


def heard(arrivals: Sequence[Arrival], now: datetime) -> list[Arrival]:
    return [one for one in arrivals if one.received_at <= now]


def outcome(decision: Wait | Aggregate | Fail) -> object:
    return (decision.members, decision.closed_at) if isinstance(decision, Aggregate) else type(decision)


@settings(deadline=None)
@given(ROUNDS, ARRIVALS, st.integers(0, 90))
def test_no_wait_is_unbounded_and_every_wait_is_in_the_future(round_: Round, arrivals: list[Arrival], now: int) -> None:
    decision = decide(round_, heard(arrivals, at(now)), at(now))
    if isinstance(decision, Wait):
        assert at(now) < decision.until <= round_.deadline_at
    assert not isinstance(decide(round_, arrivals, round_.deadline_at), Wait)


@settings(deadline=None)
@given(ROUNDS, ARRIVALS, st.randoms(use_true_random=False))
def test_order_and_repetition_of_arrivals_do_not_matter(round_: Round, arrivals: list[Arrival], shuffler: random.Random) -> None:
    replayed = arrivals + arrivals[: len(arrivals) // 2]
    shuffler.shuffle(replayed)
    for now in (10, 40, 60, 80):
        assert decide(round_, replayed, at(now)) == decide(round_, arrivals, at(now))


@settings(deadline=None)
@given(ROUNDS, ARRIVALS)
def test_it_does_not_matter_when_or_how_often_it_is_asked(round_: Round, arrivals: list[Arrival]) -> None:
    """A scheduler that ticks each second and one that slept through the whole round settle on the same members."""
    ticks = (decide(round_, heard(arrivals, at(second)), at(second)) for second in range(90))
    first = next(decision for decision in ticks if not isinstance(decision, Wait))
    assert outcome(first) == outcome(decide(round_, arrivals, at(90)))


@settings(deadline=None)
@given(ROUNDS, ARRIVALS)
def test_every_site_is_a_member_or_left_out_with_a_reason(round_: Round, arrivals: list[Arrival]) -> None:
    decision = decide(round_, arrivals, at(90))
    assert not isinstance(decision, Wait)
    inside = [member.site for member in decision.members] if isinstance(decision, Aggregate) else []
    outside = [exclusion.site for exclusion in decision.left_out]
    if isinstance(decision, Aggregate):
        assert len(inside) >= round_.closing.min_sites
        assert sorted([*inside, *outside]) == sorted(round_.asked | {one.site for one in arrivals})
    assert inside == sorted(set(inside))
    assert outside == sorted(set(outside))


SITES = [f"s-{number:03}" for number in range(200)]
SOME = SITES[:40]


@settings(deadline=None)
@given(st.sets(st.sampled_from(SOME), min_size=1), st.text(max_size=5), st.floats(0.01, 1), st.integers(1, 9))
def test_a_draw_depends_on_seed_and_sites_only(sites: set[str], seed: str, share: float, least: int) -> None:
    closing = Closing(min_sites=least, grace=timedelta(0), deadline=timedelta(1))
    for sampling in (FractionSampling(fraction=share), PoissonSampling(rate=share)):
        drawn = draw(sites, sampling, closing, None, seed)
        assert drawn == draw(sorted(sites, reverse=True), sampling, closing, None, seed) == tuple(sorted(drawn))
        assert set(drawn) <= sites
    assert len(draw(sites, FractionSampling(fraction=share), closing, None, seed)) >= min(least, len(sites))
    assert len(draw(sites, FractionSampling(), closing, least, seed)) == min(least, len(sites))


def test_poisson_draws_each_site_by_itself_and_as_often_as_said() -> None:
    sampling = PoissonSampling(rate=0.3)
    drawn = [set(draw(SITES, sampling, CLOSING, None, f"job/{number}")) for number in range(200)]
    assert all(draw(SITES[:50], sampling, CLOSING, None, f"job/{n}") == tuple(sorted(drawn[n] & set(SITES[:50]))) for n in range(20))
    mean = sum(len(sites) for sites in drawn) / (200 * 200)
    assert mean == pytest.approx(0.3, abs=0.01)  # standard deviation 0.0023
    assert drawn[0] != drawn[1]


def test_a_fraction_is_drawn_fairly() -> None:
    counts = dict.fromkeys(SITES[:20], 0)
    for number in range(1000):
        for site in draw(SITES[:20], FractionSampling(fraction=0.25), CLOSING, None, f"job/{number}"):
            counts[site] += 1
    assert sum(counts.values()) == 5000
    assert all(190 <= count <= 310 for count in counts.values())  # expected 250, standard deviation 13.7


def test_failed_rounds_are_tried_again_up_to_a_limit() -> None:
    assert [may_try_again(failed, 2) for failed in range(4)] == [True, True, True, False]
