"""A generator by its two factors, and everything that needs no more than sums and rank×rank products of them.

The factors of two generators must not be added or averaged: ``(φR, R⁻¹ψ)`` is the same M for every invertible R, so only what is computed
from M means anything, or from factors that :mod:`wegeft.algebra.alignment` has brought into one gauge.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol

import numpy as np
from numpy.typing import NDArray
from typing_extensions import TypeVar

from wegeft.contracts.errors import InvalidAdapterConfig


class Matrix(Protocol):
    """What numpy arrays and torch tensors have in common here."""

    @property
    def shape(self) -> Any: ...
    @property
    def ndim(self) -> int: ...
    @property
    def T(self) -> Any: ...  # noqa: N802 - as numpy and torch call it
    def __matmul__(self, other: Any, /) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __rmul__(self, other: Any, /) -> Any: ...
    def __getitem__(self, key: Any, /) -> Any: ...


Array = TypeVar("Array", bound=Matrix, default=Any)
"""numpy arrays or torch tensors; all of one call are of one kind, and the answer is of that kind."""


@dataclass(frozen=True, kw_only=True)
class Generator(Generic[Array]):
    """The edit ``I + M`` with ``M = scale·φψ``. Raises ``InvalidAdapterConfig`` if the shapes do not go together."""

    phi: Array
    """width×rank."""
    psi: Array
    """rank×width."""
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.phi.ndim != 2 or tuple(self.phi.shape) != tuple(self.psi.shape)[::-1]:
            raise InvalidAdapterConfig(f"φ must be width×rank and ψ rank×width, not {tuple(self.phi.shape)} and {tuple(self.psi.shape)}")

    @property
    def p(self) -> Array:
        """φᵀ, rank×width: P of ``M = scale·PᵀQ``, where both factors are stacks of rows."""
        rows: Array = self.phi.T
        return rows

    @property
    def q(self) -> Array:
        """ψ, rank×width."""
        return self.psi

    @property
    def width(self) -> int:
        return int(self.phi.shape[0])

    @property
    def rank(self) -> int:
        return int(self.phi.shape[1])


def inner(first: Generator[Array], second: Generator[Array]) -> float:
    """Return the Frobenius inner product ``⟨M₁, M₂⟩ = s₁s₂ Σ (φ₁ᵀφ₂) ∘ (ψ₁ψ₂ᵀ)``, from two rank×rank Gram matrices."""
    check_widths([first, second])
    grams = (first.phi.T @ second.phi) * (first.psi @ second.psi.T)
    return first.scale * second.scale * float(grams.sum())


def norm(generator: Generator[Array]) -> float:
    """Return ``‖M‖``, Frobenius, from rank×rank Gram matrices."""
    return math.sqrt(max(0.0, inner(generator, generator)))


def cosine(first: Generator[Array], second: Generator[Array]) -> float:
    """Return ``⟨M₁, M₂⟩ / (‖M₁‖ ‖M₂‖)``; 0 if either is zero."""
    return _cosine(inner(first, second), norm(first), norm(second))


def adapter_cosine(first: Mapping[str, Generator[Array]], second: Mapping[str, Generator[Array]]) -> float:
    """Return the cosine of two adapters, each the direct sum of its generators by group; a group that one lacks is zero there."""
    shared = sum(inner(first[key], second[key]) for key in first.keys() & second.keys())
    return _cosine(shared, *(math.hypot(*(norm(generator) for generator in adapter.values())) for adapter in (first, second)))


def weighted_sum(generators: Sequence[Generator[Array]], weights: Sequence[float]) -> Generator[Array]:
    """Return ``Σ wᵢ Mᵢ`` exactly, its factors side by side; rank Σrᵢ.

    Raises ``InvalidAdapterConfig`` for no generators, unequal widths or a weight too few.
    """
    if not generators or len(generators) != len(weights):
        raise InvalidAdapterConfig(f"{len(generators)} generators need as many weights, not {len(weights)}")
    check_widths(generators)
    library = library_of(generators[0].phi)
    return Generator(
        phi=library.concatenate([w * g.scale * g.phi for g, w in zip(generators, weights, strict=True)], axis=1),
        psi=library.concatenate([g.psi for g in generators], axis=0),
    )


def weighted_mean(generators: Sequence[Generator[Array]], weights: Sequence[float]) -> Generator[Array]:
    """Return ``Σ wᵢ Mᵢ / Σ wᵢ`` exactly. Raises ``InvalidAdapterConfig`` unless the weights are not negative and their sum is positive."""
    total = math.fsum(weights)
    if not (0 < total < math.inf) or any(weight < 0 for weight in weights):
        raise InvalidAdapterConfig("weights must not be negative, and their sum must be positive and finite", value=list(weights))
    return weighted_sum(generators, [weight / total for weight in weights])


def subtract(first: Generator[Array], second: Generator[Array]) -> Generator[Array]:
    """Return ``M₁ − M₂`` exactly; rank r₁ + r₂."""
    return weighted_sum([first, second], [1.0, -1.0])


def interpolate(first: Generator[Array], second: Generator[Array], share: float) -> Generator[Array]:
    """Return ``(1 − share)·M₁ + share·M₂`` exactly; a share outside 0 to 1 extrapolates."""
    return weighted_sum([first, second], [1.0 - share, share])


def compose(first: Generator[Array], second: Generator[Array]) -> Generator[Array]:
    """Return M with ``I + M = (I + M₁)(I + M₂)``, what merging the first and then the second into W does; rank r₁ + r₂."""
    check_widths([first, second])
    library = library_of(first.phi)
    through = first.psi + second.scale * (first.psi @ second.phi) @ second.psi
    return Generator(
        phi=library.concatenate([first.scale * first.phi, second.scale * second.phi], axis=1),
        psi=library.concatenate([through, second.psi], axis=0),
    )


def inverse(generator: Generator[Array]) -> Generator[Array]:
    """Return M' with ``(I + M)(I + M') = I``, by Woodbury: ``M' = −s·φ (I + s·ψφ)⁻¹ ψ``; same rank.

    Raises ``InvalidAdapterConfig`` if ``I + M`` is singular to working precision.
    """
    library = library_of(generator.phi)
    core = _identity(generator.psi, generator.rank) + generator.scale * (generator.psi @ generator.phi)
    if not float(library.linalg.cond(core)) < 1 / float(library.finfo(core.dtype).eps):
        raise InvalidAdapterConfig("the edit I + M has no inverse: it erases a direction")
    return Generator(phi=-generator.scale * generator.phi, psi=library.linalg.solve(core, generator.psi))


def from_rows(*, p: Array, q: Array, scale: float = 1.0) -> Generator[Array]:
    """Return the generator ``M = scale·PᵀQ``; P and Q are rank×width."""
    return Generator(phi=p.T, psi=q, scale=scale)


def empty(like: Generator[Array]) -> Generator[Array]:
    """Return the zero generator of rank 0, of the width, kind and dtype of ``like``."""
    return from_rows(p=like.p[:0], q=like.q[:0])


def rescale(generator: Generator[Array], target: float = 1.0) -> Generator[Array]:
    """Return the same M with scale ``target``, the rest folded into φ."""
    if generator.scale == target:
        return generator
    _check_scale(target)
    return Generator(phi=generator.phi * (generator.scale / target), psi=generator.psi, scale=target)


def rescale_evenly(generator: Generator[Array], target: float = 1.0) -> Generator[Array]:
    """Return the same M with scale ``target``, the rest folded into both factors alike, so that a balanced pair stays balanced."""
    _check_scale(target)
    ratio = generator.scale / target
    root = math.sqrt(abs(ratio))
    return Generator(phi=generator.phi * math.copysign(root, ratio), psi=generator.psi * root, scale=target)


def _check_scale(target: float) -> None:
    if target == 0 or not math.isfinite(target):
        raise InvalidAdapterConfig("a generator cannot be brought to this scale", path="scale", value=target)


def add(*generators: Generator[Array]) -> Generator[Array]:
    """Return ``ΣMᵢ`` exactly; rank Σrᵢ."""
    return weighted_sum(generators, [1.0] * len(generators))


def difference(first: Generator[Array], second: Generator[Array]) -> Generator[Array]:
    """Return ``M₁ − M₂`` from the differences of the factors, so that what is common does not cancel in rounding.

    ``P₁ᵀQ₁ − P₂ᵀQ₂ = (P₁ − P₂)ᵀQ₁ + P₂ᵀ(Q₁ − Q₂)``. For generators of different ranks or scales this is :func:`subtract`.
    """
    if first.rank != second.rank or first.scale != second.scale:
        return subtract(first, second)
    check_widths([first, second])
    library = library_of(first.phi)
    p = library.concatenate([first.p - second.p, second.p])
    return from_rows(p=p, q=library.concatenate([first.q, first.q - second.q]), scale=first.scale)


def check_widths(generators: Sequence[Generator[Any]]) -> None:
    """Raise ``InvalidAdapterConfig`` unless all generators have one width."""
    widths = sorted({generator.width for generator in generators})
    if len(widths) > 1:
        raise InvalidAdapterConfig(f"generators of different widths cannot be combined: {widths}")


def _cosine(product: float, first: float, second: float) -> float:
    size = first * second
    return min(1.0, max(-1.0, product / size)) if size else 0.0


def _identity(like: Any, size: int) -> Any:
    library = library_of(like)
    options = {} if library is np else {"device": like.device}
    return library.eye(size, dtype=like.dtype, **options)


def library_of(array: object) -> Any:
    """Return the module, torch or numpy, whose ``linalg``, ``concatenate``, ``where`` and so on apply; they are spelt alike.

    Torch is not imported for it: where there is a tensor of it, it is loaded.
    """
    return np if isinstance(array, np.ndarray | np.generic) else sys.modules["torch"]


def to_numpy(array: Any) -> NDArray[Any]:
    """Return an array, wherever it is, as one of numpy."""
    return np.asarray(array) if isinstance(array, np.ndarray | np.generic) else np.asarray(array.detach().cpu())
