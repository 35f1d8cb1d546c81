"""The singular value decomposition of a generator, never larger than rank×rank, and what follows from it.

Thin QR of both factors, ``Pᵀ = AₚRₚ`` and ``Qᵀ = A_qR_q``, then the SVD of ``s·RₚR_qᵀ = USVᵀ``: ``M = (AₚU) S (A_qV)ᵀ``, in
O(width·rank² + rank³). Cutting it after k values is the best approximation of rank k (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from wegeft.algebra.generator import Array, Generator, namespace_of
from wegeft.contracts.errors import InvalidTensors

_GRAM_FLOOR = 1e-14
"""Share of the largest eigenvalue of a Gram below which the others are rounding."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Truncation:
    """The best approximation of a generator at a rank, and what it costs."""

    generator: Generator
    """Balanced, at scale 1, its rows from the largest singular value to the smallest."""
    error: float
    """Frobenius norm of what was cut off."""
    lost_energy: float
    """Share of ``‖M‖²`` that was cut off, 0 to 1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Svd:
    left: Array
    """width×k, orthonormal columns."""
    values: Array
    """k, falling."""
    right: Array
    """width×k, orthonormal columns."""

    def rows(self, start: int, stop: int) -> Generator:
        """Return the values from ``start`` to ``stop`` as a balanced generator: ``PPᵀ = QQᵀ = diag(values)``."""
        roots = self.values[start:stop, None] ** 0.5
        return Generator(p=roots * self.left[:, start:stop].T, q=roots * self.right[:, start:stop].T)


def _decompose(generator: Generator) -> _Svd:
    xp = namespace_of(generator.p)
    a, r = xp.linalg.qr(generator.p.T)
    b, s = xp.linalg.qr(generator.q.T)
    u, values, vt = xp.linalg.svd(generator.scale * (r @ s.T), full_matrices=False)
    left, right = a @ u, b @ vt.T
    signs = _signs(right)
    return _Svd(left=left * signs, values=values, right=right * signs)


def _signs(columns: Array) -> Array:
    """Return +1 or -1 a column, so that its entry of largest magnitude becomes positive: the SVD leaves the sign open."""
    xp = namespace_of(columns)
    if not columns.shape[1]:
        return columns[:1]
    peaks = columns[abs(columns).argmax(0), xp.arange(columns.shape[1])]
    return xp.where(peaks < 0, -xp.ones_like(peaks), xp.ones_like(peaks))


def spectrum(generator: Generator) -> Array:
    """Return the singular values of M, falling; min(rank, width) of them."""
    return _decompose(generator).values


def truncate(generator: Generator, rank: int) -> Truncation:
    """Return the best approximation of ``generator`` with at most ``rank`` rows; raise :class:`InvalidTensors` for a negative rank."""
    if rank < 0:
        raise InvalidTensors("a rank cannot be negative", value=rank)
    svd = _decompose(generator)
    tail, total = _energy(svd.values[rank:]), _energy(svd.values)
    return Truncation(generator=svd.rows(0, rank), error=math.sqrt(tail), lost_energy=tail / total if total > 0 else 0.0)


def compress(generator: Generator, rank: int) -> Truncation:
    """Return nearly what :func:`truncate` does, several times faster where rows are many: from rank×rank Grams, without QR.

    Grams square the condition of the factors: parts of a factor below 1e-7 of its largest direction are lost; ``error`` counts them.
    """
    xp = namespace_of(generator.p)
    (root_p, back_p, lost_p), (root_q, back_q, lost_q) = (_halve(factor) for factor in (generator.p, generator.q))
    u, values, vt = xp.linalg.svd(generator.scale * (root_p.T @ root_q), full_matrices=False)
    sizes = values[:rank, None] ** 0.5
    p, q = (sizes * (u.T[:rank] @ back_p)) @ generator.p, (sizes * (vt[:rank] @ back_q)) @ generator.q
    tail, total = _energy(values[rank:]), _energy(values)
    noise = abs(generator.scale) * (lost_p * math.sqrt(_trace(root_q)) + lost_q * math.sqrt(_trace(root_p)))
    kept = Generator(p=p, q=q)
    return Truncation(generator=kept, error=math.sqrt(tail) + noise, lost_energy=tail / total if total > 0 else 0.0)


def _halve(factor: Array) -> tuple[Array, Array, float]:
    """Return L with ``LLᵀ`` the Gram of ``factor`` but for its rounding, ``L⁻¹``, and the norm of what was left out."""
    weights, vectors = namespace_of(factor).linalg.eigh(factor @ factor.T)
    floor = float(weights[-1]) * _GRAM_FLOOR if len(weights) else 0.0
    dropped = sum(float(weight) <= floor for weight in weights)
    roots = weights[dropped:] ** 0.5
    kept = vectors[:, dropped:]
    return kept * roots, (kept / roots).T, math.sqrt(dropped * floor)


def _trace(root: Array) -> float:
    return float((root**2).sum())


def split(generator: Generator, rank: int) -> tuple[Generator, Generator]:
    """Return the best approximation at ``rank`` and the rest, whose sum is M; both balanced, their inner product zero."""
    svd = _decompose(generator)
    kept = min(max(rank, 0), len(svd.values))
    return svd.rows(0, kept), svd.rows(kept, len(svd.values))


def split_by_energy(generator: Generator, energy: float, most: int) -> tuple[Generator, Generator]:
    """Return the best approximation that keeps the share ``energy`` of ``‖M‖²`` at a rank of at most ``most``, and the rest.

    Both are balanced, their rows from large to small; what is only rounding is in neither.
    """
    svd = _decompose(generator)
    above = _rank_above_rounding(generator, svd.values)
    kept = min(most, above, rank_for_energy(svd.values, energy))
    return svd.rows(0, kept), svd.rows(kept, above)


def balance(generator: Generator) -> Generator:
    """Return M in its canonical gauge: ``PPᵀ = QQᵀ = S``, falling, each row's entry of largest magnitude in Q positive.

    Unique where the singular values differ, so that equal M from different factors give equal results up to rounding.
    The rank stays (rows of zeros stand for what is missing), unless it is over the width.
    """
    svd = _decompose(generator)
    return svd.rows(0, len(svd.values))


def rank_for_energy(values: Sequence[float] | Array, share: float) -> int:
    """Return how many of the falling singular ``values`` hold at least ``share`` of the sum of their squares; 0 where all are zero."""
    squares = [float(value) ** 2 for value in values]
    total, held = math.fsum(squares), 0.0
    if total <= 0:
        return 0
    for count, square in enumerate(squares, start=1):
        held += square
        if held >= share * total:
            return count
    return len(squares)


def prune(generator: Generator, energy: float) -> Truncation:
    """Return ``generator`` at the smallest rank that keeps the share ``energy`` of ``‖M‖²``; 1 keeps all that is above rounding."""
    if not 0 <= energy <= 1:
        raise InvalidTensors("a share of energy is between 0 and 1", value=energy)
    values = spectrum(generator)
    return truncate(generator, min(_rank_above_rounding(generator, values), rank_for_energy(values, energy)))


def principal_angles(left: Generator, right: Generator) -> Array:
    """Return the angles in radians, rising, between the row spaces of Qₗ and Qᵣ: which directions of the input both edits read.

    Factors are taken as they are: rows of zeros must be pruned first. Small angles are as exact as large ones (Björck and Golub, 1973).
    """
    xp = namespace_of(left.q)
    a, b = xp.linalg.qr(left.q.T)[0], xp.linalg.qr(right.q.T)[0]
    if a.shape[1] < b.shape[1]:
        a, b = b, a
    cosines = xp.clip(xp.linalg.svdvals(a.T @ b), 0.0, 1.0)
    sines = xp.clip(xp.flip(xp.linalg.svdvals(b - a @ (a.T @ b)), (0,)), 0.0, 1.0)
    return xp.where(cosines**2 < 0.5, xp.arccos(cosines), xp.arcsin(sines))


def _energy(values: Array) -> float:
    return math.fsum(float(value) ** 2 for value in values)


def _rank_above_rounding(generator: Generator, values: Array) -> int:
    floor = max(generator.width, generator.rank) * float(namespace_of(values).finfo(values.dtype).eps)
    return sum(float(value) > floor * float(values[0]) for value in values)
