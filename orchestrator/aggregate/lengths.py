"""How long an update is, from rank×rank products of its factors; quick enough for a gate that every update passes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from orchestrator.aggregate.gramian import update_of
from orchestrator.aggregate.state import Array, Contribution, FederationState, Tensors
from wegeft.algebra import Generator

_MOST_CANCELLED = 1e6
"""That the terms of an update may be longer than itself: beyond, its norm is lost in rounding."""


@dataclass(frozen=True, kw_only=True)
class Length:
    """How long an update is."""

    norm: float
    """Frobenius, over all generators."""
    terms: float
    """The norms of its terms of rank one, added up: no less than ``norm``, which is not told closer than to some 10⁻⁸ of this."""

    @property
    def is_told(self) -> bool:
        """Whether the terms do not cancel so far that rounding errors are what is left of them."""
        return self.terms <= _MOST_CANCELLED * self.norm


def length_of_update(state: FederationState, member: Contribution) -> Length:
    """Return how far a member's generators are from those that it started from, by tensors of just the shapes that it was asked for."""
    tensors = member.load()
    if _has_moved_pairs(state, member, tensors):
        lengths = [_length_of_moves(edit.pair, *_moves(edit.pair, tensors, group)) for group, edit in state.edits.items()]
    else:
        lengths = [_length_of_whole(update) for update in update_of(state, member).values()]
    return Length(norm=math.hypot(*(one.norm for one in lengths)), terms=sum(one.terms for one in lengths))


def _has_moved_pairs(state: FederationState, member: Contribution, tensors: Tensors) -> bool:
    """Return whether a member trained all pairs of the state as they are, none of them by its core."""
    is_of_full_rank = member.rank is None or all(member.rank >= edit.pair.rank for edit in state.edits.values())
    return member.start is None and is_of_full_rank and not any(f"{group}.core" in tensors for group in state.edits)


def _moves(pair: Generator, tensors: Tensors, group: str) -> tuple[Array, Array]:
    """Return δP and δQ; zeros where a factor was not trained."""
    phi, psi = tensors.get(f"{group}.phi"), tensors.get(f"{group}.psi")
    p = np.zeros_like(pair.p) if phi is None else np.asarray(phi, dtype=np.float64).T
    return p, np.zeros_like(pair.q) if psi is None else np.asarray(psi, dtype=np.float64)


def _length_of_moves(pair: Generator, p: Array, q: Array) -> Length:
    """Return the length of ``s(δPᵀ(Q₀ + δQ) + P₀ᵀδQ)``, whose terms are side by side in rows that are multiplied only where they meet."""
    new = pair.q + q
    own, moved = p @ p.T, q @ q.T
    old, trained = pair.p @ pair.p.T, new @ new.T
    square = (own * trained).sum() + 2 * ((p @ pair.p.T) * (new @ q.T)).sum() + (old * moved).sum()
    terms = _row_lengths(own) @ _row_lengths(trained) + _row_lengths(old) @ _row_lengths(moved)
    return Length(norm=abs(pair.scale) * math.sqrt(max(0.0, float(square))), terms=abs(pair.scale) * float(terms))


def _length_of_whole(update: Generator) -> Length:
    products_p, products_q = update.p @ update.p.T, update.q @ update.q.T
    norm = math.sqrt(max(0.0, float((products_p * products_q).sum())))
    return Length(norm=abs(update.scale) * norm, terms=abs(update.scale) * float(_row_lengths(products_p) @ _row_lengths(products_q)))


def _row_lengths(products: Array) -> Array:
    return np.asarray(np.sqrt(np.diag(products)))
