"""Inner products of all pairs of updates, over all generators: everything that a defence needs to know, in any gauge.

Computed on updates (differences of factors), not on whole generators, in float64, so that distances between updates much smaller than
the generator do not cancel. Members are read in blocks, as they were sent: memory grows with the block, whose bytes are bounded, and
reading with members² / block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.aggregate.state import Array, Contribution, FederationState, Score, Tensors, start_at, trained_by
from wegeft.algebra import Generator, difference

_BLOCK = 32
"""Members in a block at most."""
_BLOCK_BYTES = 128_000_000
"""Of their tensors in a block at most; a block has one member at least."""


def update_of(state: FederationState, member: Contribution) -> dict[str, Generator]:
    """Return how a member's generators differ from those that it started from."""
    tensors = member.load()
    return {group: _update_of(state, member, tensors, group) for group in state.edits}


def _update_of(state: FederationState, member: Contribution, tensors: Tensors, group: str) -> Generator:
    edit = (member.start or state).edits[group]
    start, _ = start_at(edit, member.rank)
    return difference(trained_by(edit, group, tensors, start), start)


def gram_of_updates(state: FederationState, members: Sequence[Contribution]) -> Array:
    """Return the matrix of ``Σ over generators ⟨Uᵢ, Uⱼ⟩``, rows and columns in the order of ``members``."""
    total = np.zeros((len(members), len(members)))
    size = _block_of(members)
    blocks = [range(start, min(start + size, len(members))) for start in range(0, len(members), size)]
    for index, rows in enumerate(blocks):
        left = [(members[row], members[row].load()) for row in rows]
        for columns in blocks[: index + 1]:
            right = left if columns == rows else [(members[column], members[column].load()) for column in columns]
            products = np.zeros((len(rows), len(columns)))
            for group in state.edits:
                ours = [_update_of(state, member, tensors, group) for member, tensors in left]
                theirs = ours if right is left else [_update_of(state, member, tensors, group) for member, tensors in right]
                products += _products(ours, theirs)
            total[rows.start : rows.stop, columns.start : columns.stop] = products
            total[columns.start : columns.stop, rows.start : rows.stop] = products.T
    return (total + total.T) / 2


def _block_of(members: Sequence[Contribution]) -> int:
    """Return how many members to read at once; all send about as much as the first."""
    sent = sum(np.asarray(array).nbytes for array in members[0].load().values()) if members else 0
    return max(1, min(_BLOCK, _BLOCK_BYTES // max(1, sent)))


def _products(left: Sequence[Generator], right: Sequence[Generator]) -> Array:
    rows_p, rows_q, row_starts = _stacked(left)
    columns_p, columns_q, column_starts = _stacked(right)
    products = (rows_p @ columns_p.T) * (rows_q @ columns_q.T)
    return np.asarray(np.add.reduceat(np.add.reduceat(products, row_starts, axis=0), column_starts, axis=1))


def _stacked(updates: Sequence[Generator]) -> tuple[Array, Array, list[int]]:
    p = np.concatenate([update.p * update.scale for update in updates])
    starts = np.cumsum([0, *(update.rank for update in updates[:-1])])
    return p, np.concatenate([update.q for update in updates]), [int(start) for start in starts]


def score_members(gram: Array, sites: Sequence[str], coefficients: Mapping[str, float]) -> dict[str, Score]:
    """Return, for each member of some weight, how its update stands to the others', leave-one-out on the Gram.

    With ``u = Σaₖuₖ``: agreement is the cosine of ``uₖ`` and ``u − aₖuₖ``; influence is ``‖u − u₋ₖ‖ / ‖u‖``, where ``u₋ₖ`` is the aggregate
    of the others at the same total weight; contribution is ``⟨aₖuₖ, u⟩ / ‖u‖²``, below 0 for who pulls the other way. Zero where a norm is.
    """
    weights = np.array([coefficients[site] for site in sites])
    return {site: _score(gram, weights, index) for index, site in enumerate(sites) if weights[index] != 0}


def _score(gram: Array, weights: Array, index: int) -> Score:
    total, own = math.fsum(weights), float(weights[index])
    others = weights.copy()
    others[index] = 0.0
    lengths = _length(gram, others) * math.sqrt(max(0.0, float(gram[index, index])))
    agreement = float(gram[index] @ others) / lengths if lengths > 0 else 0.0
    rest = total - own
    moved = weights - others * (total / rest) if rest > 0 else weights
    whole = _length(gram, weights)
    return Score(
        agreement=max(-1.0, min(1.0, agreement)),
        influence=_length(gram, moved) / whole if whole > 0 else 0.0,
        contribution=own * float(gram[index] @ weights) / whole**2 if whole > 0 else 0.0,
    )


def _length(gram: Array, weights: Array) -> float:
    return math.sqrt(max(0.0, float(weights @ gram @ weights)))
