"""WeGeFT in PEFT's hands: add, switch, save, load, disable, delete, copy."""

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from tests.method.models import IDS, LINEARS, adapted, dense_reference, error, gradients, llama, logits, randomise, trainable
from wegeft.contracts.errors import InvalidAdapterConfig, InvalidTensors, TargetsNotFound
from wegeft.method import WeGeFTConfig, adapter_state_dict


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-5) -> bool:
    return error(found, expected) < tolerance


def test_new_adapter_is_the_identity() -> None:
    base = logits(llama())
    for init in ("phi_zero", "psi_zero", "orthogonal"):
        model = get_peft_model(llama(), WeGeFTConfig(r=4, target_modules="all-linear", init_weights=init))
        assert torch.equal(logits(model), base)


@pytest.mark.parametrize(("init", "moves"), [("phi_zero", "phi"), ("psi_zero", "psi"), ("orthogonal", "phi")])
def test_initialisation_decides_which_factor_the_first_step_moves(init: str, moves: str) -> None:
    model = get_peft_model(llama(), WeGeFTConfig(r=4, target_modules="all-linear", init_weights=init))
    moved = {name.rpartition(".")[2] for name, gradient in gradients(model).items() if gradient.abs().max() > 0}
    assert moved == {moves}


def test_orthogonal_rows() -> None:
    model = get_peft_model(llama(), WeGeFTConfig(r=4, target_modules=["q_proj"], init_weights="orthogonal"))
    psi = model.base_model.generators_of("default")["q_proj"].psi.detach()
    assert close(psi @ psi.t(), torch.eye(4), 1e-6)


def test_logits_equal_the_dense_reference() -> None:
    base, model = llama(), adapted(llama())
    assert close(logits(model), logits(dense_reference(base, [model])))
    assert not close(logits(model), logits(base), 0.1)


def test_gradients_equal_the_dense_reference() -> None:
    """Autograd through ``W (I + sφψ)``, formed densely in float64, agrees with the fused gradients."""
    base, model = llama(), adapted(llama())
    ours = gradients(model)
    dense = copy.deepcopy(base).double()
    factors = {name: parameter.detach().double().requires_grad_() for name, parameter in trainable(model).items()}
    weights = {}
    for layer, group in model.base_model.plans["default"].items():
        prefix = f"base_model.wegeft_generators.default.{group.key}"
        weight = dense.get_submodule(layer).weight
        weights[f"{layer}.weight"] = weight + weight @ (group.scaling * factors[f"{prefix}.phi"] @ factors[f"{prefix}.psi"])
    output = torch.func.functional_call(dense, weights, kwargs={"input_ids": IDS}).logits
    expected = torch.autograd.grad(output.pow(2).mean(), list(factors.values()))
    for name, gradient in zip(factors, expected, strict=True):
        assert (ours[name] - gradient).norm() < 1e-4 * gradient.norm(), name


def test_only_generators_train_and_each_once() -> None:
    model = adapted(llama())
    assert len(trainable(model)) == 2 * len(LINEARS)
    assert all("wegeft_generators" in name for name in trainable(model))


def test_file_holds_each_generator_once(tmp_path: Path) -> None:
    model = adapted(llama())
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    assert sorted(tensors) == sorted(f"base_model.wegeft_generators.{name}.{part}" for name in LINEARS for part in ("phi", "psi"))
    assert tensors["base_model.wegeft_generators.down_proj.phi"].shape == (48, 4)
    assert tensors["base_model.wegeft_generators.down_proj.psi"].shape == (4, 48)
    state = adapter_state_dict(model)
    assert state.keys() == tensors.keys()
    assert all(torch.equal(state[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_saved_and_loaded_computes_the_same(tmp_path: Path, low_cpu_mem_usage: bool) -> None:
    model = adapted(llama())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    assert torch.equal(logits(loaded), logits(model))
    assert not trainable(loaded)
    assert not any(parameter.is_meta for parameter in loaded.parameters())


def test_loaded_for_training_trains_and_has_the_same_gradients(tmp_path: Path) -> None:
    model = adapted(llama())
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(llama(), tmp_path, is_trainable=True)
    expected, found = gradients(model), gradients(loaded)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def tampered(folder: Path, change: str) -> None:
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    key = "base_model.wegeft_generators.k_proj.psi"
    match change:
        case "missing":
            del tensors[key]
        case "shape":
            tensors[key] = torch.zeros(4, 31)
        case "surplus":
            tensors["base_model.wegeft_generators.other.psi"] = torch.zeros(4, 32)
        case "nan":
            tensors[key][0, 0] = float("nan")
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", "k_proj.psi: is missing"),
        ("shape", r"k_proj.psi: must have shape \(4, 32\) \(got \(4, 31\)\)"),
        ("surplus", "other.psi: belongs to no generator"),
        ("nan", "k_proj.psi: holds numbers that are not finite"),
    ],
)
def test_file_that_does_not_fit_is_never_loaded(tmp_path: Path, change: str, message: str) -> None:
    adapted(llama()).save_pretrained(tmp_path)
    tampered(tmp_path, change)
    with pytest.raises(InvalidTensors, match=message):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_wrong_sharing_in_the_configuration_is_never_loaded(tmp_path: Path) -> None:
    adapted(llama()).save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tied_modules": "layer"}))
    with pytest.raises(InvalidTensors, match="is missing"):
        PeftModel.from_pretrained(llama(), tmp_path)


def test_refused_configuration_leaves_the_model_untouched() -> None:
    model = llama()
    with pytest.raises(TargetsNotFound):
        get_peft_model(model, WeGeFTConfig(target_modules=["nothing"]))
    with pytest.raises(InvalidAdapterConfig, match="differ in width"):
        get_peft_model(model, WeGeFTConfig(target_modules=["q_proj", "down_proj"], tied_modules=[["q_proj", "down_proj"]]))
    assert all(type(module).__name__ != "WeGeFTLinear" for module in model.modules())


def test_disabled_adapter_is_the_base_model() -> None:
    model = adapted(llama())
    with model.disable_adapter():
        assert torch.equal(logits(model), logits(llama()))
    assert not close(logits(model), logits(llama()), 0.1)
    assert len(trainable(model)) == 2 * len(LINEARS)


def second_adapter(model: PeftModel) -> None:
    model.add_adapter("second", WeGeFTConfig(r=3, wegeft_alpha=3, target_modules=["q_proj", "up_proj"]))
    randomise(model, seed=2, name="second")


def test_adapters_switch() -> None:
    base, model = llama(), adapted(llama())
    first = logits(model)
    second_adapter(model)
    assert torch.equal(logits(model), first)
    model.set_adapter("second")
    assert close(logits(model), logits(dense_reference(base, [(model, "second")])))
    assert set(trainable(model)) == {f"base_model.wegeft_generators.second.{n}.{p}" for n in ("q_proj", "up_proj") for p in ("phi", "psi")}
    model.set_adapter("default")
    assert torch.equal(logits(model), first)


def test_active_adapters_add_up() -> None:
    base, model = llama(), adapted(llama())
    second_adapter(model)
    model.base_model.set_adapter(["default", "second"])
    assert close(logits(model), logits(dense_reference(base, [(model, "default"), (model, "second")])))
    assert close(model(input_ids=IDS).logits, logits(model))


def test_each_adapter_saves_its_own(tmp_path: Path) -> None:
    model = adapted(llama())
    second_adapter(model)
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / "adapter_model.safetensors")) == 2 * len(LINEARS)
    assert sorted(load_file(tmp_path / "second" / "adapter_model.safetensors")) == sorted(
        f"base_model.wegeft_generators.{name}.{part}" for name in ("q_proj", "up_proj") for part in ("phi", "psi")
    )
    loaded = PeftModel.from_pretrained(llama(), tmp_path)
    loaded.load_adapter(tmp_path / "second", "other")
    loaded.set_adapter("other")
    model.set_adapter("second")
    assert torch.equal(logits(loaded), logits(model))


def test_deleted_adapter_is_gone_and_its_name_starts_afresh() -> None:
    model = adapted(llama())
    second_adapter(model)
    model.delete_adapter("second")
    assert not any("second" in name for name, _ in model.named_parameters())
    model.add_adapter("second", WeGeFTConfig(r=5, target_modules=["v_proj"]))
    model.set_adapter("second")
    assert torch.equal(logits(model), logits(llama()))
    assert [tuple(p.shape) for p in trainable(model).values()] == [(32, 5), (5, 32)]


def test_adapter_named_like_a_generator_is_refused() -> None:
    model = adapted(llama())
    with pytest.raises(InvalidAdapterConfig, match="cannot be named like"):
        model.add_adapter("q_proj", WeGeFTConfig(target_modules=["q_proj"]))
    assert list(model.peft_config) == ["default"]


def test_deep_copy_shares_among_its_layers_and_not_with_the_original() -> None:
    model = adapted(llama())
    before = logits(model)
    twin = copy.deepcopy(model)
    assert torch.equal(logits(twin), before)
    randomise(twin, seed=9)
    assert torch.equal(logits(model), before)
    assert close(logits(twin), logits(dense_reference(llama(), [twin])))


def test_pickle_round_trip_keeps_the_sharing() -> None:
    model = adapted(llama())
    buffer = io.BytesIO()
    pickle.dump(model, buffer)
    twin = pickle.loads(buffer.getvalue())
    assert torch.equal(logits(twin), logits(model))
    randomise(twin, seed=9)
    assert close(logits(twin), logits(dense_reference(llama(), [twin])))


def test_state_dict_round_trip() -> None:
    model, other = adapted(llama()), adapted(llama(), seed=5)
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other), logits(model))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("autocast", [True, False])
def test_half_precision_base(dtype: torch.dtype, autocast: bool) -> None:
    """Generators are float32 over a half-precision base unless asked otherwise; both compute and train."""
    config = WeGeFTConfig(r=4, wegeft_alpha=6, target_modules="all-linear")
    model = get_peft_model(llama(dtype=dtype), config, autocast_adapter_dtype=autocast)
    assert {parameter.dtype for parameter in trainable(model).values()} == {torch.float32 if autocast else dtype}
    randomise(model, std=0.1)
    rounding = error(logits(llama(dtype=dtype)), logits(llama(dtype=dtype).double()))
    assert error(logits(model), logits(dense_reference(llama(dtype=dtype), [model]))) < 3 * rounding
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradients(model).values())


def test_autocast_computes_and_trains() -> None:
    model = adapted(llama(), std=0.1)
    full = gradients(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = gradients(model)
    assert all((low[name] - full[name]).norm() < 0.1 * full[name].norm() for name in full)
    assert {gradient.dtype for gradient in low.values()} == {torch.float32}
