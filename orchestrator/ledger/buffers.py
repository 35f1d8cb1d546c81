"""The buffer of a federation in SQL: which updates were accepted, in which order, and which of them no version has used up yet.

An update gets its position while the job's row is locked, as whoever drives the job locks it: of two that come at once one is first, and
that is written down. Nothing here depends on a clock.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, ScalarSelect, func, insert, or_, select, update

from orchestrator.buffer import Waiting, leave_out, staleness_at_most
from orchestrator.ledger import rounds
from orchestrator.ledger.federation_tables import ARRIVALS, BLOBS, OFFERS, ROLLBACKS, ROUNDS
from orchestrator.ledger.rounds import KEPT_REFUSALS, KeptRound, RoundKey, arrival_of, arrival_row, describe_answer
from orchestrator.ledger.tables import JOBS
from orchestrator.rounds import Aggregate, Arrival
from wegeft.contracts.errors import Conflict, NotFound, Problem, StaleRound
from wegeft.contracts.federation import Decline, Exclusion, Offer, ReasonCode, RoundState, SignedUpdate, Update
from wegeft.contracts.federation_rules import Buffered

_IS_FINAL = ARRIVALS.c.reason.is_(None) | (ARRIVALS.c.reason != ReasonCode.REFUSED.value)
_MAKING = frozenset({RoundState.AGGREGATING, RoundState.COMMITTED})


@dataclass(frozen=True, kw_only=True)
class BufferedUpdate:
    """A member of a version: what it sent, and what it started from."""

    signed: SignedUpdate
    received_at: datetime
    offer: Offer
    position: int
    start_digest: str
    """State of the federation before the round that it was asked in."""

    @property
    def update(self) -> Update:
        """What it says, without its signature."""
        return self.signed.update


def receive(
    connection: Connection, key: RoundKey, message: SignedUpdate | Decline, problems: Sequence[Problem], mode: Buffered, now: datetime
) -> Arrival:
    """Keep what a site sent in answer to an offer of any round; the same message again gives the same arrival.

    An update without ``problems`` is accepted, or kept as ``too_stale``. Raises :class:`NotFound` where the site was not asked,
    :class:`StaleRound` where the federation has gone back since, and :class:`Conflict` where another answer to that offer was taken, or
    another update of the site waits.
    """
    digest, site, reason = describe_answer(message, problems)
    connection.execute(select(JOBS.c.id).where(JOBS.c.id == key.job_id).with_for_update()).one()
    if rounds.find_offer(connection, key, site) is None:
        raise NotFound("the site was not asked in this round", path="site", value=site)
    sent = [arrival_of(row) for row in connection.execute(select(ARRIVALS).where(_is_answer(key), ARRIVALS.c.pseudonym == site))]
    for arrival in sent:
        if arrival.digest == digest:
            return arrival
    check_not_undone(connection, key)
    if any(arrival.reason is not ReasonCode.REFUSED for arrival in sent):
        raise Conflict("another answer of this site was taken before", path="site", value=site)
    position = None
    if reason is None:
        position, reason = _place(connection, key, site, mode)
    arrival = Arrival(site=site, digest=digest, received_at=now, reason=reason, problems=tuple(problems))
    if reason is ReasonCode.REFUSED and len(sent) >= KEPT_REFUSALS:
        return arrival
    connection.execute(insert(ARRIVALS).values(**arrival_row(key, arrival, message), position=position))
    return arrival


def _place(connection: Connection, key: RoundKey, site: str, mode: Buffered) -> tuple[int | None, ReasonCode | None]:
    waiting = list_waiting(connection, key.job_id)
    if any(one.arrival.site == site for one in waiting):
        raise Conflict("an update of this site waits in the buffer already", path="site", value=site, hint="ask for the next offer")
    newest = rounds.last_round(connection, key.job_id)
    open_round = key.number if newest is None else newest[0].number + (newest[1] in _MAKING)
    if staleness_at_most(open_round, len(waiting), mode.buffer_size, key.number) > mode.max_staleness:
        return None, ReasonCode.TOO_STALE
    last = connection.execute(select(func.max(ARRIVALS.c.position)).where(ARRIVALS.c.job_id == key.job_id)).scalar_one()
    return (last or 0) + 1, None


def check_not_undone(connection: Connection, key: RoundKey) -> None:
    """Raise :class:`StaleRound` where the federation has gone back since a round asked: what was in flight then comes to nothing."""
    first = connection.execute(select(_first_round(key.job_id))).scalar_one()
    if key.number < first:
        raise StaleRound("the federation has gone back since", path="round", value=str(first), hint="ask for the next one")


def _first_round(job_id: str) -> ScalarSelect[int]:
    """The first round since the federation last went back; 0 where it never did."""
    return select(func.coalesce(func.max(ROLLBACKS.c.opened_round), 0)).where(ROLLBACKS.c.job_id == job_id).scalar_subquery()


def list_waiting(connection: Connection, job_id: str) -> tuple[Waiting, ...]:
    """Return the accepted updates that no version has used up, in their order."""
    rows = connection.execute(select(ARRIVALS).where(*_waits(job_id)).order_by(ARRIVALS.c.position))
    return tuple(Waiting(position=row.position, started=row.number, arrival=arrival_of(row)) for row in rows)


def leave_waiting_out(connection: Connection, job_id: str) -> None:
    """Let no version count what waits now, as the federation goes back; receipts for it stay, and the next record names its sites."""
    connection.execute(update(ARRIVALS).where(*_waits(job_id)).values(reason=ReasonCode.ROLLED_BACK.value))


def _waits(job_id: str) -> tuple[ColumnElement[bool], ...]:
    return ARRIVALS.c.job_id == job_id, ARRIVALS.c.reason.is_(None), ARRIVALS.c.position > _used(job_id)


def _used(job_id: str, *which: ColumnElement[bool]) -> ScalarSelect[int]:
    """The last position that the versions of a federation, or ``which`` of its rounds, have used up."""
    return select(func.coalesce(func.max(ROUNDS.c.consumed), 0)).where(ROUNDS.c.job_id == job_id, *which).scalar_subquery()


def close_buffer(connection: Connection, key: RoundKey, decision: Aggregate) -> None:
    """Settle a version's members, once and for all, and use up everything before the last of them."""
    rounds.close_round(connection, key, decision.members, decision.closed_at)
    digests = [member.digest for member in decision.members]
    last = select(func.max(ARRIVALS.c.position)).where(ARRIVALS.c.job_id == key.job_id, ARRIVALS.c.digest.in_(digests)).scalar_subquery()
    is_same = (ROUNDS.c.job_id == key.job_id) & (ROUNDS.c.number == key.number) & (ROUNDS.c.attempt == key.attempt)
    connection.execute(update(ROUNDS).where(is_same).values(consumed=last))


def load_members(connection: Connection, job_id: str, kept: KeptRound) -> tuple[BufferedUpdate, ...]:
    """Return the members of a closed round, in the order in which they were settled."""
    is_theirs = (ARRIVALS.c.job_id == job_id, ARRIVALS.c.digest.in_(kept.member_digests), ARRIVALS.c.position.is_not(None))
    rows = {row.digest: row for row in connection.execute(select(ARRIVALS).where(*is_theirs))}
    return tuple(_member(connection, rows[digest]) for digest in kept.member_digests)


def _member(connection: Connection, row: Row[tuple[object, ...]]) -> BufferedUpdate:
    key = RoundKey(job_id=row.job_id, number=row.number, attempt=row.attempt)
    offer = rounds.find_offer(connection, key, row.pseudonym)
    assert offer is not None  # noqa: S101 - an arrival has an offer, by its foreign key
    signed = SignedUpdate.model_validate_json(row.message)
    start = rounds.find_start(connection, key)
    return BufferedUpdate(signed=signed, received_at=row.received_at, offer=offer, position=row.position, start_digest=start)


def list_left_out(connection: Connection, job_id: str, kept: KeptRound, revoked: Collection[str]) -> tuple[Exclusion, ...]:
    """Return who is not in a closed round's version, and why.

    Of whom it asked, who waits, who sent what did not count meanwhile, and whose update had waited when the federation went back.
    """
    members = {row.update.site for row in load_members(connection, job_id, kept)}
    waiting = {one.arrival.site for one in list_waiting(connection, job_id)}
    used = _used(job_id, ROUNDS.c.number < kept.round.number)
    was_left_out = (ARRIVALS.c.reason == ReasonCode.ROLLED_BACK.value) & (ARRIVALS.c.position > used)
    did_not_count = ARRIVALS.c.reason.is_not(None), or_(ARRIVALS.c.received_at >= kept.round.since, was_left_out)
    query = select(ARRIVALS).where(ARRIVALS.c.job_id == job_id, *did_not_count).order_by(ARRIVALS.c.received_at, ARRIVALS.c.digest)
    others = [arrival_of(row) for row in connection.execute(query)]
    return leave_out(kept.round.asked, members, waiting, others, revoked)


def find_open_offer(connection: Connection, job_id: str, site: str) -> Offer | None:
    """Return what a site is asked now; None where it is not, has answered, or has an update that waits."""
    if any(one.arrival.site == site for one in list_waiting(connection, job_id)):
        return None
    return rounds.find_open_offer(connection, job_id, site)


def find_unanswered_offer(connection: Connection, job_id: str, site: str) -> Offer | None:
    """Return the newest offer that a site has not answered, of whatever round since the federation went back: what it may be sending."""
    answered = select(ARRIVALS.c.digest).where(
        ARRIVALS.c.job_id == OFFERS.c.job_id,
        ARRIVALS.c.number == OFFERS.c.number,
        ARRIVALS.c.attempt == OFFERS.c.attempt,
        ARRIVALS.c.pseudonym == OFFERS.c.pseudonym,
        _IS_FINAL,
    )
    is_theirs = OFFERS.c.job_id == job_id, OFFERS.c.pseudonym == site, OFFERS.c.number >= _first_round(job_id)
    query = select(OFFERS.c.offer).where(*is_theirs, ~answered.exists())
    newest = query.order_by(OFFERS.c.number.desc(), OFFERS.c.attempt.desc()).limit(1)
    text = connection.execute(newest).scalar_one_or_none()
    return None if text is None else Offer.model_validate_json(text)


def has_delivered(connection: Connection, job_id: str, site: str, digest: str) -> bool:
    """Return whether a site has delivered these bytes, for whichever of its offers."""
    found = select(BLOBS.c.digest).where(BLOBS.c.job_id == job_id, BLOBS.c.pseudonym == site, BLOBS.c.digest == digest).limit(1)
    return connection.execute(found).first() is not None


def _is_answer(key: RoundKey) -> ColumnElement[bool]:
    found: ColumnElement[bool] = (ARRIVALS.c.job_id == key.job_id) & (ARRIVALS.c.number == key.number) & (ARRIVALS.c.attempt == key.attempt)
    return found
