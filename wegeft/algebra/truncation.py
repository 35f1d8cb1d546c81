"""The singular value decomposition of a generator, never larger than rank×rank, and what follows from it.

Thin QR of both factors, ``s·φ = A₁R₁`` and ``ψᵀ = A₂R₂``, then the SVD of ``R₁R₂ᵀ``: O(width·rank² + rank³). Cutting it after k values is
the best approximation of rank k (Eckart and Young, 1936).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Generic

import numpy as np

from wegeft.algebra.decomposition import svd
from wegeft.algebra.generator import Array, Generator, check_widths, from_rows, library_of, subtract, to_numpy
from wegeft.contracts.errors import InvalidAdapterConfig

_GRAM_FLOOR = 1e-14
"""Share of the largest eigenvalue of a Gram below which the others are rounding."""


@dataclass(frozen=True, kw_only=True)
class Truncation(Generic[Array]):
    """A generator of lower rank and how far it is from the one that it stands for, in the norm that was asked for."""

    generator: Generator[Array]
    error: float
    """``‖F (M − M') Xᵀ‖``, with the factors that were given, else ``‖M − M'‖``, Frobenius."""
    relative_error: float
    """The same over ``‖F M Xᵀ‖``; 0 if both are 0."""


def singular_values(generator: Generator[Array]) -> Array:
    """Return the rank singular values of M, largest first."""
    values: Array = _decompose(generator)[1]
    return values


def distance(first: Generator[Array], second: Generator[Array]) -> float:
    """Return ``‖M₁ − M₂‖``, Frobenius, by thin QRs: Gram matrices would hide distances below the square root of the precision."""
    return float(np.linalg.norm(to_numpy(singular_values(subtract(first, second)))))


def canonical(generator: Generator[Array]) -> Generator[Array]:
    """Return the same M in the gauge that its singular value decomposition fixes: ``φ = UΣ^½``, ``ψ = Σ^½Vᵀ``, scale 1.

    Components come largest first, each with the largest entry of its φ positive, so that equal M give equal factors as far as their
    singular values differ.
    """
    return _from_triple(*_decompose(generator))


def truncate(
    generator: Generator[Array], rank: int, *, output_factor: Array | None = None, input_factor: Array | None = None
) -> Truncation[Array]:
    """Return the best generator of at most ``rank``, by QR, QR and one rank×rank SVD.

    Plain, it minimises ``‖M − M'‖``. ``output_factor`` F (any×width) minimises ``‖F (M − M')‖``: with the shared layers' weights stacked,
    or any F with ``FᵀF = ΣWᵀW``, that is the change of what the layers write. ``input_factor`` X (tokens×width, activations, or any X with
    XᵀX their covariance) minimises ``‖(M − M') Xᵀ‖``; both together, ``‖F (M − M') Xᵀ‖``.

    Source: Eckart and Young, in the metric of F and X; optimal because the best product lies in the span of ``Fφ`` and of ``ψXᵀ``.
    Raises ``InvalidAdapterConfig`` for a rank below 1 or a factor of another width.
    """
    if rank < 1:
        raise InvalidAdapterConfig("rank must be at least 1", path="rank", value=rank)
    _check_factors(generator, output_factor, input_factor)
    library = library_of(generator.phi)
    left = generator.scale * generator.phi
    right = generator.psi.T
    left_r = library.linalg.qr(left if output_factor is None else output_factor @ left)[1]
    right_r = library.linalg.qr(right if input_factor is None else input_factor @ right)[1]
    u, values, v = svd(left_r @ right_r.T)
    kept = min(rank, generator.rank)
    root = values[:kept] ** 0.5
    cut = Generator(
        phi=left @ (library.linalg.pinv(left_r) @ (u[:, :kept] * root)),
        psi=((library.linalg.pinv(right_r) @ (v[:kept].T * root)).T) @ generator.psi,
    )
    tail, total = (float(np.linalg.norm(to_numpy(part))) for part in (values[kept:], values))
    return Truncation(generator=cut, error=tail, relative_error=tail / total if total else 0.0)


def prune(generator: Generator[Array], energy: float) -> Truncation[Array]:
    """Return the generator of least rank that keeps at least the share ``energy`` of ``‖M‖²``.

    Raises ``InvalidAdapterConfig`` unless 0 < energy ≤ 1.
    """
    if not 0 < energy <= 1:
        raise InvalidAdapterConfig("energy must be more than 0 and at most 1", path="energy", value=energy)
    squares = to_numpy(singular_values(generator)) ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    enough = tails <= (1 - energy) * squares.sum()
    return truncate(generator, int(np.argmax(enough)) + 1)


def principal_angles(first: Generator[Array], second: Generator[Array], *, of: str = "psi") -> Array:
    """Return the angles, in radians, smallest first, between what two generators read (``of='psi'``) or write (``of='phi'``).

    By sines and cosines together, so that small angles are exact (Björck and Golub). The factors must have full rank.
    """
    check_widths([first, second])
    library = library_of(first.phi)
    one, other = ((first.phi, second.phi) if of == "phi" else (first.psi.T, second.psi.T))[:: 1 if first.rank >= second.rank else -1]
    one, other = library.linalg.qr(one)[0], library.linalg.qr(other)[0]
    overlap = one.T @ other
    cosines = svd(overlap)[1]
    sines = svd(other - one @ overlap)[1]
    angles: Array = library.arctan2(library.flip(sines, (0,)), cosines)
    return angles


def split(generator: Generator[Array], rank: int) -> tuple[Generator[Array], Generator[Array]]:
    """Return the best approximation at ``rank``, 0 or more, and the rest: canonical, their sum M and their inner product zero."""
    u, values, v = _decompose(generator)
    kept = min(max(rank, 0), len(values))
    return _from_triple(u[:, :kept], values[:kept], v[:, :kept]), _from_triple(u[:, kept:], values[kept:], v[:, kept:])


def split_by_energy(generator: Generator[Array], energy: float, most: int) -> tuple[Generator[Array], Generator[Array]]:
    """Return the best approximation that keeps the share ``energy`` of ``‖M‖²`` at a rank of at most ``most``, and the rest.

    Both are canonical; what is only rounding is in neither.
    """
    u, values, v = _decompose(generator)
    above = _rank_above_rounding(generator, values)
    kept = min(most, above, _rank_for_energy(values, energy))
    return _from_triple(u[:, :kept], values[:kept], v[:, :kept]), _from_triple(u[:, kept:above], values[kept:above], v[:, kept:above])


def compress(generator: Generator[Array], rank: int) -> Truncation[Array]:
    """Return nearly what :func:`truncate` does, several times faster where rows are many: from rank×rank Grams, without QR.

    Grams square the condition of the factors: parts of a factor below 1e-7 of its largest direction are lost; ``error`` counts them.
    """
    (root_p, back_p, lost_p), (root_q, back_q, lost_q) = (_halve(factor) for factor in (generator.p, generator.q))
    u, values, vt = svd(generator.scale * (root_p.T @ root_q))
    sizes = values[:rank, None] ** 0.5
    kept = from_rows(p=(sizes * (u.T[:rank] @ back_p)) @ generator.p, q=(sizes * (vt[:rank] @ back_q)) @ generator.q)
    tail, total = (float(np.linalg.norm(to_numpy(part))) for part in (values[rank:], values))
    noise = abs(generator.scale) * (lost_p * float((root_q**2).sum()) ** 0.5 + lost_q * float((root_p**2).sum()) ** 0.5)
    return Truncation(generator=kept, error=tail + noise, relative_error=(tail + noise) / total if total else 0.0)


def _rank_for_energy(values: Any, share: float) -> int:
    """Return how many of the falling singular values hold at least ``share`` of the sum of their squares; 0 where all are zero."""
    squares = to_numpy(values) ** 2
    held, total = np.cumsum(squares), float(squares.sum())
    return min(len(squares), 1 + int(np.searchsorted(held, share * total))) if total > 0 else 0


def _halve(factor: Any) -> tuple[Any, Any, float]:
    """Return L with ``LLᵀ`` the Gram of ``factor`` but for its rounding, ``L⁻¹``, and the norm of what was left out."""
    weights, vectors = library_of(factor).linalg.eigh(factor @ factor.T)
    floor = float(weights[-1]) * _GRAM_FLOOR if len(weights) else 0.0
    dropped = sum(float(weight) <= floor for weight in weights)
    roots = weights[dropped:] ** 0.5
    kept = vectors[:, dropped:]
    return kept * roots, (kept / roots).T, math.sqrt(dropped * floor)


def _rank_above_rounding(generator: Generator[Any], values: Any) -> int:
    floor = max(generator.width, generator.rank) * float(library_of(values).finfo(values.dtype).eps)
    return sum(float(value) > floor * float(values[0]) for value in values)


def _decompose(generator: Generator[Array]) -> tuple[Any, Any, Any]:
    """Return U (width×rank), the singular values and V (width×rank) of M."""
    library = library_of(generator.phi)
    left, left_r = library.linalg.qr(generator.scale * generator.phi)
    right, right_r = library.linalg.qr(generator.psi.T)
    u, values, v = svd(left_r @ right_r.T)
    return left @ u, values, right @ v.T


def _from_triple(u: Any, values: Any, v: Any) -> Generator[Any]:
    library = library_of(u)
    largest = u[abs(u).argmax(0), list(range(u.shape[1]))]
    root = values**0.5
    signs = library.where(largest < 0, -root, root)
    return Generator(phi=u * signs, psi=(v * signs).T)


def _check_factors(generator: Generator[Any], *factors: Any) -> None:
    for factor in factors:
        if factor is not None and (factor.ndim != 2 or factor.shape[1] != generator.width):
            raise InvalidAdapterConfig(f"a factor must have {generator.width} columns, not the shape {tuple(factor.shape)}")
