"""How rows are shared out among simulated sites: each row to exactly one of them, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np

from wegeft.contracts.errors import Problem

KINDS_LIMIT = 100
"""More different values than this are no kinds: their hashes are then."""
HASH_KINDS = 10
"""Kinds that many values are hashed to."""
_FORMS = "iid, dirichlet:ALPHA, or by:FIELD"


@dataclass(frozen=True)
class Iid:
    """Rows are dealt out evenly, whatever they are."""


@dataclass(frozen=True)
class Dirichlet:
    """Of each kind of row, sites get shares from a Dirichlet draw; the smaller ``alpha``, the less alike they are."""

    alpha: float


@dataclass(frozen=True)
class ByField:
    """Each value of a column is a site."""

    name: str


Partition = Iid | Dirichlet | ByField


def parse_partition(text: str) -> Partition | Problem:
    """Return what ``--partition`` says, or what is wrong with it."""
    name, colon, rest = text.partition(":")
    if text == "iid":
        return Iid()
    if name == "by" and rest:
        return ByField(rest)
    if name == "dirichlet" and colon:
        try:
            alpha = float(rest)
        except ValueError:
            alpha = float("nan")
        if 0 < alpha <= 1e6:
            return Dirichlet(alpha)
        return Problem(path="--partition", message="ALPHA must be a number above 0", value=text, hint="dirichlet:0.3")
    return Problem(path="--partition", message="not a partition", value=text, hint=_FORMS)


def kinds_of(values: Sequence[object]) -> tuple[list[str], str]:
    """Return each row's kind, and how it was told, for people to read.

    Up to :data:`KINDS_LIMIT` different values are kinds themselves; of more, the sha256 tells one of :data:`HASH_KINDS`.
    """
    texts = [value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False, default=str) for value in values]
    different = len(set(texts))
    if different <= KINDS_LIMIT:
        return texts, f"{different} values"
    hashed = [str(int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % HASH_KINDS) for text in texts]
    return hashed, f"{different:,} values, hashed to {HASH_KINDS} kinds"


def share_out(kinds: Sequence[Hashable], partition: Partition, sites: int, seed: int) -> list[list[int]]:
    """Return the row numbers of each site, sorted; every row is in exactly one, and no site is empty.

    ``kinds`` tells the kind of each row. There must be as many rows as sites; :class:`ByField` makes a site of each kind, in sorted order,
    and leaves ``sites`` aside.
    """
    random = np.random.default_rng(seed)
    match partition:
        case Iid():
            parts = [part.tolist() for part in np.array_split(random.permutation(len(kinds)), sites)]
        case Dirichlet():
            parts = _by_shares(kinds, partition.alpha, sites, random)
        case ByField():
            parts = list(_by_kind(kinds).values())
        case _:
            assert_never(partition)
    _fill_empty(parts)
    return [sorted(part) for part in parts]


def _by_kind(kinds: Sequence[Hashable]) -> dict[Hashable, list[int]]:
    found: dict[Hashable, list[int]] = {kind: [] for kind in sorted(set(kinds), key=str)}
    for row, kind in enumerate(kinds):
        found[kind].append(row)
    return found


def _by_shares(kinds: Sequence[Hashable], alpha: float, sites: int, random: np.random.Generator) -> list[list[int]]:
    parts: list[list[int]] = [[] for _ in range(sites)]
    for rows in _by_kind(kinds).values():
        mixed = random.permutation(rows)
        shares = random.dirichlet([alpha] * sites)
        if not np.isfinite(shares).all():  # every gamma draw of a tiny alpha underflowed: one site gets all
            shares = np.eye(sites)[random.integers(sites)]
        cuts = np.minimum(np.floor(np.cumsum(shares)[:-1] * len(rows)).astype(int), len(rows))
        for part, piece in zip(parts, np.split(mixed, cuts), strict=True):
            part.extend(piece.tolist())
    return parts


def _fill_empty(parts: list[list[int]]) -> None:
    """Give each empty site a row of the one that has most: a site without rows is none."""
    for part in parts:
        if not part:
            largest = max(parts, key=len)
            part.append(largest.pop())
