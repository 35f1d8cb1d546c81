"""What a hostile gauge costs a defence: nothing by itself, and what float32 loses of factors a thousand times too small."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from orchestrator.aggregate import Contribution, FederationState, Plan
from orchestrator.aggregate.entrywise import select_for_bulyan
from orchestrator.aggregate.gramian import gram_of_updates
from simulation.attacks import Attack, Sight, poison
from tests.orchestrator.aggregate.federations import a_state, flat, members_of, put_together
from wegeft.contracts.federation_rules import Bulyan, Defence, GeneratorExact, MultiKrum, TrimmedMean

HONEST, HOSTILE = 9, 2


def sent_in(member: Contribution, dtype: Any) -> Contribution:
    tensors = {name: np.asarray(array, dtype=dtype).astype(np.float64) for name, array in member.load().items()}
    return Contribution(site=member.site, examples=member.examples, load=lambda: tensors)


def gauged(state: FederationState, member: Contribution, seed: int) -> Contribution:
    sight = Sight(state=state, own=dict(member.load()), honest=[], hostile=HOSTILE, max_norm=1e9, seed=seed)
    tensors = poison(Attack.GAUGE, sight)
    return Contribution(site=member.site, examples=member.examples, load=lambda: tensors)


def moved_by_gauge(defence: Defence, dtype: Any) -> float:
    """How far the attack moves a round, as a share of what the round moves; who is chosen stays the same."""
    state = a_state(0, rank=4, widths={"q_proj": 64})
    members = [sent_in(member, np.float32) for member in members_of(state, HONEST + HOSTILE, 0, drift=0.05)]
    hostile = [sent_in(gauged(state, member, seed), dtype) for seed, member in enumerate(members[HONEST:])]
    attacked = [*members[:HONEST], *hostile]
    chosen = [select_for_bulyan(gram_of_updates(state, each), HOSTILE) for each in (members, attacked)]
    assert chosen[0] == chosen[1]
    before = flat({group: edit.pair for group, edit in state.edits.items()})
    plain, turned = (
        whole(put_together(Plan(rule=GeneratorExact(), defence=defence, seed=3), state, each).state) for each in (members, attacked)
    )
    return float(np.linalg.norm(turned - plain) / np.linalg.norm(plain - before))


def whole(state: FederationState) -> Any:
    return flat({group: edit.pair for group, edit in state.edits.items()}) + flat(
        {group: edit.residual for group, edit in state.edits.items()}
    )


@pytest.mark.parametrize(
    "defence", [Bulyan(malicious=HOSTILE), MultiKrum(malicious=HOSTILE), TrimmedMean(beta=0.2)], ids=lambda one: one.name
)
def test_a_gauge_moves_no_defence_where_numbers_are_exact(defence: Defence) -> None:
    assert moved_by_gauge(defence, np.float64) < 1e-10


def test_bulyan_makes_more_of_what_float32_loses_for_it_chooses_anew_at_each_entry() -> None:
    """Its last step takes the values nearest to the median, and where two are about as near, the least change takes the other one."""
    assert moved_by_gauge(MultiKrum(malicious=HOSTILE), np.float32) < 1e-3
    assert moved_by_gauge(TrimmedMean(beta=0.2), np.float32) < 1e-3
    assert 1e-3 < moved_by_gauge(Bulyan(malicious=HOSTILE), np.float32) < 0.05
