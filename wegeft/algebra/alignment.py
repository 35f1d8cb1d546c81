"""Choosing the gauge of a generator's factors, so that factors of different origin can be compared and averaged."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from wegeft.algebra.decomposition import svd, svd_each
from wegeft.algebra.generator import Array, Generator, from_rows, library_of, rescale, rescale_evenly
from wegeft.algebra.truncation import canonical
from wegeft.contracts.errors import InvalidAdapterConfig

_GAUGE_CONDITION_LIMIT = 1e6
"""A change of gauge worse conditioned than this would lose more digits than averaging could gain."""
_GRAM_CONDITION_LIMIT = 1e10
"""Grams square the condition of factors; worse ones are balanced by QR instead."""
_Pair = tuple[Generator, Generator]
"""A generator and its reference."""


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
    return align_each([(generator, reference)])[0]


def align_each(pairs: Sequence[tuple[Generator[Array], Generator[Array]]]) -> list[Generator[Array]]:
    """Return :func:`align` of each generator and its reference; with numpy the same bits, sooner, whatever stands beside a pair.

    Rank×rank matrices of one rank are decomposed together. Raises :class:`InvalidAdapterConfig` where a pair's shapes differ.
    """
    for generator, reference in pairs:
        _check_same_shape(generator, reference)
    found: dict[int, Generator[Array]] = {}
    for rank in sorted({reference.rank for _, reference in pairs}):
        alike = [number for number, (_, reference) in enumerate(pairs) if reference.rank == rank]
        found |= zip(alike, _align_alike([pairs[number] for number in alike]), strict=True)
    return [found[number] for number in range(len(pairs))]


def _align_alike(pairs: Sequence[_Pair]) -> list[Generator]:
    """Return the first of each pair aligned with the second; all have one rank."""
    evens = _even_each(pairs)
    moved = [number for number, even in enumerate(evens) if bool((even.values != 0).any())]
    turns = _nearest_turns([evens[number] for number in moved], [pairs[number][1] for number in moved]) if moved else []
    by_number = dict(zip(moved, turns, strict=True))
    return [_turned(even, pair[1], by_number.get(number)) for number, (even, pair) in enumerate(zip(evens, pairs, strict=True))]


def _turned(even: _Even, reference: Generator, turns: tuple[Any, Any] | None) -> Generator:
    if turns is None:
        return from_rows(p=even.factors.p * 0, q=reference.q, scale=reference.scale)
    p, q = (turns[0] @ even.turn_p) @ even.factors.p, (turns[1] @ even.turn_q) @ even.factors.q
    return from_rows(p=p, q=q, scale=reference.scale)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Even:
    """A generator and the changes that balance it: ``(TₚP)(TₚP)ᵀ = (T_qQ)(T_qQ)ᵀ = diag(values)``."""

    factors: Generator
    turn_p: Any
    turn_q: Any
    values: Any


def _even_each(pairs: Sequence[_Pair]) -> list[_Even]:
    """Return the first of each pair with its balanced gauge at the scale of the second; the gauge that it came in is forgotten then.

    From rank×rank Grams where they are well conditioned, else from QR of the factors, padded with rows of zeros to the reference's rank.
    """
    levels = [rescale(generator, reference.scale) for generator, reference in pairs]
    if not levels[0].rank:
        return [_even_by_qr(*pair) for pair in pairs]
    xp = library_of(levels[0].p)
    root_p, inverse_p, is_sound_p = _roots(xp.stack([level.p @ level.p.T for level in levels]))
    root_q, inverse_q, is_sound_q = _roots(xp.stack([level.q @ level.q.T for level in levels]))
    u, values, vt = svd_each(root_p.mT @ root_q)
    sizes = values[:, :, None] ** 0.5
    turns_p, turns_q = sizes * (u.mT @ inverse_p), sizes * (vt @ inverse_q)
    return [
        _Even(factors=levels[number], turn_p=turns_p[number], turn_q=turns_q[number], values=values[number])
        if is_sound_p[number] and is_sound_q[number]
        else _even_by_qr(*pair)
        for number, pair in enumerate(pairs)
    ]


def _even_by_qr(generator: Generator, reference: Generator) -> _Even:
    flat = rescale_evenly(canonical(generator), reference.scale)
    padded = from_rows(p=_pad(flat.p, reference.rank), q=_pad(flat.q, reference.rank), scale=reference.scale)
    xp = library_of(padded.p)
    one = xp.diag(xp.ones_like(padded.p[:, 0]))
    return _Even(factors=padded, turn_p=one, turn_q=one, values=(padded.q**2).sum(1))


def _roots(grams: Any) -> tuple[Any, Any, Any]:
    """Return L and L⁻¹ with ``LLᵀ`` each of ``grams``, and whether it is so: not where a Gram is badly conditioned."""
    xp = library_of(grams)
    weights, vectors = xp.linalg.eigh(grams)
    is_sound = weights[:, 0] * _GRAM_CONDITION_LIMIT > weights[:, -1]
    roots = xp.where(is_sound[:, None], weights, xp.ones_like(weights))[:, None, :] ** 0.5
    return vectors * roots, (vectors / roots).mT, is_sound


def _nearest_turns(evens: Sequence[_Even], references: Sequence[Generator]) -> list[tuple[Any, Any]]:
    """Return, for each balanced generator, the changes of P and Q that bring it nearest to its reference."""
    xp = library_of(evens[0].values)
    both = list(zip(evens, references, strict=True))
    values = xp.stack([even.values for even in evens])
    cross_p = xp.stack([one.p @ even.factors.p.T for even, one in both]) @ xp.stack([even.turn_p for even in evens]).mT  # P₀Pᵀ
    cross_q = xp.stack([one.q @ even.factors.q.T for even, one in both]) @ xp.stack([even.turn_q for even in evens]).mT
    u, _, vt = svd_each(cross_p + cross_q)
    turn = u @ vt
    costs = _costs(turn, values, cross_p) + _costs(turn, values, cross_q)
    found = [[(float(costs[number]), turn[number], turn[number])] for number in range(len(evens))]
    sound = [number for number, is_sound in enumerate(values[:, -1] * _GAUGE_CONDITION_LIMIT > values[:, 0]) if is_sound]
    if sound:
        for number, free in zip(sound, _free_turns(values[sound], cross_p[sound], cross_q[sound]), strict=True):
            found[number] += free
    return [min(turns, key=lambda one: one[0])[1:] for turns in found]


def _free_turns(values: Any, cross_p: Any, cross_q: Any) -> list[list[tuple[float, Any, Any]]]:
    """Return, for each generator, the changes that need not be rotations, the nearest for Q and for P, with their costs."""
    right, left = cross_q / values[:, None, :], cross_p / values[:, None, :]
    back_right, back_left = _inverses(right), _inverses(left)
    costs_right = _turned_costs(back_right, values, cross_p) + _costs(right, values, cross_q)
    costs_left = _costs(left, values, cross_p) + _turned_costs(back_left, values, cross_q)
    is_sound_right, is_sound_left = _are_sound(right, back_right), _are_sound(left, back_left)
    found: list[list[tuple[float, Any, Any]]] = [[] for _ in values]
    for number, turns in enumerate(found):
        if is_sound_right[number]:
            turns.append((float(costs_right[number]), back_right[number].T, right[number]))
        if is_sound_left[number]:
            turns.append((float(costs_left[number]), left[number], back_left[number].T))
    return found


def _costs(turns: Any, values: Any, cross: Any) -> Any:
    """Return ``‖T·X − X₀‖²`` but for ``‖X₀‖²``, for balanced X."""
    return _totals((turns * values[:, None, :]) * turns) - 2 * _totals(turns * cross)


def _turned_costs(turns: Any, values: Any, cross: Any) -> Any:
    """Return the same for ``Tᵀ``."""
    return _totals((turns * values[:, :, None]) * turns) - 2 * _totals(turns.mT * cross)


def _totals(matrices: Any) -> Any:
    return matrices.reshape(len(matrices), -1).sum(1)


def _inverses(matrices: Any) -> Any:
    """Return the inverses, which are no numbers where there are none."""
    library = library_of(matrices)
    try:
        return library.linalg.inv(matrices)
    except library.linalg.LinAlgError:
        if len(matrices) == 1:
            return matrices * math.nan
        return library.concatenate([_inverses(matrices[number : number + 1]) for number in range(len(matrices))])


def _are_sound(matrices: Any, inverses: Any) -> Any:
    """Return of which the inverse is there and well conditioned."""
    return _totals(matrices**2) * _totals(inverses**2) < _GAUGE_CONDITION_LIMIT**2


def _pad(factor: Any, rank: int) -> Any:
    """Return ``factor`` with rows of zeros below, up to ``rank`` rows."""
    missing = rank - factor.shape[0]
    return factor if missing <= 0 else library_of(factor).concatenate([factor, *[factor[:1] * 0] * missing])


def _check_same_shape(left: Generator, right: Generator) -> None:
    if tuple(left.p.shape) != tuple(right.p.shape):
        shapes = f"{tuple(left.p.shape)} and {tuple(right.p.shape)}"
        raise InvalidAdapterConfig("generators of different ranks or widths have no common gauge", value=shapes)
