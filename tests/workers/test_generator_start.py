"""What a site begins from: the generators of the server's state, evaluated exactly, of which only the offered parts move."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from orchestrator.aggregate import FederationState
from orchestrator.federation_files import write_adapter, write_start
from tests.workers.site_rounds import make_state, site_spec, tiny_base
from wegeft.algebra import Generator
from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.contracts.tensors import read_tensors
from workers.adaptation import adapt, strip, trainable
from workers.base_model import BaseModel
from workers.generator_start import begin_at, moved_from, read_start

TOKENS = torch.tensor([[5, 17, 99, 250, 3, 8]])


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return tiny_base()


def dense_logits(base: BaseModel, state: FederationState, spec_groups: set[str]) -> np.ndarray:
    """The logits of the base model with every weight edited densely in float64: ``W (I + pair + residual)``."""
    model = tiny_base().model.double()
    with torch.no_grad():
        for name, module in model.named_modules():
            group = name.rpartition(".")[2]
            if group in spec_groups:
                edit = state.edits[group]
                matrix = sum(part.scale * part.phi @ part.psi for part in (edit.trained, edit.residual))
                module.weight += module.weight @ torch.tensor(matrix)
        return model(TOKENS).logits.numpy()


@pytest.mark.parametrize(("residual_rank", "has_core"), [(0, False), (3, False), (3, True)])
def test_start_is_evaluated_as_the_servers_state_says(base: BaseModel, residual_rank: int, has_core: bool) -> None:
    spec = site_spec()
    state = make_state(spec, base, residual_rank=residual_rank, has_core=has_core)
    learns = {"q_proj.core"} if has_core else {"q_proj.phi", "q_proj.psi"}
    model = adapt(base, spec)
    begin_at(model, read_start(write_start(state, None), learns))
    with torch.no_grad():
        found = model.eval()(input_ids=TOKENS).logits.double().numpy()
    strip(base)
    expected = dense_logits(base, state, set(state.edits))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    assert np.abs(found - dense_logits(base, state, set())).max() > 1e-2, "the edit changes nothing, so this test shows nothing"


@pytest.mark.parametrize("learns", [{"q_proj.phi"}, {"v_proj.psi", "down_proj.psi"}, {"q_proj.phi", "q_proj.psi"}])
def test_only_offered_tensors_move(base: BaseModel, learns: set[str]) -> None:
    spec = site_spec()
    state = make_state(spec, base, residual_rank=2)
    start = read_start(write_start(state, None), learns)
    model = adapt(base, spec)
    begin_at(model, start)
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    step = torch.optim.SGD(trainable(model).values(), lr=0.1)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    step.step()
    changed = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    moved = moved_from(model, start)
    strip(base)
    assert set(moved) == learns
    assert all(np.abs(array).max() > 0 for array in moved.values())
    assert len(changed) == len(learns)
    assert not any("frozen" in name for name in changed)


def test_core_moves_between_fixed_factors(base: BaseModel) -> None:
    spec = site_spec()
    state = make_state(spec, base, has_core=True)
    start = read_start(write_start(state, None), {f"{group}.core" for group in state.edits})
    model = adapt(base, spec)
    begin_at(model, start)
    step = torch.optim.SGD(trainable(model).values(), lr=0.1)
    model.train()(input_ids=TOKENS, labels=TOKENS).loss.backward()
    step.step()
    moved = moved_from(model, start)
    strip(base)
    assert {name: array.shape for name, array in moved.items()} == {f"{group}.core": (4, 4) for group in state.edits}
    assert all(np.abs(array).max() > 0 for array in moved.values())


def test_lower_rank_starts_from_leading_directions(base: BaseModel) -> None:
    state = make_state(site_spec(), base, residual_rank=1)
    spec = site_spec(rank=2)
    spec = spec.model_copy(update={"alpha": 2.0 * 2})
    model = adapt(base, spec)
    begin_at(model, read_start(write_start(state, 2), {"q_proj.phi"}))
    with torch.no_grad():
        found = model.eval()(input_ids=TOKENS).logits.double().numpy()
    strip(base)
    expected = dense_logits(base, state, set(state.edits))
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_start_of_another_model_is_refused(base: BaseModel) -> None:
    state = make_state(site_spec(), base)
    start = read_start(write_start(state, None), {"q_proj.phi"})
    for other in (site_spec(target_modules=["q_proj", "k_proj"]), site_spec(rank=3)):
        model = adapt(base, other)
        with pytest.raises(InvalidTensors, match="base model the one") as caught:
            begin_at(model, start)
        strip(base)
        assert len(caught.value.problems) == 3


def _start(tensors: dict[str, np.ndarray], scales: str | None) -> bytes:
    return write_tensors(tensors, "F32", None if scales is None else {"scales": scales})


PAIR = {"q.phi": np.ones((6, 2)), "q.psi": np.ones((2, 6))}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"nonsense", "safetensors"),
        (_start(PAIR, None), "no scales"),
        (_start(PAIR, "[1]"), "no scales"),
        (_start(PAIR, '{"q": -1}'), "positive"),
        (_start(PAIR, '{"q": 1, "v": 2}'), "share one"),
        (_start(PAIR, '{"q": 1, "v": 1}'), "v.phi: is missing"),
        (_start({**PAIR, "other": np.ones(2)}, '{"q": 1}'), "no generator"),
        (_start({**PAIR, "q.frozen.phi": np.ones((6, 1))}, '{"q": 1}'), "needs phi and psi"),
        (_start({**PAIR, "q.core": np.ones((3, 3))}, '{"q": 1}'), "rank×rank"),
        (_start({"q.phi": np.ones((6, 2)), "q.psi": np.ones((3, 6))}, '{"q": 1}'), "width×rank"),
    ],
)
def test_malformed_start_is_refused(content: bytes, match: str) -> None:
    with pytest.raises(InvalidTensors) as caught:
        read_start(content, {"q.phi"})
    assert match in str(caught.value)


def test_part_that_is_not_in_the_start_cannot_be_asked() -> None:
    with pytest.raises(InvalidTensors, match=r"q\.core"):
        read_start(_start(PAIR, '{"q": 1}'), {"q.core"})


def test_published_adapter_is_what_the_next_start_evaluates(base: BaseModel) -> None:
    state = make_state(site_spec(), base, residual_rank=2)
    start = read_start(write_start(state, None), set())
    published = read_tensors(write_adapter(state).weights)
    for group in start.groups:
        pair = Generator(phi=start.trained[f"{group}.phi"], psi=start.trained[f"{group}.psi"], scale=start.scale)
        parts = [pair, start.frozen[group]] if group in start.frozen else [pair]
        total = sum(part.scale * part.phi.astype(np.float64) @ part.psi.astype(np.float64) for part in parts)
        phi, psi = (published[f"base_model.wegeft_generators.{group}.{name}"].astype(np.float64) for name in ("phi", "psi"))
        assert np.allclose(start.scale * phi @ psi, total, atol=1e-6)
