"""FedProx: the spring is the gradient of its term, its minimum is the closed form's, and the trainer adds it once a step."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.aggregate import FederationState
from tests.workers.site_rounds import make_state, offer_of, site_spec, tiny_base
from tests.workers.tiny_runs import Recorder, make_rows
from wegeft.contracts.errors import InvalidJob
from wegeft.contracts.federation_rules import FreezePsi
from wegeft.contracts.job import parse_spec
from wegeft.contracts.tensors import read_tensors
from workers.base_model import BaseModel
from workers.proximal import Spring
from workers.site_training import Work, train_round
from workers.train import TrainingStopped

START = {"config": "sha256:" + "1" * 64, "weights": "sha256:" + "2" * 64}


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10_000), mu=st.floats(1e-3, 100), parts=st.integers(1, 4))
def test_spring_ends_at_the_dense_closed_form_whatever_the_micro_batches(seed: int, mu: float, parts: int) -> None:
    """argmin ½‖Aθ − b‖² + μ/2‖θ − θ₀‖² = (AᵀA + μ)⁻¹(Aᵀb + μθ₀), by Newton's step on the gradients that were added up."""
    torch.manual_seed(seed)
    a, b = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, dtype=torch.float64)
    theta = torch.nn.Parameter(torch.randn(5, dtype=torch.float64))
    start, spring = theta.detach().clone(), Spring([theta], mu)
    with torch.no_grad():
        theta += torch.randn(5, dtype=torch.float64)
    for rows in torch.arange(8).chunk(parts):
        (0.5 * (a[rows] @ theta - b[rows]).square().sum()).backward()
    spring.pull()
    hessian = a.T @ a + mu * torch.eye(5, dtype=torch.float64)
    assert theta.grad is not None
    found = theta.detach() - torch.linalg.solve(hessian, theta.grad)
    expected = torch.linalg.solve(hessian, a.T @ b + mu * start)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


def test_spring_pulls_what_no_row_reached() -> None:
    theta = torch.nn.Parameter(torch.zeros(2))
    spring = Spring([theta], 3.0)
    with torch.no_grad():
        theta += 2
    spring.pull()
    assert theta.grad is not None
    assert theta.grad.tolist() == [6.0, 6.0]


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


@pytest.fixture(scope="module")
def state(base: BaseModel) -> FederationState:
    return make_state(site_spec(), base, residual_rank=1)


def work_of(base: BaseModel, state: FederationState, mu: float, rule: Any = None, **spec: Any) -> Work:
    offer, start = offer_of(state, **({"rule": rule} if rule else {}))
    fields = {"datasets": [], "learning_rate": 0.005, "lr_scheduler": "constant", "warmup_ratio": 0, **spec}
    federation = {"start": START, "proximal_mu": mu}
    return Work(offer=offer, spec=site_spec(**fields, federation=federation), base=base, rows=make_rows(12), start=start, max_norm=math.inf)


def length(tensors: bytes) -> float:
    return math.hypot(*(float(np.linalg.norm(array.astype(np.float64))) for array in read_tensors(tensors).values()))


@pytest.mark.parametrize("rule", [None, FreezePsi()])
def test_trainer_adds_the_term_once_a_step_before_clipping(base: BaseModel, state: FederationState, rule: Any) -> None:
    """A spring so strong that rows hardly count: the second step's gradient, before it is clipped, is μ times the first step's way."""
    mu = 1e6
    options = {"micro_batch_size": 2, "gradient_accumulation_steps": 3, "max_grad_norm": 0.5, "logging_steps": 1}
    one = train_round(work_of(base, state, mu, rule, max_steps=1, **options), Recorder().callbacks())
    recorder = Recorder()
    train_round(work_of(base, state, mu, rule, max_steps=2, **options), recorder.callbacks())
    assert recorder.progress[1].gradient_norm == pytest.approx(mu * length(one.tensors), rel=1e-3)
    assert recorder.progress[0].gradient_norm < 1e-3 * recorder.progress[1].gradient_norm


def test_no_spring_changes_no_byte_and_a_spring_shortens_the_way(base: BaseModel, state: FederationState) -> None:
    work = work_of(base, state, 0.0, max_steps=6)
    without = replace(work, spec=work.spec.model_copy(update={"federation": None, "datasets": site_spec().datasets}))
    free, plain, held = (train_round(one, Recorder().callbacks()) for one in (work, without, work_of(base, state, 300.0, max_steps=6)))
    assert free.tensors == plain.tensors
    assert length(held.tensors) < 0.8 * length(free.tensors)


def test_interrupted_round_is_pulled_to_where_it_first_began(base: BaseModel, state: FederationState) -> None:
    work = work_of(base, state, 50.0, save_steps=1, max_steps=4)
    whole = train_round(work, Recorder().callbacks())
    recorder = Recorder(stop_after=2)
    with pytest.raises(TrainingStopped):
        train_round(work, recorder.callbacks())
    assert train_round(replace(work, checkpoint=recorder.saved[2]), Recorder().callbacks()).tensors == whole.tensors


@pytest.mark.parametrize("mu", [-0.1, math.nan, math.inf, "strong"])
def test_mu_that_is_no_weight_is_refused(mu: Any) -> None:
    with pytest.raises(InvalidJob, match="proximal_mu"):
        parse_spec({"name": "a", "base_model": "m", "federation": {"start": START, "proximal_mu": mu}})
