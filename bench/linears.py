"""What the edit of one layer's linear modules costs, beside the products that it cannot do without.

    python -m bench.linears        one layer of SmolLM2-135M's shape, 4×256 tokens, float32, one thread

Steps take seconds, and on a shared machine others always disturb one. The modules that read one input take milliseconds, and the least of
many repetitions is one that nobody disturbed. Forms take turns. *Products* are the matrix products of WeGeFT's forward and backward pass
by themselves, each the least of many: the cost of an implementation with nothing around them.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from bench.train_step import FORMS, SMOLLM2_135M, over
from wegeft.method.edit import is_cheaper_by_weight

READERS = {
    "q, k, v": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "o": ("self_attn.o_proj",),
    "gate, up": ("mlp.gate_proj", "mlp.up_proj"),
    "down": ("mlp.down_proj",),
}
"""The linear modules of a layer, by the input that they read."""


def layers_of(forms: list[str]) -> dict[str, nn.Module]:
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**{**SMOLLM2_135M, "num_hidden_layers": 1, "vocab_size": 64}))
    models: dict[str, Any] = {form: over(base.requires_grad_(requires_grad=False).train(), form) for form in forms}
    inner = {form: model.get_base_model() if hasattr(model, "get_base_model") else model for form, model in models.items()}
    return {form: model.model.layers[0] for form, model in inner.items()}


def seconds_of(modules: list[nn.Module], x: Tensor, gradients: list[Tensor]) -> float:
    """Return the processor's seconds of forward and backward through modules that read x."""
    read = x.detach().requires_grad_() * 1
    started = time.process_time()
    torch.autograd.backward([module(read) for module in modules], gradients)
    seconds = time.process_time() - started
    for parameter in (parameter for module in modules for parameter in module.parameters()):
        parameter.grad = None
    return seconds


def measure(layers: Mapping[str, nn.Module], tokens: int, repetitions: int) -> dict[str, dict[str, float]]:
    """Return the least seconds by form and by input."""
    least: dict[str, dict[str, float]] = {form: dict.fromkeys(READERS, float("inf")) for form in layers}
    order = list(layers)
    for number in range(repetitions):
        order = order[1:] + order[:1]
        for group, names in READERS.items():
            modules = {form: [layer.get_submodule(name) for name in names] for form, layer in layers.items()}
            widths = [(int(module.in_features), int(module.out_features)) for module in modules["base"]]  # type: ignore[call-overload]
            x = torch.randn(1, tokens, widths[0][0])
            gradients = [torch.randn(1, tokens, out) for _, out in widths]
            for form in order:
                seconds = seconds_of(modules[form], x, gradients)
                least[form][group] = min(least[form][group], seconds) if number else float("inf")
    return least


def least_of(product: Callable[[], Tensor], repetitions: int) -> float:
    best = float("inf")
    for _ in range(repetitions):
        started = time.process_time()
        product()
        best = min(best, time.process_time() - started)
    return best


def product_seconds(layer: nn.Module, names: tuple[str, ...], tokens: int, rank: int, repetitions: int) -> float:
    """Return the least seconds of the products that the edit adds to modules that read one input, as ``wegeft.method.edit`` makes them."""
    weights = [module.weight for name in names if isinstance(module := layer.get_submodule(name), nn.Linear)]
    width, stacked = weights[0].shape[1], rank * len(weights)
    x, codes, psi = torch.randn(tokens, width), torch.randn(tokens, stacked), torch.randn(stacked, width)
    products: list[Callable[[], Tensor]] = [lambda: x @ psi.t(), lambda: codes.t() @ x, lambda: x.addmm_(codes, psi, alpha=1e-9)]
    for weight in weights:
        products += _own_products(weight, torch.randn(tokens, width), torch.randn(tokens, rank))
    return sum(least_of(product, repetitions) for product in products)


def _own_products(weight: Tensor, g: Tensor, z: Tensor) -> list[Callable[[], Tensor]]:
    phi = torch.randn(weight.shape[1], z.shape[1])
    if not is_cheaper_by_weight(tokens=len(g), width=weight.shape[1], out_features=weight.shape[0]):
        return [lambda: torch.addmm(g, z, phi.t()), lambda: g @ phi, lambda: z.t() @ g]
    y, c = torch.randn(len(g), weight.shape[0]), torch.randn(weight.shape[0], z.shape[1])
    return [lambda: weight @ phi, lambda: y.addmm_(z, c.t(), alpha=1e-9), lambda: y @ c, lambda: z.t() @ y, lambda: c.t() @ weight]


def report(least: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| form | " + " | ".join(READERS) + " | sum, ms | beyond base, ms |", "|---|" + "---:|" * (len(READERS) + 2)]
    base = sum(least["base"].values())
    for form, groups in least.items():
        total = sum(groups.values())
        cells = [f"{seconds * 1e3:.2f}" for seconds in (*groups.values(), total, total if "products" in form else total - base)]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=1024, help="tokens of a step")
    parser.add_argument("--repetitions", type=int, default=40, help="repetitions, after one that does not count")
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    layers = layers_of(list(FORMS))
    least = measure(layers, arguments.tokens, arguments.repetitions + 1)
    for rank in (16, 64):
        least[f"products of wegeft_r{rank}"] = {
            group: product_seconds(layers["base"], names, arguments.tokens, rank, arguments.repetitions) for group, names in READERS.items()
        }
    print(report(least))


if __name__ == "__main__":
    main()
