"""The weighted sum of updates, one member at a time: memory does not grow with the number of members.

A member's pair moved from (P₀, Q₀) by (δP, δQ), and so its generator by ``δPᵀQ₀ + P₀ᵀδQ + δPᵀδQ``. The first two terms are linear in the
factors, so their weighted sums are plain sums of matrices. Only the last one, of second order, is a sum of generators, whose rank grows
with the members; beyond what the rule keeps it is put together in several passes over them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from orchestrator.aggregate.side_by_side import in_order
from orchestrator.aggregate.state import Array, Contribution, Edit, FederationState, Tensors, start_at, trained_by
from orchestrator.aggregate.streamed_sum import begin_sum
from wegeft.algebra import Generator, add, align_each, difference, from_rows

_LEAST_KEPT_RANK = 128


@dataclass(frozen=True, kw_only=True, eq=False)
class Sums:
    """What the members' updates of one generator add up to."""

    parts: Mapping[str, Array]
    """``Σaₖδxₖ`` of the factors and cores that were sent by members of full rank: ``phi`` is rank×width here, like P."""
    second: Generator
    """``Σaₖ·s·δPₖᵀδQₖ`` of those, and the whole update of members of lower rank, or that began from other factors."""
    has_lower_ranks: bool = False
    cut: float = 0.0
    """Estimate of the Frobenius norm of what ``second`` misses; 0 where it is exact."""

    def change(self, edit: Edit) -> Generator:
        """Return ``Σaₖ(Mₖ − M₀ₖ)``."""
        pair = edit.pair
        if "core" in self.parts:
            return from_rows(p=pair.p, q=self.parts["core"] @ pair.q, scale=pair.scale)
        moved_p, moved_q = self.parts.get("phi"), self.parts.get("psi")
        terms = [self.second]
        if moved_p is not None:
            terms.append(from_rows(p=moved_p, q=pair.q, scale=pair.scale))
        if moved_q is not None:
            terms.append(from_rows(p=pair.p, q=moved_q, scale=pair.scale))
        return add(*terms)


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How updates are read."""

    is_aligned: bool
    """Bring each pair into the gauge nearest to the old one first."""
    keeps_products: bool
    """Sum the second-order term too; without it ``Sums.second`` stays empty."""
    is_cut: bool = True
    """Whether the rule keeps no more of the second-order term than a bounded rank."""
    kept_rank: int = 0
    """That rank."""
    kept_rank_factor: int = 0
    """The same in multiples of the pair's rank; the larger of the two holds."""

    def kept(self, edit: Edit) -> int | None:
        """Return the rank of which the rule keeps no more; None where it keeps all."""
        return max(self.kept_rank, self.kept_rank_factor * edit.pair.rank, _LEAST_KEPT_RANK) if self.is_cut else None


def sum_updates(
    state: FederationState,
    members: Sequence[Contribution],
    coefficients: Mapping[str, float],
    reading: Reading,
    seed: int = 0,
    threads: int = 1,
) -> dict[str, Sums]:
    """Return the weighted sums by group; members are read in the order of their pseudonyms, those of weight 0 not at all.

    Each is read once, or four times where a group's second-order term has more rows than twice what the rule keeps of it. ``seed`` is for
    those passes; any number of ``threads`` gives the same bits.
    """
    counted = [member for member in sorted(members, key=lambda member: member.site) if coefficients[member.site] != 0]
    totals = {group: _Total(edit, counted, reading, seed) for group, edit in state.edits.items()}
    while waiting := {group: total for group, total in totals.items() if total.needs_pass}:
        moves = in_order(partial(_read, state, tuple(waiting), reading), counted, threads)
        for member, moved in zip(counted, moves, strict=True):
            for group, total in waiting.items():
                total.take(moved[group], coefficients[member.site])
        for total in waiting.values():
            total.end_pass()
    return {group: totals.pop(group).sums() for group in list(totals)}


_Moved = Mapping[str, Array] | Generator
"""How far each part of a generator has moved, ``phi`` rank×width here; or its whole update, where that is summed as one."""


def _read(state: FederationState, groups: Sequence[str], reading: Reading, member: Contribution) -> dict[str, _Moved]:
    """Return what a member adds to the sum of each of ``groups``, but for its weight."""
    tensors = member.load()
    moved: dict[str, _Moved] = {}
    pairs: dict[str, tuple[Generator, Generator]] = {}
    for group in groups:
        began = (member.start or state).edits[group]
        if _is_whole(member, state.edits[group], reading):
            start, _ = start_at(began, member.rank)
            moved[group] = difference(trained_by(began, group, tensors, start), start)
        elif reading.is_aligned and {f"{group}.phi", f"{group}.psi"} <= tensors.keys():
            start, _ = start_at(began, member.rank)
            pairs[group] = (trained_by(began, group, tensors, start), began.pair)
        else:
            moved[group] = _as_sent(group, tensors)
    for (group, (_, old)), new in zip(pairs.items(), align_each(list(pairs.values())), strict=True):
        moved[group] = {"phi": new.p - old.p, "psi": new.q - old.q}
    return moved


def _as_sent(group: str, tensors: Tensors) -> dict[str, Array]:
    names = {part: f"{group}.{part}" for part in ("phi", "psi", "core")}
    sent = {part: np.asarray(tensors[name], dtype=np.float64) for part, name in names.items() if name in tensors}
    return {part: delta.T if part == "phi" else delta for part, delta in sent.items()}


class _Total:
    """The sums of one group in the making."""

    def __init__(self, edit: Edit, members: Sequence[Contribution], reading: Reading, seed: int) -> None:
        self._edit, self._reading = edit, reading
        self._parts: dict[str, Array] = {}
        self._is_first_pass, self._has_lower_ranks = True, False
        rows = sum(_rows_of(member, edit, reading) for member in members)
        self._second = begin_sum(edit.pair, rows, reading.kept(edit), seed)

    @property
    def needs_pass(self) -> bool:
        return self._second.needs_pass

    def take(self, moved: _Moved, coefficient: float) -> None:
        if isinstance(moved, Generator):
            self._second.take(from_rows(p=moved.p, q=moved.q, scale=moved.scale * coefficient))
            self._has_lower_ranks = True
            return
        if self._is_first_pass:
            for name, delta in moved.items():
                self._parts[name] = self._parts.get(name, 0.0) + coefficient * delta
        if self._reading.keeps_products and {"phi", "psi"} <= moved.keys():
            self._second.take(from_rows(p=moved["phi"], q=moved["psi"], scale=self._edit.pair.scale * coefficient))

    def end_pass(self) -> None:
        self._is_first_pass = False
        self._second.end_pass()

    def sums(self) -> Sums:
        second, missed = self._second.result()
        return Sums(parts=self._parts, second=second, has_lower_ranks=self._has_lower_ranks, cut=missed)


def _is_whole(member: Contribution, edit: Edit, reading: Reading) -> bool:
    """Return whether a member's update is summed as one generator: a product's first-order terms hold for equal factors at the start."""
    has_other_start = member.start is not None and reading.keeps_products
    return has_other_start or (member.rank is not None and member.rank < edit.pair.rank)


def _rows_of(member: Contribution, edit: Edit, reading: Reading) -> int:
    """Return how many rows a member adds to the sum of generators at most."""
    rank = edit.pair.rank if member.rank is None else min(member.rank, edit.pair.rank)
    if _is_whole(member, edit, reading):
        return 2 * rank
    return rank if reading.keeps_products else 0
