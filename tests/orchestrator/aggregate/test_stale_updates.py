"""Updates that started from an older version count as they moved, lessened by their age: in product space exactly, or factor by factor."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from orchestrator.aggregate import Contribution, FederationState, Plan
from orchestrator.aggregate.gramian import update_of
from tests.algebra.generators import dense
from tests.orchestrator.aggregate.federations import a_member, a_state, bits_of, members_of, put_together, whole
from wegeft.contracts.federation_rules import Core, FactorMean, FreezePsi, GeneratorExact, GeneratorTruncate, Stack, staleness_weight

PARTS = {"factor_mean": ("phi", "psi"), "freeze_psi": ("phi",), "core": ("core",)}


def versions(rule: Any, parts: tuple[str, ...] = ("phi", "psi")) -> list[FederationState]:
    """Three versions of a federation, each made from the one before."""
    states = [a_state(4, has_core="core" in parts)]
    for seed in (1, 2):
        states.append(put_together(Plan(rule=rule), states[-1], members_of(states[-1], 3, seed, parts)).state)
    return states


def buffer_of(states: list[FederationState], parts: tuple[str, ...] = ("phi", "psi")) -> list[Contribution]:
    """One fresh update, one a version old and one two versions old."""
    members = []
    for age, state in enumerate(reversed(states)):
        member = a_member(state, f"s-{age}", 50 + age, parts, examples=1)
        members.append(replace(member, start=state if age else None, discount=staleness_weight(age)))
    return members


@pytest.mark.parametrize("rule", [GeneratorExact(residual_rank_factor=64, energy=1.0), Stack()])
def test_stale_generators_are_summed_exactly(rule: Any) -> None:
    states = versions(rule)
    members = buffer_of(states)
    outcome = put_together(Plan(rule=rule), states[-1], members)
    for group in states[-1].edits:
        moved = sum(staleness_weight(age) / 3 * dense(update_of(states[-1], one)[group]) for age, one in enumerate(members))
        found = whole(outcome.state.edits[group], carried=True) - whole(states[-1].edits[group], carried=True)
        np.testing.assert_allclose(found, moved, atol=1e-9)
    assert sum(outcome.weights.values()) == pytest.approx((1 + 2**-0.5 + 3**-0.5) / 3)


def test_truncated_rule_keeps_the_best_of_stale_generators() -> None:
    states = versions(GeneratorTruncate())
    members = buffer_of(states)
    outcome = put_together(Plan(rule=GeneratorTruncate()), states[-1], members)
    for group, edit in states[-1].edits.items():
        wanted = dense(edit.pair) + sum(
            staleness_weight(age) / 3 * dense(update_of(states[-1], one)[group]) for age, one in enumerate(members)
        )
        u, s, v = np.linalg.svd(wanted)
        best = (u[:, : edit.pair.rank] * s[: edit.pair.rank]) @ v[: edit.pair.rank]
        np.testing.assert_allclose(dense(outcome.state.edits[group].pair), best, atol=1e-8)


@pytest.mark.parametrize("rule", [FactorMean(align=False), FreezePsi(), Core()])
def test_stale_factors_move_as_in_fedbuff(rule: Any) -> None:
    """x ← x + (1/K)·Σ s(τₖ)·Δₖ, on the numbers that were sent."""
    parts = PARTS[rule.name]
    states = versions(rule, parts)
    members = buffer_of(states, parts)
    outcome = put_together(Plan(rule=rule), states[-1], members)
    for group, edit in states[-1].edits.items():
        new = outcome.state.edits[group]
        found = {"phi": (new.pair.p - edit.pair.p).T, "psi": new.pair.q - edit.pair.q}
        if edit.core is not None and new.core is not None:
            found["core"] = new.core - edit.core
        for part in parts:
            expected = sum(staleness_weight(age) / 3 * one.load()[f"{group}.{part}"] for age, one in enumerate(members))
            np.testing.assert_allclose(found[part], expected, atol=1e-12)


def test_aligned_factors_of_a_stale_site_are_compared_with_its_own_start() -> None:
    """A site that did not move adds nothing, however far the versions went on meanwhile."""
    states = versions(FactorMean())
    still = Contribution(site="s-0", examples=1, load=lambda: {n: 0 * a for n, a in a_member(states[0], "s-0", 1).load().items()})
    outcome = put_together(Plan(rule=FactorMean()), states[-1], [replace(still, start=states[0], discount=0.5)])
    for group, edit in states[-1].edits.items():
        np.testing.assert_allclose(outcome.state.edits[group].pair.p, edit.pair.p, atol=1e-12)


def test_order_of_members_changes_no_bit() -> None:
    states = versions(GeneratorExact())
    members = buffer_of(states)
    bits = {bits_of(put_together(Plan(rule=GeneratorExact()), states[-1], order).state) for order in (members, members[::-1])}
    assert len(bits) == 1
