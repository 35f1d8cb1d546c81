"""Attacks do what their names say, and what is malformed is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from orchestrator.aggregate import Contribution, FederationState, Outcome, Plan, aggregate, change_of, new_edit
from orchestrator.aggregate.gramian import update_of
from simulation.attacks import MALFORMED, Attack, Sight, garble, length_of, poison
from wegeft.algebra import cosine, difference, from_rows, norm
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.federation_rules import FactorMean, GeneratorExact
from wegeft.contracts.wire import read_update, write_update

RANDOM = np.random.default_rng(3)
WIDTH, RANK, HONEST, HOSTILE = 24, 3, 9, 3


def moved(scale: float = 0.05) -> dict[str, Any]:
    return {"q.phi": scale * RANDOM.standard_normal((WIDTH, RANK)), "q.psi": scale * RANDOM.standard_normal((RANK, WIDTH))}


def sight(**fields: Any) -> Sight:
    pair = from_rows(p=RANDOM.standard_normal((RANK, WIDTH)), q=RANDOM.standard_normal((RANK, WIDTH)), scale=2.0)
    state = FederationState(edits={"q": new_edit(pair)})
    honest = [moved() for _ in range(HONEST)]
    return Sight(**{"state": state, "own": moved(), "honest": honest, "hostile": HOSTILE, "max_norm": 50.0, "seed": 1, **fields})


def generator_of(seen: Sight, tensors: Any) -> Any:
    return update_of(seen.state, Contribution(site="", examples=1, load=lambda: tensors))["q"]


def test_gauge_changes_every_factor_and_not_the_generator() -> None:
    seen = sight()
    sent = poison(Attack.GAUGE, seen)
    honest, hostile = (generator.phi @ generator.psi for generator in (generator_of(seen, seen.own), generator_of(seen, sent)))
    assert np.abs(honest - hostile).max() < 1e-9 * np.abs(honest).max()
    assert np.abs(sent["q.psi"]).max() > 100 * np.abs(seen.own["q.psi"]).max()


def test_gauge_has_no_hold_where_one_factor_is_sent() -> None:
    seen = sight(own={"q.psi": moved()["q.psi"]})
    assert np.array_equal(poison(Attack.GAUGE, seen)["q.psi"], seen.own["q.psi"])


def members_of(seen: Sight, hostile: Any) -> list[Contribution]:
    sent = [*seen.honest, *[hostile] * HOSTILE]
    return [Contribution(site=f"s-{index:02}", examples=1, load=lambda one=one: one) for index, one in enumerate(sent)]  # type: ignore[misc]


def result_of(seen: Sight, hostile: Any, rule: Any) -> Any:
    outcome = aggregate(Plan(rule=rule), seen.state, members_of(seen, hostile))
    assert isinstance(outcome, Outcome)
    return change_of(seen.state, outcome.state)["q"]


def test_gauge_ruins_a_mean_of_factors_that_are_not_aligned_and_no_other() -> None:
    seen = sight()
    hostile = poison(Attack.GAUGE, seen)

    def harm(rule: Any) -> float:
        right = result_of(seen, seen.own, rule)
        return float(norm(difference(result_of(seen, hostile, rule), right)) / norm(right))

    assert harm(GeneratorExact()) < 1e-6
    assert harm(FactorMean()) < 1e-6
    assert harm(FactorMean(align=False)) > 10


def test_inner_product_turns_the_mean_round() -> None:
    seen = sight()
    right, turned = result_of(seen, {name: 0 * a for name, a in seen.own.items()}, GeneratorExact()), poison(Attack.INNER_PRODUCT, seen)
    assert cosine(right, result_of(seen, turned, GeneratorExact())) < 0


def test_sign_flip_points_backwards_and_boost_goes_as_far_as_the_gate_lets_it() -> None:
    seen = sight()
    own = generator_of(seen, seen.own)
    assert cosine(own, generator_of(seen, poison(Attack.SIGN_FLIP, seen))) < -0.9
    assert math.isclose(length_of(seen, poison(Attack.BOOST, seen)), 0.9 * seen.max_norm, rel_tol=1e-6)


def test_alie_hides_among_the_honest() -> None:
    seen = sight()
    hostile = poison(Attack.ALIE, seen)
    gathered = np.array([one["q.phi"] for one in seen.honest])
    beyond = np.abs(hostile["q.phi"] - gathered.mean(0)) / gathered.std(0)
    assert 0 < beyond.max() < 2


def test_what_is_echoed_has_not_moved_and_denormals_are_no_normal_numbers() -> None:
    seen = sight()
    assert length_of(seen, poison(Attack.ECHO, seen)) == 0
    tiny = read_update(write_update(poison(Attack.DENORMAL, seen), "fp32"), "fp32")["q.phi"]
    assert ((tiny > 0) & (tiny < np.finfo(np.float32).tiny)).all()


@pytest.mark.parametrize("attack", [Attack.ALIE, Attack.INNER_PRODUCT])
def test_who_sees_no_honest_site_flips_signs(attack: Attack) -> None:
    seen = sight(honest=())
    assert np.array_equal(poison(attack, seen)["q.phi"], -seen.own["q.phi"])


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("attack", [Attack.NAN, Attack.INFINITY])
def test_a_number_that_is_none_is_in_the_file(attack: Attack, wire: Any) -> None:
    content = write_update(sight().own, wire)
    changed = garble(attack, content)
    assert len(changed) == len(content)
    try:
        numbers = read_update(changed, wire)
    except InvalidTensors:
        return
    assert not all(np.isfinite(array).all() for array in numbers.values())


@pytest.mark.parametrize("attack", [Attack.SIZE_BOMB, Attack.HEADER_BOMB])
def test_a_bomb_is_no_file(attack: Attack) -> None:
    with pytest.raises(InvalidTensors):
        read_update(garble(attack, write_update(sight().own, "fp32")), "fp32")


@pytest.mark.parametrize("attack", list(Attack))
def test_every_attack_sends_something_of_the_right_shape(attack: Attack) -> None:
    seen = sight()
    sent = poison(attack, seen)
    assert {name: array.shape for name, array in sent.items()} == {name: array.shape for name, array in seen.own.items()}
    assert attack in MALFORMED or garble(attack, b"file") == b"file"
