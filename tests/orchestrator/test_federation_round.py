"""Whole rounds without a network: sites that train, drop out, lie and come late, on a clock of our own."""

import itertools
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from orchestrator.aggregate import FederationState, Outcome, Refused
from orchestrator.federation_files import write_state
from orchestrator.federation_round import (
    Federation,
    Sent,
    closing_of,
    combine_round,
    make_offers,
    rank_of,
    recompute,
    record_commit,
    record_failure,
    seed_of,
)
from orchestrator.rounds import Aggregate, Arrival, Fail, Round, Wait, decide, draw
from orchestrator.update_gate import Terms, check_update
from tests.orchestrator.aggregate.federations import a_state
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Offer, ReasonCode, RoundRecord, RoundState, SignedUpdate, Site, SiteState, Update
from wegeft.contracts.federation_spec import FederationSpec
from wegeft.contracts.signatures import public_key_of, sign
from wegeft.contracts.wire import read_update, write_update

START = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)


def a_federation(**spec: Any) -> Federation:
    return Federation(job_id="j1", base_model="org/model@abc", spec=FederationSpec.model_validate(spec), seed=7)


def key_of(index: int) -> bytes:
    return bytes([index + 1]) * 32


def sites_of(count: int) -> dict[str, Site]:
    return {
        f"s-{index:02}": Site(
            name=f"site-{index}", pseudonym=f"s-{index:02}", public_key=public_key_of(key_of(index)), state=SiteState.APPROVED,
            max_examples=100, enrolled_at=START,
        )
        for index in range(count)
    }  # fmt: skip


def answer(offer: Offer, index: int, drift: float = 0.1) -> tuple[SignedUpdate, bytes]:
    """What a site does: train (here: a random step), write, and sign."""
    rng = np.random.default_rng([index, offer.round, offer.attempt])
    moved = {name: drift * rng.standard_normal(form.shape) for name, form in offer.tensors.items()}
    content = write_update(moved, offer.wire)
    update = Update(
        job_id=offer.job_id, round=offer.round, attempt=offer.attempt, site=offer.site, offer=offer.digest, base_model=offer.base_model,
        start=offer.start, tensors=digest_of(content), size=len(content), examples=10 + index, steps=3,
    )  # fmt: skip
    return SignedUpdate(update=update, signature=sign(key_of(index), update.to_bytes())), content


class Simulation:
    """A server's bookkeeping in memory, and its clock."""

    def __init__(self, federation: Federation, sites: dict[str, Site], seed: int) -> None:
        self.federation, self.sites = federation, sites
        self.state: FederationState = a_state(3)
        self.blobs: dict[str, bytes] = {}
        self.chance = random.Random(seed)
        self.now = START

    def run_round(self, number: int, attempt: int, drop: float = 0.0, hostile: frozenset[int] = frozenset()) -> RoundRecord:
        closing = closing_of(self.federation.spec)
        seed = str(seed_of(self.federation, number, attempt))
        drawn = draw(self.sites, self.federation.spec.sampling, closing, self.federation.spec.target_sites, seed)
        round_ = Round(number=number, state=RoundState.COLLECTING, closing=closing, since=self.now, asked=frozenset(drawn))
        offers, starts = make_offers(self.federation, self.state, round_, [self.sites[name] for name in drawn], attempt)
        self.blobs |= starts
        self.blobs[digest_of(write_state(self.state))] = write_state(self.state)
        arrivals, self.sent = self._collect(offers, drop, hostile)
        decision = decide(round_, [one for one in arrivals if one.received_at <= self.now], self.now)
        while isinstance(decision, Wait):
            self.now = (
                decision.until
                if not arrivals
                else min(decision.until, max(self.now, *(one.received_at for one in arrivals)) + timedelta(seconds=1))
            )
            decision = decide(round_, [one for one in arrivals if one.received_at <= self.now], self.now)
        assert self.now <= round_.deadline_at + timedelta(seconds=1)
        return self._close(round_, attempt, decision)

    def _collect(self, offers: dict[str, Offer], drop: float, hostile: frozenset[int]) -> tuple[list[Arrival], dict[str, Sent]]:
        arrivals, sent = [], {}
        for name, offer in offers.items():
            if self.chance.random() < drop:
                continue
            index = int(name[2:])
            signed, content = answer(offer, index, drift=float("1e12") if index in hostile else 0.1)
            self.blobs[signed.update.tensors] = content
            terms = Terms(offer=offer, site=self.sites[name], state=self.state, now=self.now)
            problems = check_update(signed, read_update(content, offer.wire), terms)
            reason = ReasonCode.REFUSED if problems else None
            at = self.now + timedelta(seconds=self.chance.uniform(1, 70))
            arrivals.append(Arrival(site=name, digest=signed.update.digest, received_at=at, reason=reason, problems=tuple(problems)))
            if not problems:
                sent[name] = Sent(update=signed.update, rank=rank_of(self.federation, self.state, self.sites[name]))
        return arrivals, sent

    def _close(self, round_: Round, attempt: int, decision: Aggregate | Fail) -> RoundRecord:
        if isinstance(decision, Fail):
            return record_failure(self.federation, round_, attempt, digest_of(write_state(self.state)), decision, self.now)
        members = [self.sent[arrival.site] for arrival in decision.members]
        outcome = combine_round(self.federation, self.state, round_.number, attempt, members, self.blobs.__getitem__)
        if isinstance(outcome, Refused):
            return record_failure(self.federation, round_, attempt, digest_of(write_state(self.state)), outcome.code, self.now)
        record = record_commit(self.federation, round_, attempt, decision, (self.state, outcome), members)
        self.state, self.members = outcome.state, members
        return record


def test_a_hundred_rounds_with_forty_percent_dropouts_all_end_in_time() -> None:
    federation = a_federation(min_sites=3, target_sites=6, grace="10s", deadline="1m", rule="factor_mean")
    simulation = Simulation(federation, sites_of(9), seed=1)
    records, number, attempt = [], 1, 1
    for _ in range(100):
        records.append(simulation.run_round(number, attempt, drop=0.4))
        number, attempt = (number + 1, 1) if records[-1].state is RoundState.COMMITTED else (number, attempt + 1)
    committed = [record for record in records if record.state is RoundState.COMMITTED]
    assert len(committed) > 60
    assert simulation.state.rounds == len(committed)
    assert [record.round for record in committed] == list(range(1, len(committed) + 1))
    assert all(record.failure == "no_quorum" for record in records if record.state is RoundState.FAILED)
    for before, after in itertools.pairwise(committed):
        assert after.start == before.result
    reasons = {exclusion.reason for record in records for exclusion in record.left_out}
    assert ReasonCode.NO_ANSWER in reasons


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"rule": "generator_truncate", "server_optimizer": "fedadam"},
        {"rule": "alternate", "wire": "bf16"},
        {"wire": "int8"},
        {"rule": "stack", "site_ranks": {"site-1": 1, "site-3": 2}},
        {"rule": "generator_exact", "site_ranks": {"site-0": 2}, "defence": {"name": "multi_krum", "malicious": 1}, "min_sites": 5},
        {"defence": "coordinate_median", "min_sites": 3},
    ],
)
def test_a_member_computes_any_round_again_from_its_record(spec: dict[str, Any]) -> None:
    federation = a_federation(**spec)
    simulation = Simulation(federation, sites_of(6), seed=2)
    for number in (1, 2, 3):
        record = simulation.run_round(number, 1)
        assert record.state is RoundState.COMMITTED
        shuffled = list(reversed(simulation.members))
        assert recompute(federation, record, shuffled, simulation.blobs.__getitem__) == record.result
        assert RoundRecord.model_validate_json(record.to_bytes()) == record
    assert [member.site for member in record.members] == sorted(simulation.sites)
    assert recompute(federation, record, simulation.members[1:], simulation.blobs.__getitem__) != record.result


def test_hostile_updates_are_refused_by_name_and_the_round_goes_on() -> None:
    simulation = Simulation(a_federation(min_sites=3), sites_of(5), seed=3)
    record = simulation.run_round(1, 1, hostile=frozenset({1, 4}))
    assert record.state is RoundState.COMMITTED
    assert {exclusion.site: exclusion.reason.value for exclusion in record.left_out} == {"s-01": "refused", "s-04": "refused"}
    assert all(exclusion.problems[0].path == "norm" for exclusion in record.left_out)
    assert sum(member.weight for member in record.members) == pytest.approx(1)


def test_a_defence_names_those_it_gave_no_weight() -> None:
    federation = a_federation(min_sites=5, defence={"name": "krum", "malicious": 1})
    record = Simulation(federation, sites_of(5), seed=4).run_round(1, 1)
    assert sum(member.weight > 0 for member in record.members) == 1
    assert [exclusion.reason.value for exclusion in record.left_out] == ["no_weight"] * 4


def test_all_sites_gone_is_a_failed_round_with_everyone_named() -> None:
    record = Simulation(a_federation(deadline="1m"), sites_of(4), seed=5).run_round(1, 1, drop=1.0)
    assert (record.state, record.failure, record.result) == (RoundState.FAILED, "no_quorum", None)
    assert [exclusion.reason.value for exclusion in record.left_out] == ["no_answer"] * 4


def test_offers_differ_by_rank_and_share_their_starts() -> None:
    federation, state = a_federation(site_ranks={"site-0": 1, "site-2": 99}), a_state(3)
    round_ = Round(number=1, state=RoundState.COLLECTING, closing=closing_of(federation.spec), since=START)
    offers, starts = make_offers(federation, state, round_, sites_of(3).values())
    assert [offers[name].rank for name in sorted(offers)] == [1, 3, 3]
    assert len(starts) == 2
    assert {offer.start for offer in offers.values()} == starts.keys()
    assert all(digest_of(content) == digest for digest, content in starts.items())
    assert offers["s-00"].tensors["q_proj.phi"].shape == (9, 1)


def test_every_try_of_a_round_has_its_own_seed() -> None:
    federation = a_federation()
    seeds = {seed_of(federation, number, attempt) for number in range(1, 20) for attempt in range(1, 4)}
    assert len(seeds) == 57
    assert seed_of(replace(federation, job_id="j2"), 1, 1) not in seeds
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_a_precondition_that_fails_late_fails_the_round() -> None:
    """Fewer pass the gate than the defence needs: the quorum is met by the letter, and the defence still refuses."""
    federation = a_federation(min_sites=5, defence={"name": "fltrust", "root": "hq"})
    record = Simulation(federation, sites_of(6), seed=6).run_round(1, 1)
    assert (record.state, record.failure) == (RoundState.FAILED, "precondition")
    known = replace(federation, pseudonyms={"hq": "s-03"})
    assert Simulation(known, sites_of(6), seed=6).run_round(1, 1).state is RoundState.COMMITTED


def test_examples_beyond_the_limit_count_as_the_limit() -> None:
    federation = a_federation(max_examples=5)
    simulation = Simulation(federation, sites_of(3), seed=7)
    record = simulation.run_round(1, 1)
    assert [member.weight for member in record.members] == pytest.approx([1 / 3] * 3)
    assert isinstance(combine_round(federation, simulation.state, 2, 1, simulation.members, simulation.blobs.__getitem__), Outcome)
