"""The algebra of generators: products ``M = s·φψ`` compared, added, cut and inverted without ever forming width×width.

Every function takes numpy arrays or torch tensors and answers in kind. The factors of two generators must not be added or averaged:
``(φR, R⁻¹ψ)`` is the same M for every invertible R, so only what is computed from M means anything.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wegeft.contracts.errors import InvalidAdapterConfig

Array = TypeVar("Array", NDArray[Any], Tensor)


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
    def width(self) -> int:
        return int(self.phi.shape[0])

    @property
    def rank(self) -> int:
        return int(self.phi.shape[1])


@dataclass(frozen=True, kw_only=True)
class Truncation(Generic[Array]):
    """A generator of lower rank and how far it is from the one that it stands for, in the norm that was asked for."""

    generator: Generator[Array]
    error: float
    """``‖F (M − M') Xᵀ‖``, with the factors that were given, else ``‖M − M'‖``, Frobenius."""
    relative_error: float
    """The same over ``‖F M Xᵀ‖``; 0 if both are 0."""


def inner(first: Generator[Array], second: Generator[Array]) -> float:
    """Return the Frobenius inner product ``⟨M₁, M₂⟩ = s₁s₂ Σ (φ₁ᵀφ₂) ∘ (ψ₁ψ₂ᵀ)``, from two rank×rank Gram matrices."""
    _check_widths([first, second])
    grams = (first.phi.T @ second.phi) * (first.psi @ second.psi.T)
    return first.scale * second.scale * float(grams.sum())


def norm(generator: Generator[Array]) -> float:
    """Return ``‖M‖``, Frobenius, from rank×rank Gram matrices."""
    return math.sqrt(max(0.0, inner(generator, generator)))


def distance(first: Generator[Array], second: Generator[Array]) -> float:
    """Return ``‖M₁ − M₂‖``, Frobenius, by thin QRs: Gram matrices would hide distances below the square root of the precision."""
    return float(np.linalg.norm(_numpy(singular_values(subtract(first, second)))))


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
    _check_widths(generators)
    library = _library(generators[0].phi)
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
    _check_widths([first, second])
    library = _library(first.phi)
    through = first.psi + second.scale * (first.psi @ second.phi) @ second.psi
    return Generator(
        phi=library.concatenate([first.scale * first.phi, second.scale * second.phi], axis=1),
        psi=library.concatenate([through, second.psi], axis=0),
    )


def inverse(generator: Generator[Array]) -> Generator[Array]:
    """Return M' with ``(I + M)(I + M') = I``, by Woodbury: ``M' = −s·φ (I + s·ψφ)⁻¹ ψ``; same rank.

    Raises ``InvalidAdapterConfig`` if ``I + M`` is singular to working precision.
    """
    library = _library(generator.phi)
    core = _identity(generator.psi, generator.rank) + generator.scale * (generator.psi @ generator.phi)
    if not float(library.linalg.cond(core)) < 1 / float(library.finfo(core.dtype).eps):
        raise InvalidAdapterConfig("the edit I + M has no inverse: it erases a direction")
    return Generator(phi=-generator.scale * generator.phi, psi=library.linalg.solve(core, generator.psi))


def singular_values(generator: Generator[Array]) -> Array:
    """Return the rank singular values of M, largest first."""
    values: Array = _decompose(generator)[1]
    return values


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
    library = _library(generator.phi)
    left = generator.scale * generator.phi
    right = generator.psi.T
    left_r = library.linalg.qr(left if output_factor is None else output_factor @ left)[1]
    right_r = library.linalg.qr(right if input_factor is None else input_factor @ right)[1]
    u, values, v = library.linalg.svd(left_r @ right_r.T, full_matrices=False)
    kept = min(rank, generator.rank)
    root = values[:kept] ** 0.5
    cut = Generator(
        phi=left @ (library.linalg.pinv(left_r) @ (u[:, :kept] * root)),
        psi=((library.linalg.pinv(right_r) @ (v[:kept].T * root)).T) @ generator.psi,
    )
    tail, total = (float(np.linalg.norm(_numpy(part))) for part in (values[kept:], values))
    return Truncation(generator=cut, error=tail, relative_error=tail / total if total else 0.0)


def prune(generator: Generator[Array], energy: float) -> Truncation[Array]:
    """Return the generator of least rank that keeps at least the share ``energy`` of ``‖M‖²``.

    Raises ``InvalidAdapterConfig`` unless 0 < energy ≤ 1.
    """
    if not 0 < energy <= 1:
        raise InvalidAdapterConfig("energy must be more than 0 and at most 1", path="energy", value=energy)
    squares = _numpy(singular_values(generator)) ** 2
    tails = np.append(np.cumsum(squares[::-1])[::-1][1:], 0.0)
    enough = tails <= (1 - energy) * squares.sum()
    return truncate(generator, int(np.argmax(enough)) + 1)


def principal_angles(first: Generator[Array], second: Generator[Array], *, of: str = "psi") -> Array:
    """Return the angles, in radians, smallest first, between what two generators read (``of='psi'``) or write (``of='phi'``).

    By sines and cosines together, so that small angles are exact (Björck and Golub). The factors must have full rank.
    """
    _check_widths([first, second])
    library = _library(first.phi)
    one, other = ((first.phi, second.phi) if of == "phi" else (first.psi.T, second.psi.T))[:: 1 if first.rank >= second.rank else -1]
    one, other = library.linalg.qr(one)[0], library.linalg.qr(other)[0]
    overlap = one.T @ other
    cosines = library.linalg.svd(overlap, full_matrices=False)[1]
    sines = library.linalg.svd(other - one @ overlap, full_matrices=False)[1]
    angles: Array = library.arctan2(library.flip(sines, (0,)), cosines)
    return angles


def _decompose(generator: Generator[Array]) -> tuple[Any, Any, Any]:
    """Return U (width×rank), the singular values and V (width×rank) of M."""
    library = _library(generator.phi)
    left, left_r = library.linalg.qr(generator.scale * generator.phi)
    right, right_r = library.linalg.qr(generator.psi.T)
    u, values, v = library.linalg.svd(left_r @ right_r.T, full_matrices=False)
    return left @ u, values, right @ v.T


def _from_triple(u: Any, values: Any, v: Any) -> Generator[Any]:
    library = _library(u)
    largest = u[abs(u).argmax(0), list(range(u.shape[1]))]
    root = values**0.5
    signs = library.where(largest < 0, -root, root)
    return Generator(phi=u * signs, psi=(v * signs).T)


def _check_widths(generators: Sequence[Generator[Any]]) -> None:
    widths = sorted({generator.width for generator in generators})
    if len(widths) > 1:
        raise InvalidAdapterConfig(f"generators of different widths cannot be combined: {widths}")


def _check_factors(generator: Generator[Any], *factors: Any) -> None:
    for factor in factors:
        if factor is not None and (factor.ndim != 2 or factor.shape[1] != generator.width):
            raise InvalidAdapterConfig(f"a factor must have {generator.width} columns, not the shape {tuple(factor.shape)}")


def _cosine(product: float, first: float, second: float) -> float:
    size = first * second
    return min(1.0, max(-1.0, product / size)) if size else 0.0


def _identity(like: Any, size: int) -> Any:
    if isinstance(like, Tensor):
        return torch.eye(size, dtype=like.dtype, device=like.device)
    return np.eye(size, dtype=like.dtype)


def _library(array: object) -> Any:
    """Return the module, torch or numpy, whose ``linalg``, ``concatenate``, ``where`` and so on apply; they are spelt alike."""
    return torch if isinstance(array, Tensor) else np


def _numpy(array: Any) -> NDArray[Any]:
    return array.detach().cpu().numpy() if isinstance(array, Tensor) else np.asarray(array)
