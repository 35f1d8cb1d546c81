"""Inner products of all pairs of updates, over all generators: everything that a defence needs to know, in any gauge.

Computed on updates (differences of factors), not on whole generators, in float64, so that distances between updates much smaller than
the generator do not cancel. What a member began from is common to all: its update is ``δPᵀ(Q₀ + δQ) + P₀ᵀδQ``, so the inner products of
the rows of all δP and P₀, and of all δQ and Q₀, are enough, and no row is there twice. Members are read in blocks, as they were sent:
memory grows with the block, whose bytes are bounded, and reading with members² / block.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from orchestrator.aggregate.side_by_side import in_order
from orchestrator.aggregate.state import Array, Contribution, Edit, FederationState, Score, Tensors, start_at, trained_by
from orchestrator.aggregate.workspace import Workspace
from wegeft.algebra import Generator, difference

_Members = Sequence[tuple[Contribution, Tensors]]

SCORE_ARITHMETIC = 2
"""Version of the arithmetic of inner products, of scores and of the weights that defences take from them, as records name it.

Whatever changes a bit of any of these for the same updates takes the next number; records of before 2 name none.
"""
_BLOCK = 32
"""Members in a block at most."""
_BLOCK_BYTES = 128_000_000
"""Of their tensors in a block at most; a block has one member at least."""
_MOST_GROWTH = 8.0
"""Of the terms whose rounding errors count, when an update is written with the start in common, against when it stands for itself."""


def update_of(state: FederationState, member: Contribution) -> dict[str, Generator]:
    """Return how a member's generators differ from those that it started from."""
    tensors = member.load()
    return {group: _update_of(state, member, tensors, group) for group in state.edits}


def _update_of(state: FederationState, member: Contribution, tensors: Tensors, group: str) -> Generator:
    edit = (member.start or state).edits[group]
    start, _ = start_at(edit, member.rank)
    return difference(trained_by(edit, group, tensors, start), start)


def gram_of_updates(state: FederationState, members: Sequence[Contribution], threads: int = 1) -> Array:
    """Return the matrix of ``Σ over generators ⟨Uᵢ, Uⱼ⟩``, rows and columns in the order of ``members``.

    Any number of ``threads`` gives the same bits.
    """
    total, space = np.zeros((len(members), len(members))), Workspace()
    size = _block_of(members)
    blocks = [range(start, min(start + size, len(members))) for start in range(0, len(members), size)]
    for index, rows in enumerate(blocks):
        left = [(members[row], members[row].load()) for row in rows]
        for columns in blocks[: index + 1]:
            right = left if columns == rows else [(members[column], members[column].load()) for column in columns]
            products = np.zeros((len(rows), len(columns)))
            for found in in_order(partial(_products_of, state, left, right, space), state.edits, threads):
                products += found
            total[rows.start : rows.stop, columns.start : columns.stop] = products
            total[columns.start : columns.stop, rows.start : rows.stop] = products.T
    return (total + total.T) / 2


def _products_of(state: FederationState, left: _Members, right: _Members, space: Workspace, group: str) -> Array:
    """Return the inner products of one generator's updates."""
    ours = _stacked(state, left, group, space, "left")
    return _products(ours, ours if right is left else _stacked(state, right, group, space, "right"), space)


def read_once(members: Sequence[Contribution]) -> Sequence[Contribution]:
    """Return the members with their tensors at hand, where all of them are no more than a block; else as they are."""
    return [_at_hand(member, member.load()) for member in members] if len(members) <= _block_of(members) else members


def _at_hand(member: Contribution, tensors: Tensors) -> Contribution:
    return replace(member, load=lambda: tensors)


def _block_of(members: Sequence[Contribution]) -> int:
    """Return how many members to read at once; none sends much more than one of the highest rank."""
    longest = max(members, key=lambda member: math.inf if member.rank is None else member.rank, default=None)
    sent = sum(np.asarray(array).nbytes for array in longest.load().values()) if longest else 0
    return max(1, min(_BLOCK, _BLOCK_BYTES // max(1, sent)))


@dataclass(frozen=True, kw_only=True, eq=False)
class _Rows:
    """An update of one generator: ``pᵀ(Q₀ + q) + P₀ᵀq``, or ``pᵀq`` where it is whole."""

    p: Array
    q: Array
    is_whole: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class _Stack:
    """The rows of several members, one after the other, and below them those of the start that they have in common."""

    p: Array
    q: Array
    starts: list[int]
    """Each member's first row."""
    bases: NDArray[np.intp]
    """For each member's row, the row of the start that it moved from."""
    is_moved: Array
    """1 for rows that moved from the start; 0 for those of whole updates."""


def _stacked(state: FederationState, members: _Members, group: str, space: Workspace, side: str) -> _Stack:
    pair, first = state.edits[group].pair, _first_of(state.edits[group].pair)
    most = pair.rank + sum(2 * (member.start or state).edits[group].pair.rank for member, _ in members)
    p, q = (space.take(f"{side} {part}", most, pair.width) for part in "pq")
    starts, bases, is_moved, reached = list[int](), list[NDArray[np.intp]](), list[Array](), 0
    for member, tensors in members:
        rows = _rows_of(state, member, tensors, group, first)
        end = reached + len(rows.p)
        p[reached:end], q[reached:end] = rows.p, rows.q
        starts.append(reached)
        bases.append(np.zeros(len(rows.p), dtype=np.intp) if rows.is_whole else np.arange(len(rows.p)))
        is_moved.append(np.full(len(rows.p), 0.0 if rows.is_whole else 1.0))
        reached = end
    end = reached + pair.rank
    p[reached:end], q[reached:end] = first.p, first.q
    return _Stack(p=p[:end], q=q[:end], starts=starts, bases=reached + np.concatenate(bases), is_moved=np.concatenate(is_moved))


@dataclass(frozen=True, kw_only=True, eq=False)
class _First:
    """The factors that a round starts from, the scale in P, and how long their rows are."""

    p: Array
    q: Array
    lengths_p: Array
    lengths_q: Array


def _first_of(pair: Generator) -> _First:
    p = pair.scale * pair.p
    return _First(p=p, q=pair.q, lengths_p=_lengths(p), lengths_q=_lengths(pair.q))


def _rows_of(state: FederationState, member: Contribution, tensors: Tensors, group: str, first: _First) -> _Rows:
    edit = state.edits[group]
    if member.start is None and (member.rank is None or member.rank >= edit.pair.rank):
        moved = _moved_rows(edit, tensors, group)
        has_all_rows = moved.p.shape == edit.pair.p.shape and moved.q.shape == edit.pair.q.shape  # a false record may say so of fewer
        if has_all_rows and _has_small_errors(moved, first):
            return moved
    update = _update_of(state, member, tensors, group)
    return _Rows(p=update.p * update.scale, q=update.q, is_whole=True)


def _moved_rows(edit: Edit, tensors: Tensors, group: str) -> _Rows:
    pair, core = edit.pair, tensors.get(f"{group}.core")
    if core is not None:
        return _Rows(p=np.zeros_like(pair.p), q=np.asarray(core, dtype=np.float64) @ pair.q)
    phi, psi = tensors.get(f"{group}.phi"), tensors.get(f"{group}.psi")
    p = np.zeros_like(pair.p) if phi is None else pair.scale * np.asarray(phi, dtype=np.float64).T
    return _Rows(p=p, q=np.zeros_like(pair.q) if psi is None else np.asarray(psi, dtype=np.float64))


def _has_small_errors(moved: _Rows, first: _First) -> bool:
    """Return whether rounding errors do not grow when Q is put together from Q₀ and δQ only after it was multiplied.

    They do where Q became much shorter than Q₀ while P became much longer: in a hostile gauge.
    """
    p, q = _lengths(moved.p), _lengths(moved.q)
    apart = float(p @ (first.lengths_q + q))
    return apart <= _MOST_GROWTH * float(p @ _lengths(first.q + moved.q) + first.lengths_p @ q)


def _lengths(rows: Array) -> Array:
    return np.asarray(np.sqrt(np.einsum("ij,ij->i", rows, rows)))


def _products(left: _Stack, right: _Stack, space: Workspace) -> Array:
    """Return the inner products of all updates of ``left`` with all of ``right``."""
    shape = len(left.p), len(right.p)
    p = np.matmul(left.p, right.p.T, out=space.take("p", *shape))  # of one stack with itself, half of the work
    q = np.matmul(left.q, right.q.T, out=space.take("q", *shape))
    p_own, q_own = p[: len(left.bases), : len(right.bases)], q[: len(left.bases), : len(right.bases)]
    from_left, at_right, terms = _of_starts(q, left, right, (space, "q"))
    from_left += q_own  # (Q₀ + δQᵢ)·δQⱼ
    ours, theirs, both = _of_starts(p, left, right, (space, "p"))
    terms += np.add(from_left, at_right, out=space.take("sum", *from_left.shape))
    terms *= p_own
    terms += np.multiply(theirs, from_left, out=theirs)
    terms += np.multiply(ours, np.add(at_right, q_own, out=at_right), out=ours)
    terms += np.multiply(both, q_own, out=both)
    return np.asarray(np.add.reduceat(np.add.reduceat(terms, left.starts, axis=0), right.starts, axis=1))


def _of_starts(products: Array, left: _Stack, right: _Stack, into: tuple[Workspace, str]) -> tuple[Array, Array, Array]:
    """Return, for each pair of rows, the product of what the left, the right, and both moved from; 0 where that is nothing."""
    space, name = into
    rows, columns, width = len(left.bases), len(right.bases), products.shape[1]
    from_starts = products.take(left.bases, axis=0, out=space.take(f"{name} left", rows, width), mode="clip")
    at_right = products[:rows].take(right.bases, axis=1, out=space.take(f"{name} right", rows, columns), mode="clip")
    at_both = from_starts.take(right.bases, axis=1, out=space.take(f"{name} both", rows, columns), mode="clip")
    at_left = from_starts[:, :columns]
    if not (left.is_moved.all() and right.is_moved.all()):
        at_left *= left.is_moved[:, None]
        at_right *= right.is_moved
        at_both *= left.is_moved[:, None] * right.is_moved
    return at_left, at_right, at_both


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
