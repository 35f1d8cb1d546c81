"""How long an update is, against dense matrices, for whatever part of the pair was trained."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from orchestrator.aggregate.gramian import update_of
from orchestrator.aggregate.lengths import length_of_update
from orchestrator.aggregate.state import Contribution, FederationState
from tests.algebra.generators import dense
from tests.orchestrator.aggregate.federations import RANK, SCALE, a_member, a_state, flat, in_gauge


def dense_norm(state: FederationState, member: Contribution) -> float:
    return float(np.linalg.norm(flat(update_of(state, member))))


@pytest.mark.parametrize("rank", [None, RANK, RANK + 1, 2, 1])
@pytest.mark.parametrize("parts", [("phi", "psi"), ("phi",), ("psi",)])
@pytest.mark.parametrize("drift", [1e-6, 0.3, 1e6])
def test_a_length_is_that_of_the_dense_update(rank: int | None, parts: Sequence[str], drift: float) -> None:
    state = a_state(4)
    member = a_member(state, "s-1", 7, parts, rank=rank, drift=drift)
    length = length_of_update(state, member)
    assert length.norm == pytest.approx(dense_norm(state, member), rel=1e-9)
    assert length.norm <= length.terms < 10 * length.norm
    assert length.is_told


def test_the_length_of_a_core_is_that_of_the_dense_update() -> None:
    state = a_state(4, has_core=True)
    member = a_member(state, "s-1", 7, ("core",))
    assert length_of_update(state, member).norm == pytest.approx(dense_norm(state, member), rel=1e-9)


def test_a_length_hangs_on_the_function_and_not_on_the_gauge() -> None:
    state = a_state(4)
    member = a_member(state, "s-1", 7)
    turned = in_gauge(state, member, np.diag([1e3, 1e-2, -1.0]))
    assert length_of_update(state, turned).norm == pytest.approx(length_of_update(state, member).norm, rel=1e-6)


def test_terms_are_the_lengths_of_single_rows() -> None:
    state = a_state(4, widths={"q_proj": 9})
    member = a_member(state, "s-1", 7)
    pair, (update,) = state.edits["q_proj"].pair, update_of(state, member).values()
    rows = [dense(type(pair)(phi=update.phi[:, [row]], psi=update.psi[[row]], scale=SCALE)) for row in range(update.rank)]
    assert length_of_update(state, member).terms == pytest.approx(sum(np.linalg.norm(row) for row in rows), rel=1e-9)


def test_nothing_is_as_long_as_nothing() -> None:
    state = a_state(4)
    length = length_of_update(state, a_member(state, "s-1", 7, drift=0.0))
    assert (length.norm, length.terms, length.is_told) == (0.0, 0.0, True)
