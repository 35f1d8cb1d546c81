"""Many sites' generators summed: exact where they are few, narrow or alike, nearly the best otherwise, and always in the same memory."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from orchestrator.aggregate import Contribution, FederationState, Plan
from orchestrator.aggregate.aggregation import reading_of
from orchestrator.aggregate.streamed_sum import ERROR_FACTOR, begin_sum
from orchestrator.aggregate.sums import Sums, sum_updates
from tests.algebra.generators import dense, draw
from tests.orchestrator.aggregate.federations import a_member, a_state, bits_of, dense_mean_change, members_of, put_together, whole
from wegeft.contracts.federation_rules import FactorMean, GeneratorExact, GeneratorTruncate, Rule, Stack

WIDTH, RANK = 400, 2
EXACT = GeneratorExact(energy=1.0)


def a_wide_state(width: int = WIDTH) -> FederationState:
    return a_state(2, rank=RANK, widths={"q_proj": width})


def alike(state: FederationState, count: int) -> list[Contribution]:
    """Sites that move in a space of twelve dimensions alone, each in its own way there; in no gauge of its own, as φ moves not."""
    space = np.random.default_rng(7).standard_normal((2, 6, state.edits["q_proj"].pair.width))

    def moved(index: int) -> dict[str, np.ndarray]:
        mixed = 0.2 * np.random.default_rng(index).standard_normal((2, RANK, 6))
        return {"q_proj.phi": (mixed[0] @ space[0]).T, "q_proj.psi": mixed[1] @ space[1]}

    return [Contribution(site=f"s-{index:03}", examples=1 + index % 5, load=lambda index=index: moved(index)) for index in range(count)]  # type: ignore[misc]


def summed(state: FederationState, members: Sequence[Contribution], rule: Rule = EXACT, seed: int = 0) -> tuple[Sums, list[str]]:
    """The sums, and who was read in which order."""
    read: list[str] = []

    def watched(member: Contribution) -> Contribution:
        def load() -> object:
            read.append(member.site)
            return member.load()

        return replace(member, load=load)

    total = sum(member.examples for member in members)
    weights = {member.site: member.examples / total for member in members}
    return sum_updates(state, [watched(member) for member in members], weights, reading_of(rule), seed)["q_proj"], read


def miss(state: FederationState, members: Sequence[Contribution], sums: Sums) -> float:
    missed = dense(sums.change(state.edits["q_proj"])) - dense_mean_change(state, members)["q_proj"]
    return float(np.linalg.norm(missed))


@pytest.mark.parametrize(("width", "count"), [(WIDTH, 100), (160, 150)], ids=["few", "narrow"])
def test_few_or_narrow_generators_are_summed_exactly_in_one_pass(width: int, count: int) -> None:
    state = a_wide_state(width)
    members = members_of(state, count, 2, drift=0.2)
    sums, read = summed(state, members[::-1])
    assert read == sorted(member.site for member in members)
    assert miss(state, members, sums) < 1e-12 * np.linalg.norm(dense(sums.second)) + 1e-12
    assert sums.cut == 0
    assert sums.second.rank <= 2 * 144


def test_many_alike_generators_are_summed_exactly_in_four_passes() -> None:
    state = a_wide_state()
    members = alike(state, 150)
    sums, read = summed(state, members[::-1], GeneratorTruncate())
    assert read == 4 * sorted(member.site for member in members)
    assert miss(state, members, sums) < 1e-10 * np.linalg.norm(dense(sums.second))
    assert sums.cut < 1e-10 * np.linalg.norm(dense(sums.second))


def test_many_unlike_generators_are_summed_nearly_as_well_as_can_be_and_the_error_is_told() -> None:
    """Random updates, which have no direction in common: the worst case."""
    state = a_wide_state()
    members = members_of(state, 210, 2, drift=0.2)
    sums, read = summed(state, members)
    assert len(read) == 4 * 210
    assert sums.second.rank == 144
    exact, _ = summed(state, members, Stack())
    values = np.linalg.svd(dense(exact.second), compute_uv=False)
    missed = miss(state, members, sums)
    assert np.linalg.norm(values[144:]) <= missed <= 1.05 * np.linalg.norm(values[128:])
    assert missed / ERROR_FACTOR < sums.cut < missed * ERROR_FACTOR


def test_many_unlike_members_give_the_same_bits_in_any_order_and_the_record_bounds_what_is_missed() -> None:
    state = a_wide_state()
    members = members_of(state, 210, 3, drift=0.2)
    first = put_together(Plan(rule=EXACT, seed=5, scored_sites=0), state, members)
    shuffled = members.copy()
    random.Random(1).shuffle(shuffled)
    again = put_together(Plan(rule=EXACT, seed=5, scored_sites=0), state, shuffled)
    assert (bits_of(again.state), again.measures) == (bits_of(first.state), first.measures)
    other = put_together(Plan(rule=EXACT, seed=6, scored_sites=0), state, members)
    assert bits_of(other.state) != bits_of(first.state)
    exact = whole(state.edits["q_proj"]) + dense_mean_change(state, members)["q_proj"]
    missed = np.linalg.norm(whole(first.state.edits["q_proj"], carried=True) - exact)
    assert 0 < first.measures["sum_error_bound"] < first.measures["cut_norm"] * ERROR_FACTOR
    # What the carried part has no room for is lost too, and is in `cut_norm` with the carried part.
    assert missed < first.measures["cut_norm"] * ERROR_FACTOR


def test_the_exact_mean_of_many_alike_sites_is_in_pair_residual_and_what_is_carried() -> None:
    state = a_wide_state()
    state = replace(state, edits={group: replace(edit, pair=replace(edit.pair, scale=1.0)) for group, edit in state.edits.items()})
    members = alike(state, 150)
    rule = GeneratorExact(energy=1.0, residual_rank_factor=20)
    outcome = put_together(Plan(rule=rule, scored_sites=0), state, members)
    exact = whole(state.edits["q_proj"]) + dense_mean_change(state, members)["q_proj"]
    np.testing.assert_allclose(whole(outcome.state.edits["q_proj"], carried=True), exact, atol=1e-9)
    assert outcome.measures["sum_error_bound"] < 1e-9


def test_sums_keep_the_rank_that_a_rule_asks_for() -> None:
    state = a_wide_state(600)
    members = [a_member(state, f"s-{index:03}", index) for index in range(190)]
    assert summed(state, members, Stack(max_rank=150))[0].second.rank == 166
    assert summed(state, members, GeneratorExact(residual_rank_factor=40))[0].second.rank == 178
    assert summed(state, members, FactorMean())[0].second.rank == 0


def test_another_seed_changes_what_is_missed_and_little_else() -> None:
    terms = [draw(index, RANK, WIDTH) for index in range(200)]
    sums = []
    for seed in (1, 2):
        total = begin_sum(terms[0], 400, 128, seed)
        while total.needs_pass:
            for term in terms:
                total.take(term)
            total.end_pass()
        sums.append(total.result())
    (first, error), (second, other) = sums
    assert error == pytest.approx(other, rel=0.1)
    assert not np.array_equal(first.phi, second.phi)


@pytest.mark.parametrize("rule", [GeneratorExact(), FactorMean(), Stack(max_rank=8)], ids=lambda rule: rule.name)
def test_memory_does_not_grow_with_the_number_of_sites(rule: Rule) -> None:
    """What one more site takes is a share of its update that only its name and its weight can explain."""
    state = a_wide_state()

    def made(seed: int) -> dict[str, np.ndarray]:
        random_numbers = np.random.default_rng(seed)
        shapes = {"q_proj.phi": (WIDTH, RANK), "q_proj.psi": (RANK, WIDTH)}
        return {name: np.float32(0.1) * random_numbers.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}

    def peak(sites: int) -> int:
        members = [Contribution(site=f"s-{seed:04}", examples=1, load=lambda seed=seed: made(seed)) for seed in range(sites)]  # type: ignore[misc]
        tracemalloc.start()
        put_together(Plan(rule=rule, scored_sites=0), state, members)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    update = sum(array.nbytes for array in made(0).values())
    assert (peak(300) - peak(160)) / 140 < 0.1 * update
