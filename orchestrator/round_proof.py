"""What a round's record, receipts and bytes prove, checked by whoever holds them: pure functions, no I/O but the given reader."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from math import isclose

from pydantic import BaseModel, ConfigDict

from orchestrator.aggregate import SCORE_ARITHMETIC, FederationState, Outcome, Refused, Score, needs_gram
from orchestrator.federation_files import read_state, write_adapter, write_start, write_state
from orchestrator.federation_round import Federation, ReadBytes, Sent, combine_round
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.base_model_name import pinned_name
from wegeft.contracts.errors import Forbidden, WegeftError
from wegeft.contracts.federation import Member, Offer, RoundState, SignedReceipt, SignedUpdate
from wegeft.contracts.federation_rules import Buffered
from wegeft.contracts.round_evidence import RoundEvidence
from wegeft.contracts.signatures import is_signed

_LAST_BITS = 1e-6
"""How far apart what two arithmetics give may be, which differ in how they round; more is another round."""


class Check(BaseModel):
    """One thing that was looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    is_ok: bool | None
    """None where it could not be looked at."""
    found: str
    """What was proved, or what is wrong, in words."""


def check_round(evidence: RoundEvidence, read: ReadBytes, expected_start: str | None = None, weights: str | None = None) -> list[Check]:
    """Return what the evidence of a committed round proves; every check is made, whatever the others find.

    ``read`` gives the bytes of a digest, and raises :class:`Forbidden` where the caller may not see them. ``expected_start``: the result of
    the round before, and ``weights``: digest of the published version's tensors, each where it is known.
    """
    proof = _Proof(evidence, read, expected_start, weights)
    return [_checked(name, look) for name, look in proof.looks().items()]


class _Wrong(Exception):
    """What a check has found to be wrong."""


class _Unseen(Exception):
    """Why a check could not be made."""


def _checked(name: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name=name, is_ok=True, found=look())
    except _Unseen as unseen:
        return Check(name=name, is_ok=None, found=str(unseen))
    except Forbidden:
        return Check(name=name, is_ok=None, found="the bytes of updates are for this service's administrators")
    except _Wrong as wrong:
        return Check(name=name, is_ok=False, found=str(wrong))
    except WegeftError as error:
        return Check(name=name, is_ok=False, found=" ".join(str(error).split()))


class _Proof:
    def __init__(self, evidence: RoundEvidence, read: ReadBytes, expected_start: str | None, weights: str | None) -> None:
        self._evidence, self._record = evidence, evidence.record
        self._read, self._expected_start, self._weights = read, expected_start, weights
        self._updates = {signed.update.site: signed for signed in evidence.updates}
        self._receipts = {signed.receipt.site: signed for signed in evidence.receipts}
        self._outcome: Outcome | None = None
        """Of the round computed again, once that was found to be what the record says."""

    def looks(self) -> dict[str, Callable[[], str]]:
        """Return every check by its name, in the order in which they build on each other."""
        return {
            "members": self._look_at_members,
            "signatures": self._look_at_signatures,
            "receipts": self._look_at_receipts,
            "start": self._look_at_start,
            "tensors": self._look_at_tensors,
            "result": self._look_at_result,
            "scores": self._look_at_scores,
            "version": self._look_at_version,
        }

    def _members(self) -> Iterator[tuple[Member, SignedUpdate]]:
        for member in self._record.members:
            if member.site not in self._updates:
                raise _Wrong(f"there is no update of {member.site}, which is a member")
            yield member, self._updates[member.site]

    def _look_at_members(self) -> str:
        record = self._record
        if record.state is not RoundState.COMMITTED or record.result is None or not record.members:
            raise _Wrong("the round is not committed")
        names = [member.site for member in record.members]
        if names != sorted(set(names)):
            raise _Wrong("the members are not sorted, or one is named twice")
        for member, signed in self._members():
            _same(f"the update of {member.site}", signed.update.digest, member.update)
            update, offer = signed.update, self._evidence.offers.get(member.site)
            if offer is None:
                raise _Wrong(f"there is no offer to {member.site}")
            _same(f"the offer that {member.site} answers", update.offer, offer.digest)
            began, attempt = record.round, record.attempt
            if member.staleness is not None:  # a buffered update answers the offer with which it began, of whatever try
                began, attempt = record.round - member.staleness, offer.attempt
            said = (update.job_id, update.round, update.attempt, update.tensors, update.examples, update.start)
            wanted = (record.job_id, began, attempt, member.tensors, member.examples, offer.start)
            if said != wanted:
                raise _Wrong(f"what {member.site} has signed is not what the record says of it")
        self._check_positions()
        return f"{len(names)} members, each with the update that the record names, which answers its offer in this round"

    def _check_positions(self) -> None:
        section = self._federation().spec
        places = [member.position for member in self._record.members]
        if not isinstance(section.mode, Buffered):
            if any(place is not None for place in places):
                raise _Wrong("the members have places in a buffer, and the job has none")
            return
        if None in places or len(set(places)) != section.mode.buffer_size or len(places) != section.mode.buffer_size:
            raise _Wrong(f"a version is made from {section.mode.buffer_size} updates, each with a place of its own in the buffer")
        has_gone_back = self._evidence.parent != self._record.round - 1
        for member in self._record.members:
            if has_gone_back and member.staleness:
                raise _Wrong(f"{member.site} began before the federation went back to round {self._evidence.parent}")
            if member.staleness not in range(section.mode.max_staleness + 1):
                raise _Wrong(f"{member.site} began {member.staleness} versions ago, and {section.mode.max_staleness} are allowed")

    def _look_at_signatures(self) -> str:
        for member, signed in self._members():
            if not any(self._is_by(signed, key.public_key, key.until) for key in self._evidence.keys.get(member.site, ())):
                raise _Wrong(f"the update of {member.site} is not signed with a key that it had then")
        return "every update is signed with the key that its site had when it came"

    def _is_by(self, signed: SignedUpdate, public_key: str, until: datetime | None) -> bool:
        receipt = self._receipts.get(signed.update.site)
        is_then = until is None or receipt is None or receipt.receipt.received_at <= until
        return is_then and is_signed(public_key, signed.update.to_bytes(), signed.signature)

    def _look_at_receipts(self) -> str:
        for member, signed in self._members():
            kept = self._receipts.get(member.site)
            if kept is None:
                raise _Wrong(f"there is no receipt of {member.site}")
            self._check_receipt(kept, signed)
        return "every member has a receipt for its update, signed by the server, of before the round closed"

    def _check_receipt(self, kept: SignedReceipt, signed: SignedUpdate) -> None:
        receipt, update = kept.receipt, signed.update
        if not is_signed(self._evidence.server_key, receipt.to_bytes(), kept.signature):
            raise _Wrong(f"the receipt of {update.site} is not signed with the server's key")
        said = (receipt.job_id, receipt.round, receipt.attempt, receipt.update, receipt.tensors)
        if said != (update.job_id, update.round, update.attempt, update.digest, update.tensors):
            raise _Wrong(f"the receipt of {update.site} is for another update")
        if self._record.closed_at is not None and receipt.received_at > self._record.closed_at:
            raise _Wrong(f"the update of {update.site} came after the round had closed")

    def _look_at_start(self) -> str:
        if self._expected_start is not None:
            _same(f"the start, which should be the result of round {self._evidence.parent},", self._record.start, self._expected_start)
        state = self._read_state()
        self._check_older_starts(state)
        before = f"the result of round {self._evidence.parent}" if self._expected_start else "not compared with the round before"
        return f"{self._record.start}, {before}, after {state.rounds} rounds"

    def _check_older_starts(self, state: FederationState) -> None:
        """See that each member of a buffered round was asked to start from the state that the record names."""
        if not isinstance(self._federation().spec.mode, Buffered):
            return
        full = _full_rank(state)
        for member, signed in self._members():
            began = state if member.start is None else read_state(self._bytes_of(member.start))
            rank = self._offer_of(member.site).rank
            given = digest_of(write_start(began, None if rank == full else rank))
            _same(f"what {member.site} started from", signed.update.start, given)

    def _offer_of(self, site: str) -> Offer:
        if site not in self._evidence.offers:
            raise _Wrong(f"there is no offer to {site}")
        return self._evidence.offers[site]

    def _read_state(self) -> FederationState:
        return read_state(self._bytes_of(self._record.start))

    def _bytes_of(self, digest: str) -> bytes:
        content = self._read(digest)
        _same("what is stored", digest_of(content), digest)
        return content

    def _look_at_tensors(self) -> str:
        total = 0
        for member, signed in self._members():
            size = len(self._bytes_of(member.tensors))
            if size != signed.update.size:
                raise _Wrong(f"{member.site} has signed {signed.update.size} bytes, and {size} are stored")
            total += size
        return f"the bytes of {len(self._record.members)} updates, {total:,} in all, are those that were signed"

    def _look_at_result(self) -> str:
        outcome = self._combine(self._sent())
        try:
            self._outcome = self._compare(outcome)
        except _Wrong:
            if isinstance(outcome, Refused) or not self._weighs_alike(outcome):
                raise
            self._outcome = self._compare(self._combine(self._sent_with_weights()))
            raise self._by_other_arithmetic("the result follows from the record's weights, which under this defence") from None
        return f"{self._record.result}, computed again bit for bit"

    def _weighs_alike(self, outcome: Outcome) -> bool:
        """Return whether the record's weights may be another arithmetic's of the same inner products."""
        weights = [(outcome.weights.get(member.site), member.weight) for member in self._record.members]
        # Of themselves: where a defence gives an update no weight at all, every arithmetic does.
        is_alike = all(ours is not None and isclose(ours, theirs, rel_tol=_LAST_BITS) for ours, theirs in weights)
        return is_alike and self._is_of_other_arithmetic and needs_gram(self._federation().spec.defence)

    @property
    def _is_of_other_arithmetic(self) -> bool:
        return self._record.score_arithmetic != SCORE_ARITHMETIC

    def _combine(self, sent: Sequence[Sent]) -> Outcome | Refused:
        record = self._record
        return combine_round(self._federation(), self._read_state(), record.round, record.attempt, sent, self._bytes_of)

    def _sent_with_weights(self) -> Sequence[Sent]:
        return [replace(one, weight=member.weight) for one, member in zip(self._sent(), self._record.members, strict=True)]

    def _compare(self, outcome: Outcome | Refused) -> Outcome:
        record = self._record
        if isinstance(outcome, Refused):
            raise _Wrong(f"computed again, the round fails: {outcome.code}: {'; '.join(map(str, outcome.problems))}")
        for member in record.members:
            if outcome.weights.get(member.site) != member.weight:
                raise _Wrong(f"computed again, {member.site} weighs {outcome.weights.get(member.site)}, and {member.weight} in the record")
        if dict(outcome.measures) != record.measures:
            raise _Wrong("computed again, the measures of the round are others")
        _same("the result, computed again,", digest_of(write_state(outcome.state)), str(record.result))
        return outcome

    def _look_at_scores(self) -> str:
        if self._outcome is None:
            raise _Unseen("not compared: the result was not computed, or is not the record's")
        for member in self._record.members:
            said, computed = _scores_of(member), _scores_of(self._outcome.scores.get(member.site))
            if computed != said:
                if self._is_of_other_arithmetic and _are_alike(computed, said):
                    raise self._by_other_arithmetic("the scores")
                raise _Wrong(f"computed again, the scores of {member.site} are {_write(computed)}, and {_write(said)} in the record")
        return f"of {len(self._outcome.scores)} members, computed again bit for bit"

    def _by_other_arithmetic(self, what: str) -> _Unseen:
        named = self._record.score_arithmetic
        theirs = f"by arithmetic {named}" if named is not None else "by the arithmetic of before records named one"
        return _Unseen(
            f"{what} are the same but for their last bits: in the record they are {theirs}, and this release computes them by arithmetic "
            f"{SCORE_ARITHMETIC}; check with the release that put the round together"
        )

    def _sent(self) -> Sequence[Sent]:
        full = _full_rank(self._read_state())
        asked = [(member, signed.update, self._offer_of(member.site).rank) for member, signed in self._members()]
        return [
            Sent(update=update, rank=None if rank == full else rank, position=member.position, start=member.start)
            for member, update, rank in asked
        ]

    def _federation(self) -> Federation:
        spec = self._evidence.spec
        assert spec.federation is not None  # noqa: S101 - only a federated job has rounds
        return Federation(
            job_id=self._record.job_id,
            base_model=pinned_name(spec.base_model, spec.base_model_revision),
            spec=spec.federation,
            seed=spec.seed,
            pseudonyms=self._evidence.pseudonyms,
            max_steps=spec.max_steps,
        )

    def _look_at_version(self) -> str:
        if self._weights is None or self._outcome is None:
            raise _Unseen("not compared: the result was not computed, or the version cannot be read")
        computed = digest_of(write_adapter(self._outcome.state, has_one_rank=True).weights)
        _same(f"the tensors of {self._record.published}", self._weights, computed)
        return f"the tensors of {self._record.published} are this result"


def _are_alike(ours: Sequence[float | None], theirs: Sequence[float | None]) -> bool:
    return all(
        one is other or (one is not None and other is not None and isclose(one, other, rel_tol=_LAST_BITS, abs_tol=_LAST_BITS))
        for one, other in zip(ours, theirs, strict=True)
    )


def _scores_of(scored: Member | Score | None) -> tuple[float | None, ...]:
    return (scored.agreement, scored.influence, scored.contribution) if scored else (None, None, None)


def _write(scores: tuple[float | None, ...]) -> str:
    return ", ".join("-" if score is None else repr(score) for score in scores)


def _full_rank(state: FederationState) -> int:
    return max(edit.pair.rank for edit in state.edits.values())


def _same(what: str, found: str, expected: str) -> None:
    if found != expected:
        raise _Wrong(f"{what} has the digest {found}, and {expected} was expected")
