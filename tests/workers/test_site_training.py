"""One round at a site: the same bytes each time, within its own norm, through the server's gate, and nothing left on the base model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from orchestrator.aggregate import FederationState
from orchestrator.update_gate import Terms, check_update
from tests.workers.site_rounds import make_state, offer_of, site_spec, tiny_base
from tests.workers.tiny_runs import Recorder, make_rows
from wegeft.contracts.errors import InvalidData, InvalidTensors
from wegeft.contracts.federation import Offer, SignedUpdate, Site, SiteState
from wegeft.contracts.federation_rules import Alternate, FreezePsi, Stack
from wegeft.contracts.signatures import public_key_of, sign
from wegeft.contracts.wire import as_received, read_update
from wegeft.method import WeGeFTLinear
from workers.base_model import BaseModel
from workers.site_training import Trained, Work, dry_step, seed_of, split_rows, train_round, update_of
from workers.train import TrainingStopped

KEY = bytes(range(32))
BOUND = 0.02


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def state(base: BaseModel) -> FederationState:
    return make_state(site_spec(), base, residual_rank=1)


def work_at(base: BaseModel, offer: Offer, start: bytes, **fields: Any) -> Work:
    given = {"spec": site_spec(), "rows": make_rows(12), "max_norm": math.inf, **fields}
    return Work(offer=offer, base=base, start=start, **given)


def train_once(base: BaseModel, state: FederationState, offer_fields: Mapping[str, Any] = {}, **fields: Any) -> tuple[Offer, Trained]:
    rank = offer_fields.get("rank")
    offer, start = offer_of(state, rank, **{name: value for name, value in offer_fields.items() if name != "rank"})
    return offer, train_round(work_at(base, offer, start, **fields), Recorder().callbacks())


def gate_problems(offer: Offer, state: FederationState, trained: Trained) -> list[str]:
    """What the server's gate says of an update."""
    update = update_of(offer, trained)
    now = datetime(2026, 1, 1, tzinfo=UTC)
    site = Site(name="a", pseudonym=offer.site, public_key=public_key_of(KEY), state=SiteState.APPROVED, max_examples=100, enrolled_at=now)
    signed = SignedUpdate(update=update, signature=sign(KEY, update.to_bytes()))
    terms = Terms(offer=offer, site=site, state=state, now=now)
    return [str(problem) for problem in check_update(signed, read_update(trained.tensors, offer.wire), terms)]


@pytest.mark.parametrize("rule", [None, FreezePsi(), Alternate()])
@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_update_passes_the_servers_gate(base: BaseModel, state: FederationState, rule: Any, wire: str) -> None:
    offer, trained = train_once(base, state, {"wire": wire, "max_steps": 2, **({"rule": rule} if rule else {})})
    assert gate_problems(offer, state, trained) == []
    tensors = read_update(trained.tensors, offer.wire)
    assert set(tensors) == set(offer.tensors)
    assert all(np.abs(array).max() > 0 for array in tensors.values())
    assert (trained.examples, trained.steps) == (12, 2)
    assert trained.metrics["train_loss"] > 0


def test_update_of_lower_rank_passes_the_servers_gate(base: BaseModel, state: FederationState) -> None:
    offer, trained = train_once(base, state, {"rank": 2})
    assert gate_problems(offer, state, trained) == []


def test_round_gives_the_same_bytes_each_time_and_others_for_another_site(base: BaseModel, state: FederationState) -> None:
    _, first = train_once(base, state)
    _, again = train_once(base, state)
    _, other = train_once(base, state, {"site": "site-2"})
    assert first.tensors == again.tensors
    assert first.tensors != other.tensors
    assert not any(isinstance(module, WeGeFTLinear) for module in base.model.modules())


def test_seed_differs_by_round_and_site(base: BaseModel, state: FederationState) -> None:
    offer, _ = offer_of(state)
    seeds = {seed_of(offer.model_copy(update=change)) for change in ({}, {"seed": 6}, {"site": "site-2"})}
    assert len(seeds) == 3


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
def test_long_update_is_shortened_to_the_bound_and_no_further(base: BaseModel, state: FederationState, wire: str) -> None:
    offer, trained = train_once(base, state, {"wire": wire, "max_update_norm": BOUND}, max_norm=BOUND)
    assert trained.is_shortened
    assert trained.norm > BOUND
    assert gate_problems(offer, state, trained) == []
    slightly_less = offer.model_copy(update={"max_update_norm": 0.98 * BOUND})
    assert ["norm" in problem for problem in gate_problems(slightly_less, state, trained) if "offer" not in problem] == [True]


@pytest.mark.parametrize("wire", ["bf16", "int8"])
def test_what_the_wire_cuts_off_is_added_to_the_next_update(base: BaseModel, state: FederationState, wire: Any) -> None:
    """The same round three times: what arrives in all, and what still waits, are what was trained."""
    _, exact = train_once(base, state)
    trained, carried, arrived = read_update(exact.tensors, "fp32"), {}, dict.fromkeys(read_update(exact.tensors, "fp32"), 0.0)
    for _ in range(3):
        offer, sent = train_once(base, state, {"wire": wire}, carried=carried)
        arrived = {name: arrived[name] + array.astype(float) for name, array in read_update(sent.tensors, wire).items()}
        carried = dict(sent.carried)
    assert set(carried) == set(offer.tensors)
    for name, array in trained.items():
        whole, once = 3 * array.astype(float), 3 * as_received(name, array, wire)
        assert np.abs(arrived[name] + carried[name] - whole).max() < 1e-6 * np.abs(whole).max()
        assert np.abs(arrived[name] - whole).max() < np.abs(once - whole).max()


def test_what_was_cut_off_waits_for_the_round_that_asks_for_its_tensor(base: BaseModel, state: FederationState) -> None:
    _, first = train_once(base, state, {"wire": "int8", "rule": Alternate()})
    _, second = train_once(base, state, {"wire": "int8", "rule": Alternate(), "round": 2}, carried=first.carried)
    assert all(name.endswith(".phi") for name in first.carried)
    assert {name.rpartition(".")[2] for name in second.carried} == {"phi", "psi"}
    assert all(second.carried[name] is array for name, array in first.carried.items())


def test_nothing_is_carried_where_nothing_is_cut_or_factors_begin_afresh(base: BaseModel, state: FederationState) -> None:
    old = {"q_proj.phi": np.ones((1, 1))}
    _, whole = train_once(base, state)
    _, stacked = train_once(base, state, {"wire": "int8", "rule": Stack()})
    _, other_rank = train_once(base, state, {"wire": "int8"}, carried=old)
    _, none = train_once(base, state, {"wire": "int8"})
    assert (whole.carried, stacked.carried) == ({}, {})
    assert other_rank.tensors == none.tensors


def test_interrupted_round_goes_on_to_the_same_bytes(base: BaseModel, state: FederationState) -> None:
    spec = site_spec(save_steps=1, max_steps=4)
    offer, start = offer_of(state)
    work = work_at(base, offer, start, spec=spec)
    whole = train_round(work, Recorder().callbacks())
    recorder = Recorder(stop_after=2)
    with pytest.raises(TrainingStopped):
        train_round(work, recorder.callbacks())
    assert not any(isinstance(module, WeGeFTLinear) for module in base.model.modules())
    resumed = train_round(replace(work, checkpoint=recorder.saved[2]), Recorder().callbacks())
    assert resumed.tensors == whole.tensors


def test_rows_are_held_out_the_same_in_each_round(base: BaseModel, state: FederationState) -> None:
    spec = site_spec(val_set_size=0.25)
    rows = make_rows(12)
    kept, held = split_rows(spec, rows)
    assert (len(kept), len(held)) == (9, 3)
    _, trained = train_once(base, state, {"round": 2, "seed": 9}, spec=spec)
    assert trained.examples == 9
    assert trained.metrics["eval_loss"] != trained.metrics["eval_loss_before"]


def test_start_of_another_shape_than_offered_is_refused(base: BaseModel, state: FederationState) -> None:
    offer, _ = offer_of(state)
    _, other = offer_of(state, 2)
    with pytest.raises(InvalidTensors, match="as offered"):
        train_round(work_at(base, offer, other), Recorder().callbacks())


def test_dry_step_leaves_the_base_model_as_it_was(base: BaseModel) -> None:
    events: list[Any] = []
    dry_step(site_spec(val_set_size=2), base, make_rows(6), events.append)
    assert [event.step for event in events if event.type == "progress"] == [1]
    assert not any(isinstance(module, WeGeFTLinear) for module in base.model.modules())
    with pytest.raises(InvalidData):
        dry_step(site_spec(sequence_len=8, excess_length_strategy="error"), base, make_rows(6), events.append)
    assert not any(isinstance(module, WeGeFTLinear) for module in base.model.modules())
