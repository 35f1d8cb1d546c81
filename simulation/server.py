"""A service of simulated sites: it draws, offers, gates, closes and aggregates by the code of the real one, on a clock of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from orchestrator.aggregate import FederationState, Refused
from orchestrator.federation_files import write_state
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
from orchestrator.rounds import Aggregate, Arrival, Ask, Fail, Round, Wait, decide, decide_selection, draw
from orchestrator.update_gate import Terms, check_content
from orchestrator.update_intake import longest_upload
from simulation.chance import answer_seconds, drops_out, hostile_sites, private_key_of
from simulation.reports import RoundReport, mean_train_loss
from simulation.scenario import Scenario
from simulation.site_answers import Answer, Answers
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import FailureCode, Offer, ReasonCode, RoundRecord, RoundState, Site, SiteState
from wegeft.contracts.federation_rules import FLTrust
from wegeft.contracts.signatures import public_key_of
from workers.simulated_site import Failed
from workers.site_training import Moved

BEGINNING = datetime(2000, 1, 1, tzinfo=UTC)
"""When the simulated clock starts: records of the same scenario are the same bytes."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Standing:
    """Where a federation is between two tries at rounds."""

    state: FederationState
    carried: Mapping[str, Moved] = field(default_factory=dict)
    """What the wire cut off each site's updates."""
    committed: int = 0
    failed_in_a_row: int = 0
    now: datetime = BEGINNING

    @property
    def number(self) -> int:
        """The round that is next."""
        return self.committed + 1

    @property
    def attempt(self) -> int:
        """The try at it."""
        return self.failed_in_a_row + 1


@dataclass(frozen=True, kw_only=True, eq=False)
class Played:
    """A try at a round, and where it leaves the federation."""

    report: RoundReport
    standing: Standing


class Server:
    """Plays rounds of one scenario; one at a time."""

    def __init__(self, scenario: Scenario, federation: Federation, examples: Mapping[str, int], answers: Answers) -> None:
        """``examples``: rows of each site, which it declares at its enrolment and of which it claims no more unless it is hostile."""
        self._scenario, self._federation, self._answers = scenario, federation, answers
        defence = federation.spec.defence
        self.hostile = hostile_sites(scenario, examples.keys(), defence.root if isinstance(defence, FLTrust) else None)
        self._sites = {name: _enrol(scenario, name, count) for name, count in examples.items()}

    def play(self, standing: Standing) -> Played:
        """Return what becomes of the next try at a round: committed, or failed for the reason in its record."""
        round_ = self._begin(standing)
        asked = self._draw(round_, standing.attempt)
        if isinstance(asked, Fail):
            return self._fail(standing, round_, asked, round_.since)
        round_ = Round(
            number=round_.number, state=RoundState.COLLECTING, closing=round_.closing, since=round_.since, asked=frozenset(asked)
        )
        offers, starts = make_offers(self._federation, standing.state, round_, [self._sites[name] for name in asked], standing.attempt)
        present = {name: offer for name, offer in offers.items() if not self._misses(standing, name)}
        answered: dict[str, Answer | Failed] = {}
        arrivals: list[Arrival] = []
        for name, answer in self._answers.collect(present, starts, standing, self.hostile):
            answered[name] = answer
            arrivals.append(self._judge(standing, round_, offers[name], answer))  # while others train; what is decided hangs on no order
        taken = _Taken(answers=answered, received=sum(len(starts[offer.start]) for offer in present.values()))
        decision = decide(round_, arrivals, round_.deadline_at)
        assert not isinstance(decision, Wait)  # noqa: S101 - at its deadline no round waits
        if isinstance(decision, Fail):
            return self._fail(standing, round_, decision, round_.deadline_at, taken)
        return self._combine(standing, round_, decision, (offers, taken))

    def _begin(self, standing: Standing) -> Round:
        closing = closing_of(self._federation.spec)
        return Round(number=standing.number, state=RoundState.SELECTING, closing=closing, since=standing.now)

    def _draw(self, round_: Round, attempt: int) -> tuple[str, ...] | Fail:
        section = self._federation.spec
        seed = str(seed_of(self._federation, round_.number, attempt))
        drawn = draw(self._sites, section.sampling, round_.closing, section.target_sites, seed)
        decision = decide_selection(round_, drawn, round_.since)
        return decision.sites if isinstance(decision, Ask) else Fail(code=FailureCode.NOT_ENOUGH_SITES)

    def _misses(self, standing: Standing, site: str) -> bool:
        return drops_out(self._scenario, standing.number, standing.attempt, site)

    def _judge(self, standing: Standing, round_: Round, offer: Offer, answer: Answer | Failed) -> Arrival:
        """Return a site's answer as the service keeps it: through the gate, with the moment it came."""
        site = offer.site
        at = round_.since + timedelta(seconds=answer_seconds(self._scenario, standing.number, standing.attempt, site))
        if isinstance(answer, Failed):
            digest = digest_of(f"{site} failed".encode())
            return Arrival(site=site, digest=digest, received_at=at, reason=ReasonCode.TRAINING_FAILED, problems=answer.problems)
        terms = Terms(offer=offer, site=self._sites[site], state=standing.state, now=min(at, offer.deadline_at))
        problems = _problems(answer, terms)
        reason = ReasonCode.REFUSED if problems else None
        return Arrival(site=site, digest=answer.signed.update.digest, received_at=at, reason=reason, problems=tuple(problems))

    def _combine(self, standing: Standing, round_: Round, closed: Aggregate, given: tuple[Mapping[str, Offer], _Taken]) -> Played:
        offers, taken = given
        full = max(edit.pair.rank for edit in standing.state.edits.values())
        answers = {member.site: taken.update_of(member.site) for member in closed.members}
        contents = {answer.signed.update.tensors: answer.content for answer in answers.values()}
        sent = [
            Sent(update=answer.signed.update, rank=None if offers[site].rank == full else offers[site].rank)
            for site, answer in answers.items()
        ]
        outcome = combine_round(self._federation, standing.state, standing.number, standing.attempt, sent, contents.__getitem__)
        if isinstance(outcome, Refused):
            return self._fail(standing, round_, Fail(code=outcome.code, left_out=closed.left_out), closed.closed_at, taken)
        record = record_commit(self._federation, round_, standing.attempt, closed, (standing.state, outcome), sent)
        carried = dict(standing.carried) | {site: answer.carried for site, answer in answers.items() if answer.carried}
        after = Standing(state=outcome.state, carried=carried, committed=standing.number, now=closed.closed_at)
        told = [(one.update.metrics["train_loss"], one.update.examples) for one in sent if "train_loss" in one.update.metrics]
        return Played(report=self._report(record, round_, taken, mean_train_loss(told)), standing=after)

    def _fail(self, standing: Standing, round_: Round, why: Fail, at: datetime, taken: _Taken | None = None) -> Played:
        start = digest_of(write_state(standing.state))
        record = record_failure(self._federation, round_, standing.attempt, start, why, at)
        after = Standing(
            state=standing.state,
            carried=standing.carried,
            committed=standing.committed,
            failed_in_a_row=standing.attempt,
            now=at,
        )
        return Played(report=self._report(record, round_, taken or _Taken(), None), standing=after)

    def _report(self, record: RoundRecord, round_: Round, taken: _Taken, train_loss: float | None) -> RoundReport:
        closed_at = record.closed_at or round_.since
        return RoundReport(
            record=record,
            asked=tuple(sorted(round_.asked)),
            hostile=tuple(sorted(round_.asked & set(self.hostile))),
            before=None,
            after=None,
            train_loss=train_loss,
            sent_bytes=taken.sent,
            received_bytes=taken.received,
            seconds=(closed_at - round_.since).total_seconds(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Taken:
    """What travelled in a round."""

    answers: Mapping[str, Answer | Failed] = field(default_factory=dict)
    received: int = 0

    @property
    def sent(self) -> int:
        return sum(len(answer.content) for answer in self.answers.values() if isinstance(answer, Answer))

    def update_of(self, site: str) -> Answer:
        answer = self.answers[site]
        assert isinstance(answer, Answer)  # noqa: S101 - only updates become members
        return answer


def _enrol(scenario: Scenario, name: str, examples: int) -> Site:
    return Site(
        name=name,
        pseudonym=name,
        public_key=public_key_of(private_key_of(scenario, name)),
        state=SiteState.APPROVED,
        max_examples=examples,
        enrolled_at=BEGINNING,
    )


def _problems(answer: Answer, terms: Terms) -> Sequence[Problem]:
    longest = longest_upload(terms.offer)
    if len(answer.content) > longest:
        return [Problem(path="tensors", message=f"must have {longest} bytes or fewer", value=str(len(answer.content)))]
    return check_content(answer.signed, answer.content, terms)
