"""When buffered updates make a version, and which: pure decisions on the order in which they were accepted (Nguyen et al., 2022).

Accepted updates have positions 1, 2, 3, …, given once in the transaction that accepts them. A version is made from the first
``buffer_size`` that no version has used up, so that nothing but that order decides its members: no clock, and not how often anybody looks.
A site has one update at a time among those that wait.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from orchestrator.rounds import Aggregate, Arrival, Fail, Round, Wait
from wegeft.contracts.federation import Exclusion, FailureCode, ReasonCode


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """An accepted update that no version has used up."""

    position: int
    started: int
    """Number of the round that its site was asked in."""
    arrival: Arrival


def staleness_at_most(open_round: int, waiting: int, buffer_size: int, started: int) -> int:
    """Return how stale an update becomes that is accepted now, behind ``waiting`` others, and started in round ``started``.

    It is in the version of round ``open_round + waiting // buffer_size`` at the latest: where a try at a round fails, later ones move up.
    """
    return open_round + waiting // buffer_size - started


def decide_buffer(
    round_: Round, waiting: Collection[Waiting], buffer_size: int, now: datetime, revoked: Collection[str] = ()
) -> Wait | Aggregate | Fail:
    """Return whether a version can be made, from what waits, in any order; at its deadline a round without enough fails.

    What waits then waits on, for the next try. Updates of revoked sites do not count.
    """
    queue = sorted((one for one in waiting if one.arrival.site not in revoked), key=_position)
    if len(queue) >= buffer_size:
        members = [one.arrival for one in queue[:buffer_size]]
        closed_at = max(member.received_at for member in members)
        return Aggregate(members=tuple(sorted(members, key=_site)), left_out=(), closed_at=closed_at)
    if now >= round_.deadline_at:
        return Fail(code=FailureCode.NO_QUORUM)
    return Wait(until=round_.deadline_at)


def leave_out(
    asked: Collection[str], members: Collection[str], waiting: Collection[str], others: Sequence[Arrival], revoked: Collection[str]
) -> tuple[Exclusion, ...]:
    """Return every site that was asked, waits or sent something else while a version was in the making, and why it is not in it, sorted.

    ``others`` are answers that did not count, oldest first.
    """
    sites = sorted({*asked, *waiting, *(one.site for one in others)} - set(members))
    return tuple(_exclude(site, waiting, others, revoked) for site in sites)


def _exclude(site: str, waiting: Collection[str], others: Sequence[Arrival], revoked: Collection[str]) -> Exclusion:
    sent = [one for one in others if one.site == site and one.reason is not None]
    if site in revoked:
        return Exclusion(site=site, reason=ReasonCode.REVOKED)
    if site in waiting:
        return Exclusion(site=site, reason=ReasonCode.BUFFERED)
    if sent and sent[-1].reason is not None:
        return Exclusion(site=site, reason=sent[-1].reason, problems=tuple(problem for one in sent for problem in one.problems))
    return Exclusion(site=site, reason=ReasonCode.NO_ANSWER)


def _position(one: Waiting) -> int:
    return one.position


def _site(arrival: Arrival) -> str:
    return arrival.site
