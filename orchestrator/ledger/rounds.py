"""Rounds in SQL: what was asked, what arrived and when, what a round closed with and what came of it.

Every move is a compare-and-set on the round's state inside the caller's transaction, so that of two servers that decide the same thing one
acts and the other sees it done. An arrival is accepted or refused while the round's row is locked: nothing that came too late is ever in.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, select, update

from orchestrator.ledger.federation_tables import ARRIVALS, BLOBS, OFFERS, ROUNDS
from orchestrator.rounds import Arrival, Closing, Move, Round, Wait, decide, move
from wegeft.contracts.errors import Conflict, IllegalTransition, NotFound, Problem, StaleRound, TooLarge
from wegeft.contracts.federation import Decline, Offer, ReasonCode, RoundRecord, RoundState, SignedUpdate

KEPT_REFUSALS = 16
"""Of one site in a try at a round; what it sends beyond them is refused as well, and leaves nothing behind."""


@dataclass(frozen=True, kw_only=True)
class RoundKey:
    """Which round, and which try at it."""

    job_id: str
    number: int
    attempt: int = 1


@dataclass(frozen=True, kw_only=True)
class KeptRound:
    """A round and everything that came for it."""

    round: Round
    attempt: int
    start_digest: str
    offers: Mapping[str, Offer]
    """By pseudonym."""
    arrivals: tuple[Arrival, ...]
    updates: Mapping[str, SignedUpdate]
    """Every update that passed the gate, by its digest."""
    member_digests: tuple[str, ...]
    """Updates that the round closed with, settled once; empty before."""
    closed_at: datetime | None
    """When it closed; the moment that its members follow from."""
    result_digest: str | None
    record: RoundRecord | None


def open_round(connection: Connection, key: RoundKey, start_digest: str, now: datetime) -> None:
    """Begin to look for sites; raise :class:`Conflict` where the round is there already."""
    if connection.execute(select(ROUNDS.c.state).where(_is(key))).first() is not None:
        raise Conflict("the round has begun already", path="round", value=str(key.number))
    values = {"job_id": key.job_id, "number": key.number, "attempt": key.attempt, "start_digest": start_digest}
    connection.execute(insert(ROUNDS).values(**values, state=RoundState.SELECTING.value, since=now))


def ask(connection: Connection, key: RoundKey, offers: Collection[Offer], now: datetime) -> None:
    """Write the offers and begin to collect; the bytes that they name must be in the store."""
    _move(connection, key, RoundState.SELECTING, Move.ASK, {"since": now})
    place = {"job_id": key.job_id, "number": key.number, "attempt": key.attempt}
    if offers:
        connection.execute(insert(OFFERS), [{**place, "pseudonym": offer.site, "offer": offer.to_bytes().decode()} for offer in offers])


def receive(
    connection: Connection, key: RoundKey, message: SignedUpdate | Decline, problems: Sequence[Problem], closing: Closing, now: datetime
) -> Arrival:
    """Keep what a site sent, accepted where there are no ``problems``; the same message again gives the same arrival.

    Of refused ones a site's first few are kept, so that nobody fills a round's record.

    Raises :class:`NotFound` where the site was not asked, :class:`StaleRound` where the round is closed, and :class:`Conflict` where
    another answer of the site was taken before.
    """
    digest, site, reason = describe_answer(message, problems)
    row = connection.execute(select(ROUNDS).where(_is(key)).with_for_update()).one_or_none()
    if row is None or connection.execute(select(OFFERS.c.offer).where(_is(key, OFFERS), OFFERS.c.pseudonym == site)).first() is None:
        raise NotFound("the site was not asked in this round", path="site", value=site)
    arrivals = _arrivals(connection, key)
    for arrival in arrivals:
        if (arrival.site, arrival.digest) == (site, digest):
            if problems or not is_open_again(arrival):
                return arrival
            connection.execute(delete(ARRIVALS).where(_is(key, ARRIVALS), ARRIVALS.c.pseudonym == site, ARRIVALS.c.digest == digest))
    if any(arrival.site == site and arrival.reason is not ReasonCode.REFUSED for arrival in arrivals):
        raise Conflict("another answer of this site was taken before", path="site", value=site)
    kept = _round(row, _asked(connection, key), closing)
    if kept.state is not RoundState.COLLECTING or not isinstance(decide(kept, arrivals, now), Wait):
        raise StaleRound("the round is closed", path="round", value=str(key.number), hint="ask for the next one")
    arrival = Arrival(site=site, digest=digest, received_at=now, reason=reason, problems=tuple(problems))
    if reason is ReasonCode.REFUSED and sum(other.site == site for other in arrivals) >= KEPT_REFUSALS:
        return arrival
    connection.execute(insert(ARRIVALS).values(**arrival_row(key, arrival, message)))
    return arrival


def is_open_again(arrival: Arrival) -> bool:
    """Return whether an update was refused for its signature, which is no part of its digest: the same one may come rightly signed."""
    return arrival.reason is ReasonCode.REFUSED and any(problem.path == "signature" for problem in arrival.problems)


def load_round(connection: Connection, key: RoundKey, closing: Closing) -> KeptRound:
    """Return a round and all that came for it; raise :class:`NotFound`."""
    row = connection.execute(select(ROUNDS).where(_is(key))).one_or_none()
    if row is None:
        raise NotFound("there is no such round", path="round", value=str(key.number))
    sent = connection.execute(select(OFFERS).where(_is(key, OFFERS))).all()
    offers = {one.pseudonym: Offer.model_validate_json(one.offer) for one in sent}
    came = connection.execute(select(ARRIVALS).where(_is(key, ARRIVALS), ARRIVALS.c.reason.is_(None))).all()
    return KeptRound(
        round=_round(row, frozenset(offers), closing),
        attempt=row.attempt,
        start_digest=row.start_digest,
        offers=offers,
        arrivals=_arrivals(connection, key),
        updates={one.digest: SignedUpdate.model_validate_json(one.message) for one in came},
        member_digests=tuple(json.loads(row.members)) if row.members else (),
        closed_at=row.closed_at,
        result_digest=row.result_digest,
        record=RoundRecord.model_validate_json(row.record) if row.record else None,
    )


def hold_round(connection: Connection, key: RoundKey) -> None:
    """Let nothing arrive for a round, and nobody else move it, until the transaction ends."""
    connection.execute(select(ROUNDS.c.state).where(_is(key)).with_for_update()).one()


def close_round(connection: Connection, key: RoundKey, members: Sequence[Arrival], closed_at: datetime) -> None:
    """Settle the members, once and for all; raise :class:`IllegalTransition` where another server has."""
    digests = json.dumps([member.digest for member in members])
    _move(connection, key, RoundState.COLLECTING, Move.CLOSE, {"members": digests, "closed_at": closed_at})


def commit_round(connection: Connection, key: RoundKey, record: RoundRecord) -> None:
    """Write the record of a round that was put together; in the transaction that publishes its version."""
    values = {"record": record.to_bytes().decode(), "result_digest": record.result}
    _move(connection, key, RoundState.AGGREGATING, Move.COMMIT, values)


def fail_round(connection: Connection, key: RoundKey, state: RoundState, record: RoundRecord) -> None:
    """Write the record of a round that failed in ``state``."""
    _move(connection, key, state, Move.FAIL, {"record": record.to_bytes().decode(), "closed_at": record.closed_at})


def find_offer(connection: Connection, key: RoundKey, site: str) -> Offer | None:
    """Return what a site was asked in a round; None where it was not."""
    text = connection.execute(select(OFFERS.c.offer).where(_is(key, OFFERS), OFFERS.c.pseudonym == site)).scalar_one_or_none()
    return None if text is None else Offer.model_validate_json(text)


def find_arrival(connection: Connection, key: RoundKey, site: str, digest: str) -> Arrival | None:
    """Return what became of a message that a site sent; None where it never came."""
    row = connection.execute(select(ARRIVALS).where(_is(key, ARRIVALS), ARRIVALS.c.pseudonym == site, ARRIVALS.c.digest == digest))
    return next((arrival_of(one) for one in row), None)


def find_start(connection: Connection, key: RoundKey) -> str:
    """Return the digest of the state that a round starts from; raise :class:`NotFound`."""
    digest: str | None = connection.execute(select(ROUNDS.c.start_digest).where(_is(key))).scalar_one_or_none()
    if digest is None:
        raise NotFound("there is no such round", path="round", value=str(key.number))
    return digest


def find_open_offer(connection: Connection, job_id: str, site: str) -> Offer | None:
    """Return what a site is asked now; None where it is not, or has answered."""
    newest = last_round(connection, job_id)
    if newest is None or newest[1] is not RoundState.COLLECTING:
        return None
    key = newest[0]
    answered = select(ARRIVALS.c.digest).where(_is(key, ARRIVALS), ARRIVALS.c.pseudonym == site)
    is_final = ARRIVALS.c.reason.is_(None) | (ARRIVALS.c.reason != ReasonCode.REFUSED.value)
    return None if connection.execute(answered.where(is_final)).first() is not None else find_offer(connection, key, site)


def note_blob(connection: Connection, key: RoundKey, site: str, digest: str, most: int) -> bool:
    """Note that a site has delivered these bytes, which were read and verified, in a round; return whether it had not before.

    Raises :class:`TooLarge` where it has delivered ``most`` others already.
    """
    if not check_blob(connection, key, site, digest, most):
        return False
    values = {"job_id": key.job_id, "number": key.number, "attempt": key.attempt, "pseudonym": site, "digest": digest}
    connection.execute(insert(BLOBS).values(values))
    return True


def check_blob(connection: Connection, key: RoundKey, site: str, digest: str, most: int) -> bool:
    """Return whether bytes are new among those that a site has delivered in a round; raise :class:`TooLarge` where they are too many."""
    is_theirs = (_is(key, BLOBS), BLOBS.c.pseudonym == site)
    known = frozenset(connection.execute(select(BLOBS.c.digest).where(*is_theirs)).scalars())
    if digest not in known and len(known) >= most:
        raise TooLarge(f"a site may send {most} files in a round", path="digest", value=digest, hint="submit one of those that it has sent")
    return digest not in known


def has_delivered(connection: Connection, key: RoundKey, site: str, digest: str) -> bool:
    """Return whether a site has delivered these bytes in a round."""
    found = select(BLOBS.c.digest).where(_is(key, BLOBS), BLOBS.c.pseudonym == site, BLOBS.c.digest == digest)
    return connection.execute(found).first() is not None


def is_start_of(connection: Connection, job_id: str, site: str, digest: str) -> bool:
    """Return whether a site was asked to start from these bytes; ``digest`` is well-formed."""
    names_it = OFFERS.c.offer.contains(f'"start":"{digest}"', autoescape=True)  # canonical JSON, with no spaces
    query = select(OFFERS.c.number).where(OFFERS.c.job_id == job_id, OFFERS.c.pseudonym == site, names_it).limit(1)
    return connection.execute(query).first() is not None


def last_round(connection: Connection, job_id: str) -> tuple[RoundKey, RoundState] | None:
    """Return the newest try at the newest round of a federation, or None before the first."""
    newest = select(ROUNDS).where(ROUNDS.c.job_id == job_id).order_by(ROUNDS.c.number.desc(), ROUNDS.c.attempt.desc()).limit(1)
    row = connection.execute(newest).one_or_none()
    return None if row is None else (RoundKey(job_id=job_id, number=row.number, attempt=row.attempt), RoundState(row.state))


def _move(connection: Connection, key: RoundKey, state: RoundState, what: Move, values: Mapping[str, object]) -> None:
    after = move(state, what)
    changed = connection.execute(update(ROUNDS).where(_is(key), ROUNDS.c.state == state.value).values(state=after.value, **values))
    if changed.rowcount != 1:
        raise IllegalTransition(f"the round is not {state} any more", path="round", value=str(key.number))


def _is(key: RoundKey, table: object = ROUNDS) -> ColumnElement[bool]:
    columns = table.c  # type: ignore[attr-defined]  # the three tables share these columns
    found: ColumnElement[bool] = (columns.job_id == key.job_id) & (columns.number == key.number) & (columns.attempt == key.attempt)
    return found


def _asked(connection: Connection, key: RoundKey) -> frozenset[str]:
    return frozenset(connection.execute(select(OFFERS.c.pseudonym).where(_is(key, OFFERS))).scalars())


def _round(row: Row[tuple[object, ...]], asked: frozenset[str], closing: Closing) -> Round:
    return Round(number=row.number, state=RoundState(row.state), closing=closing, since=row.since, asked=asked)


def _arrivals(connection: Connection, key: RoundKey) -> tuple[Arrival, ...]:
    rows = connection.execute(select(ARRIVALS).where(_is(key, ARRIVALS)).order_by(ARRIVALS.c.received_at, ARRIVALS.c.pseudonym)).all()
    return tuple(arrival_of(row) for row in rows)


def arrival_of(row: Row[tuple[object, ...]]) -> Arrival:
    return Arrival(
        site=row.pseudonym,
        digest=row.digest,
        received_at=row.received_at,
        reason=ReasonCode(row.reason) if row.reason else None,
        problems=tuple(Problem.model_validate(problem) for problem in json.loads(row.problems)),
    )


def describe_answer(message: SignedUpdate | Decline, problems: Sequence[Problem]) -> tuple[str, str, ReasonCode | None]:
    if isinstance(message, Decline):
        return message.digest, message.site, ReasonCode(message.reason)
    return message.update.digest, message.update.site, ReasonCode.REFUSED if problems else None


def arrival_row(key: RoundKey, arrival: Arrival, message: SignedUpdate | Decline) -> dict[str, object]:
    return {
        "job_id": key.job_id,
        "number": key.number,
        "attempt": key.attempt,
        "pseudonym": arrival.site,
        "digest": arrival.digest,
        "received_at": arrival.received_at,
        "reason": arrival.reason.value if arrival.reason else None,
        "message": message.to_bytes().decode(),
        "problems": json.dumps([problem.model_dump(mode="json") for problem in arrival.problems]),
    }
