"""What a hostile site can do to a round, as pure functions on what it sends: its factors, its file, and what it says of them.

Attacks on the factors know everything that a colluding attacker could: the state, and what the honest sites of the round send. Those on
the file or the message are malformed, and the gate must refuse them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from orchestrator.aggregate import Contribution, FederationState, start_at
from orchestrator.aggregate.gramian import update_of
from wegeft.algebra import norm
from wegeft.contracts.federation import Update
from wegeft.contracts.tensors import FLOAT_TYPES, parse_header

Moved = Mapping[str, NDArray[np.float64]]
"""How far each tensor moved, by ``<group>.phi`` (width×rank), ``<group>.psi`` (rank×width) or ``<group>.core``."""


class Attack(StrEnum):
    """The closed set of attacks."""

    SIGN_FLIP = "sign_flip"
    """What it trained, the other way."""
    BOOST = "boost"
    """The same, as long as the gate allows."""
    SCALE = "scale"
    """What it trained, a million times as long."""
    LABEL_FLIP = "label_flip"
    """What it trained on its rows with every answer changed for a wrong one."""
    SAME_VALUE = "same_value"
    """Every number the same."""
    ALIE = "alie"
    """As far from the honest mean as hides in their spread (A Little Is Enough: Baruch et al., 2019)."""
    INNER_PRODUCT = "inner_product"
    """The honest mean turned round, long enough to turn the mean of all round (Xie et al., 2020)."""
    GAUGE = "gauge"
    """Exactly what it trained, as other factors of the same generator."""
    ECHO = "echo"
    """Nothing of its own: what it was given, sent back."""
    DENORMAL = "denormal"
    """Numbers so small that arithmetic on them is slow."""
    NAN = "nan"
    """A file with a number that is none."""
    INFINITY = "infinity"
    """A file with an infinite number."""
    WEIGHT = "weight"
    """A claim of 10¹² examples."""
    NEGATIVE_WEIGHT = "negative_weight"
    """A claim of -1 examples."""
    WRONG_BASE = "wrong_base"
    """Trained on another base model."""
    WRONG_ROUND = "wrong_round"
    """An update of another round."""
    SYBIL = "sybil"
    """One site under many names: all hostile ones sign with the first one's key."""
    SIZE_BOMB = "size_bomb"
    """A file much longer than what was asked for."""
    HEADER_BOMB = "header_bomb"
    """A file whose header says that it has 2⁶⁰ bytes."""


MALFORMED = frozenset(
    {
        Attack.SCALE, Attack.NAN, Attack.INFINITY, Attack.WEIGHT, Attack.NEGATIVE_WEIGHT, Attack.WRONG_BASE, Attack.WRONG_ROUND,
        Attack.SYBIL, Attack.SIZE_BOMB, Attack.HEADER_BOMB,
    }
)  # fmt: skip
"""Attacks of which the gate lets nothing through; of ``sybil``, nothing but the one whose key it is."""
UNTRAINED = frozenset({Attack.ALIE, Attack.INNER_PRODUCT, Attack.ECHO, Attack.DENORMAL})
"""Attacks for which a site need not train."""

_SCALE, _GAUGE_SCALE, _TURN, _DENORMAL = 1e6, 1e3, 1.5, 1e-40
_NEAR_LIMIT = 0.9
"""Share of the gate's bound that a boosted update goes to: the wire rounds."""
_BISECTIONS = 60


@dataclass(frozen=True, kw_only=True, eq=False)
class Sight:
    """What a hostile site knows when it decides what to send."""

    state: FederationState
    """Where the round starts."""
    own: Moved
    """What it trained; zeros where it did not."""
    honest: Sequence[Moved]
    """What honest sites of the round send."""
    hostile: int
    """How many sites are in on it."""
    max_norm: float
    """Above which the gate refuses an update."""
    seed: int
    rank: int | None = None
    """That it was asked for; None for the pair's."""


def poison(attack: Attack, sight: Sight) -> Moved:
    """Return how far its tensors moved, as a hostile site tells it; what it trained where the attack is on something else.

    ``label_flip`` is on the rows, before anything is trained: :func:`simulation.label_flip.flip_answers`.
    """
    found = _POISONS.get(attack)
    return sight.own if found is None else found(sight)


def sign_flip(sight: Sight) -> Moved:
    """Return the opposite of what was trained."""
    return _times(-1.0, sight.own)


def scale(sight: Sight) -> Moved:
    """Return what was trained, a million times as long in each factor."""
    return _times(_SCALE, sight.own)


def boost(sight: Sight) -> Moved:
    """Return the opposite of what was trained, with nearly the largest norm that the gate lets pass."""
    high = 1.0
    while length_of(sight, _times(-high, sight.own)) < _NEAR_LIMIT * sight.max_norm and high < 1e12:
        high *= 2
    low = 0.0
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if length_of(sight, _times(-middle, sight.own)) <= _NEAR_LIMIT * sight.max_norm else (low, middle)
    return _times(-low, sight.own)


def length_of(sight: Sight, moved: Moved) -> float:
    """Return the Frobenius norm of an update over all generators, as the gate takes it."""
    member = Contribution(site="", examples=1, load=lambda: moved, rank=sight.rank)
    return math.hypot(*(norm(update) for update in update_of(sight.state, member).values()))


def same_value(sight: Sight) -> Moved:
    """Return every number as the largest that was trained."""
    largest = max((float(np.abs(array).max(initial=0.0)) for array in sight.own.values()), default=0.0)
    return {name: np.full(array.shape, largest) for name, array in sight.own.items()}


def alie(sight: Sight) -> Moved:
    """Return ``mean - z·deviation`` of the honest sites, entry by entry; z is the most that the majority still hides."""
    if len(sight.honest) < 2:
        return sign_flip(sight)
    total = len(sight.honest) + sight.hostile
    needed = total // 2 + 1 - sight.hostile
    share = min(max((len(sight.honest) - needed) / len(sight.honest), 0.5), 0.999)
    z = NormalDist().inv_cdf(share)
    return {name: np.mean(found, axis=0) - z * np.std(found, axis=0) for name, found in _gathered(sight).items()}


def inner_product(sight: Sight) -> Moved:
    """Return the honest mean turned round, long enough that the plain mean of all points backwards."""
    if not sight.honest:
        return sign_flip(sight)
    factor = -_TURN * len(sight.honest) / sight.hostile
    return {name: factor * np.mean(found, axis=0) for name, found in _gathered(sight).items()}


def gauge(sight: Sight) -> Moved:
    """Return other factors of the generator that was trained: ``P → RP/c``, ``Q → cRQ`` with a rotation R and c = 1000.

    Where one factor alone is sent there is no gauge to choose, and what was trained is returned.
    """
    random = np.random.default_rng(sight.seed)
    moved = dict(sight.own)
    for group, edit in sight.state.edits.items():
        names = f"{group}.phi", f"{group}.psi"
        if not set(names) <= moved.keys():
            continue
        start, _ = start_at(edit, sight.rank)
        rotation, _ = np.linalg.qr(random.standard_normal((start.rank, start.rank)))
        p = rotation @ (start.p + moved[names[0]].T) / _GAUGE_SCALE
        q = rotation @ (start.q + moved[names[1]]) * _GAUGE_SCALE
        moved |= {names[0]: (p - start.p).T, names[1]: q - start.q}
    return moved


def echo(sight: Sight) -> Moved:
    """Return that nothing has moved."""
    return _times(0.0, sight.own)


def denormal(sight: Sight) -> Moved:
    """Return numbers below the least normal one of float32."""
    return {name: np.full(array.shape, _DENORMAL) for name, array in sight.own.items()}


_POISONS: Mapping[Attack, Callable[[Sight], Moved]] = {
    Attack.SIGN_FLIP: sign_flip, Attack.BOOST: boost, Attack.SCALE: scale, Attack.SAME_VALUE: same_value, Attack.ALIE: alie,
    Attack.INNER_PRODUCT: inner_product, Attack.GAUGE: gauge, Attack.ECHO: echo, Attack.DENORMAL: denormal,
}  # fmt: skip


def _times(factor: float, moved: Moved) -> Moved:
    return {name: factor * array for name, array in moved.items()}


def _gathered(sight: Sight) -> dict[str, list[NDArray[np.float64]]]:
    """Return what honest sites send of each tensor; of those that have another rank, nothing."""
    return {
        name: [one[name] for one in sight.honest if name in one and one[name].shape == array.shape] or [array]
        for name, array in sight.own.items()
    }


def garble(attack: Attack, content: bytes) -> bytes:
    """Return the update's file as a hostile site sends it."""
    match attack:
        case Attack.NAN | Attack.INFINITY:
            return _with_first_number(content, float("nan") if attack is Attack.NAN else float("inf"))
        case Attack.SIZE_BOMB:
            return content + bytes(len(content) + (1 << 20))
        case Attack.HEADER_BOMB:
            return (1 << 60).to_bytes(8, "little") + content[8:]
        case _:
            return content


def _with_first_number(content: bytes, number: float) -> bytes:
    """Return a safetensors file in which the first number of its first tensor of floats is another."""
    header = parse_header(content, len(content), accepted=FLOAT_TYPES | {"I8"})
    spec = next(spec for spec in header.tensors if spec.dtype in ("F32", "BF16"))
    raw = np.array([number], dtype="<f4").tobytes()[0 if spec.dtype == "F32" else 2 :]
    begin = header.size + spec.start
    return content[:begin] + raw + content[begin + len(raw) :]


def forge(attack: Attack, update: Update) -> Update:
    """Return what a hostile site says of its file."""
    match attack:
        case Attack.WEIGHT:
            return update.model_copy(update={"examples": 10**12})
        case Attack.NEGATIVE_WEIGHT:
            return update.model_copy(update={"examples": -1})
        case Attack.WRONG_BASE:
            return update.model_copy(update={"base_model": f"{update.base_model}-other"})
        case Attack.WRONG_ROUND:
            return update.model_copy(update={"round": update.round + 1})
        case _:
            return update
