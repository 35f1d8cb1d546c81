"""Tiny seeded models, and the method written a second time, densely and in float64, to check the first."""

import copy
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM
from transformers.pytorch_utils import Conv1D

from wegeft.method import WeGeFTConfig

LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
IDS = torch.tensor([[3, 17, 5, 40, 22, 9], [11, 2, 60, 33, 8, 1]])


def llama(*, layers: int = 2, bias: bool = False, tied: bool = False, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    torch.manual_seed(7)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        attention_bias=bias,
        mlp_bias=bias,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    model = LlamaForCausalLM(config).to(dtype)
    if bias:
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                nn.init.normal_(parameter, std=0.2)
    return model.eval()


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(7)
    return GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=64, n_positions=32, initializer_range=0.2)).eval()


def bert() -> BertForSequenceClassification:
    torch.manual_seed(7)
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, vocab_size=64, num_labels=3, initializer_range=0.2
    )
    return BertForSequenceClassification(config).eval()


def adapted(model: nn.Module, *, seed: int = 1, name: str = "default", std: float = 0.3, **options: Any) -> PeftModel:
    """Put an adapter with random, non-zero generators on the model."""
    options = {"r": 4, "wegeft_alpha": 6.0, "target_modules": "all-linear", **options}
    peft_model = get_peft_model(model, WeGeFTConfig(**options), adapter_name=name)
    randomise(peft_model, seed=seed, name=name, std=std)
    return peft_model.eval()


@torch.no_grad()
def randomise(peft_model: PeftModel, *, seed: int = 1, name: str = "default", std: float = 0.3) -> None:
    numbers = torch.Generator().manual_seed(seed)
    for generator in peft_model.base_model.generators_of(name).values():
        for parameter in (generator.phi, generator.psi):
            parameter.copy_(torch.randn(parameter.shape, generator=numbers) * std)


def logits(model: nn.Module, ids: Tensor = IDS) -> Tensor:
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result


def error(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected magnitude."""
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).abs().max() / expected.abs().max())


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradients(model: nn.Module, ids: Tensor = IDS) -> dict[str, Tensor]:
    model.zero_grad()
    output = model(input_ids=ids).logits
    output.to(torch.promote_types(output.dtype, torch.float32)).pow(2).mean().backward()
    return {name: parameter.grad.clone() for name, parameter in trainable(model).items() if parameter.grad is not None}


@torch.no_grad()
def dense_reference(base: nn.Module, adapters: Iterable[PeftModel | tuple[PeftModel, str]]) -> nn.Module:
    """Return a float64 copy of ``base`` with ``W (I + Σ s φψ)``, or ``(I + Σ s φψ) W`` and its bias, written into its weights."""
    model = copy.deepcopy(base).double()
    layers = dict(model.named_modules())
    changes: dict[str, list[tuple[str, Tensor]]] = {}
    for adapter in adapters:
        peft_model, name = adapter if isinstance(adapter, tuple) else (adapter, "default")
        for layer, generator in _generators(peft_model, name).items():
            product = generator.scaling * generator.phi.double() @ generator.psi.double()
            changes.setdefault(layer, []).append((generator.transform, product))
    for layer, products in changes.items():
        _change(layers[layer], products)
    return model


def _generators(peft_model: PeftModel, name: str) -> Mapping[str, Any]:
    plan = peft_model.base_model.plans[name]
    store = peft_model.base_model.generators_of(name)
    return {layer: store[group.key.replace(".", "/")] for layer, group in plan.items()}


def _change(layer: nn.Module, products: list[tuple[str, Tensor]]) -> None:
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    delta = torch.zeros_like(weight)
    bias_delta = torch.zeros_like(weight[:, 0])
    for transform, product in products:
        delta += weight @ product if transform == "input" else product @ weight
        if transform == "output" and layer.bias is not None:
            bias_delta += product @ layer.bias
    layer.weight += delta.t() if isinstance(layer, Conv1D) else delta
    if layer.bias is not None:
        layer.bias += bias_delta
