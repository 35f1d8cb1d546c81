"""Robust weights of updates from their Gram alone, so that no change of gauge can fool them.

Each function takes the Gram of updates, members in the order of their pseudonyms, and gives each member's factor in the aggregate.
Preconditions are checked before (``least_sites``), and where they fail there is no aggregate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from orchestrator.aggregate.state import Array
from wegeft.contracts.federation_rules import (
    Bulyan,
    CoordinateMedian,
    Defence,
    FLTrust,
    GeometricMedian,
    Krum,
    MultiKrum,
    NoDefence,
    NormClip,
    TrimmedMean,
    least_sites,
)

_WEISZFELD_TOLERANCE = 1e-10
_IDLE_SHARE = 0.01
"""Of the median norm, below which an update is nobody's work: sent back as it came, or next to it."""


def shares(examples: Sequence[int]) -> Array:
    """Return each member's share of all examples; the sum is 1 up to rounding."""
    total = math.fsum(examples)
    return np.array([count / total for count in examples])


def needs_gram(defence: Defence) -> bool:
    """Return whether the weights under ``defence`` follow from inner products of updates."""
    return not isinstance(defence, NoDefence | CoordinateMedian | TrimmedMean)


def check_preconditions(defence: Defence, sites: Sequence[str]) -> str | None:
    """Return why ``defence`` cannot keep its promise for these members, or None."""
    needed = least_sites(defence)
    if len(sites) < needed:
        return f"{defence.name} needs {needed} updates, and there are {len(sites)}"
    if isinstance(defence, FLTrust) and defence.root not in sites:
        return f"fltrust needs the update of {defence.root}"
    if isinstance(defence, MultiKrum) and defence.keep is not None and defence.keep > len(sites) - defence.malicious - 2:
        return f"multi_krum can keep {len(sites) - defence.malicious - 2} of {len(sites)} updates at most"
    return None


def weigh(defence: Defence, gram: Array, sites: Sequence[str], weights: Array) -> Array:
    """Return the factors of all members; ``weights`` are their shares of the examples.

    Defences that look at single entries weigh nothing, and those that choose give what they choose equal weights, whatever number of
    examples a site claims. Krum, Multi-Krum and the geometric median leave idle updates out first: of sites that differ, an update of
    nothing is nearest to all others, and would be chosen before any. An idle site may be honest, so Krum expects as many malicious ones
    among the others as before; where these are too few for that, none is left out.
    """
    if not isinstance(defence, Krum | MultiKrum | GeometricMedian):
        return _weigh(defence, gram, sites, weights)
    busy = busy_members(gram, weights if isinstance(defence, GeometricMedian) else np.ones(len(sites)))
    if len(busy) < least_sites(defence):
        return _weigh(defence, gram, sites, weights)
    factors = np.zeros(len(sites))
    factors[busy] = _weigh(defence, gram[np.ix_(busy, busy)], [sites[index] for index in busy], weights[busy])
    return factors


def busy_members(gram: Array, weights: Array) -> list[int]:
    """Return the members whose update is not idle; they have at least half of the weight, as each is held against the lower median."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    order = np.argsort(norms, kind="stable")
    reached = np.cumsum(weights[order])
    median = norms[order][int(np.searchsorted(reached, reached[-1] / 2))]
    return [index for index, length in enumerate(norms) if length >= _IDLE_SHARE * median]


def _weigh(defence: Defence, gram: Array, sites: Sequence[str], weights: Array) -> Array:
    match defence:
        case NoDefence() | CoordinateMedian() | TrimmedMean() | Bulyan():
            return weights
        case NormClip():
            return clip_norms(gram, weights, defence.max_norm)
        case Krum():
            return choose(rank_by_krum(gram, defence.malicious)[:1], len(sites))
        case MultiKrum():
            keep = defence.keep if defence.keep is not None else len(sites) - defence.malicious - 2
            return choose(rank_by_krum(gram, defence.malicious)[:keep], len(sites))
        case GeometricMedian():
            return find_geometric_median(gram, weights, defence.steps, defence.smoothing)
        case FLTrust():
            return trust_root(gram, sites.index(defence.root))
        case _:
            assert_never(defence)


def squared_distances(gram: Array) -> Array:
    """Return ``‖uᵢ − uⱼ‖²`` of all pairs."""
    squares = np.diag(gram)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)


def choose(indices: Sequence[int], count: int) -> Array:
    """Return equal weights for ``indices`` and 0 for the others."""
    weights = np.zeros(count)
    weights[list(indices)] = 1 / len(indices)
    return weights


def rank_by_krum(gram: Array, malicious: int) -> list[int]:
    """Return the members by Krum's score, best first: the sum of squared distances to the ``n − f − 2`` nearest others.

    Ties go to the member that sorts first. Needs ``n ≥ 2f + 3`` (Blanchard et al., 2017).
    """
    distances = squared_distances(gram)
    near = len(gram) - malicious - 2
    scores = [math.fsum(np.sort(np.delete(row, index))[:near]) for index, row in enumerate(distances)]
    return sorted(range(len(gram)), key=lambda index: (scores[index], index))


def clip_norms(gram: Array, weights: Array, max_norm: float | None) -> Array:
    """Return ``weights`` times ``min(1, bound / norm)``; the bound is the median of the norms where none is given."""
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    bound = float(np.median(norms)) if max_norm is None else max_norm
    return np.asarray(weights * np.minimum(1.0, bound / np.maximum(norms, np.finfo(float).tiny)))


def find_geometric_median(gram: Array, weights: Array, steps: int, smoothing: float) -> Array:
    """Return β with ``Σβₖuₖ`` nearest to all updates in the weighted sum of distances: smoothed Weiszfeld steps on the Gram.

    ``distₖ² = Kₖₖ − 2Kₖβ + βᵀKβ``; distances below ``smoothing`` times the largest norm count as this much (Pillutla et al., 2022).
    """
    floor = smoothing * math.sqrt(max(float(np.diag(gram).max()), np.finfo(float).tiny))
    current = weights / weights.sum()
    for _ in range(steps):
        products = gram @ current
        squares = np.diag(gram) - 2 * products + current @ products
        inverse = weights / np.maximum(np.sqrt(np.maximum(squares, 0.0)), floor)
        found = inverse / inverse.sum()
        moved, current = float(np.abs(found - current).max()), found
        if moved < _WEISZFELD_TOLERANCE:
            break
    return np.asarray(current)


def trust_root(gram: Array, root: int) -> Array:
    """Return each member's trust, the positive part of its cosine to the root's update, as a factor that brings it to the root's norm.

    The root itself counts with trust 1, so that the aggregate exists when nobody else is trusted; in Cao et al. (2021) the server's
    own update is compared with and not counted.
    """
    norms = np.sqrt(np.maximum(np.diag(gram), 0.0))
    safe = np.maximum(norms, np.finfo(float).tiny)
    trust = np.maximum(gram[root] / (safe * safe[root]), 0.0)
    trust[root] = 1.0
    return np.asarray(trust / trust.sum() * norms[root] / safe)
