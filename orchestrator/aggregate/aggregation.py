"""A round put together: defence, sums, rule, server optimizer, checks and measures, in this order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from orchestrator.aggregate.defences import check_preconditions, needs_gram, shares, weigh
from orchestrator.aggregate.entrywise import Middle, combine_entries, equal_weights, middle_of, select_for_bulyan
from orchestrator.aggregate.gramian import gram_of_updates, read_once, score_members, update_of
from orchestrator.aggregate.optimisers import take_step
from orchestrator.aggregate.rules import Combined, combine
from orchestrator.aggregate.side_by_side import in_order
from orchestrator.aggregate.state import Array, Contribution, Edit, FederationState, Outcome, Plan, Refused, change_of
from orchestrator.aggregate.streamed_sum import ERROR_FACTOR
from orchestrator.aggregate.sums import Reading, Sums, sum_updates
from wegeft.algebra import from_rows, norm
from wegeft.contracts.errors import Problem
from wegeft.contracts.federation import FailureCode
from wegeft.contracts.federation_rules import (
    PRODUCT_RULES,
    Bulyan,
    CoordinateMedian,
    FactorMean,
    FedAvg,
    GeneratorExact,
    Rule,
    Stack,
    TrimmedMean,
    sent_parts,
)

_NOT_FINITE = Refused(code=FailureCode.NOT_FINITE, problems=(Problem(message="the aggregate holds a number that is not finite"),))
_LEAST_KEPT_FACTOR = 6
"""Rank, in multiples of the pair's, at which the second-order term of many members is kept before the rule cuts it, at least."""
_ENTRYWISE_RANK_FACTOR = 8
"""Rank, in multiples of the pair's, to which a dense result is cut before the rule cuts it again."""


def aggregate(plan: Plan, state: FederationState, contributions: Sequence[Contribution]) -> Outcome | Refused:
    """Return the federation's next state, or why there is none; the same bits for the same members in any order.

    ``contributions`` are one a site, checked by the gate. Memory grows with their number only under a defence that looks at single
    entries, and under ``stack`` without ``max_rank``. Bits are the same on the same machine; elsewhere LAPACK may round otherwise.
    """
    members = sorted(contributions, key=lambda member: member.site)
    sites = [member.site for member in members]
    why_not = check_preconditions(plan.defence, sites) if members else "there are no updates"
    if why_not is not None:
        return Refused(code=FailureCode.PRECONDITION, problems=(Problem(path="defence", message=why_not),))
    try:
        with np.errstate(all="ignore"):
            return _put_together(plan, state, members)
    except np.linalg.LinAlgError:  # no singular values: an overflow on the way
        return _NOT_FINITE


def _put_together(plan: Plan, state: FederationState, members: Sequence[Contribution]) -> Outcome | Refused:
    sites, members = [member.site for member in members], read_once(members)
    gram = gram_of_updates(state, members, plan.threads) if needs_gram(plan.defence) or len(members) <= plan.scored_sites else None
    sums, weights, cut = _sum_up(plan, state, members, gram)
    error_bound = math.hypot(cut, ERROR_FACTOR * math.hypot(*(one.cut for one in sums.values())))
    results = in_order(lambda group: combine(plan.rule, state.edits[group], sums.pop(group)), state.edits, plan.threads)
    combined = dict(zip(state.edits, results, strict=True))
    new = _advance(plan, state, combined)
    if not _is_finite(new):
        return _NOT_FINITE
    scores = score_members(gram, sites, weights) if gram is not None and len(members) <= plan.scored_sites else {}
    measures = _measure(state, new, combined, cut) | {"sum_error_bound": error_bound}
    return Outcome(state=new, weights=weights, scores=scores, measures=measures)


def _sum_up(
    plan: Plan, state: FederationState, members: Sequence[Contribution], gram: Array | None
) -> tuple[dict[str, Sums], dict[str, float], float]:
    sites, given = [member.site for member in members], _given_weights(members)
    if isinstance(plan.defence, CoordinateMedian | TrimmedMean | Bulyan):
        indices = list(range(len(sites)))
        if isinstance(plan.defence, Bulyan) and gram is not None:
            indices = [index for index in indices if given[sites[index]]] if given else select_for_bulyan(gram, plan.defence.malicious)
        middle = middle_of(plan.defence, len(indices))
        sums, cut = _combine_entries(plan.seed, state, [members[index] for index in indices], middle)
        return sums, equal_weights(indices, sites), cut
    weights = given or _weigh(plan, members, gram)
    return sum_updates(state, members, weights, reading_of(plan.rule), plan.seed, plan.threads), weights, 0.0


def _weigh(plan: Plan, members: Sequence[Contribution], gram: Array | None) -> dict[str, float]:
    sites = [member.site for member in members]
    coefficients = weigh(plan.defence, gram if gram is not None else np.zeros((0, 0)), sites, shares([m.examples for m in members]))
    coefficients = coefficients * np.array([member.discount for member in members])
    return dict(zip(sites, (float(factor) for factor in coefficients), strict=True))


def _given_weights(members: Sequence[Contribution]) -> dict[str, float] | None:
    weights = {member.site: member.weight for member in members if member.weight is not None}
    return weights if len(weights) == len(members) else None


def reading_of(rule: Rule) -> Reading:
    """Return how updates are read for a rule."""
    is_aligned = rule.name in PRODUCT_RULES or (isinstance(rule, FactorMean) and rule.align)
    keeps_products = rule.name in PRODUCT_RULES
    match rule:
        case Stack():
            rank = rule.max_rank
            return Reading(is_aligned=is_aligned, keeps_products=keeps_products, is_cut=rank is not None, kept_rank=rank or 0)
        case GeneratorExact():  # as much again is carried, and the mean of the factors takes its share off
            factor = max(2 * rule.residual_rank_factor + 1, _LEAST_KEPT_FACTOR)
            return Reading(is_aligned=is_aligned, keeps_products=keeps_products, kept_rank_factor=factor)
        case _:
            return Reading(is_aligned=is_aligned, keeps_products=keeps_products, kept_rank_factor=_LEAST_KEPT_FACTOR)


def _combine_entries(seed: int, state: FederationState, members: Sequence[Contribution], middle: Middle) -> tuple[dict[str, Sums], float]:
    updates = [update_of(state, member) for member in members]
    sums, errors = {}, []
    for group, edit in state.edits.items():
        rank = min(edit.pair.width, _ENTRYWISE_RANK_FACTOR * edit.pair.rank)
        found = combine_entries([update[group] for update in updates], middle, rank, seed)
        sums[group] = Sums(parts={}, second=found.generator)
        errors.append(found.error)
    return sums, math.hypot(*errors)


def _advance(plan: Plan, state: FederationState, combined: Mapping[str, Combined]) -> FederationState:
    """Return the next state: the server optimizer steps from the old values towards the combined ones."""
    edits: dict[str, Edit] = {}
    moments: dict[str, Array] = {}
    for group in state.edits:
        new = combined[group].edit
        if not isinstance(plan.server_optimizer, FedAvg):
            new, kept = _step(plan, state, group, new)
            moments |= kept
        edits[group] = new
    untouched = {name: values for name, values in state.moments.items() if name not in moments}
    return replace(state, edits=edits, moments=untouched | moments, rounds=state.rounds + 1)


def _step(plan: Plan, state: FederationState, group: str, new: Edit) -> tuple[Edit, dict[str, Array]]:
    old, values = _parts(state.edits[group]), _parts(new)
    moments: dict[str, Array] = {}
    for part in sent_parts(plan.rule, plan.round):
        name = f"{group}.{part}"
        known = {kind: state.moments[f"{name}.{kind}"] for kind in ("m", "v") if f"{name}.{kind}" in state.moments}
        move, kept = take_step(plan.server_optimizer, values[part] - old[part], known, state.rounds + 1)
        values[part] = old[part] + move
        moments |= {f"{name}.{kind}": array for kind, array in kept.items()}
    pair = from_rows(p=values["phi"], q=values["psi"], scale=new.pair.scale)
    return replace(new, pair=pair, core=values.get("core")), moments


def _parts(edit: Edit) -> dict[str, Array]:
    parts = {"phi": edit.pair.p, "psi": edit.pair.q}
    return parts if edit.core is None else parts | {"core": edit.core}


def _is_finite(state: FederationState) -> bool:
    arrays = [array for edit in state.edits.values() for g in (edit.pair, edit.residual, edit.carried) for array in (g.p, g.q)]
    arrays += [edit.core for edit in state.edits.values() if edit.core is not None]
    return all(bool(np.isfinite(array).all()) for array in [*arrays, *state.moments.values()])


def _measure(state: FederationState, new: FederationState, combined: Mapping[str, Combined], cut: float) -> dict[str, float]:
    """Return the measures of a round, over all generators."""
    moved = math.hypot(*(norm(change) for change in change_of(state, new).values()))
    residual = math.hypot(*(one.residual for one in combined.values()))
    return {
        "update_norm": moved,
        "aggregation_residual": residual / moved if moved > 0 else 0.0,
        "cut_norm": math.hypot(cut, *(one.cut for one in combined.values())),
        "residual_rank": float(max((edit.residual.rank for edit in new.edits.values()), default=0)),
    }
