"""Layers of every kind, dropout of both kinds, saved modules, and vision models."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from peft.peft_model import get_layer_status, get_model_status
from peft.tuners.lora.conversion import convert_to_lora
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from tests.method.models import IDS, adapted, bert, dense_reference, error, gpt2, gradients, llama, logits, randomise, trainable
from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method import WeGeFTConfig, WeGeFTLinear


class PackedLinear(nn.Module):
    """A linear layer as quantisation libraries make them: integers and scales, no weight to read."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("packed", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def unpacked(self) -> Tensor:
        return self.packed * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.unpacked(), self.bias)


def packed_llama() -> nn.Module:
    model = llama()
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, PackedLinear(module))
    return model


def unpacked_llama() -> nn.Module:
    packed, model = packed_llama(), llama()
    for name, module in packed.named_modules():
        if isinstance(module, PackedLinear):
            model.get_submodule(name).weight.data = module.unpacked()
    return model


@pytest.mark.parametrize("transform", ["input", "output"])
def test_quantised_layers_need_no_weight(transform: str) -> None:
    model = adapted(packed_llama(), transform=transform)
    twin = adapted(unpacked_llama(), transform=transform)
    assert error(logits(model), logits(dense_reference(unpacked_llama(), [twin]))) < 1e-5
    found, expected = gradients(model), gradients(twin)
    assert max(error(found[name], expected[name]) for name in expected) < 1e-4


def test_weight_form_says_why_it_cannot_on_quantised_layers() -> None:
    model = packed_llama()
    with pytest.raises(InvalidAdapterConfig, match="reads the weight, which is quantised here"):
        get_peft_model(model, WeGeFTConfig(target_modules="all-linear", weight_dropout=0.1))
    assert not any(isinstance(module, WeGeFTLinear) for module in model.modules())


def test_merging_says_why_it_cannot_on_quantised_layers() -> None:
    with pytest.raises(InvalidAdapterConfig, match="weights cannot be rewritten"):
        adapted(packed_llama()).merge_adapter()


def quantised(library: str) -> nn.Sequential:
    """Return one linear layer as a quantisation library keeps it; skip where the library is not installed."""
    name, _, bits = library.partition("-")
    module = pytest.importorskip(name)
    torch.manual_seed(0)
    base = nn.Sequential()
    base.add_module("q_proj", nn.Linear(64, 64))
    if name == "torchao":
        module.quantize_(base, module.quantization.Int8WeightOnlyConfig())
        return base
    four, eight = module.nn.Linear4bit, module.nn.Linear8bitLt
    layer = four(64, 64, compute_dtype=torch.float32) if bits == "4" else eight(64, 64, has_fp16_weights=False)
    layer.load_state_dict(base.q_proj.state_dict())
    base.q_proj = layer.to("cpu")
    return base


@pytest.mark.parametrize("library", ["bitsandbytes-4", "bitsandbytes-8", "torchao"])
def test_quantisation_libraries(library: str) -> None:
    """x-form over the libraries' own layers, against the same layers without an adapter fed with the edited input."""
    base = quantised(library)
    frozen = base.q_proj
    x = torch.randn(5, 64)
    model = adapted(base, r=4, target_modules=["q_proj"])
    generator = model.base_model.generators_of("default")["q_proj"]
    edited = x + generator.scaling * (x @ generator.psi.t()) @ generator.phi.t()
    assert error(model(x), frozen(edited)) < 1e-5
    model(x).pow(2).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in trainable(model).values())


@pytest.mark.parametrize(("library", "rounding"), [("bitsandbytes-4", 0.3), ("bitsandbytes-8", 0.03)])
def test_merge_into_quantised_weights_is_undone_from_a_copy_or_not_at_all(library: str, rounding: float) -> None:
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    model = adapted(quantised(library), r=4, target_modules=["q_proj"])
    with model.disable_adapter():
        before = model(x)
    edited = model(x)
    model.base_model.merge_adapter(keep_copy=True)
    assert error(model(x), edited) < rounding
    model.unmerge_adapter()
    with model.disable_adapter():
        assert error(model(x), before) < 0.01
    model.merge_adapter()
    with pytest.raises(InvalidAdapterConfig, match="cannot be undone without a copy"):
        model.unmerge_adapter()


@pytest.mark.parametrize("transform", ["input", "output"])
def test_conv1d(transform: str) -> None:
    model = adapted(gpt2(), transform=transform)
    expected = logits(dense_reference(gpt2(), [model]))
    assert error(logits(model), expected) < 1e-5
    assert error(model(input_ids=IDS).logits, expected) < 1e-5


@pytest.mark.parametrize(("model", "options"), [(llama, {}), (gpt2, {}), (llama, {"transform": "output"}), (llama, {"input_dropout": 0.1})])
def test_weight_dropout_is_unbiased_while_training_and_absent_otherwise(model: Any, options: dict[str, Any]) -> None:
    """``E[(D∘W)φ] = Wφ``: the mean over masks of one edited layer is the layer without dropout, and its spread is not zero."""
    adapter = adapted(model(), weight_dropout=0.3, std=0.1, **options)
    assert error(logits(adapter), logits(dense_reference(model(), [adapter]))) < 1e-5
    layer = next(module for module in adapter.modules() if isinstance(module, WeGeFTLinear))
    torch.manual_seed(0)
    x = torch.randn(2, 32)
    with torch.no_grad():
        expected = layer(x)
        adapter.train()
        draws = torch.stack([layer(x) for _ in range(4000)])
    assert draws.std(0).mean() > 0.01
    standard_error = draws.std(0) / 4000**0.5
    assert ((draws.mean(0) - expected).abs() < 5 * standard_error + 1e-6).all()


@pytest.mark.parametrize("transform", ["input", "output"])
def test_weight_dropout_trains(transform: str) -> None:
    adapter = adapted(llama(), weight_dropout=0.3, transform=transform).train()
    torch.manual_seed(0)
    first, second = gradients(adapter), gradients(adapter)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in first.values())
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_input_dropout_is_unbiased_while_training_and_absent_otherwise() -> None:
    adapter = adapted(llama(), input_dropout=0.4, target_modules=["q_proj"])
    assert error(logits(adapter), logits(dense_reference(llama(), [adapter]))) < 1e-5
    layer = adapter.base_model.model.model.layers[0].self_attn.q_proj
    torch.manual_seed(0)
    x = torch.randn(2, 32)
    with torch.no_grad():
        expected = layer(x)
        adapter.train()
        draws = torch.stack([layer(x) for _ in range(4000)])
    assert draws.std(0).mean() > 0.01
    assert ((draws.mean(0) - expected).abs() < 5 * draws.std(0) / 4000**0.5).all()


def test_saved_modules_train_and_travel(tmp_path: Path) -> None:
    model = adapted(bert(), modules_to_save=["classifier"])
    assert {name.rpartition(".")[2] for name in trainable(model)} == {"phi", "psi", "weight", "bias"}
    with torch.no_grad():
        model.base_model.model.classifier.modules_to_save.default.weight.mul_(3)
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(bert(), tmp_path)
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.equal(logits(loaded), logits(adapted(bert())))


def vit() -> ViTForImageClassification:
    torch.manual_seed(7)
    config = ViTConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, image_size=16, patch_size=8, num_labels=5
    )
    return ViTForImageClassification(config).eval()


def test_vision_transformer_as_published() -> None:
    """GIFT edits the output projection of every block with one generator, and trains the head."""
    config = WeGeFTConfig(r=4, wegeft_alpha=4, target_modules=["attention.o_proj"], modules_to_save=["classifier"], init_weights="psi_zero")
    pixels = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = get_peft_model(vit(), config)
    assert sum("wegeft" in name for name in trainable(model)) == 2
    randomise(model)
    with torch.no_grad():
        found, expected = model(pixels).logits, dense_reference(vit(), [model])(pixels.double()).logits
    assert error(found, expected) < 1e-5


class Block(nn.Module):
    """Names of timm: one fused ``qkv`` and a ``proj``."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.ModuleDict({"qkv": nn.Linear(16, 48), "proj": nn.Linear(16, 16)})

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](x).chunk(3, dim=-1)
        return x + self.attn["proj"](q * k + v)


def test_fused_projection_and_names_of_timm() -> None:
    torch.manual_seed(7)
    base = nn.Sequential()
    base.add_module("blocks", nn.Sequential(Block(), Block(), Block()))
    x = torch.randn(3, 16)
    model = adapted(base, target_modules=["attn.qkv", "attn.proj"], r=2)
    assert {group.key for group in model.base_model.plans["default"].values()} == {"qkv", "proj"}
    assert error(model(x), dense_reference(model.unload(), [model])(x.double())) < 1e-5


def test_head_is_edited_when_asked_for() -> None:
    model = adapted(llama(), target_modules=["lm_head", "q_proj"])
    assert error(logits(model), logits(dense_reference(llama(), [model]))) < 1e-5


def test_status_that_peft_reports() -> None:
    model = adapted(llama())
    model.add_adapter("second", WeGeFTConfig(r=2, target_modules=["q_proj"]))
    status = {layer.name: layer for layer in get_layer_status(model)}
    assert status["model.model.layers.0.self_attn.q_proj"].available_adapters == ["default", "second"]
    assert status["model.model.layers.0.self_attn.q_proj"].requires_grad == {"default": True, "second": False}
    assert status["model.model.layers.0.mlp.up_proj"].available_adapters == ["default"]
    assert get_model_status(model).devices == {"default": ["cpu"], "second": ["cpu"]}


def test_peft_can_convert_by_its_own_call() -> None:
    """PEFT's SVD conversion loses nothing at the adapter's own rank."""
    model = adapted(llama(), target_modules=["q_proj"])
    config, tensors = convert_to_lora(model, rank=4)
    assert config.r == 4
    key = "base_model.model.model.layers.0.self_attn.q_proj"
    delta = model.base_model.model.model.layers[0].self_attn.q_proj.get_delta_weight("default")
    assert error(tensors[f"{key}.lora_B.weight"] @ tensors[f"{key}.lora_A.weight"], delta) < 1e-5
    assert not adapted(llama(bias=True), transform="output").supports_lora_conversion()
