"""A generator by its two factors, and what is linear or bilinear in it."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wegeft.contracts.errors import InvalidTensors

Array = Any
"""A numpy array or a torch tensor; all arrays of one call must be of one kind."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Generator:
    """``M = s·PᵀQ``, the edit ``W' = W(I + M)``; in the words of the paper φ = Pᵀ and ψ = Q.

    The factors are defined up to a gauge: ``(T⁻ᵀP, TQ)`` is the same M for every invertible T.
    Raises :class:`InvalidTensors` where the factors are not two matrices of one shape.
    """

    p: Array
    """rank×width."""
    q: Array
    """rank×width."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        left, right = tuple(self.p.shape), tuple(self.q.shape)
        if left != right or len(left) != 2:
            raise InvalidTensors("the factors of a generator must be two matrices of one shape", value=f"{left} and {right}")
        if not math.isfinite(self.scale):
            raise InvalidTensors("the scale of a generator must be finite", value=self.scale)

    @property
    def rank(self) -> int:
        """Rows of each factor; the rank of M is this or less."""
        return int(self.p.shape[0])

    @property
    def width(self) -> int:
        """Rows and columns of M."""
        return int(self.p.shape[1])

    @property
    def size(self) -> int:
        """Numbers in both factors."""
        return 2 * self.rank * self.width


def namespace_of(array: Array) -> Any:
    """Return the module whose functions take ``array``: numpy, or torch, which is loaded already where there is a tensor of it."""
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["torch"]


def empty(like: Generator) -> Generator:
    """Return the zero generator of rank 0, of the width, kind and dtype of ``like``."""
    return Generator(p=like.p[:0], q=like.q[:0])


def scale(generator: Generator, factor: float) -> Generator:
    """Return ``factor·M``."""
    return Generator(p=generator.p, q=generator.q, scale=generator.scale * factor)


def rescale(generator: Generator, target: float = 1.0) -> Generator:
    """Return the same M with scale ``target``, the rest folded into P."""
    if generator.scale == target:
        return generator
    if target == 0:
        raise InvalidTensors("a generator cannot be brought to scale 0", value=target)
    return Generator(p=generator.p * (generator.scale / target), q=generator.q, scale=target)


def rescale_evenly(generator: Generator, target: float = 1.0) -> Generator:
    """Return the same M with scale ``target``, the rest folded into both factors alike, so that a balanced pair stays balanced."""
    if target == 0:
        raise InvalidTensors("a generator cannot be brought to scale 0", value=target)
    ratio = generator.scale / target
    root = math.sqrt(abs(ratio))
    return Generator(p=generator.p * math.copysign(root, ratio), q=generator.q * root, scale=target)


def sum_weighted(generators: Sequence[Generator], weights: Sequence[float]) -> Generator:
    """Return ``Σ wₖMₖ`` exactly, its factors one above the other: rank Σrₖ, scale 1.

    Ranks and scales may differ; widths must not, and there must be at least one generator, else :class:`InvalidTensors`.
    """
    if not generators or len(generators) != len(weights):
        raise InvalidTensors("a sum needs one weight for each of at least one generator", value=f"{len(generators)} and {len(weights)}")
    widths = sorted({generator.width for generator in generators})
    if len(widths) > 1:
        raise InvalidTensors("generators of different widths cannot be added", value=str(widths))
    xp = namespace_of(generators[0].p)
    tops = [g.p * (weight * g.scale) for g, weight in zip(generators, weights, strict=True)]
    return Generator(p=xp.concatenate(tops), q=xp.concatenate([g.q for g in generators]))


def add(*generators: Generator) -> Generator:
    """Return ``ΣMₖ``, of rank Σrₖ."""
    return sum_weighted(generators, [1.0] * len(generators))


def subtract(left: Generator, right: Generator) -> Generator:
    """Return ``Mₗ − Mᵣ``, of rank rₗ + rᵣ."""
    return sum_weighted([left, right], [1.0, -1.0])


def difference(left: Generator, right: Generator) -> Generator:
    """Return ``Mₗ − Mᵣ`` from the differences of the factors, so that what is common does not cancel in rounding.

    ``PᵀQ − P₀ᵀQ₀ = (P − P₀)ᵀQ + P₀ᵀ(Q − Q₀)``. For two generators of different ranks or scales this is :func:`subtract`.
    """
    if left.rank != right.rank or left.scale != right.scale:
        return subtract(left, right)
    xp = namespace_of(left.p)
    p = xp.concatenate([left.p - right.p, right.p])
    return Generator(p=p, q=xp.concatenate([left.q, left.q - right.q]), scale=left.scale)


def interpolate(left: Generator, right: Generator, share: float) -> Generator:
    """Return ``(1 − share)·Mₗ + share·Mᵣ``."""
    return sum_weighted([left, right], [1.0 - share, share])


def compose(left: Generator, right: Generator) -> Generator:
    """Return M with ``I + M = (I + Mₗ)(I + Mᵣ)``, of rank rₗ + rᵣ: merging ``left`` into the weights first, then ``right``."""
    xp = namespace_of(left.p)
    crossed = left.q + right.scale * ((left.q @ right.p.T) @ right.q)
    p = xp.concatenate([left.scale * left.p, right.scale * right.p])
    return Generator(p=p, q=xp.concatenate([crossed, right.q]))


def dot(left: Generator, right: Generator) -> float:
    """Return the Frobenius inner product ``⟨Mₗ, Mᵣ⟩ = sₗsᵣ·Σ (PₗPᵣᵀ) ∘ (QₗQᵣᵀ)``, in O(width·rank²)."""
    return left.scale * right.scale * float(((left.p @ right.p.T) * (left.q @ right.q.T)).sum())


def norm(generator: Generator) -> float:
    """Return the Frobenius norm of M, from the two rank×rank Grams."""
    return math.sqrt(max(0.0, dot(generator, generator)))


def cosine(left: Generator, right: Generator) -> float:
    """Return the cosine of the angle between Mₗ and Mᵣ in [-1, 1]; 0 where either is zero."""
    lengths = norm(left) * norm(right)
    return max(-1.0, min(1.0, dot(left, right) / lengths)) if lengths > 0 else 0.0


def gram(generators: Sequence[Generator]) -> list[list[float]]:
    """Return the symmetric matrix of inner products ``⟨Mᵢ, Mⱼ⟩``."""
    rows = [[dot(left, right) for right in generators[: index + 1]] for index, left in enumerate(generators)]
    return [[rows[max(i, j)][min(i, j)] for j in range(len(rows))] for i in range(len(rows))]
