"""Every rule against dense float64; order, gauge and ranks."""

import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.aggregate import Contribution, FederationState, Plan, Refused, aggregate, new_edit, start_at
from orchestrator.aggregate.aggregation import reading_of
from orchestrator.aggregate.gramian import update_of
from orchestrator.aggregate.sums import sum_updates
from tests.algebra.generators import dense, draw
from tests.orchestrator.aggregate.federations import (
    RANK,
    a_member,
    a_state,
    bits_of,
    dense_mean_change,
    flat,
    in_gauge,
    members_of,
    put_together,
    whole,
)
from wegeft.algebra import from_rows
from wegeft.contracts.federation import FailureCode
from wegeft.contracts.federation_rules import (
    Alternate,
    Core,
    FactorMean,
    FedAdam,
    FedAvgM,
    FreezePhi,
    FreezePsi,
    GeneratorExact,
    GeneratorTruncate,
    Rule,
    Stack,
    is_linear,
    sent_parts,
)

RULES = [
    GeneratorExact(),
    GeneratorTruncate(),
    FactorMean(),
    FactorMean(align=False),
    FreezePsi(),
    FreezePhi(),
    Alternate(),
    Stack(),
    Core(),
]
SEEDS = st.integers(0, 10**6)


def a_federation(rule: Rule, seed: int, count: int, round_number: int = 1, **options: object) -> tuple[FederationState, list[Contribution]]:
    state = a_state(seed, has_core=isinstance(rule, Core))
    return state, members_of(state, count, seed, sent_parts(rule, round_number), **options)


@settings(max_examples=40, deadline=None)
@given(SEEDS, st.integers(1, 7))
def test_generator_exact_is_exact_with_what_it_carries(seed: int, count: int) -> None:
    state, members = a_federation(GeneratorExact(), seed, count)
    outcome = put_together(Plan(rule=GeneratorExact()), state, members)
    for group, change in dense_mean_change(state, members).items():
        edit = outcome.state.edits[group]
        np.testing.assert_allclose(whole(edit, carried=True), whole(state.edits[group]) + change, atol=1e-10)
        assert edit.residual.rank <= 4 * RANK
        assert (edit.pair.rank, edit.pair.scale) == (RANK, state.edits[group].pair.scale)


def test_the_pair_of_generator_exact_is_the_mean_of_aligned_factors_and_the_residual_its_covariance() -> None:
    state, members = a_federation(GeneratorExact(), 3, 4, drift=1e-3)
    outcome = put_together(Plan(rule=GeneratorExact(energy=1.0)), state, members)
    pairs = put_together(Plan(rule=FactorMean()), state, members).state
    total = sum(member.examples for member in members)
    for group, edit in outcome.state.edits.items():
        np.testing.assert_array_equal(edit.pair.p, pairs.edits[group].pair.p)
        mean_q = sum(member.examples / total * member.load()[f"{group}.psi"] for member in members)
        np.testing.assert_allclose(edit.pair.q, state.edits[group].pair.q + mean_q, atol=2e-2)
        assert np.abs(dense(edit.carried)).max() < 1e-15
        assert np.abs(dense(edit.residual)).max() < 1e-4
    assert 0 < outcome.measures["aggregation_residual"] < 1e-2
    assert outcome.measures["cut_norm"] < 1e-12


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_what_is_cut_in_one_round_comes_back_in_the_next(seed: int) -> None:
    """Over rounds pair + residual + carried stays the exact sum of all mean updates, though the residual is capped."""
    state = a_state(seed, widths={"q_proj": 12})
    exact = whole(state.edits["q_proj"])
    for round_number in range(1, 5):
        members = members_of(state, 3, seed + round_number)
        exact = exact + dense_mean_change(state, members)["q_proj"]
        state = put_together(Plan(rule=GeneratorExact(residual_rank_factor=2, energy=1.0)), state, members).state
    edit = state.edits["q_proj"]
    assert edit.residual.rank <= 2 * RANK
    assert np.linalg.norm(dense(edit.carried)) > 0
    np.testing.assert_allclose(whole(edit, carried=True), exact, atol=1e-9)
    assert state.rounds == 4


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6))
def test_generator_truncate_is_the_best_of_its_rank(seed: int, count: int) -> None:
    state, members = a_federation(GeneratorTruncate(), seed, count)
    outcome = put_together(Plan(rule=GeneratorTruncate()), state, members)
    missed = []
    for group, change in dense_mean_change(state, members).items():
        target = whole(state.edits[group]) + change
        u, s, vt = np.linalg.svd(target)
        np.testing.assert_allclose(whole(outcome.state.edits[group]), (u[:, :RANK] * s[:RANK]) @ vt[:RANK], atol=1e-6 * s[0])
        missed.append(float(np.linalg.norm(s[RANK:])))
    assert outcome.measures["cut_norm"] == pytest.approx(np.hypot(*missed), abs=1e-6)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 6), st.integers(1, 2))
def test_linear_rules_are_the_mean_of_what_was_sent_and_exact_in_one_factor(seed: int, count: int, round_number: int) -> None:
    for rule in (FactorMean(align=False), FreezePsi(), FreezePhi(), Alternate(), Core()):
        assert is_linear(rule)
        state, members = a_federation(rule, seed, count, round_number)
        outcome = put_together(Plan(rule=rule, round=round_number), state, members)
        total = sum(member.examples for member in members)
        for group, edit in outcome.state.edits.items():
            old = state.edits[group]
            values = {"phi": (edit.pair.p.T, old.pair.p.T), "psi": (edit.pair.q, old.pair.q), "core": (edit.core, old.core)}
            for part in sent_parts(rule, round_number):
                mean = sum(member.examples / total * member.load()[f"{group}.{part}"] for member in members)
                np.testing.assert_allclose(values[part][0], values[part][1] + mean, atol=1e-12)
            if rule.name != "factor_mean":
                change = dense_mean_change(state, members)[group]
                np.testing.assert_allclose(whole(edit), whole(state.edits[group]) + change, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 5))
def test_stacking_is_exact_and_leaves_the_pair_where_it_was(seed: int, count: int) -> None:
    state, members = a_federation(Stack(), seed, count)
    outcome = put_together(Plan(rule=Stack()), state, members)
    for group, change in dense_mean_change(state, members).items():
        edit = outcome.state.edits[group]
        np.testing.assert_allclose(whole(edit), whole(state.edits[group]) + change, atol=1e-9)
        np.testing.assert_array_equal(edit.pair.q, state.edits[group].pair.q)
    capped = put_together(Plan(rule=Stack(max_rank=2)), state, members)
    assert all(edit.residual.rank <= 2 for edit in capped.state.edits.values())
    assert capped.measures["cut_norm"] >= 0


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.lists(st.integers(1, RANK), min_size=1, max_size=5))
def test_unequal_ranks_are_averaged_exactly(seed: int, ranks: list[int]) -> None:
    state = a_state(seed)
    members = [a_member(state, f"s-{index}", seed + index, rank=rank) for index, rank in enumerate(ranks)]
    for rule in (GeneratorExact(), Stack()):
        outcome = put_together(Plan(rule=rule), state, members)
        for group, change in dense_mean_change(state, members).items():
            np.testing.assert_allclose(whole(outcome.state.edits[group], carried=True), whole(state.edits[group]) + change, atol=1e-6)


@settings(deadline=None)
@given(SEEDS, st.integers(1, RANK))
def test_a_site_of_lower_rank_starts_from_the_same_function(seed: int, rank: int) -> None:
    for edit in a_state(seed).edits.values():
        pair, frozen = start_at(edit, rank)
        assert (pair.rank, pair.scale) == (rank, edit.pair.scale)
        np.testing.assert_allclose(dense(pair) + dense(frozen), whole(edit), atol=1e-10)


def test_before_the_first_step_a_site_of_lower_rank_can_still_be_trained() -> None:
    edit = new_edit(from_rows(p=np.zeros((3, 8)), q=draw(1, 3, 8).q, scale=2.0))
    pair, frozen = start_at(edit, 2)
    assert np.abs(pair.q).min() > 0
    assert frozen.rank == 0


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name + str(is_linear(rule)))
@pytest.mark.parametrize("optimiser", [FedAvgM(server_momentum=0.9), FedAdam()], ids=lambda optimiser: optimiser.name)
def test_the_order_of_arrival_does_not_change_a_bit(rule: Rule, optimiser: object) -> None:
    state, members = a_federation(rule, 5, 9)
    plan = Plan(rule=rule, server_optimizer=optimiser) if rule.name != "stack" else Plan(rule=rule)  # type: ignore[arg-type]
    first = put_together(plan, state, members)
    for seed in range(4):
        shuffled = members.copy()
        random.Random(seed).shuffle(shuffled)
        again = put_together(plan, state, shuffled)
        assert bits_of(again.state) == bits_of(first.state)
        assert (again.weights, again.scores, again.measures) == (first.weights, first.scores, first.measures)


@settings(max_examples=20, deadline=None)
@given(SEEDS, st.integers(2, 5))
def test_a_hostile_gauge_changes_nothing(seed: int, count: int) -> None:
    """One site sends the same function in another gauge, scaled by 1000 and mixed."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.standard_normal((RANK, RANK)))[0] * 1000.0
    state = a_state(seed)
    members = members_of(state, count, seed, drift=0.1)
    hostile = [*members[:-1], in_gauge(state, members[-1], turn)]
    for rule in (GeneratorExact(), GeneratorTruncate(), FactorMean(), Stack()):
        plain, gauged = put_together(Plan(rule=rule), state, members), put_together(Plan(rule=rule), state, hostile)
        for group, edit in plain.state.edits.items():
            np.testing.assert_allclose(whole(gauged.state.edits[group]), whole(edit), atol=1e-5)


def test_without_alignment_a_hostile_gauge_ruins_the_mean_of_factors() -> None:
    state = a_state(1)
    members = members_of(state, 4, 1, drift=0.1)
    hostile = [*members[:-1], in_gauge(state, members[-1], 1000.0 * np.eye(RANK))]
    rule = FactorMean(align=False)
    plain, gauged = put_together(Plan(rule=rule), state, members).state, put_together(Plan(rule=rule), state, hostile).state
    assert np.linalg.norm(whole(gauged.edits["q_proj"]) - whole(plain.edits["q_proj"])) > 10 * np.linalg.norm(whole(plain.edits["q_proj"]))


def test_a_linear_rule_keeps_no_stack() -> None:
    state, members = a_federation(FactorMean(align=False), 1, 40)
    weights = {member.site: 1 / 40 for member in members}
    sums = sum_updates(state, members, weights, reading_of(FactorMean(align=False)))
    assert all(one.second.rank == 0 for one in sums.values())


def test_scores_tell_agreement_and_influence() -> None:
    state = a_state(4)
    honest = [a_member(state, f"s-{index}", 7, drift=0.1, examples=10) for index in range(3)]  # all the same
    odd = a_member(state, "s-9", 8, drift=0.5, examples=10)
    scores = put_together(Plan(rule=GeneratorExact()), state, [*honest, odd]).scores
    assert all(scores[f"s-{index}"].agreement > 0.3 for index in range(3))
    assert abs(scores["s-9"].agreement) < 0.3
    assert scores["s-9"].influence > 2 * scores["s-0"].influence
    assert put_together(Plan(rule=GeneratorExact(), scored_sites=3), state, [*honest, odd]).scores == {}


def test_contributions_share_out_the_aggregate() -> None:
    """Dense: ⟨aₖUₖ, U⟩ / ‖U‖², which adds up to 1; who pulls the other way has less than nothing."""
    state, members = a_state(5), members_of(a_state(5), 4, 6)
    hostile = a_member(state, "s-x", 600, drift=0.3, examples=3)
    outcome = put_together(Plan(rule=GeneratorExact()), state, [*members, replace(hostile, site="s-x")])
    parts = {one.site: outcome.weights[one.site] * flat(update_of(state, one)) for one in [*members, hostile]}
    whole_update = np.sum(list(parts.values()), axis=0)
    for site, score in outcome.scores.items():
        assert score.contribution == pytest.approx(parts[site] @ whole_update / (whole_update @ whole_update))
    assert sum(score.contribution for score in outcome.scores.values()) == pytest.approx(1)
    against = replace(members[0], site="s-y", load=lambda: {name: -0.5 * array for name, array in members[0].load().items()})
    few = put_together(Plan(rule=FreezePsi()), state, [_only_phi(members[0]), _only_phi(against)]).scores
    assert few["s-y"].contribution < 0 < few[members[0].site].contribution


def _only_phi(member: Contribution) -> Contribution:
    return replace(member, load=lambda: {name: array for name, array in member.load().items() if name.endswith("phi")}, examples=1)


def test_nothing_to_put_together_is_refused() -> None:
    outcome = aggregate(Plan(rule=GeneratorExact()), a_state(), [])
    assert isinstance(outcome, Refused)
    assert outcome.code is FailureCode.PRECONDITION


@pytest.mark.parametrize("rule", [GeneratorExact(), FactorMean(), FactorMean(align=False), Stack(), GeneratorTruncate()])
def test_numbers_that_overflow_are_refused_and_never_raise(rule: Rule) -> None:
    state = a_state()
    huge = a_member(state, "s-0", 1, drift=1e200)
    outcome = aggregate(Plan(rule=rule), state, [huge, a_member(state, "s-1", 2)])
    assert isinstance(outcome, Refused) or np.isfinite(outcome.state.edits["q_proj"].pair.p).all()
