"""The weighted sum of updates, one member at a time: memory does not grow with the number of members.

A member's pair moved from (P₀, Q₀) by (δP, δQ), and so its generator by ``δPᵀQ₀ + P₀ᵀδQ + δPᵀδQ``. The first two terms are linear in the
factors, so their weighted sums are plain sums of matrices. Only the last one, of second order, needs a stack of factors; beyond a
working rank the stack is cut to its best approximation, and what is cut is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.aggregate.state import Array, Contribution, Edit, FederationState, Tensors, start_at, trained_by
from wegeft.algebra import Generator, add, align, compress, difference, empty, from_rows, truncate

_LEAST_WORKING_RANK = 128
_WORKING_RANK_FACTOR = 6


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """What the members' updates of one generator add up to."""

    parts: Mapping[str, Array]
    """``Σaₖδxₖ`` of the factors and cores that were sent by members of full rank: ``phi`` is rank×width here, like P."""
    second: Generator
    """``Σaₖ·s·δPₖᵀδQₖ`` of those, and the whole update of members of lower rank, or that began from other factors."""
    has_lower_ranks: bool = False
    cut: float = 0.0
    """Bound of the Frobenius norm of what the working rank cost."""

    def change(self, edit: Edit) -> Generator:
        """Return ``Σaₖ(Mₖ − M₀ₖ)``."""
        pair = edit.pair
        if "core" in self.parts:
            return from_rows(p=pair.p, q=self.parts["core"] @ pair.q, scale=pair.scale)
        moved_p, moved_q = self.parts.get("phi"), self.parts.get("psi")
        terms = [self.second]
        if moved_p is not None:
            terms.append(from_rows(p=moved_p, q=pair.q, scale=pair.scale))
        if moved_q is not None:
            terms.append(from_rows(p=pair.p, q=moved_q, scale=pair.scale))
        return add(*terms)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How updates are read."""

    is_aligned: bool
    """Bring each pair into the gauge nearest to the old one first."""
    keeps_products: bool
    """Sum the second-order term too; without it ``Sums.second`` stays empty."""
    is_cut: bool = True
    """Cut the stack at the working rank."""


def sum_updates(
    state: FederationState, members: Sequence[Contribution], coefficients: Mapping[str, float], reading: Reading
) -> dict[str, Sums]:
    """Return the weighted sums by group; members are read once each, in the order of their pseudonyms, those of weight 0 not at all."""
    sums = {group: Sums(parts={}, second=empty(edit.pair)) for group, edit in state.edits.items()}
    for member in sorted(members, key=lambda member: member.site):
        coefficient = coefficients[member.site]
        if coefficient == 0:
            continue
        tensors = member.load()
        for group, edit in state.edits.items():
            sums[group] = _add(sums[group], edit, _Term(group=group, tensors=tensors, member=member, coefficient=coefficient), reading)
    return {group: _cut(total, state.edits[group], 1, reading) for group, total in sums.items()}


@dataclass(frozen=True, kw_only=True, eq=False)
class _Term:
    group: str
    tensors: Tensors
    member: Contribution
    coefficient: float


def _add(sums: Sums, edit: Edit, term: _Term, reading: Reading) -> Sums:
    began = edit if term.member.start is None else term.member.start.edits[term.group]
    start, _ = start_at(began, term.member.rank)
    trained = trained_by(began, term.group, term.tensors, start)
    # A product's first-order terms hold for the factors that it began with alone.
    if start.rank != edit.pair.rank or (began is not edit and reading.keeps_products):
        whole = difference(trained, start)
        second = add(sums.second, from_rows(p=whole.p, q=whole.q, scale=whole.scale * term.coefficient))
        return _cut(Sums(parts=sums.parts, second=second, has_lower_ranks=True, cut=sums.cut), edit, 2, reading)
    moved = _moved(began, term, trained, reading)
    parts = {
        name: sums.parts[name] + term.coefficient * delta if name in sums.parts else term.coefficient * delta
        for name, delta in moved.items()
    }
    second = sums.second
    if reading.keeps_products and {"phi", "psi"} <= moved.keys():
        second = add(second, from_rows(p=moved["phi"], q=moved["psi"], scale=edit.pair.scale * term.coefficient))
    return _cut(Sums(parts=parts, second=second, has_lower_ranks=sums.has_lower_ranks, cut=sums.cut), edit, 2, reading)


def _moved(edit: Edit, term: _Term, trained: Generator, reading: Reading) -> dict[str, Array]:
    """Return how far each part that was sent is from where it started; after alignment, where that is asked for."""
    names = {part: f"{term.group}.{part}" for part in ("phi", "psi", "core")}
    sent = {part: np.asarray(term.tensors[name], dtype=np.float64) for part, name in names.items() if name in term.tensors}
    if reading.is_aligned and {"phi", "psi"} <= sent.keys():
        aligned = align(trained, edit.pair)
        return {"phi": aligned.p - edit.pair.p, "psi": aligned.q - edit.pair.q}
    return {part: delta.T if part == "phi" else delta for part, delta in sent.items()}


def _cut(sums: Sums, edit: Edit, slack: int, reading: Reading) -> Sums:
    """Return ``sums`` with its stack at the working rank, once it is ``slack`` times as high."""
    working = min(edit.pair.width, max(_LEAST_WORKING_RANK, _WORKING_RANK_FACTOR * edit.pair.rank))
    if not reading.is_cut or sums.second.rank <= slack * working:
        return sums
    shorten = truncate if working == edit.pair.width else compress  # at the full width nothing need be lost
    best = shorten(sums.second, working)
    return Sums(parts=sums.parts, second=best.generator, has_lower_ranks=sums.has_lower_ranks, cut=sums.cut + best.error)
