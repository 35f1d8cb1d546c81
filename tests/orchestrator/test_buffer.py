"""Buffered versions as a pure state machine: the order of acceptance decides, and nothing else does."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.buffer import Waiting, decide_buffer, leave_out, staleness_at_most
from orchestrator.rounds import Aggregate, Arrival, Closing, Fail, Round, Wait
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import FailureCode, ReasonCode, RoundState
from wegeft.contracts.federation_rules import staleness_weight

START = datetime(2026, 11, 21, tzinfo=UTC)
CLOSING = Closing(min_sites=3, grace=timedelta(seconds=1), deadline=timedelta(minutes=1))


def a_round(number: int = 1) -> Round:
    return Round(number=number, state=RoundState.COLLECTING, closing=CLOSING, since=START)


def waiting(position: int, site: str, started: int = 1, second: float = 0) -> Waiting:
    arrival = Arrival(site=site, digest=f"{site}@{started}", received_at=START + timedelta(seconds=second))
    return Waiting(position=position, started=started, arrival=arrival)


@dataclass
class Machine:
    """A federation's log of accepted updates and its versions, by the decisions under test; clocks are nonsense on purpose."""

    size: int
    bound: int
    chance: random.Random
    number: int = 1
    accepted: list[Waiting] = field(default_factory=list)
    consumed: int = 0
    versions: list[list[Waiting]] = field(default_factory=list)

    @property
    def queue(self) -> list[Waiting]:
        return [one for one in self.accepted if one.position > self.consumed]

    def offer(self, site: str, started: int) -> str:
        if any(one.arrival.site == site for one in self.queue):
            return "waits"
        if staleness_at_most(self.number, len(self.queue), self.size, started) > self.bound:
            return "too_stale"
        self.accepted.append(waiting(len(self.accepted) + 1, site, started, second=self.chance.uniform(-1e6, 1e6)))
        return "accepted"

    def look(self) -> bool:
        shuffled = self.queue
        self.chance.shuffle(shuffled)
        decision = decide_buffer(a_round(self.number), shuffled, self.size, START)
        if not isinstance(decision, Aggregate):
            return False
        members = [one for one in self.queue if one.arrival in decision.members]
        self.consumed = max(one.position for one in members)
        self.versions.append(members)
        self.number += 1
        return True


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 10_000), sites=st.integers(1, 6), size=st.integers(1, 4), bound=st.integers(0, 3), eager=st.booleans())
def test_versions_are_slices_of_the_order_of_acceptance(seed: int, sites: int, size: int, bound: int, *, eager: bool) -> None:
    """Whenever anybody looks, at once or long after, with clocks that go backwards: the same versions, none staler than the bound."""
    chance = random.Random(seed)
    machine, started = Machine(min(size, sites), bound, chance), dict.fromkeys(range(sites), 1)
    for _ in range(60):
        index = chance.randrange(sites)
        if machine.offer(f"s{index}", started[index]) == "too_stale" or chance.random() < 0.7:
            started[index] = machine.number
        if eager or chance.random() < 0.3:
            machine.look()
    while machine.look():
        pass
    positions = [one.position for version in machine.versions for one in version]
    assert positions == list(range(1, len(positions) + 1))
    assert {len(version) for version in machine.versions} <= {machine.size}
    assert len(machine.queue) < machine.size
    for number, version in enumerate(machine.versions, start=1):
        assert len({one.arrival.site for one in version}) == len(version)
        assert all(0 <= number - one.started <= bound for one in version)


def test_members_are_the_first_of_the_queue_whatever_their_clocks_say() -> None:
    queue = [waiting(7, "c", second=1), waiting(5, "b", second=9), waiting(6, "a", second=4)]
    decision = decide_buffer(a_round(), queue, 2, START)
    assert isinstance(decision, Aggregate)
    assert [member.site for member in decision.members] == ["a", "b"]
    assert decision.closed_at == START + timedelta(seconds=9)
    assert decide_buffer(a_round(), queue[::-1], 2, START + timedelta(days=9)) == decision


def test_round_without_enough_fails_at_its_deadline_and_revoked_sites_do_not_count() -> None:
    queue = [waiting(1, "a"), waiting(2, "b")]
    late = START + CLOSING.deadline
    assert decide_buffer(a_round(), queue, 3, START) == Wait(until=late)
    assert decide_buffer(a_round(), queue, 3, late) == Fail(code=FailureCode.NO_QUORUM)
    assert isinstance(decide_buffer(a_round(), queue, 2, late), Aggregate)
    assert decide_buffer(a_round(), queue, 2, START, revoked={"a"}) == Wait(until=late)


def test_everybody_who_is_not_in_a_version_is_named_with_a_reason() -> None:
    def other(site: str, reason: ReasonCode) -> Arrival:
        return Arrival(site=site, digest=site, received_at=START, reason=reason, problems=(Problem(path="p", message="m"),))

    others = [other("e", ReasonCode.REFUSED), other("e", ReasonCode.DECLINED), other("f", ReasonCode.TOO_STALE)]
    out = leave_out({"a", "b", "c", "d", "e"}, {"a"}, {"b"}, others, {"c"})
    assert [(one.site, one.reason.value, len(one.problems)) for one in out] == [
        ("b", "buffered", 0), ("c", "revoked", 0), ("d", "no_answer", 0), ("e", "declined", 2), ("f", "too_stale", 1),
    ]  # fmt: skip


def test_weight_of_staleness_is_fedbuffs() -> None:
    assert [staleness_weight(age) for age in (0, 3, 8)] == [1.0, 0.5, 1 / 3]
