"""What becomes of a generator by each rule: one function a rule, from the sums of a round to the next edit.

Each takes the edit and its sums, and returns the new edit with the Frobenius norms of what it missed; the server optimizer comes after, and
acts on what sites train. Sources: FedIT (Zhang et al., 2023), FFA (Sun et al., 2024), RoLoRA (Chen et al., 2025), FLoRA (Wang et al.,
2024), FedEx-LoRA (Singhal et al., 2025), FlexLoRA (Bai et al., 2024), Fed-SB (Singhal et al., 2025).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import assert_never

from orchestrator.aggregate.state import Array, Edit
from orchestrator.aggregate.sums import Sums
from wegeft.algebra import (
    Generator,
    add,
    align,
    empty,
    from_rows,
    norm,
    rescale_evenly,
    split,
    split_by_energy,
    subtract,
)
from wegeft.contracts.federation_rules import (
    Alternate,
    Core,
    FactorMean,
    FreezePhi,
    FreezePsi,
    GeneratorExact,
    GeneratorTruncate,
    Rule,
    Stack,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Combined:
    """One generator after a round."""

    edit: Edit
    residual: float = 0.0
    """Frobenius norm of what the mean of the factors misses: ``‖R‖``; 0 for rules that do not look at it."""
    cut: float = 0.0
    """Frobenius norm of what is not in the new edit, carried over or lost."""


def combine(rule: Rule, edit: Edit, sums: Sums) -> Combined:
    """Return the edit after a round under ``rule``; the old one where no member has any weight."""
    if not sums.parts and not sums.second.rank:
        return Combined(edit=edit)
    match rule:
        case GeneratorExact():
            return generator_exact(rule, edit, sums)
        case GeneratorTruncate():
            return generator_truncate(edit, sums)
        case FactorMean() | FreezePsi() | FreezePhi() | Alternate() | Core():
            return part_mean(edit, sums)
        case Stack():
            return stack(rule, edit, sums)
        case _:
            assert_never(rule)


def generator_exact(rule: GeneratorExact, edit: Edit, sums: Sums) -> Combined:
    """Keep the mean of the factors as the pair, and what it misses in the residual.

    ``R = Σaₖ·s·δPₖᵀδQₖ − s·δP̄ᵀδQ̄``, so ``pair + R`` is the exact mean. The residual grows by R and by what was carried, and is cut at the
    energy and rank that ``rule`` allows; what is cut is carried on. Where there is no mean of factors (unequal ranks, or a defence that
    looks at single entries), the pair is the best of its rank in the old gauge, and R the rest.
    """
    if sums.has_lower_ranks or not sums.parts:
        pair, missed = _best_pair(edit, sums)
    else:
        pair = _moved_pair(edit, sums.parts["phi"], sums.parts["psi"])
        missed = _covariance(edit, sums)
    limit = rule.residual_rank_factor * edit.pair.rank
    residual, tail = split_by_energy(add(edit.residual, missed, edit.carried), rule.energy, limit)
    carried = from_rows(p=tail.p[:limit], q=tail.q[:limit])
    whole = math.hypot(norm(missed), sums.cut)
    return Combined(edit=Edit(pair=pair, residual=residual, carried=carried), residual=whole, cut=math.hypot(norm(tail), sums.cut))


def generator_truncate(edit: Edit, sums: Sums) -> Combined:
    """Keep the best approximation of the exact mean at the pair's rank, in the gauge nearest to the old pair's; the rest is lost."""
    pair, missed = _best_pair(edit, sums)
    lost = math.hypot(norm(missed), sums.cut)
    return Combined(edit=replace(edit, pair=pair), residual=lost, cut=lost)


def part_mean(edit: Edit, sums: Sums) -> Combined:
    """Keep the mean of whatever part was sent: both factors (FedIT), one of them (FFA, RoLoRA), or the core (Fed-SB)."""
    if "core" in sums.parts:
        core = edit.core if edit.core is not None else 0.0
        return Combined(edit=replace(edit, core=core + sums.parts["core"]))
    return Combined(edit=replace(edit, pair=_moved_pair(edit, sums.parts.get("phi"), sums.parts.get("psi"))))


def stack(rule: Stack, edit: Edit, sums: Sums) -> Combined:
    """Put all updates side by side into the residual, exactly unless ``max_rank`` forbids, and leave the pair where training begins."""
    grown = add(edit.residual, sums.change(edit))
    residual, lost = split_by_energy(grown, 1.0, rule.max_rank if rule.max_rank is not None else grown.rank)
    return Combined(edit=replace(edit, residual=residual, carried=empty(edit.pair)), cut=math.hypot(norm(lost), sums.cut))


def _covariance(edit: Edit, sums: Sums) -> Generator:
    """Return what the mean of the factors misses: ``Σaₖ·s·δPₖᵀδQₖ − s·δP̄ᵀδQ̄``."""
    return subtract(sums.second, from_rows(p=sums.parts["phi"], q=sums.parts["psi"], scale=edit.pair.scale))


def _best_pair(edit: Edit, sums: Sums) -> tuple[Generator, Generator]:
    """Return the exact mean as a pair of the old rank in the old gauge, and the rest."""
    head, tail = split(add(edit.pair, sums.change(edit)), edit.pair.rank)
    return align(_as_pair(head, edit.pair), edit.pair), tail


def _as_pair(head: Generator, like: Generator) -> Generator:
    even = rescale_evenly(head, like.scale)
    missing = like.rank - even.rank
    if missing <= 0:
        return even
    rows = like.p[:missing] * 0.0
    return add(even, from_rows(p=rows, q=rows))


def _moved_pair(edit: Edit, moved_p: Array | None, moved_q: Array | None) -> Generator:
    p = edit.pair.p if moved_p is None else edit.pair.p + moved_p
    q = edit.pair.q if moved_q is None else edit.pair.q + moved_q
    return from_rows(p=p, q=q, scale=edit.pair.scale)
