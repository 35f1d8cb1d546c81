"""The gate: an honest update passes, and everything else is told, all at once."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.update_gate import Terms, check_update, expected_forms
from tests.orchestrator.aggregate.federations import a_member, a_state
from wegeft.contracts.control_variates import ControlTerms, control_of
from wegeft.contracts.federation import Offer, SignedUpdate, Site, SiteState, TensorForm, Update
from wegeft.contracts.federation_rules import GeneratorExact
from wegeft.contracts.signatures import public_key_of, sign

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
KEY = bytes(range(32))
DIGEST, OTHER = "sha256:" + "a" * 64, "sha256:" + "b" * 64
STATE = a_state(1)


def a_site(**changes: Any) -> Site:
    fields = {
        "name": "site-a", "pseudonym": "s-1", "public_key": public_key_of(KEY), "state": SiteState.APPROVED, "max_examples": 100,
        "enrolled_at": NOW,
    } | changes  # fmt: skip
    return Site.model_validate(fields)


def an_offer(rank: int = 3, parts: tuple[str, ...] = ("phi", "psi"), **changes: Any) -> Offer:
    forms = {name: TensorForm(shape=shape) for name, shape in expected_forms(rank, STATE, parts).items()}
    fields = {
        "job_id": "j1", "round": 2, "site": "s-1", "base_model": "org/model@abc", "start": DIGEST, "rank": rank, "rule": GeneratorExact(),
        "tensors": forms, "max_steps": 10, "max_update_norm": 1e3, "deadline_at": NOW + timedelta(hours=1),
    } | changes  # fmt: skip
    return Offer.model_validate(fields)


def tensors_of(rank: int | None = None, drift: float = 0.1, parts: tuple[str, ...] = ("phi", "psi")) -> dict[str, Any]:
    return {name: array.astype(np.float32) for name, array in a_member(STATE, "s-1", 5, parts, drift=drift, rank=rank).load().items()}


def signed(offer: Offer, /, key: bytes = KEY, **changes: Any) -> SignedUpdate:
    fields = {
        "job_id": offer.job_id, "round": offer.round, "attempt": offer.attempt, "site": offer.site, "offer": offer.digest,
        "base_model": offer.base_model, "start": offer.start, "tensors": OTHER, "size": 10, "examples": 50, "steps": 10,
    } | changes  # fmt: skip
    update = Update.model_validate(fields)
    return SignedUpdate(update=update, signature=sign(key, update.to_bytes()))


def paths(update: SignedUpdate, tensors: dict[str, Any], offer: Offer, site: Site | None = None, now: datetime = NOW) -> list[str]:
    terms = Terms(offer=offer, site=site or a_site(), state=STATE, now=now)
    return [problem.path for problem in check_update(update, tensors, terms)]


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("parts", [("phi", "psi"), ("phi",), ("psi",)])
def test_an_honest_update_passes(rank: int, parts: tuple[str, ...]) -> None:
    if rank < 3 and len(parts) == 1:
        return
    offer = an_offer(rank, parts)
    assert paths(signed(offer), tensors_of(None if rank == 3 else rank, parts=parts), offer) == []


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"job_id": "j2"}, "job_id"),
        ({"round": 3}, "round"),
        ({"attempt": 2}, "attempt"),
        ({"site": "s-2"}, "site"),
        ({"offer": OTHER}, "offer"),
        ({"start": OTHER}, "start"),
        ({"base_model": "org/other"}, "base_model"),
        ({"examples": 101}, "examples"),
        ({"examples": 10**12}, "examples"),
        ({"examples": 0}, "examples"),
        ({"examples": -39}, "examples"),
        ({"steps": 11}, "steps"),
    ],
)
def test_a_claim_for_something_else_is_refused(change: dict[str, Any], path: str) -> None:
    offer = an_offer()
    assert paths(signed(offer, **change), tensors_of(), offer) == [path]


def test_a_signature_by_another_key_or_of_other_words_is_refused() -> None:
    offer = an_offer()
    assert paths(signed(offer, key=bytes(32)), tensors_of(), offer) == ["signature"]
    honest = signed(offer)
    forged = honest.model_copy(update={"update": honest.update.model_copy(update={"examples": 99})})
    assert paths(forged, tensors_of(), offer) == ["signature"]


@pytest.mark.parametrize("state", [SiteState.PENDING, SiteState.REVOKED])
def test_a_site_that_is_not_approved_is_refused(state: SiteState) -> None:
    offer = an_offer()
    assert paths(signed(offer), tensors_of(), offer, a_site(state=state)) == ["site"]


def test_an_update_after_the_deadline_is_refused() -> None:
    offer = an_offer()
    assert paths(signed(offer), tensors_of(), offer, now=offer.deadline_at + timedelta(seconds=1)) == ["round"]


def with_value(value: float) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        tensors["q_proj.phi"][0, 0] = value

    return change


def put(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda tensors: tensors.update({name: value})


@pytest.mark.parametrize(
    ("attack", "path"),
    [
        (with_value(np.nan), "q_proj.phi"),
        (with_value(np.inf), "q_proj.phi"),
        (with_value(1e38), "q_proj.phi"),
        (with_value(1e9), "norm"),
        (lambda tensors: tensors.pop("q_proj.psi"), "q_proj.psi"),
        (put("extra.phi", np.zeros((2, 2), np.float32)), "extra.phi"),
        (put("q_proj.phi", np.zeros((1,), np.float32)), "q_proj.phi"),
        (put("q_proj.phi", np.zeros((3, 9), np.float32)), "q_proj.phi"),
        (put("q_proj.phi", np.zeros((9, 3), np.float64)), "q_proj.phi"),
        (put("q_proj.phi", np.zeros((9, 3), np.int64)), "q_proj.phi"),
        (put("q_proj.phi", np.array([["x"] * 3] * 9)), "q_proj.phi"),
    ],
)
def test_malformed_tensors_are_refused(attack: Callable[[dict[str, Any]], Any], path: str) -> None:
    offer, tensors = an_offer(), tensors_of()
    attack(tensors)
    assert paths(signed(offer), tensors, offer) == [path]


def test_all_problems_are_told_at_once() -> None:
    offer, tensors = an_offer(), tensors_of()
    tensors["q_proj.phi"] = tensors["q_proj.phi"].T
    del tensors["down_proj.psi"]
    update = signed(offer, key=bytes(32), round=7, examples=-1)
    assert paths(update, tensors, offer) == ["signature", "round", "examples", "down_proj.psi", "q_proj.phi"]


@settings(deadline=None)
@given(st.floats(0.01, 5.0))
def test_the_norm_is_that_of_the_change_of_function_in_any_gauge(limit: float) -> None:
    """Honest factors times 1024 and 1/1024 are the same function, and neither pass nor fail for it."""
    tensors = tensors_of(drift=0.05)
    gauged = {}
    for name, moved in tensors.items():
        pair = STATE.edits[name.rpartition(".")[0]].pair
        start, factor = (pair.p.T, 1024.0) if name.endswith("phi") else (pair.q, 1 / 1024)
        gauged[name] = ((start + moved) * factor - start).astype(np.float32)
    offer = an_offer(max_update_norm=limit)
    assert paths(signed(offer), tensors, offer) == paths(signed(offer), gauged, offer)


def test_numbers_at_the_edge_of_float32_do_not_overflow_the_gate() -> None:
    offer, tensors = an_offer(), tensors_of()
    tensors = {name: np.full_like(array, 9e29) for name, array in tensors.items()}
    assert paths(signed(offer), tensors, offer) == ["norm"]
    tiny = {name: np.full_like(array, 1e-42) for name, array in tensors.items()}  # denormal
    assert paths(signed(offer), tiny, offer) == []


@pytest.mark.parametrize(("length", "told"), [(1e2, "must be 1000 or less"), (1e9, "must be 1000 or less"), (1e14, "lost in rounding")])
def test_factors_that_cancel_do_not_hide_an_update_from_the_bound(length: float, told: str) -> None:
    """Of two terms of 10¹⁴, a difference of 10⁴ is lost when their inner products are rounded, and the update looks like nothing."""
    state, offer = a_state(1), an_offer()
    q = state.edits["q_proj"].pair.q
    q[:] = np.round(64 * q) / 64
    tensors = {name: np.zeros(form.shape, np.float32) for name, form in offer.tensors.items()}
    tensors["q_proj.phi"][0, :2], tensors["q_proj.phi"][1, 1] = length, 1e4
    tensors["q_proj.psi"][:2] = -q[:2]
    tensors["q_proj.psi"][:2, 5] += [1, -1]
    problems = check_update(signed(offer), tensors, Terms(offer=offer, site=a_site(), state=state, now=NOW))
    assert [problem.path for problem in problems] == ["norm"]
    assert told in problems[0].message, problems


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_site_that_changed_nothing_passes_any_bound(rank: int) -> None:
    offer = an_offer(rank, max_update_norm=1e-12)
    still = {name: np.zeros(form.shape, np.float32) for name, form in offer.tensors.items()}
    assert paths(signed(offer), still, offer) == []


def test_a_file_of_many_wrong_names_gets_a_short_answer() -> None:
    offer = an_offer()
    tensors = tensors_of() | {f"other.{number}": np.zeros(1, np.float32) for number in range(5000)}
    terms = Terms(offer=offer, site=a_site(), state=STATE, now=NOW)
    problems = check_update(signed(offer), tensors, terms)
    assert 0 < sum(len(problem.model_dump_json()) for problem in problems) < 100_000


def a_control_offer(**changes: Any) -> Offer:
    offer = an_offer(parts=("phi",))
    forms = {control_of(name): form for name, form in offer.tensors.items()}
    control = ControlTerms(sites=3, max_norm=2.0, counted=OTHER)
    return offer.model_copy(update={"version": 2, "tensors": {**offer.tensors, **forms}, "control": control, **changes})


def with_control(size: float) -> dict[str, Any]:
    """An update and a change of control variates that is ``size`` long."""
    moved = tensors_of(parts=("phi",))
    entries = sum(array.size for array in moved.values())
    return {**moved, **{control_of(name): np.full_like(array, size / entries**0.5) for name, array in moved.items()}}


@pytest.mark.parametrize(
    ("size", "change", "expected"),
    [
        (1.99, {}, []),
        (1.99, {"control_from": OTHER}, []),
        (2.01, {}, ["control"]),
        (1.0, {"control_from": DIGEST}, ["control_from"]),
        (1.0, {"version": 1}, ["version"]),
        (float("nan"), {}, ["down_proj.phi.control", "q_proj.phi.control"]),
    ],
)
def test_change_of_control_variates_is_held_to_its_terms(size: float, change: dict[str, Any], expected: list[str]) -> None:
    offer = a_control_offer()
    assert paths(signed(offer, **{"version": 2, **change}), with_control(size), offer) == expected


def test_control_variates_come_where_they_are_asked_for_and_nowhere_else() -> None:
    offer, plain = a_control_offer(), an_offer(parts=("phi",))
    assert paths(signed(offer, version=2), tensors_of(parts=("phi",)), offer) == ["down_proj.phi.control", "q_proj.phi.control"]
    assert paths(signed(plain), with_control(1.0), plain) == ["down_proj.phi.control", "q_proj.phi.control"]
    assert paths(signed(plain, control_from=OTHER), tensors_of(parts=("phi",)), plain) == ["control_from"]


def test_messages_without_control_variates_are_written_as_before_there_were_any() -> None:
    plain = an_offer()
    assert b"control" not in plain.to_bytes()
    assert b"control" not in signed(plain).to_bytes()
    assert b'"control"' in a_control_offer().to_bytes()
    assert Offer.model_validate_json(a_control_offer().to_bytes()) == a_control_offer()
