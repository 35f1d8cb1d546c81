"""What a federated round becomes, whom it asks and when it closes: pure decisions, no clock and no I/O.

    created ──open──▶ selecting ──ask──▶ collecting ──close──▶ aggregating ──commit──▶ committed
       └────────────────┴──────────────────┴───────────────────────┴──────fail──▶ failed

Every wait ends: a round that selects or collects fails at its deadline. The members of a round follow from when its updates were
received and from nothing else: not from the order in which they are read, nor from how often or when :func:`decide` is asked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from math import ceil
from typing import assert_never

from wegeft.contracts.errors import IllegalTransition, Problem
from wegeft.contracts.federation import Exclusion, FailureCode, ReasonCode, RoundState
from wegeft.contracts.federation_rules import FractionSampling, PoissonSampling, Sampling


class Move(StrEnum):
    """What can happen to a round."""

    OPEN = "open"
    """The server begins to look for sites."""
    ASK = "ask"
    """Sites are drawn, and their offers are written."""
    CLOSE = "close"
    """The members are settled."""
    COMMIT = "commit"
    """The new version is published."""
    FAIL = "fail"
    """There will be no aggregate."""


_MOVES = {
    (RoundState.CREATED, Move.OPEN): RoundState.SELECTING,
    (RoundState.SELECTING, Move.ASK): RoundState.COLLECTING,
    (RoundState.COLLECTING, Move.CLOSE): RoundState.AGGREGATING,
    (RoundState.AGGREGATING, Move.COMMIT): RoundState.COMMITTED,
    (RoundState.CREATED, Move.FAIL): RoundState.FAILED,
    (RoundState.SELECTING, Move.FAIL): RoundState.FAILED,
    (RoundState.COLLECTING, Move.FAIL): RoundState.FAILED,
    (RoundState.AGGREGATING, Move.FAIL): RoundState.FAILED,
}


def move(state: RoundState, what: Move) -> RoundState:
    """Return the state that a round goes to; raise :class:`IllegalTransition` where ``what`` cannot happen to it."""
    try:
        return _MOVES[state, what]
    except KeyError:
        raise IllegalTransition(f"a round that is {state} cannot {what}", path="state", value=str(state)) from None


@dataclass(frozen=True, kw_only=True)
class Closing:
    """When a round closes."""

    min_sites: int
    """Accepted updates without which it does not."""
    grace: timedelta
    """How long it waits for the others once it has them."""
    deadline: timedelta
    """How long it waits at all, for sites to ask and then again for their updates."""
    buffer_size: int | None = None
    """Updates that make a version where rounds are buffered; see :mod:`orchestrator.buffer`."""


@dataclass(frozen=True, kw_only=True)
class Round:
    """A round, as the ledger keeps it."""

    number: int
    state: RoundState
    closing: Closing
    since: datetime
    """When it began to select or to collect."""
    asked: frozenset[str] = frozenset()
    """Pseudonyms of the sites that it asked."""

    @property
    def deadline_at(self) -> datetime:
        """When its present wait ends at the latest."""
        return self.since + self.closing.deadline


@dataclass(frozen=True, kw_only=True)
class Arrival:
    """One thing that a site sent: an update that passed the gate, one that was refused, or a decline."""

    site: str
    digest: str
    """Of the message's canonical bytes."""
    received_at: datetime
    reason: ReasonCode | None = None
    """None for an accepted update; else why it does not count: ``refused``, ``declined`` or ``training_failed``."""
    problems: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Wait:
    """Nothing to do before ``until``, unless something arrives."""

    until: datetime


@dataclass(frozen=True, kw_only=True)
class Ask:
    """Send offers to these sites, sorted."""

    sites: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Aggregate:
    """The round is closed."""

    members: tuple[Arrival, ...]
    """The updates to put together, sorted by site."""
    left_out: tuple[Exclusion, ...]
    """Every other site that was asked or that sent something, sorted, each with its reason."""
    closed_at: datetime
    """The moment that the members follow from."""


@dataclass(frozen=True, kw_only=True)
class Fail:
    """The round is over without an aggregate; whose update was accepted is not named in ``left_out``."""

    code: FailureCode
    left_out: tuple[Exclusion, ...] = ()


def decide_selection(round_: Round, drawn: Collection[str], now: datetime) -> Wait | Ask | Fail:
    """Return whether a round that selects can ask the sites that were drawn."""
    _require(round_, RoundState.SELECTING)
    if now >= round_.deadline_at:
        return Fail(code=FailureCode.NOT_ENOUGH_SITES)
    if len(drawn) >= round_.closing.min_sites:
        return Ask(sites=tuple(sorted(drawn)))
    return Wait(until=round_.deadline_at)


def decide(round_: Round, arrivals: Collection[Arrival], now: datetime, revoked: Collection[str] = ()) -> Wait | Aggregate | Fail:
    """Return whether a round that collects goes on, closes, or fails; ``arrivals`` in any order, repeated or not.

    It closes when every site that was asked has answered, by an accepted update or by declining; ``grace`` after the update that made
    them enough; and at the deadline in any case. Once closed, later arrivals change nothing but who is named as late.
    """
    _require(round_, RoundState.COLLECTING)
    seen = sorted({_key(arrival): arrival for arrival in arrivals}.values(), key=_key)
    answers = _answers(round_, seen, revoked)
    accepted = [answer for answer in answers if answer.reason is None]
    closed_at = _closing_time(round_, answers, accepted, revoked)
    if now < closed_at:
        return Wait(until=closed_at)
    members = sorted((arrival for arrival in accepted if arrival.received_at <= closed_at), key=lambda arrival: arrival.site)
    left_out = _left_out(round_, seen, members, closed_at, revoked)
    if len(members) < round_.closing.min_sites:
        return Fail(code=FailureCode.NO_QUORUM, left_out=left_out)
    return Aggregate(members=tuple(members), left_out=left_out, closed_at=closed_at)


def _require(round_: Round, state: RoundState) -> None:
    if round_.state is not state:
        raise IllegalTransition(f"a round that is {round_.state} does not wait for this", path="state", value=str(round_.state))


def _key(arrival: Arrival) -> tuple[datetime, str, str, str]:
    return arrival.received_at, arrival.site, arrival.digest, arrival.reason or ""


def _answers(round_: Round, seen: Sequence[Arrival], revoked: Collection[str]) -> list[Arrival]:
    """Return the first answer of each site that was asked and not revoked, by time; what was refused is no answer, it may be mended."""
    first: dict[str, Arrival] = {}
    for arrival in seen:
        if arrival.reason is not ReasonCode.REFUSED and arrival.site in round_.asked and arrival.site not in revoked:
            first.setdefault(arrival.site, arrival)
    return list(first.values())


def _closing_time(round_: Round, answers: Sequence[Arrival], accepted: Sequence[Arrival], revoked: Collection[str]) -> datetime:
    times = [round_.deadline_at]
    if len(accepted) >= round_.closing.min_sites:
        times.append(accepted[round_.closing.min_sites - 1].received_at + round_.closing.grace)
    if len(answers) == len(round_.asked - set(revoked)):
        times.append(max((answer.received_at for answer in answers), default=round_.since))
    return min(times)


def _left_out(
    round_: Round, seen: Sequence[Arrival], members: Sequence[Arrival], closed_at: datetime, revoked: Collection[str]
) -> tuple[Exclusion, ...]:
    inside = {member.site for member in members}
    outside = (round_.asked | {arrival.site for arrival in seen}) - inside
    return tuple(_exclude(site, round_, seen, closed_at, revoked) for site in sorted(outside))


def _exclude(site: str, round_: Round, seen: Sequence[Arrival], closed_at: datetime, revoked: Collection[str]) -> Exclusion:
    sent = [arrival for arrival in seen if arrival.site == site]
    in_time = [arrival for arrival in sent if arrival.reason is not None and arrival.received_at <= closed_at]
    if site in revoked:
        return Exclusion(site=site, reason=ReasonCode.REVOKED)
    if site not in round_.asked:
        return Exclusion(site=site, reason=ReasonCode.NOT_SELECTED)
    if in_time and in_time[-1].reason is not None:
        problems = tuple(problem for arrival in in_time for problem in arrival.problems)
        return Exclusion(site=site, reason=in_time[-1].reason, problems=problems)
    return Exclusion(site=site, reason=ReasonCode.LATE if sent else ReasonCode.NO_ANSWER)


def draw(sites: Collection[str], sampling: Sampling, closing: Closing, target_sites: int | None, seed: str) -> tuple[str, ...]:
    """Return the sites of a round, sorted; the same for the same ``seed``, whatever the order and however often it is asked.

    Each site has its own number from the seed, so that another site's coming or going changes nothing for it under Poisson sampling, and
    as little as can be under a fixed share. ``seed`` must name job, round and attempt.
    """
    ordered = sorted(set(sites), key=lambda site: (_lot(seed, site), site))
    match sampling:
        case FractionSampling():
            wanted = max(closing.min_sites, ceil(sampling.fraction * len(ordered)))
            chosen = ordered[:wanted][:target_sites]
        case PoissonSampling():
            chosen = [site for site in ordered if _lot(seed, site) < sampling.rate]
        case _:
            assert_never(sampling)
    return tuple(sorted(chosen))


def _lot(seed: str, site: str) -> float:
    """Return a number in [0, 1) that the seed gives to a site."""
    return int.from_bytes(hashlib.sha256(f"{seed}\n{site}".encode()).digest()[:7], "big") / 2**56


def may_try_again(failed_in_a_row: int, max_failed_rounds: int) -> bool:
    """Return whether, after so many failed rounds one after the other, there is another try."""
    return failed_in_a_row <= max_failed_rounds
