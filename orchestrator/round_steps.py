"""One step of a federated job: look at its newest round, decide what is next, and do it in one fenced transaction.

Everything that a step needs is in SQL and in the store, and all that it writes is a compare-and-set on the round's state under the job's
lease. A server that dies between two steps leaves nothing half done: the next one repeats the step, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from sqlalchemy import Connection

from hub import catalog
from hub.objects import read_verified
from infra.database import reading, writing
from orchestrator import ledger
from orchestrator.aggregate import FederationState, Refused
from orchestrator.buffer import decide_buffer
from orchestrator.federation_files import read_state, write_state
from orchestrator.federation_publishing import RoundResult, prepare_version
from orchestrator.federation_round import (
    Federation,
    Sent,
    closing_of,
    combine_round,
    make_offers,
    record_commit,
    record_failure,
    seed_of,
)
from orchestrator.federation_start import read_start
from orchestrator.ledger import buffers, federations, rounds, sites
from orchestrator.ledger.buffers import BufferedUpdate
from orchestrator.ledger.rounds import KeptRound, RoundKey
from orchestrator.rounds import Aggregate, Arrival, Ask, Fail, Round, Wait, decide, decide_selection, draw, may_try_again
from orchestrator.services import OrchestratorServices
from wegeft.contracts.base_model_name import pinned_name
from wegeft.contracts.errors import Conflict, IllegalTransition, RoundsFailed, WegeftError
from wegeft.contracts.federation import FailureCode, Offer, RoundState, Site, SiteState, Update
from wegeft.contracts.federation_rules import Buffered
from wegeft.contracts.training import JobState

MAX_STATE_BYTES = 8 << 30

Newest = tuple[RoundKey, RoundState]
"""The newest try at the newest round, and where it is."""


def federation_of(job: federations.FederatedJob, members: tuple[Site, ...]) -> Federation:
    """Return what stays the same from round to round."""
    spec = job.spec
    return Federation(
        job_id=job.id,
        base_model=pinned_name(spec.base_model, spec.base_model_revision),
        spec=job.section,
        seed=spec.seed,
        pseudonyms={site.name: site.pseudonym for site in members},
        max_steps=spec.max_steps,
        max_grad_norm=spec.max_grad_norm or 1.0,
        approved=sum(site.state is SiteState.APPROVED for site in members),
    )


@dataclass(frozen=True, kw_only=True)
class Steps:
    """The steps of one federated job, as long as the lease holds."""

    services: OrchestratorServices
    job: federations.FederatedJob
    lease: ledger.Lease
    renew: Callable[[], None]
    """Keeps the lease while a step takes long; raises :class:`StaleLease` where it is lost."""

    def advance(self, now: datetime) -> datetime | None:
        """Do what is next; return None where something changed and there may be more to do, else until when there is nothing.

        Raises :class:`StaleLease` where the job is no longer the caller's.
        """
        with reading(self.services.engine) as connection:
            newest = rounds.last_round(connection, self.job.id)
        if newest is None:
            self._open(RoundKey(job_id=self.job.id, number=1), self._first_state(), newest, now)
            return None
        key, state = newest
        match state:
            case RoundState.CREATED | RoundState.SELECTING:
                return self._select(key, now)
            case RoundState.COLLECTING:
                return self._collect(key, now)
            case RoundState.AGGREGATING:
                self._combine(key, now)
            case RoundState.COMMITTED:
                following = RoundKey(job_id=self.job.id, number=key.number + 1)
                self._open(following, self._load(key).result_digest or "", newest, now)
            case RoundState.FAILED:
                self._try_again(key, now)
            case _:
                assert_never(state)
        return None

    def end(self, error: WegeftError, now: datetime, seen: Newest | None = None) -> None:
        """End the job, and the round that is open, without a result; a job that is being cancelled is then cancelled.

        ``seen``: the round that the caller decides from; raises :class:`Conflict` where it is not the newest any more.
        """
        with writing(self.services.engine) as connection:
            ledger.hold(connection, self.lease)
            newest = rounds.last_round(connection, self.job.id)
            if seen is not None and newest != seen:
                raise Conflict("the federation has gone on meanwhile", path="round", value=str(seen[0].number))
            if newest is not None and not newest[1].is_final:
                rounds.hold_round(connection, newest[0])
                kept = rounds.load_round(connection, newest[0], closing_of(self.job.section))
                self._write_failure(connection, kept, Fail(code=FailureCode.CANCELLED), now)
            # Whatever the error, the rounds were the tries: the job is never queued again.
            ledger.end_attempt(connection, self.lease, error.body(), now, is_last=True)
        self.services.bells.asked.ring()

    @contextmanager
    def _fenced(self) -> Iterator[Connection]:
        """Open a transaction in which the job is held and runs; raise :class:`StaleLease` to a caller that has lost it."""
        with writing(self.services.engine) as connection:
            if ledger.hold(connection, self.lease).state != JobState.RUNNING:
                raise IllegalTransition("the job is being cancelled", path="job", value=self.job.id)
            yield connection

    def _load(self, key: RoundKey) -> KeptRound:
        with reading(self.services.engine) as connection:
            return rounds.load_round(connection, key, closing_of(self.job.section))

    def _members(self) -> tuple[Site, ...]:
        with reading(self.services.engine) as connection:
            return sites.list_sites(connection, self.job.id)

    def _read(self, digest: str) -> bytes:
        self.renew()
        return read_verified(self.services.store, digest, MAX_STATE_BYTES)

    def _put(self, content: bytes) -> str:
        return self.services.keep_for_rounds(self.job.id, content)

    def _first_state(self) -> str:
        return self._put(write_state(read_start(self.job.spec, self.services.store).state))

    def _open(self, key: RoundKey, start: str, seen: Newest | None, now: datetime) -> None:
        """Open a round; ``seen``: the newest one that the caller decides from, before which somebody may have gone back."""
        with self._fenced() as connection:
            if rounds.last_round(connection, self.job.id) != seen:
                raise Conflict("the federation has gone on meanwhile", path="round", value=str(key.number))
            rounds.open_round(connection, key, start, now)

    def _select(self, key: RoundKey, now: datetime) -> datetime | None:
        kept, members, section = self._load(key), self._members(), self.job.section
        federation = federation_of(self.job, members)
        approved = {site.pseudonym: site for site in members if site.state is SiteState.APPROVED}
        seed = str(seed_of(federation, key.number, key.attempt))
        drawn = draw(approved, section.sampling, kept.round.closing, section.target_sites, seed)
        decision = decide_selection(kept.round, drawn, now)
        is_bad_luck = len(drawn) < section.min_sites <= len(approved)
        if isinstance(decision, Wait) and is_bad_luck:
            decision = Fail(code=FailureCode.NOT_ENOUGH_SITES)
        match decision:
            case Wait():
                self._say_wait(f"sites: {len(approved)} of at least {section.min_sites} can be asked")
                return decision.until
            case Fail():
                self._fail(kept, decision, now)
            case Ask():
                waiting = self._waiting_sites()
                self._ask(kept, key, [approved[name] for name in decision.sites if name not in waiting], now)
            case _:
                assert_never(decision)
        return None

    def _waiting_sites(self) -> frozenset[str]:
        """Return the sites whose updates wait in the buffer, which are not asked for more; none where rounds are synchronous."""
        with reading(self.services.engine) as connection:
            return frozenset(one.arrival.site for one in buffers.list_waiting(connection, self.job.id))

    def _ask(self, kept: KeptRound, key: RoundKey, asked: list[Site], now: datetime) -> None:
        state = read_state(self._read(kept.start_digest))
        round_ = replace(kept.round, since=now)
        offers, starts = make_offers(federation_of(self.job, self._members()), state, round_, asked, key.attempt)
        for content in starts.values():
            self._put(content)
        with self._fenced() as connection:
            rounds.ask(connection, key, list(offers.values()), now)
            federations.note_wait(connection, self.job.id, None)
            federations.tell(connection, self.job.id, f"round {key.number}, try {key.attempt}: {len(offers)} sites are asked", now)
        self.services.bells.asked.ring()

    def _say_wait(self, text: str) -> None:
        if self.job.waiting_for != text:
            with self._fenced() as connection:
                federations.note_wait(connection, self.job.id, text)

    def _collect(self, key: RoundKey, now: datetime) -> datetime | None:
        kept = self._load(key)
        with reading(self.services.engine) as connection:
            seen = self._decide(connection, kept, now)
        if isinstance(seen, Wait):
            return seen.until
        with self._fenced() as connection:
            rounds.hold_round(connection, key)
            # Once more, now that nothing else can arrive: what came in between counts too.
            kept = rounds.load_round(connection, key, closing_of(self.job.section))
            decision = self._decide(connection, kept, now)
            if isinstance(decision, Aggregate):
                self._close(connection, key, decision)
            elif isinstance(decision, Fail):
                self._write_failure(connection, kept, decision, now)
        return None

    def _decide(self, connection: Connection, kept: KeptRound, now: datetime) -> Wait | Aggregate | Fail:
        members, mode = sites.list_sites(connection, self.job.id), self.job.section.mode
        revoked = {site.pseudonym for site in members if site.state is SiteState.REVOKED}
        if isinstance(mode, Buffered):
            return decide_buffer(kept.round, buffers.list_waiting(connection, self.job.id), mode.buffer_size, now, revoked)
        return decide(kept.round, kept.arrivals, now, revoked)

    def _close(self, connection: Connection, key: RoundKey, decision: Aggregate) -> None:
        if isinstance(self.job.section.mode, Buffered):
            buffers.close_buffer(connection, key, decision)
        else:
            rounds.close_round(connection, key, decision.members, decision.closed_at)

    def _combine(self, key: RoundKey, now: datetime) -> None:
        kept, members = self._load(key), self._members()
        federation = federation_of(self.job, members)
        before = read_state(self._read(kept.start_digest))
        sent = self._sent(kept, before)
        outcome = combine_round(federation, before, key.number, key.attempt, sent, self._read)
        if isinstance(outcome, Refused):
            self._fail(kept, Fail(code=outcome.code), now)
            return
        closed = self._closed_as(kept, members)
        record = record_commit(federation, kept.round, key.attempt, closed, (before, outcome), sent)
        self._put(write_state(outcome.state))
        self._commit(key, RoundResult(state=outcome.state, record=record, sent=tuple(sent)), now)

    def _sent(self, kept: KeptRound, before: FederationState) -> list[Sent]:
        if not isinstance(self.job.section.mode, Buffered):
            return sent_of(kept, before)
        with reading(self.services.engine) as connection:
            return sent_from_buffer(buffers.load_members(connection, self.job.id, kept), kept, before)

    def _closed_as(self, kept: KeptRound, members: tuple[Site, ...]) -> Aggregate:
        if not isinstance(self.job.section.mode, Buffered):
            return closed_as(kept, members)
        assert kept.closed_at is not None  # noqa: S101 - it is written with the members
        revoked = {site.pseudonym for site in members if site.state is SiteState.REVOKED}
        with reading(self.services.engine) as connection:
            left_out = buffers.list_left_out(connection, self.job.id, kept, revoked)
        return Aggregate(members=(), left_out=left_out, closed_at=kept.closed_at)

    def _commit(self, key: RoundKey, result: RoundResult, now: datetime) -> None:
        """Publish the round's version and write its record in one transaction; the last round ends the job."""
        start = read_start(self.job.spec, self.services.store)
        publication = prepare_version(self.services, self.job, start.config, result)
        done = result.state.rounds  # without those that were undone
        is_last = done >= self.job.section.rounds
        with self._fenced() as connection:
            published = catalog.publish(connection, publication, now, self.services.signer)
            rounds.commit_round(connection, key, result.record.model_copy(update={"published": published.ref}))
            text = f"round {key.number} committed as {published.ref}, from {len(result.sent)} sites"
            federations.tell(connection, self.job.id, text, now)
            federations.note_round(connection, self.lease, done)
            if is_last:
                aliases = self.job.spec.output.aliases
                for alias in catalog.point_open_aliases(connection, publication.adapter, aliases, published.version, now):
                    federations.tell(connection, self.job.id, f"{alias} is protected and stays where it is: an admin moves it", now)
                ledger.succeed(connection, self.lease, published, now)
        if is_last:
            self.services.bells.asked.ring()

    def _fail(self, kept: KeptRound, why: Fail, now: datetime) -> None:
        with self._fenced() as connection:
            self._write_failure(connection, kept, why, now)

    def _write_failure(self, connection: Connection, kept: KeptRound, why: Fail, now: datetime) -> None:
        key = RoundKey(job_id=self.job.id, number=kept.round.number, attempt=kept.attempt)
        record = record_failure(federation_of(self.job, self._members()), kept.round, kept.attempt, kept.start_digest, why, now)
        rounds.fail_round(connection, key, kept.round.state, record)
        federations.tell(connection, self.job.id, f"round {key.number}, try {key.attempt} failed: {why.code}", now)

    def _try_again(self, key: RoundKey, now: datetime) -> None:
        kept = self._load(key)
        if may_try_again(key.attempt, self.job.section.max_failed_rounds):
            self._open(replace(key, attempt=key.attempt + 1), kept.start_digest, (key, RoundState.FAILED), now)
            return
        code = kept.record.failure if kept.record else None
        error = RoundsFailed(f"round {key.number} failed {key.attempt} times, the last time for {code}", path=f"round {key.number}")
        self.end(error, now, (key, RoundState.FAILED))


def sent_of(kept: KeptRound, before: FederationState) -> list[Sent]:
    """Return what the members of a closed round have sent, each with the rank that it was asked for."""
    full = max(edit.pair.rank for edit in before.edits.values())
    updates = [kept.updates[digest].update for digest in kept.member_digests]
    return [_sent(update, kept.offers[update.site], full) for update in updates]


def _sent(update: Update, offer: Offer, full_rank: int) -> Sent:
    rank = None if offer.rank == full_rank else offer.rank
    return Sent(update=update, rank=rank, control_sites=offer.control.sites if offer.control else None)


def sent_from_buffer(members: Sequence[BufferedUpdate], kept: KeptRound, before: FederationState) -> list[Sent]:
    """Return what the members of a buffered round have sent, each with where it started."""
    full = max(edit.pair.rank for edit in before.edits.values())
    starts = [None if member.start_digest == kept.start_digest else member.start_digest for member in members]
    sent = [_sent(member.update, member.offer, full) for member in members]
    return [replace(one, position=member.position, start=start) for one, member, start in zip(sent, members, starts, strict=True)]


def closed_as(kept: KeptRound, members: tuple[Site, ...]) -> Aggregate:
    """Return how a round was closed: its members as they were settled, and why the others are not among them."""
    assert kept.closed_at is not None  # noqa: S101 - it is written with the members
    inside = [arrival for arrival in kept.arrivals if arrival.digest in kept.member_digests]
    sites_inside = {arrival.site for arrival in inside}
    revoked = {site.pseudonym for site in members if site.state is SiteState.REVOKED} - sites_inside
    as_open: Round = replace(kept.round, state=RoundState.COLLECTING)
    decision = decide(as_open, kept.arrivals, kept.closed_at, revoked)
    left_out = () if isinstance(decision, Wait) else decision.left_out
    return Aggregate(members=tuple(sorted(inside, key=_site_of)), left_out=left_out, closed_at=kept.closed_at)


def _site_of(arrival: Arrival) -> str:
    return arrival.site
