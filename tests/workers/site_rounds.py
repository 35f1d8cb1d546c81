"""A federation's round over the tiny model, for tests of a site: the server's state as the orchestrator writes it, and an offer."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from orchestrator.aggregate import FederationState
from orchestrator.federation_files import state_from_adapter, write_start
from orchestrator.update_gate import expected_forms
from tests.tiny_models import make_model, make_tokenizer
from tests.workers.tiny_runs import spec_of
from wegeft.algebra import from_rows
from wegeft.contracts.adapter import digest_of
from wegeft.contracts.federation import Offer, TensorForm
from wegeft.contracts.federation_rules import GeneratorExact, sent_parts
from wegeft.contracts.job import JobSpec
from wegeft.method import adapter_state_dict
from workers.adaptation import adapt, strip
from workers.base_model import BaseModel

DEADLINE = datetime(2099, 1, 1, tzinfo=UTC)


def tiny_base() -> BaseModel:
    """The tiny model, frozen."""
    model = make_model().requires_grad_(requires_grad=False)
    return BaseModel(model=model, tokenizer=make_tokenizer(), identity="tiny@1", commit=None, license=None)


def site_spec(**fields: Any) -> JobSpec:
    """The job that the site agreed to."""
    return spec_of(**{"max_steps": 3, "target_modules": ["q_proj", "v_proj", "down_proj"], **fields})


def make_state(spec: JobSpec, base: BaseModel, *, residual_rank: int = 0, has_core: bool = False, seed: int = 0) -> FederationState:
    """A state in which the generators are not zero any more; with a residual, each group has one of another rank, the first none."""
    random = np.random.default_rng(seed)
    tensors = {name: tensor.numpy() for name, tensor in adapter_state_dict(adapt(base, spec)).items()}
    strip(base)
    moved = {name: array + random.normal(scale=0.02, size=array.shape) for name, array in tensors.items()}
    groups = {name.rpartition(".")[0].removeprefix("base_model.wegeft_generators.") for name in tensors}
    state = state_from_adapter(moved, dict.fromkeys(groups, spec.effective_alpha / spec.rank), has_core=has_core)
    if not residual_rank:
        return state
    edits = {}
    for index, (group, edit) in enumerate(sorted(state.edits.items())):
        p, q = (random.normal(scale=0.05, size=(index * residual_rank, edit.pair.width)) for _ in range(2))
        edits[group] = replace(edit, residual=from_rows(p=p, q=q))
    return replace(state, edits=edits)


def offer_of(state: FederationState, rank: int | None = None, **fields: Any) -> tuple[Offer, bytes]:
    """The offer of a round that begins at ``state``, and the bytes of its start."""
    start = write_start(state, rank)
    rule = fields.pop("rule", GeneratorExact())
    forms = expected_forms(rank, state, sent_parts(rule, fields.get("round", 1)))
    full = max(edit.pair.rank for edit in state.edits.values())
    given = {
        "job_id": "job",
        "round": 1,
        "site": "site-1",
        "base_model": "tiny-model",
        "start": digest_of(start),
        "rank": rank or full,
        "rule": rule,
        "tensors": {name: TensorForm(shape=shape) for name, shape in forms.items()},
        "max_update_norm": 1e3,
        "seed": 5,
        "deadline_at": DEADLINE,
        **fields,
    }
    return Offer(**given), start
