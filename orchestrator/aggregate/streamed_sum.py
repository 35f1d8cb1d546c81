"""Sums of generators that come one after the other, in memory that does not grow with their number.

Few are kept side by side, exactly. Of more, the sum ``T`` is never formed: whoever has them passes over them four times, and each pass
multiplies T, or its transpose, with a basis of fixed width (block power iteration: Halko, Martinsson and Tropp, 2011). From Gaussian Ω
come ``B₁ = orth(TΩ)``, ``B₂ = orth(TᵀB₁)`` and ``B₃ = orth(TB₂)``, and the last pass gives ``T ≈ B₃(TᵀB₃)ᵀ``: all of T where its rank is no
more than the basis has columns, and else what of T lies in a space that misses little more than the best one would.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np

from orchestrator.aggregate.state import Array
from wegeft.algebra import Generator, add, empty, from_rows

ERROR_FACTOR = 2.0
"""A sum's true error is more than this many times what is told once in 200,000 sums, at the worst: 32 probes, χ² < 8."""

_PASSES = 4
_OVERSAMPLING = 16
_PROBES = 32


class GeneratorSum(Protocol):
    """A sum in the making: in each pass every generator is taken, in the same order; then the pass is ended."""

    @property
    def needs_pass(self) -> bool:
        """Whether the generators are to be gone over once more; True at the beginning."""

    def take(self, generator: Generator[Array]) -> None:
        """Add a generator."""

    def end_pass(self) -> None:
        """Say that all have been taken."""

    def result(self) -> tuple[Generator[Array], float]:
        """Return the sum, and the Frobenius norm of what it misses: 0, or an estimate without bias from probes that it has not seen."""


def begin_sum(like: Generator[Array], rows: int, kept: int | None, seed: int) -> GeneratorSum:
    """Return an empty sum of generators as wide as ``like``, that have so many ``rows`` in all, of which ``kept`` matter; None: all do.

    The same ``seed`` and the same generators in the same order give the same bits.
    """
    if kept is None:
        return StackedSum(like)
    columns = min(like.width, kept + _OVERSAMPLING)
    if rows <= min(like.width, 2 * columns):
        return StackedSum(like)
    return WholeSum(like.width) if like.width <= 2 * columns else SketchedSum(like.width, columns, seed)


class StackedSum:
    """All generators side by side: exact, in one pass."""

    def __init__(self, like: Generator[Array]) -> None:
        self._like = like
        self._terms: list[Generator[Array]] = []
        self.needs_pass = True

    def take(self, generator: Generator[Array]) -> None:
        self._terms.append(generator)

    def end_pass(self) -> None:
        self.needs_pass = False

    def result(self) -> tuple[Generator[Array], float]:
        return (add(*self._terms) if self._terms else empty(self._like)), 0.0


class WholeSum:
    """The sum itself, exact and in one pass: for generators so narrow that factors of the rank that is kept would be no smaller."""

    def __init__(self, width: int) -> None:
        self._total = np.zeros((width, width))
        self.needs_pass = True

    def take(self, generator: Generator[Array]) -> None:
        self._total += generator.scale * (generator.phi @ generator.psi)

    def end_pass(self) -> None:
        self.needs_pass = False

    def result(self) -> tuple[Generator[Array], float]:
        return Generator(phi=self._total, psi=np.eye(len(self._total))), 0.0


class SketchedSum:
    """The sum as far as a basis of fixed width shows it, in four passes."""

    def __init__(self, width: int, columns: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._probes = random.standard_normal((width, _PROBES))
        self._basis = random.standard_normal((width, columns))
        self._image = np.zeros_like(self._basis)
        self._probed = np.zeros_like(self._probes)
        self._passes = 0

    @property
    def needs_pass(self) -> bool:
        return self._passes < _PASSES

    def take(self, generator: Generator[Array]) -> None:
        left, right = generator.phi, generator.psi
        if self._passes % 2:
            left, right = right.T, left.T
        self._image += left @ (generator.scale * (right @ self._basis))
        if not self._passes:
            self._probed += left @ (generator.scale * (right @ self._probes))

    def end_pass(self) -> None:
        self._passes += 1
        if self.needs_pass:
            self._basis = np.linalg.qr(self._image)[0]
            self._image = np.zeros_like(self._basis)

    def result(self) -> tuple[Generator[Array], float]:
        missed = self._probed - self._basis @ (self._image.T @ self._probes)
        return from_rows(p=self._basis.T, q=self._image.T), float(np.linalg.norm(missed)) / math.sqrt(_PROBES)
