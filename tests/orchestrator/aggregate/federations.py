"""Small random federations, and what dense float64 says about them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from orchestrator.aggregate import Contribution, FederationState, Outcome, Plan, Refused, aggregate, new_edit, start_at
from orchestrator.aggregate.gramian import update_of
from tests.algebra.generators import dense, draw
from wegeft.algebra import Generator

WIDTHS = {"q_proj": 9, "down_proj": 14}
RANK = 3
SCALE = 2.0


def a_state(seed: int = 0, *, rank: int = RANK, widths: Mapping[str, int] = WIDTHS, has_core: bool = False) -> FederationState:
    edits = {}
    for index, (group, width) in enumerate(sorted(widths.items())):
        pair = draw(1000 * seed + index, rank, width, SCALE)
        edits[group] = new_edit(pair, np.eye(rank) if has_core else None)
    return FederationState(edits=edits)


def a_member(state: FederationState, site: str, seed: int, parts: Sequence[str] = ("phi", "psi"), **options: Any) -> Contribution:
    """A site that moved away from the start by random steps of size ``drift``."""
    drift, rank, examples = options.get("drift", 0.3), options.get("rank"), options.get("examples", 1 + seed % 7)
    random = np.random.default_rng(seed)
    tensors = {}
    for group, edit in state.edits.items():
        height, width = start_at(edit, rank)[0].p.shape
        moved = {part: drift * random.standard_normal(shape) for part, shape in (("phi", (width, height)), ("psi", (height, width)))}
        if "core" in parts:
            moved["core"] = drift * random.standard_normal((height, height))
        tensors |= {f"{group}.{part}": moved[part] for part in parts}
    return Contribution(site=site, examples=examples, load=lambda: tensors, rank=rank)


def members_of(
    state: FederationState, count: int, seed: int = 0, parts: Sequence[str] = ("phi", "psi"), **options: Any
) -> list[Contribution]:
    return [a_member(state, f"s-{index:02}", 100 * seed + index, parts, **options) for index in range(count)]


def whole(edit: Any, *, carried: bool = False) -> Any:
    """pair + residual (+ carried), dense."""
    return dense(edit.trained) + dense(edit.residual) + (dense(edit.carried) if carried else 0)


def dense_mean_change(state: FederationState, members: Sequence[Contribution]) -> dict[str, Any]:
    """What exactly averaging the generators would change, dense."""
    total = sum(member.examples for member in members)
    changes = {group: np.zeros((edit.pair.width, edit.pair.width)) for group, edit in state.edits.items()}
    for member in members:
        for group, update in update_of(state, member).items():
            changes[group] += member.examples / total * dense(update)
    return changes


def put_together(plan: Plan, state: FederationState, members: Sequence[Contribution]) -> Outcome:
    outcome = aggregate(plan, state, members)
    assert not isinstance(outcome, Refused), outcome
    return outcome


def in_gauge(state: FederationState, member: Contribution, turn: Any) -> Contribution:
    """The same function, sent in another gauge."""
    tensors = {}
    for name, moved in member.load().items():
        group, _, part = name.rpartition(".")
        pair = state.edits[group].pair
        if part == "phi":
            tensors[name] = (pair.p.T + moved) @ np.linalg.inv(turn) - pair.p.T
        else:
            tensors[name] = turn @ (pair.q + moved) - pair.q
    return Contribution(site=member.site, examples=member.examples, load=lambda: tensors, rank=member.rank)


def bits_of(state: FederationState) -> bytes:
    arrays = [array for _, edit in sorted(state.edits.items()) for g in (edit.pair, edit.residual, edit.carried) for array in (g.p, g.q)]
    arrays += [edit.core for edit in state.edits.values() if edit.core is not None]
    return b"".join(array.tobytes() for array in [*arrays, *(values for _, values in sorted(state.moments.items()))])


def flat(generators: Mapping[str, Generator]) -> Any:
    return np.concatenate([dense(generator).ravel() for _, generator in sorted(generators.items())])
