"""What a federation carries from round to round, what sites add to it, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wegeft.algebra import Generator, empty, from_rows, norm, rescale_evenly, split, subtract
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import FailureCode
from wegeft.contracts.federation_rules import Defence, FedAvg, NoDefence, Rule, ServerOptimiser

Array = NDArray[np.float64]
Tensors = Mapping[str, NDArray[Any]]
"""What a site sends, by name: how far ``<group>.phi`` (width×rank), ``<group>.psi`` (rank×width) or ``<group>.core`` (rank×rank) moved."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Edit:
    """One shared generator of a federation; the layers evaluate ``pair + residual`` in one edit. All float64."""

    pair: Generator
    """What sites train; with a ``core``, the fixed factors around it."""
    residual: Generator
    """Frozen at the sites; of rank 0 where the rule keeps none."""
    carried: Generator
    """What was cut from the residual so far and comes back into the next; known to the server only."""
    core: Array | None = None
    """rank×rank, trained between the factors: ``M = s·Pᵀ(CQ)``."""

    @property
    def trained(self) -> Generator:
        """The generator of the trained part, its core included."""
        if self.core is None:
            return self.pair
        return from_rows(p=self.pair.p, q=self.core @ self.pair.q, scale=self.pair.scale)


def new_edit(pair: Generator, core: Array | None = None) -> Edit:
    """Return the state in which a federation begins: nothing but the pair, and the core where there is one."""
    return Edit(pair=pair, residual=empty(pair), carried=empty(pair), core=core)


@dataclass(frozen=True, kw_only=True, eq=False)
class FederationState:
    """Everything that the next round needs."""

    edits: Mapping[str, Edit]
    """By group, the modules that share a generator."""
    moments: Mapping[str, Array] = field(default_factory=dict)
    """The server optimizer's memory: ``<group>.<part>.m`` and ``….v``."""
    rounds: int = 0
    """Rounds committed."""
    controls: Mapping[str, Array] = field(default_factory=dict)
    """With SCAFFOLD, the sum of all sites' control variates, by the name and in the shape in which the trained tensor travels."""
    counted: Mapping[str, str] = field(default_factory=dict)
    """The last update of each site that is in this state: the digest of its file, by the site's pseudonym.

    With SCAFFOLD, that is the last one whose change is in ``controls``; kept with it, and where the wire cuts something off.
    """


@dataclass(frozen=True, kw_only=True, eq=False)
class Contribution:
    """One member's update."""

    site: str
    """Pseudonym; members are taken in its order, whatever order they come in."""
    examples: int
    """Weight before the defence; 1 or more, checked by the gate."""
    load: Callable[[], Tensors]
    """Gives the tensors each time it is called, so that they need not all be in memory at once."""
    rank: int | None = None
    """Rank that the site trained; None for the rank of the pair."""
    start: FederationState | None = None
    """The federation as it was when the site began; None where that is the round's own state."""
    discount: float = 1.0
    """Factor on top of its weight, for an update that comes late."""
    weight: float | None = None
    """Its factor in the aggregate, where a record gives one for each member; None lets the defence weigh."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a round is put together."""

    rule: Rule
    server_optimizer: ServerOptimiser = field(default_factory=FedAvg)
    defence: Defence = field(default_factory=NoDefence)
    round: int = 1
    """From 1; decides what an alternating rule sends."""
    seed: int = 0
    """Of random projections."""
    scored_sites: int = 256
    """With more members than this no contribution scores are computed, which take a Gram of all pairs."""
    threads: int = 1
    """That work on members or generators side by side; any number gives the same bits."""


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a member's update did."""

    agreement: float
    """Cosine of its update with the sum of the others', -1 to 1."""
    influence: float
    """How far the aggregate moves without it, as a share of the aggregate's norm."""
    contribution: float
    """Its share of the aggregate: of what it weighs, the part along the aggregate; over all members they add up to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Outcome:
    """A round put together."""

    state: FederationState
    weights: Mapping[str, float]
    """Factor of each member's update in the aggregate; 0 where the defence left it out. Empty for defences that look at single entries."""
    scores: Mapping[str, Score]
    measures: Mapping[str, float]
    """Over all generators: ``update_norm``, ``aggregation_residual``, ``cut_norm``, ``residual_rank``, ``sum_error_bound``."""


@dataclass(frozen=True, kw_only=True)
class Refused:
    """The round cannot be put together."""

    code: FailureCode
    problems: tuple[Problem, ...]


def start_at(edit: Edit, rank: int | None) -> tuple[Generator, Generator]:
    """Return the pair that a site of ``rank`` trains and the generator that is frozen for it; their sum is ``pair + residual``.

    A site of lower rank gets the pair's leading directions to train, and the others with the residual.
    """
    if rank is None or rank >= edit.pair.rank:
        return edit.trained, edit.residual
    if norm(edit.pair) == 0:  # nothing is lost by taking the first rows, and they can still be trained
        head = from_rows(p=edit.pair.p[:rank], q=edit.pair.q[:rank], scale=edit.pair.scale)
        return head, edit.residual
    head, tail = split(edit.pair, rank)
    head = rescale_evenly(head, edit.pair.scale)
    return head, from_rows(p=np.concatenate([edit.residual.p * edit.residual.scale, tail.p]), q=np.concatenate([edit.residual.q, tail.q]))


def trained_by(edit: Edit, group: str, moved: Tensors, start: Generator) -> Generator:
    """Return the generator that a site trained: its start, and how far the parts that it sent have moved."""
    if f"{group}.core" in moved:
        core = np.asarray(moved[f"{group}.core"], dtype=np.float64) + (edit.core if edit.core is not None else 0.0)
        return from_rows(p=edit.pair.p, q=core @ edit.pair.q, scale=edit.pair.scale)
    phi, psi = moved.get(f"{group}.phi"), moved.get(f"{group}.psi")
    p = start.p if phi is None else start.p + phi.T
    q = start.q if psi is None else start.q + psi
    return from_rows(p=p, q=q, scale=start.scale)


def change_of(state: FederationState, new: FederationState) -> dict[str, Generator]:
    """Return what a round changed in each generator, residuals included."""
    return {group: subtract(_whole(new.edits[group]), _whole(edit)) for group, edit in state.edits.items()}


def _whole(edit: Edit) -> Generator:
    pair, residual = edit.trained, edit.residual
    p = np.concatenate([pair.p * pair.scale, residual.p * residual.scale])
    return from_rows(p=p, q=np.concatenate([pair.q, residual.q]))
