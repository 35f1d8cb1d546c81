"""Choosing the gauge of a generator's factors, so that factors of different origin can be compared and averaged."""

from __future__ import annotations

from wegeft.algebra.generator import Array, Generator, namespace_of, rescale_evenly
from wegeft.algebra.truncation import balance
from wegeft.contracts.errors import InvalidTensors

_GAUGE_CONDITION_LIMIT = 1e6
"""A change of gauge worse conditioned than this would lose more digits than averaging could gain."""


def rotate(generator: Generator, reference: Generator) -> Generator:
    """Return ``(OP, OQ)`` with the orthogonal O that brings both factors nearest to those of ``reference`` together.

    Orthogonal Procrustes: ``O = UVᵀ`` of the SVD of ``P₀Pᵀ + Q₀Qᵀ`` (Schönemann, 1966). M and the scale are unchanged.
    """
    _check_same_shape(generator, reference)
    xp = namespace_of(generator.p)
    u, _, vt = xp.linalg.svd(reference.p @ generator.p.T + reference.q @ generator.q.T)
    turn = u @ vt
    return Generator(p=turn @ generator.p, q=turn @ generator.q, scale=generator.scale)


def align(generator: Generator, reference: Generator) -> Generator:
    """Return the same M at the scale of ``reference``, in a gauge that depends on M and ``reference`` only, near to the reference's.

    Of three gauges the nearest is taken: the one whose Q is nearest to the reference's Q among all invertible changes (least squares), the
    same for P, and the balanced one, rotated. All three are functions of M, so factors sent in a hostile gauge come out
    as honest ones would, and factors that are near the reference stay near it. A generator that is zero keeps the reference's Q.
    """
    _check_same_shape(generator, reference)
    even = _balanced(generator, reference)
    if not bool((even.p != 0).any()):
        return Generator(p=even.p, q=reference.q, scale=reference.scale)
    candidates = [_by_right(even, reference), _by_left(even, reference), rotate(even, reference)]
    found = [candidate for candidate in candidates if candidate is not None]
    return min(found, key=lambda candidate: _distance(candidate, reference))


def _balanced(generator: Generator, reference: Generator) -> Generator:
    """Return the same M balanced, at the rank and scale of ``reference``: from here on the gauge it came in is forgotten."""
    even = rescale_evenly(balance(generator), reference.scale)
    return Generator(p=_pad(even.p, reference.rank), q=_pad(even.q, reference.rank), scale=reference.scale)


def _by_right(generator: Generator, reference: Generator) -> Generator | None:
    turn = _least_squares(generator.q, reference.q)
    if turn is None:
        return None
    xp = namespace_of(generator.p)
    return Generator(p=xp.linalg.solve(turn.T, generator.p), q=turn @ generator.q, scale=generator.scale)


def _by_left(generator: Generator, reference: Generator) -> Generator | None:
    swapped = _by_right(_swap(generator), _swap(reference))
    return None if swapped is None else _swap(swapped)


def _swap(generator: Generator) -> Generator:
    return Generator(p=generator.q, q=generator.p, scale=generator.scale)


def _least_squares(factor: Array, target: Array) -> Array | None:
    """Return T that minimises ``‖T·factor − target‖``, or None where T or ``factor`` is (nearly) singular."""
    xp = namespace_of(factor)
    basis, triangle = xp.linalg.qr(factor.T)
    if not _is_sound(triangle):
        return None
    turn = xp.linalg.solve(triangle, basis.T @ target.T).T
    return turn if _is_sound(turn) else None


def _is_sound(matrix: Array) -> bool:
    if matrix.shape[0] != matrix.shape[1] or not matrix.shape[0]:
        return False
    values = namespace_of(matrix).linalg.svdvals(matrix)
    return float(values[-1]) * _GAUGE_CONDITION_LIMIT > float(values[0])


def _pad(factor: Array, rank: int) -> Array:
    """Return ``factor`` with rows of zeros below, up to ``rank`` rows."""
    missing = rank - factor.shape[0]
    return factor if missing <= 0 else namespace_of(factor).concatenate([factor, *[factor[:1] * 0] * missing])


def _distance(left: Generator, right: Generator) -> float:
    return float(((left.p - right.p) ** 2).sum() + ((left.q - right.q) ** 2).sum())


def _check_same_shape(left: Generator, right: Generator) -> None:
    if tuple(left.p.shape) != tuple(right.p.shape):
        shapes = f"{tuple(left.p.shape)} and {tuple(right.p.shape)}"
        raise InvalidTensors("generators of different ranks or widths have no common gauge", value=shapes)
