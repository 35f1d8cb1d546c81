"""SCAFFOLD in the trainer and in a site's life: what the steps are, what is sent, what is kept, and what becomes of a site that forgot."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from orchestrator.aggregate import FederationState, mean_control
from orchestrator.federation_files import write_start
from tests.workers.site_rounds import make_state, offer_of, site_spec, tiny_base
from tests.workers.site_world import World, running_world
from tests.workers.test_site_training import gate_problems
from tests.workers.tiny_runs import Recorder, make_rows
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.control_variates import ControlTerms, control_of
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.federation import Offer
from wegeft.contracts.federation_rules import Core, FactorMean, FreezePsi
from wegeft.contracts.tensors import read_tensors
from wegeft.contracts.training import JobState
from wegeft.contracts.wire import read_update
from workers.base_model import BaseModel
from workers.site_training import Trained, Work, train_round
from workers.train import TrainingStopped

RATE = 0.05
START = {"config": "sha256:" + "1" * 64, "weights": "sha256:" + "2" * 64}
Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def state(base: BaseModel) -> FederationState:
    return make_state(site_spec(), base)


def control_offer(state: FederationState, control: dict[str, Array] | None = None, **fields: Any) -> tuple[Offer, bytes]:
    """An offer with control variates: the server's mean is ``control``, or nothing but zeros."""
    offer, _ = offer_of(state, rule=fields.pop("rule", FreezePsi()), **fields)
    shapes = {name: form.shape for name, form in offer.tensors.items()}
    start = write_start(state, None, mean_control(replace(state, controls=control or {}), shapes, 1))
    tensors = {**offer.tensors, **{control_of(name): form for name, form in offer.tensors.items()}}
    terms = ControlTerms(sites=1, max_norm=2.0)
    return offer.model_copy(update={"version": 2, "tensors": tensors, "start": digest_of(start), "control": terms}), start


def work_of(base: BaseModel, offer: Offer, start: bytes, own: dict[str, Array] | None = None, **spec: Any) -> Work:
    fields = {"datasets": [], "learning_rate": RATE, "lr_scheduler": "constant", "warmup_ratio": 0, "max_steps": 1, **spec}
    federation = {"start": START, "rule": "freeze_psi", "site_optimizer": "scaffold"}
    job = site_spec(**fields, federation=federation)
    return Work(offer=offer, spec=job, base=base, rows=make_rows(12), start=start, max_norm=math.inf, control=own or {})


def sent_by(trained: Trained) -> tuple[dict[str, Array], dict[str, Array]]:
    """What moved, and how the control variate changed."""
    tensors = {name: array.astype(np.float64) for name, array in read_tensors(trained.tensors).items()}
    moved = {name: array for name, array in tensors.items() if not name.endswith(".control")}
    return moved, {name: tensors[control_of(name)] for name in moved}


def like(state: FederationState, seed: int, size: float = 0.01) -> dict[str, Array]:
    random = np.random.default_rng(seed)
    return {f"{group}.phi": size * random.standard_normal(edit.pair.p.T.shape) for group, edit in state.edits.items()}


def test_one_step_goes_down_the_gradient_and_the_correction(base: BaseModel, state: FederationState) -> None:
    """Δφ = −η(g + c − cᵢ) and Δcᵢ = g − cᵢ, with g from a step without any correction."""
    plain, change = sent_by(train_round(work_of(base, *control_offer(state)), Recorder().callbacks()))
    gradient = {name: -moved / RATE for name, moved in plain.items()}
    c, own = like(state, 1), like(state, 2)
    trained = train_round(work_of(base, *control_offer(state, c), own), Recorder().callbacks())
    moved, changed = sent_by(trained)
    for name, g in gradient.items():
        assert np.abs(g).max() > 1e-3
        np.testing.assert_allclose(change[name], g, atol=1e-5)
        np.testing.assert_allclose(moved[name], -RATE * (g + c[name] - own[name]), atol=1e-7)
        np.testing.assert_allclose(changed[name], g - own[name], atol=1e-5)
        np.testing.assert_allclose(trained.control[name], own[name] + changed[name], rtol=0, atol=1e-12)


def test_many_steps_change_the_control_variate_by_their_mean_under_any_schedule(base: BaseModel, state: FederationState) -> None:
    """With ``c`` far above all gradients, what ``(x − y)/Σηₖ − c`` leaves is of a gradient's size, or the rates are wrong."""
    c = like(state, 3, size=30.0)
    options = {"max_steps": 5, "lr_scheduler": "cosine", "warmup_ratio": 0.4, "learning_rate": 1e-5}
    offer, start = control_offer(state, c)
    moved, changed = sent_by(train_round(work_of(base, offer, start, **options), Recorder().callbacks()))
    assert all(np.abs(changed[name]).max() < 1.0 < np.abs(moved[name] / 1e-5).max() for name in moved)


@pytest.mark.parametrize("wire", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("rule", [FreezePsi(), FactorMean(align=False), Core()])
def test_update_with_control_variates_passes_the_gate(base: BaseModel, state: FederationState, wire: str, rule: Any) -> None:
    if isinstance(rule, Core):
        edits = {group: replace(edit, core=np.eye(edit.pair.rank)) for group, edit in state.edits.items()}
        state = replace(state, edits=edits)
    offer, start = control_offer(state, rule=rule, wire=wire)
    trained = train_round(work_of(base, offer, start), Recorder().callbacks())
    assert set(read_update(trained.tensors, offer.wire)) == set(offer.tensors)
    assert gate_problems(offer, state, trained) == []


def test_interrupted_round_ends_in_the_same_bytes(base: BaseModel, state: FederationState) -> None:
    offer, start = control_offer(state, like(state, 4))
    work = work_of(base, offer, start, like(state, 5), max_steps=4, save_steps=1)
    whole = train_round(work, Recorder().callbacks())
    recorder = Recorder(stop_after=2)
    with pytest.raises(TrainingStopped):
        train_round(work, recorder.callbacks())
    again = train_round(replace(work, checkpoint=recorder.saved[2]), Recorder().callbacks())
    assert (again.tensors, again.control.keys()) == (whole.tensors, whole.control.keys())


@pytest.mark.parametrize("what", ["missing", "misshapen", "surplus"])
def test_start_with_other_control_variates_is_refused(base: BaseModel, state: FederationState, what: str) -> None:
    offer, _ = control_offer(state)
    plain = [name for name in offer.tensors if not name.endswith(".control")]
    control = {control_of(name): np.zeros(offer.tensors[name].shape) for name in plain}
    if what == "missing":
        control.pop(control_of(plain[0]))
    elif what == "misshapen":
        control[control_of(plain[0])] = np.zeros((1, 1))
    else:
        control[control_of(plain[0].replace("phi", "psi"))] = np.zeros((1, 1))
    with pytest.raises(InvalidTensors, match="control"):
        train_round(work_of(base, offer, write_start(state, None, control)), Recorder().callbacks())


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with running_world(tmp_path_factory.mktemp("scaffold")) as world:
        yield world


def test_federation_keeps_control_variates_at_sites_and_says_when_one_is_lost(world: World) -> None:
    rule = {"name": "freeze_psi"}
    job_id = world.submit(rounds=4, min_sites=1, rule=rule, site_optimizer="scaffold")
    member = world.join(job_id, "alpha", options={"is_once": True})
    for _ in range(2):
        assert member.run() is None
    records = [view.record for view in world.server.rounds(job_id) if view.record]
    assert {record.control_sites for record in records} == {1}
    second = member.journal.entries()[1]
    assert second.update is not None
    assert second.offer.control is not None
    assert second.update.control_from == second.offer.control.counted == records[0].members[0].tensors
    forget(member.journal.folder)
    assert member.run() is None
    assert "the control variate is lost and begins at zero again" in member.texts
    third = member.journal.entries()[2].update
    assert third is not None
    assert third.control_from is None
    member.options = {}
    assert member.run() is JobState.SUCCEEDED
    fourth = member.journal.entries()[3].update
    assert fourth is not None
    assert fourth.control_from == third.tensors


def forget(folder: Path) -> None:
    for path in folder.glob("*/control.safetensors"):
        path.unlink()
