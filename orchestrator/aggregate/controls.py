"""SCAFFOLD's control variates at the server (Karimireddy et al., 2020, option II): their sum over sites, from round to round.

The state keeps ``Σcᵢ`` instead of the mean ``c``, so that ``c ← c + (|S|/N)·mean Δcᵢ`` holds whatever N becomes when sites join: a site
that has sent nothing yet has ``cᵢ = 0``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from orchestrator.aggregate.state import Array, FederationState, Tensors
from wegeft.contracts.control_variates import control_of


@dataclass(frozen=True, kw_only=True, eq=False)
class ControlChange:
    """What a member's update says of its control variate."""

    site: str
    """Pseudonym; changes are taken in its order."""
    tensors: str
    """Digest of the update's file: unlike the update's own, it does not depend on when a round was asked."""
    load: Callable[[], Tensors]
    """Gives the update's tensors, the changes among them."""


def mean_control(state: FederationState, forms: Mapping[str, tuple[int, ...]], sites: int) -> dict[str, Array]:
    """Return ``c``, the mean over ``sites``, for each trained tensor, by the name that it has on the wire; zero before the first round."""
    return {control_of(name): state.controls.get(name, np.zeros(shape)) / sites for name, shape in forms.items()}


def add_changes(before: FederationState, after: FederationState, changes: Sequence[ControlChange], names: Sequence[str]) -> FederationState:
    """Return ``after`` with the sum of ``before`` and its members' changes; the same bits for the same members in any order.

    ``names`` are the tensors that were trained in the round; the sums of others stay as they are.
    """
    controls, counted = dict(before.controls), dict(before.counted)
    for change in sorted(changes, key=lambda change: change.site):
        tensors = change.load()
        for name in names:
            moved = np.asarray(tensors[control_of(name)], dtype=np.float64)
            controls[name] = controls[name] + moved if name in controls else moved
        counted[change.site] = change.tensors
    return replace(after, controls=controls, counted=counted)
