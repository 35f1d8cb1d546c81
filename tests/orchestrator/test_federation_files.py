"""States as bytes: the same bits back, what sites start from, and what is published."""

import json

import numpy as np
import pytest

from orchestrator.aggregate import FederationState, Plan
from orchestrator.federation_files import (
    GENERATOR_PREFIX,
    read_state,
    state_from_adapter,
    write_adapter,
    write_start,
    write_state,
)
from tests.orchestrator.aggregate.federations import RANK, SCALE, a_state, bits_of, members_of, put_together, whole
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.federation_rules import Core, FedAdam, GeneratorExact, Rule, sent_parts
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import parse_header, read_tensors


def after_rounds(rule: Rule, rounds: int) -> FederationState:
    state = a_state(1, has_core=isinstance(rule, Core))
    for number in range(1, rounds + 1):
        plan = Plan(rule=rule, server_optimizer=FedAdam(), round=number)
        state = put_together(plan, state, members_of(state, 4, number, sent_parts(rule, number))).state
    return state


@pytest.mark.parametrize("rule", [GeneratorExact(), Core()], ids=lambda rule: rule.name)
@pytest.mark.parametrize("rounds", [0, 1, 3])
def test_a_state_comes_back_bit_by_bit(rule: Rule, rounds: int) -> None:
    state = after_rounds(rule, rounds)
    content = write_state(state)
    again = read_state(content)
    assert (again.rounds, again.edits.keys(), again.moments.keys()) == (rounds, state.edits.keys(), state.moments.keys())
    assert bits_of(again) == bits_of(state)
    assert write_state(again) == content
    assert [edit.pair.scale for edit in again.edits.values()] == [SCALE] * 2


def test_a_round_goes_on_from_bytes_as_from_memory() -> None:
    state = after_rounds(GeneratorExact(), 2)
    plan = Plan(rule=GeneratorExact(), server_optimizer=FedAdam(), round=3)
    directly = put_together(plan, state, members_of(state, 3, 9)).state
    revived = read_state(write_state(state))
    assert write_state(put_together(plan, revived, members_of(revived, 3, 9)).state) == write_state(directly)


@pytest.mark.parametrize("rank", [None, 1, 2])
def test_a_start_is_the_state_whatever_the_rank(rank: int | None) -> None:
    state = after_rounds(GeneratorExact(), 2)
    content = write_start(state, rank)
    tensors = read_tensors(content)
    assert json.loads(parse_header(content, len(content)).metadata["scales"]) == {"down_proj": SCALE, "q_proj": SCALE}
    for group, edit in state.edits.items():
        phi, psi = tensors[f"{group}.phi"], tensors[f"{group}.psi"]
        assert psi.shape[0] == (rank or RANK)
        total = SCALE * (phi @ psi + tensors[f"{group}.frozen.phi"] @ tensors[f"{group}.frozen.psi"])
        np.testing.assert_allclose(total, whole(edit), atol=1e-4)


def test_a_start_with_a_core_sends_the_core() -> None:
    tensors = read_tensors(write_start(after_rounds(Core(), 2), None))
    assert {name.partition(".")[2] for name in tensors} == {"phi", "psi", "core"}


@pytest.mark.parametrize("rule", [GeneratorExact(), Core()], ids=lambda rule: rule.name)
def test_what_is_published_computes_the_state(rule: Rule) -> None:
    state = after_rounds(rule, 3)
    published = write_adapter(state)
    tensors = read_tensors(published.weights)
    for group, edit in state.edits.items():
        phi, psi = (tensors[f"{GENERATOR_PREFIX}{group}.{part}"] for part in ("phi", "psi"))
        assert psi.shape[0] == published.ranks[group] == edit.pair.rank + edit.residual.rank
        np.testing.assert_allclose(published.scales[group] * (phi @ psi), whole(edit), atol=1e-4)
    begun = state_from_adapter(tensors, published.scales, has_core=True)
    for group, edit in begun.edits.items():
        np.testing.assert_allclose(whole(edit), whole(state.edits[group]), atol=1e-4)


@pytest.mark.parametrize(
    "content", [b"", b"x" * 40, write_tensors({"x": np.ones(3)}), write_tensors({"x": np.ones(3)}, "F64", {"federation": "{}"})]
)
def test_other_bytes_are_no_state(content: bytes) -> None:
    with pytest.raises(InvalidTensors):
        read_state(content)
