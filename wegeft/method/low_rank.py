"""Products of two thin matrices, measured without ever being formed."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Factors:
    """A change of one layer's weight, ``ΔW = up · down``, in float64."""

    up: Array
    """out×rank."""
    down: Array
    """rank×in."""

    @property
    def rank(self) -> int:
        return int(self.down.shape[0])


def balanced(factors: Factors) -> Factors:
    """Return the same product from factors of like magnitude, which stay in the range of half precision; exactly, by a power of two."""
    largest_up, largest_down = (float(np.abs(part).max(initial=0.0)) for part in (factors.up, factors.down))
    if not (0 < largest_up < np.inf and 0 < largest_down < np.inf):
        return factors
    shift = 2.0 ** round(0.5 * np.log2(largest_down / largest_up))
    return Factors(up=factors.up * shift, down=factors.down / shift)


def norm(factors: Factors) -> float:
    """Return ``‖up·down‖_F`` from two thin QRs: ``‖R₁R₂ᵀ‖_F`` with ``up = Q₁R₁`` and ``downᵀ = Q₂R₂``; O((out + in)·rank²)."""
    left, right = (np.asarray(np.linalg.qr(part, mode="r")) for part in (factors.up, factors.down.T))
    return float(np.linalg.norm(left @ right.T))


def difference(found: Factors, exact: Factors) -> Factors:
    """Return the factors of ``found − exact``, their ranks added."""
    return Factors(up=np.hstack([found.up, -exact.up]), down=np.vstack([found.down, exact.down]))


def relative_error(found: Factors, exact: Factors) -> float:
    """Return ``‖found − exact‖_F / ‖exact‖_F``: 0 where both are zero, infinite where only ``exact`` is or ``found`` is not finite.

    Not by Gram matrices, which square the condition and hide every error below 1e-8.
    """
    if not (np.isfinite(found.up).all() and np.isfinite(found.down).all()):
        return float("inf")
    return ratio(norm(difference(found, exact)), norm(exact))


def ratio(error: float, size: float) -> float:
    """Return ``error / size``, taking 0/0 for 0."""
    if size == 0:
        return 0.0 if error == 0 else float("inf")
    return error / size
