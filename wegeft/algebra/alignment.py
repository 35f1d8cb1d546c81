"""Choosing the gauge of a generator's factors, so that factors of different origin can be compared and averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wegeft.algebra.decomposition import svd
from wegeft.algebra.generator import Array, Generator, from_rows, library_of, rescale, rescale_evenly
from wegeft.algebra.truncation import canonical
from wegeft.contracts.errors import InvalidAdapterConfig

_GAUGE_CONDITION_LIMIT = 1e6
"""A change of gauge worse conditioned than this would lose more digits than averaging could gain."""
_GRAM_CONDITION_LIMIT = 1e10
"""Grams square the condition of factors; worse ones are balanced by QR instead."""


def rotate(generator: Generator[Array], reference: Generator[Array]) -> Generator[Array]:
    """Return ``(OP, OQ)`` with the orthogonal O that brings both factors nearest to those of ``reference`` together.

    Orthogonal Procrustes: ``O = UVᵀ`` of the SVD of ``P₀Pᵀ + Q₀Qᵀ`` (Schönemann, 1966). M and the scale are unchanged.
    """
    _check_same_shape(generator, reference)
    u, _, vt = svd(reference.p @ generator.p.T + reference.q @ generator.q.T)
    turn = u @ vt
    return from_rows(p=turn @ generator.p, q=turn @ generator.q, scale=generator.scale)


def align(generator: Generator[Array], reference: Generator[Array]) -> Generator[Array]:
    """Return the same M at the scale of ``reference``, in a gauge that depends on M and ``reference`` only, near to the reference's.

    Of three gauges the nearest is taken: the one whose Q is nearest to the reference's Q among all invertible changes (least squares), the
    same for P, and the balanced one, rotated. All three are functions of M, so factors sent in a hostile gauge come out
    as honest ones would, and factors that are near the reference stay near it. A generator that is zero keeps the reference's Q.
    """
    _check_same_shape(generator, reference)
    even = _even(generator, reference)
    if not bool((even.values != 0).any()):
        return from_rows(p=even.factors.p * 0, q=reference.q, scale=reference.scale)
    cross_p = reference.p @ even.factors.p.T @ even.turn_p.T
    cross_q = reference.q @ even.factors.q.T @ even.turn_q.T
    turns = _candidates(even.values, cross_p, cross_q)
    turn_p, turn_q = min(turns, key=lambda turn: _cost(turn[0], even.values, cross_p) + _cost(turn[1], even.values, cross_q))
    p, q = (turn_p @ even.turn_p) @ even.factors.p, (turn_q @ even.turn_q) @ even.factors.q
    return from_rows(p=p, q=q, scale=reference.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Even:
    """A generator and the changes that balance it: ``(TₚP)(TₚP)ᵀ = (T_qQ)(T_qQ)ᵀ = diag(values)``."""

    factors: Generator
    turn_p: Any
    turn_q: Any
    values: Any


def _even(generator: Generator, reference: Generator) -> _Even:
    """Return ``generator`` with its balanced gauge at the scale of ``reference``; from here on the gauge it came in is forgotten.

    From rank×rank Grams where they are well conditioned, else from QR of the factors, padded with rows of zeros to the reference's rank.
    """
    level = rescale(generator, reference.scale)
    roots = [_root(factor @ factor.T) for factor in (level.p, level.q)]
    xp = library_of(level.p)
    if roots[0] is None or roots[1] is None:
        flat = rescale_evenly(canonical(generator), reference.scale)
        padded = from_rows(p=_pad(flat.p, reference.rank), q=_pad(flat.q, reference.rank), scale=reference.scale)
        one = xp.diag(xp.ones_like(padded.p[:, 0]))
        return _Even(factors=padded, turn_p=one, turn_q=one, values=(padded.q**2).sum(1))
    (root_p, inverse_p), (root_q, inverse_q) = roots[0], roots[1]
    u, values, vt = svd(root_p.T @ root_q)
    sizes = values[:, None] ** 0.5
    return _Even(factors=level, turn_p=sizes * (u.T @ inverse_p), turn_q=sizes * (vt @ inverse_q), values=values)


def _root(gram: Any) -> tuple[Any, Any] | None:
    """Return L and L⁻¹ with ``LLᵀ = gram``, or None where that is not well conditioned."""
    if not gram.shape[0]:
        return None
    weights, vectors = library_of(gram).linalg.eigh(gram)
    if not float(weights[0]) * _GRAM_CONDITION_LIMIT > float(weights[-1]):
        return None
    roots = weights**0.5
    return vectors * roots, (vectors / roots).T


def _candidates(values: Any, cross_p: Any, cross_q: Any) -> list[tuple[Any, Any]]:
    """Return changes of the balanced factors, for P and Q, that bring them near the reference; cross: ``P₀Pᵀ`` and ``Q₀Qᵀ``."""
    u, _, vt = svd(cross_p + cross_q)
    found = [(u @ vt, u @ vt)]
    if float(values[-1]) * _GAUGE_CONDITION_LIMIT > float(values[0]):
        right, left = cross_q / values, cross_p / values
        found += [(back.T, right) for back in _inverse(right)]
        found += [(left, back.T) for back in _inverse(left)]
    return found


def _cost(turn: Any, values: Any, cross: Any) -> float:
    """Return ``‖T·X − X₀‖²`` but for ``‖X₀‖²``, for balanced X."""
    return float(((turn * values) * turn).sum() - 2 * (turn * cross).sum())


def _inverse(matrix: Any) -> list[Any]:
    """Return the inverse, or nothing where the matrix is not well conditioned."""
    library = library_of(matrix)
    try:
        back = library.linalg.inv(matrix)
    except library.linalg.LinAlgError:
        return []
    return [back] if float((matrix**2).sum() * (back**2).sum()) < _GAUGE_CONDITION_LIMIT**2 else []


def _pad(factor: Any, rank: int) -> Any:
    """Return ``factor`` with rows of zeros below, up to ``rank`` rows."""
    missing = rank - factor.shape[0]
    return factor if missing <= 0 else library_of(factor).concatenate([factor, *[factor[:1] * 0] * missing])


def _check_same_shape(left: Generator, right: Generator) -> None:
    if tuple(left.p.shape) != tuple(right.p.shape):
        shapes = f"{tuple(left.p.shape)} and {tuple(right.p.shape)}"
        raise InvalidAdapterConfig("generators of different ranks or widths have no common gauge", value=shapes)
