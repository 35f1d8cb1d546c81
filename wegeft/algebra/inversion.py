"""Undoing an edit: the inverse of ``I + M``, by a rank×rank system."""

from __future__ import annotations

from wegeft.algebra.generator import Array, Generator, namespace_of
from wegeft.contracts.errors import InvalidTensors

CONDITION_LIMIT = 1e4
"""Largest :func:`condition` for which an edit is undone by solving; beyond it rounding would show."""


def invert(generator: Generator) -> Generator:
    """Return N with ``(I + M)(I + N) = I``: ``N = −s·Pᵀ(I + s·QPᵀ)⁻¹Q`` (Woodbury), of the same rank.

    Raises :class:`InvalidTensors` if ``I + s·QPᵀ`` is singular or worse conditioned than :data:`CONDITION_LIMIT`.
    """
    reached = condition(generator)
    if not reached <= CONDITION_LIMIT:
        raise InvalidTensors("the edit cannot be undone: it (nearly) erases a direction", value=f"condition number {reached:.3g}")
    q = namespace_of(generator.p).linalg.solve(_inner(generator), generator.q)
    return Generator(p=generator.p, q=q, scale=-generator.scale)


def condition(generator: Generator) -> float:
    """Return how much ``I + s·QPᵀ`` stretches at most, 1 or more, over how much at least; infinite where it is singular.

    The 1 stands for the directions that the edit leaves alone, so that an edit of rank 1 that nearly erases its direction shows.
    """
    if not generator.rank:
        return 1.0
    values = namespace_of(generator.p).linalg.svdvals(_inner(generator))
    smallest = float(values[-1])
    return max(1.0, float(values[0])) / smallest if smallest > 0 else float("inf")


def _inner(generator: Generator) -> Array:
    product = generator.scale * (generator.q @ generator.p.T)
    xp = namespace_of(product)
    return product + xp.diag(xp.ones_like(product.sum(0)))
