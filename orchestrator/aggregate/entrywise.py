"""Medians and trimmed means of the entries of updates, by blocks of rows, so that no width×width matrix is ever held.

Every entry of ``Uₖ = Mₖ − M₀ₖ`` is looked at once for a sketch of the result's range, and once more to project on it (Halko, Martinsson
and Tropp, 2011): O(members·width²·rank) arithmetic, O(members·block·width) memory. The entries of M do not depend on the gauge.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from orchestrator.aggregate.defences import choose, rank_by_krum
from orchestrator.aggregate.state import Array
from wegeft.algebra import Generator, from_rows, svd
from wegeft.contracts.federation_rules import Bulyan, CoordinateMedian, TrimmedMean

_BLOCK_NUMBERS = 4_000_000
"""Numbers of all members' rows in one block: 32 MB."""
_OVERSAMPLING = 8

Middle = Callable[[Array], Array]
"""Takes members × rows × width, and gives rows × width."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Approximation:
    """A dense result as a generator."""

    generator: Generator
    error: float
    """Frobenius norm of what its rank cost."""


def middle_of(defence: CoordinateMedian | TrimmedMean | Bulyan, count: int) -> Middle:
    """Return the function that takes ``count`` values of each entry to one."""
    match defence:
        case CoordinateMedian():
            return lambda values: np.asarray(np.median(values, axis=0))
        case TrimmedMean():
            cut = int(defence.beta * count)
            return lambda values: np.asarray(np.sort(values, axis=0)[cut : count - cut].mean(axis=0))
        case Bulyan():
            return lambda values: mean_around_median(values, count - 2 * defence.malicious)


def mean_around_median(values: Array, keep: int) -> Array:
    """Return the mean of the ``keep`` values of each entry that are nearest to its median (El Mhamdi et al., 2018)."""
    gaps = np.abs(values - np.median(values, axis=0))
    nearest = np.argsort(gaps, axis=0, kind="stable")[:keep]
    return np.asarray(np.take_along_axis(values, nearest, axis=0).mean(axis=0))


def select_for_bulyan(gram: Array, malicious: int) -> list[int]:
    """Return the ``n − 2f`` members that Krum chooses one after the other, each time among those left; needs ``n ≥ 4f + 3``.

    Near the end fewer than ``2f + 3`` are left, and the score is then over all the others but ``f`` + 1, one at least.
    """
    left = list(range(len(gram)))
    chosen: list[int] = []
    while len(chosen) < len(gram) - 2 * malicious:
        best = left[_best_by_krum(gram[np.ix_(left, left)], malicious)]
        chosen.append(best)
        left.remove(best)
    return sorted(chosen)


def _best_by_krum(gram: Array, malicious: int) -> int:
    return rank_by_krum(gram, min(malicious, max(0, len(gram) - 3)))[0]


def combine_entries(updates: Sequence[Generator], middle: Middle, rank: int, seed: int) -> Approximation:
    """Return ``middle`` of the updates' entries, as a generator of at most ``rank`` rows at scale 1; the same for the same ``seed``."""
    width = updates[0].width
    sketch = min(width, rank + _OVERSAMPLING)
    probe = np.random.default_rng(seed).standard_normal((width, sketch))
    image, energy = np.zeros((width, sketch)), 0.0
    for rows, block in _blocks(updates, middle):
        image[rows] = block @ probe
        energy += float((block**2).sum())
    basis = np.linalg.qr(image)[0]
    projected = np.zeros((basis.shape[1], width))
    for rows, block in _blocks(updates, middle):
        projected += basis[rows].T @ block
    u, values, vt = svd(projected)
    roots = np.sqrt(values[:rank])
    generator = from_rows(p=(basis @ u[:, :rank] * roots).T, q=roots[:, None] * vt[:rank])
    return Approximation(generator=generator, error=math.sqrt(max(0.0, energy - float((values[:rank] ** 2).sum()))))


def _blocks(updates: Sequence[Generator], middle: Middle) -> Iterator[tuple[slice, Array]]:
    width = updates[0].width
    height = max(1, _BLOCK_NUMBERS // (len(updates) * width))
    for start in range(0, width, height):
        rows = slice(start, min(start + height, width))
        yield rows, middle(np.stack([update.scale * (update.p[:, rows].T @ update.q) for update in updates]))


def equal_weights(indices: Sequence[int], sites: Sequence[str]) -> dict[str, float]:
    """Return the weights that a record shows for members whose entries were looked at: equal ones, 0 for those left out before."""
    return dict(zip(sites, (float(weight) for weight in choose(indices, len(sites))), strict=True))
