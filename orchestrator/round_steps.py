"""One step of a federated job: look at its newest round, decide what is next, and do it in one fenced transaction.

Everything that a step needs is in SQL and in the store, and all that it writes is a compare-and-set on the round's state under the job's
lease. A server that dies between two steps leaves nothing half done: the next one repeats the step, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
from orchestrator.ledger import federations, rounds, sites
from orchestrator.ledger.rounds import KeptRound, RoundKey
from orchestrator.rounds import Aggregate, Arrival, Ask, Fail, Round, Wait, decide, decide_selection, draw, may_try_again
from orchestrator.services import OrchestratorServices
from wegeft.contracts.adapter import AliasMove
from wegeft.contracts.base_model_name import pinned_name
from wegeft.contracts.errors import IllegalTransition, JobFailure, RoundsFailed
from wegeft.contracts.federation import FailureCode, RoundState, Site, SiteState
from wegeft.contracts.training import JobState

MAX_STATE_BYTES = 8 << 30


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
            self._open(RoundKey(job_id=self.job.id, number=1), self._first_state(), now)
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
                self._open(RoundKey(job_id=self.job.id, number=key.number + 1), self._load(key).result_digest or "", now)
            case RoundState.FAILED:
                self._try_again(key, now)
            case _:
                assert_never(state)
        return None

    def end(self, error: JobFailure, now: datetime) -> None:
        """End the job, and the round that is open, without a result; a job that is being cancelled is then cancelled."""
        with reading(self.services.engine) as connection:
            newest = rounds.last_round(connection, self.job.id)
        kept = None if newest is None or newest[1].is_final else self._load(newest[0])
        with writing(self.services.engine) as connection:
            ledger.hold(connection, self.lease)
            if kept is not None:
                self._write_failure(connection, kept, Fail(code=FailureCode.CANCELLED), now)
            ledger.end_attempt(connection, self.lease, error.body(), now)
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

    def _open(self, key: RoundKey, start: str, now: datetime) -> None:
        with self._fenced() as connection:
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
                self._ask(kept, key, [approved[name] for name in decision.sites], now)
            case _:
                assert_never(decision)
        return None

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
        seen = self._decide(self._load(key), now)
        if isinstance(seen, Wait):
            return seen.until
        with self._fenced() as connection:
            rounds.hold_round(connection, key)
            # Once more, now that nothing else can arrive: what came in between counts too.
            kept = rounds.load_round(connection, key, closing_of(self.job.section))
            decision = self._decide(kept, now)
            if isinstance(decision, Aggregate):
                rounds.close_round(connection, key, decision.members, decision.closed_at)
            elif isinstance(decision, Fail):
                self._write_failure(connection, kept, decision, now)
        return None

    def _decide(self, kept: KeptRound, now: datetime) -> Wait | Aggregate | Fail:
        revoked = {site.pseudonym for site in self._members() if site.state is SiteState.REVOKED}
        return decide(kept.round, kept.arrivals, now, revoked)

    def _combine(self, key: RoundKey, now: datetime) -> None:
        kept, members = self._load(key), self._members()
        federation = federation_of(self.job, members)
        before = read_state(self._read(kept.start_digest))
        sent = sent_of(kept, before)
        outcome = combine_round(federation, before, key.number, key.attempt, sent, self._read)
        if isinstance(outcome, Refused):
            self._fail(kept, Fail(code=outcome.code), now)
            return
        closed = closed_as(kept, members)
        record = record_commit(federation, kept.round, key.attempt, closed, (before, outcome), sent)
        self._put(write_state(outcome.state))
        self._commit(key, RoundResult(state=outcome.state, record=record, sent=tuple(sent)), now)

    def _commit(self, key: RoundKey, result: RoundResult, now: datetime) -> None:
        """Publish the round's version and write its record in one transaction; the last round ends the job."""
        start = read_start(self.job.spec, self.services.store)
        publication = prepare_version(self.services, self.job, start.config, result)
        is_last = key.number >= self.job.section.rounds
        with self._fenced() as connection:
            published = catalog.publish(connection, publication, now, self.services.signer)
            rounds.commit_round(connection, key, result.record.model_copy(update={"published": published.ref}))
            text = f"round {key.number} committed as {published.ref}, from {len(result.sent)} sites"
            federations.tell(connection, self.job.id, text, now)
            federations.note_round(connection, self.lease, key.number)
            if is_last:
                for alias in self.job.spec.output.aliases:
                    catalog.set_alias(connection, publication.adapter, alias, AliasMove(version=published.version), now)
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
            self._open(replace(key, attempt=key.attempt + 1), kept.start_digest, now)
            return
        code = kept.record.failure if kept.record else None
        self.end(RoundsFailed(f"round {key.number} failed {key.attempt} times, the last time for {code}", path=f"round {key.number}"), now)


def sent_of(kept: KeptRound, before: FederationState) -> list[Sent]:
    """Return what the members of a closed round have sent, each with the rank that it was asked for."""
    full = max(edit.pair.rank for edit in before.edits.values())
    updates = [kept.updates[digest].update for digest in kept.member_digests]
    ranks = {name: offer.rank for name, offer in kept.offers.items()}
    return [Sent(update=update, rank=None if ranks[update.site] == full else ranks[update.site]) for update in updates]


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
