"""One round of a federation from its offers to its record: pure functions around the rules, for whoever keeps rounds and clocks.

A record names everything that went in by digest, so that any member who holds the bytes can compute the round again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from orchestrator.aggregate import (
    SCORE_ARITHMETIC,
    Contribution,
    ControlChange,
    FederationState,
    Outcome,
    Plan,
    Refused,
    add_changes,
    aggregate,
    mean_control,
)
from orchestrator.federation_files import read_state, write_start, write_state
from orchestrator.rounds import Aggregate, Closing, Fail, Round
from orchestrator.update_gate import expected_forms
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.control_variates import ControlTerms, control_of, trained_names
from wegeft.contracts.federation import (
    Exclusion,
    FailureCode,
    FeedbackTerms,
    Member,
    Offer,
    ReasonCode,
    RoundRecord,
    RoundState,
    Site,
    TensorForm,
    Update,
)
from wegeft.contracts.federation_rules import Buffered, Defence, FLTrust, sent_parts, staleness_weight
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.job import seconds_of
from wegeft.contracts.wire import read_update

ReadBytes = Callable[[str], bytes]
"""Gives the bytes of a digest."""


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What stays the same from round to round."""

    job_id: str
    base_model: str
    """As pinned by the server."""
    spec: FederationSpec
    seed: int
    """The job's; every round's follows from it."""
    pseudonyms: Mapping[str, str] = field(default_factory=dict)
    """What stands for each enrolled site in records, by its name."""
    max_steps: int | None = None
    """Optimizer steps of a site in one round at most; None leaves it to the job's epochs."""
    max_grad_norm: float = 1.0
    """To which sites clip each gradient, where control variates need it."""
    approved: int | None = None
    """Sites that are approved now; None where just those are that are asked."""
    threads: int = 1
    """That put a round together side by side; any number gives the same bits."""

    @property
    def has_controls(self) -> bool:
        """Whether control variates travel beside updates."""
        return self.spec.site_optimizer == "scaffold"


def closing_of(spec: FederationSpec) -> Closing:
    """Return when rounds under ``spec`` close."""
    return Closing(
        min_sites=spec.min_sites,
        grace=timedelta(seconds=seconds_of(spec.grace)),
        deadline=timedelta(seconds=seconds_of(spec.deadline)),
        buffer_size=spec.mode.buffer_size if isinstance(spec.mode, Buffered) else None,
    )


def seed_of(federation: Federation, number: int, attempt: int) -> int:
    """Return the seed of a round: another one for each round and each try at it."""
    text = f"{federation.seed}\n{federation.job_id}\n{number}\n{attempt}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rank_of(federation: Federation, state: FederationState, site: Site) -> int | None:
    """Return the rank that a site trains, or None where it trains the pair's."""
    rank = federation.spec.site_ranks.get(site.name)
    return rank if rank is not None and rank < _full_rank(state) else None


def make_offers(
    federation: Federation, state: FederationState, round_: Round, sites: Collection[Site], attempt: int = 1
) -> tuple[dict[str, Offer], dict[str, bytes]]:
    """Return an offer for each site, by pseudonym, and the bytes of what they start from, by digest; those must be stored first."""
    starts: dict[int | None, tuple[str, bytes]] = {}
    offers = {}
    enrolled = (federation.approved or len(sites)) if federation.has_controls else None
    for site in sorted(sites, key=lambda site: site.pseudonym):
        rank = rank_of(federation, state, site)
        if rank not in starts:
            forms = expected_forms(rank, state, sent_parts(federation.spec.rule, round_.number))
            content = write_start(state, rank, mean_control(state, forms, enrolled) if enrolled else {})
            starts[rank] = (digest_of(content), content)
        offer = _offer(federation, state, round_, attempt, (site.pseudonym, rank, starts[rank][0]))
        offers[site.pseudonym] = _with_control(federation, state, offer, enrolled) if enrolled else offer
    return offers, dict(starts.values())


def _with_control(federation: Federation, state: FederationState, offer: Offer, enrolled: int) -> Offer:
    """Return an offer that asks for the change of the site's control variate too.

    A control variate is a mean of clipped gradients, so two of them are at most twice the clipping norm apart.
    """
    terms = ControlTerms(sites=enrolled, max_norm=2 * federation.max_grad_norm, counted=state.counted.get(offer.site))
    forms = {control_of(name): form for name, form in offer.tensors.items()}
    return offer.model_copy(update={"version": 2, "tensors": {**offer.tensors, **forms}, "control": terms})


def _offer(federation: Federation, state: FederationState, round_: Round, attempt: int, asked: tuple[str, int | None, str]) -> Offer:
    pseudonym, rank, start = asked
    spec = federation.spec
    forms = expected_forms(rank, state, sent_parts(spec.rule, round_.number))
    return Offer(
        job_id=federation.job_id,
        round=round_.number,
        attempt=attempt,
        site=pseudonym,
        base_model=federation.base_model,
        start=start,
        rank=rank if rank is not None else _full_rank(state),
        rule=spec.rule,
        tensors={name: TensorForm(shape=shape) for name, shape in forms.items()},
        wire=spec.wire,
        max_steps=federation.max_steps,
        max_update_norm=spec.max_update_norm,
        seed=seed_of(federation, round_.number, attempt),
        deadline_at=_last_moment(spec, round_),
        feedback=None if spec.wire == "fp32" else FeedbackTerms(counted=state.counted.get(pseudonym)),
    )


def _last_moment(spec: FederationSpec, round_: Round) -> datetime:
    """Return until when an offer can be answered: a buffered one as long as the versions that it may miss can take."""
    missed = spec.mode.max_staleness if isinstance(spec.mode, Buffered) else 0
    return round_.deadline_at + missed * round_.closing.deadline


def _full_rank(state: FederationState) -> int:
    return max(edit.pair.rank for edit in state.edits.values())


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A member's update and the rank that it was asked for."""

    update: Update
    rank: int | None
    """None for the pair's."""
    control_sites: int | None = None
    """Sites whose control variates the offer's was the mean of; None without any."""
    position: int | None = None
    """In buffered mode, its place in the order in which updates were accepted."""
    start: str | None = None
    """State of the federation that it started from, where that is not the round's."""
    weight: float | None = None
    """Its factor in the aggregate, to be taken as given; None lets the defence weigh."""


def combine_round(
    federation: Federation, state: FederationState, number: int, attempt: int, sent: Sequence[Sent], read: ReadBytes
) -> Outcome | Refused:
    """Return the round put together from the stored bytes of its members' updates, which are read one after the other."""
    spec = federation.spec
    plan = Plan(
        rule=spec.rule,
        server_optimizer=spec.server_optimizer,
        defence=_by_pseudonym(federation),
        round=number,
        seed=seed_of(federation, number, attempt),
        threads=federation.threads,
    )
    older = {digest: read_state(read(digest)) for digest in sorted({one.start for one in sent if one.start is not None})}
    members = [_contribution(one, spec, read) for one in sent]
    if isinstance(spec.mode, Buffered):
        members = [_late(member, one, number, older) for member, one in zip(members, sent, strict=True)]
    outcome = aggregate(plan, state, members)
    if isinstance(outcome, Refused):
        return outcome
    digests = {one.update.site: one.update.tensors for one in sent}
    if not federation.has_controls:
        # What the wire cut off these updates is owed as long as they count: going back takes both away.
        return outcome if spec.wire == "fp32" else replace(outcome, state=replace(outcome.state, counted={**state.counted, **digests}))
    names = trained_names(expected_forms(None, state, sent_parts(spec.rule, number)))
    changes = [ControlChange(site=member.site, tensors=digests[member.site], load=member.load) for member in members]
    return replace(outcome, state=add_changes(state, outcome.state, changes, names))


def _by_pseudonym(federation: Federation) -> Defence:
    """Return the defence as members are named: the job names its trusted site, and records name nobody."""
    defence = federation.spec.defence
    if not isinstance(defence, FLTrust):
        return defence
    return defence.model_copy(update={"root": federation.pseudonyms.get(defence.root, defence.root)})


def _contribution(sent: Sent, spec: FederationSpec, read: ReadBytes) -> Contribution:
    # Where control variates are means over sites, a mean weighted by examples would have another fixed point than theirs.
    digest, examples = sent.update.tensors, min(sent.update.examples, spec.max_examples) if spec.site_optimizer == "adamw" else 1
    return Contribution(
        site=sent.update.site,
        examples=examples,
        load=lambda: read_update(read(digest), spec.wire),
        rank=sent.rank,
        weight=sent.weight,
    )


def _late(member: Contribution, sent: Sent, number: int, older: Mapping[str, FederationState]) -> Contribution:
    """Return a member of a buffered round, from where it started and by how stale it is."""
    start = older[sent.start] if sent.start is not None else None
    return replace(member, start=start, discount=staleness_weight(number - sent.update.round))


def record_commit(
    federation: Federation, round_: Round, attempt: int, closed: Aggregate, results: tuple[FederationState, Outcome], sent: Sequence[Sent]
) -> RoundRecord:
    """Return the record of a round that is committed; the state before and after must be in the store under its digests."""
    before, outcome = results
    members = tuple(_member(one, outcome, round_.number) for one in sorted(sent, key=lambda one: one.update.site))
    weightless = {member.site for member in members if member.weight == 0}
    outvoted = tuple(Exclusion(site=site, reason=ReasonCode.NO_WEIGHT) for site in weightless)
    return RoundRecord(
        **_common(federation, round_, attempt),
        state=RoundState.COMMITTED,
        start=digest_of(write_state(before)),
        result=digest_of(write_state(outcome.state)),
        members=members,
        left_out=tuple(sorted([*closed.left_out, *outvoted], key=lambda exclusion: exclusion.site)),
        measures=dict(outcome.measures),
        control_sites=next(iter(sent)).control_sites,
        score_arithmetic=SCORE_ARITHMETIC,
        closed_at=closed.closed_at,
    )


def record_failure(
    federation: Federation, round_: Round, attempt: int, start: str, why: Fail | FailureCode, closed_at: datetime
) -> RoundRecord:
    """Return the record of a round that failed; ``start``: digest of the state before it."""
    code, left_out = (why.code, why.left_out) if isinstance(why, Fail) else (why, ())
    return RoundRecord(
        **_common(federation, round_, attempt),
        state=RoundState.FAILED,
        start=start,
        failure=code,
        left_out=left_out,
        closed_at=closed_at,
    )


def _common(federation: Federation, round_: Round, attempt: int) -> dict[str, Any]:
    return {
        "job_id": federation.job_id,
        "round": round_.number,
        "attempt": attempt,
        "rule": federation.spec.rule,
        "server_optimizer": federation.spec.server_optimizer,
        "defence": federation.spec.defence,
        "seed": seed_of(federation, round_.number, attempt),
        "created_at": round_.since,
    }


def _member(sent: Sent, outcome: Outcome, number: int) -> Member:
    update = sent.update
    score = outcome.scores.get(update.site)
    return Member(
        site=update.site,
        update=update.digest,
        tensors=update.tensors,
        examples=update.examples,
        weight=outcome.weights[update.site],
        agreement=score.agreement if score else None,
        influence=score.influence if score else None,
        contribution=score.contribution if score else None,
        staleness=number - update.round if sent.position is not None else None,
        position=sent.position,
        start=sent.start,
    )


def recompute(federation: Federation, record: RoundRecord, sent: Sequence[Sent], read: ReadBytes) -> str:
    """Return the digest of the state after a recorded round, computed again from stored bytes; ``record.result`` where all is in order.

    The same machine gives the same bits; another one may round singular value decompositions otherwise.
    """
    before = read_state(read(record.start))
    outcome = combine_round(federation, before, record.round, record.attempt, sent, read)
    return "" if isinstance(outcome, Refused) else digest_of(write_state(outcome.state))
