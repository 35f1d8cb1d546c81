"""Step time, tokens per second, share of the matrix peak and memory on a CUDA device: WeGeFT against PEFT LoRA and the frozen base.

    python -m bench.gpu_step                                        Llama-3.1-8B's shape, seeded random weights, bfloat16, 1×4096 tokens
    python -m bench.gpu_step --device cpu --layers 2 --hidden 256   whether it runs; the figures say nothing

A step is forward and backward of the causal loss over all tokens, by our trainer's loss for every form, the peer's too, so that no form
holds all logits at once. All forms stand on one set of frozen weights and take turns, in an order that rotates; ratios are paired within
a turn. PEFT keeps adapters in float32 by default, and LoRA then multiplies in float32; ``lora_r16_bf16`` keeps it in bfloat16, which is
faster and loses small updates. Ours are kept in float32 and multiplied in bfloat16.

The share of the peak counts what the frozen model needs by itself, the same for every form: each weight once forward and once for the
gradient of its input, and causal attention; neither the adapter's products nor anything computed twice.
"""

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench.train_step import FORMS, TARGETS
from workers.answer_loss import AnswerLoss
from workers.layout import Batch, pad
from workers.tokenization import Example

HEAD_WIDTH = 128
LLAMA_8B_HIDDEN = 4096
PEAK_FLOPS = {"H100 PCIe": 756e12, "H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12}
"""Dense bfloat16, as the makers give it, by a part of the device's name; the first that fits."""


def lora_in_bfloat16(base: PreTrainedModel) -> nn.Module:
    config = LoraConfig(r=16, lora_alpha=32, target_modules=TARGETS)
    model: nn.Module = get_peft_model(base, config, autocast_adapter_dtype=False)
    return model


GPU_FORMS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    "base": FORMS["base"],
    "lora_r16": FORMS["lora_r16"],
    "lora_r16_bf16": lora_in_bfloat16,
    "wegeft_r16": FORMS["wegeft_r16"],
    "wegeft_r64": FORMS["wegeft_r64"],
}


@dataclass(frozen=True)
class Measured:
    """One step of one form."""

    seconds: float
    peak_mebibytes: float
    loss: float


def base_model(arguments: argparse.Namespace) -> LlamaForCausalLM:
    """Return frozen random weights in bfloat16, of Llama-3.1-8B's shape where nothing else was asked for."""
    heads = max(1, arguments.hidden // HEAD_WIDTH)
    config = LlamaConfig(
        hidden_size=arguments.hidden,
        intermediate_size=arguments.hidden * 7 // 2,
        num_hidden_layers=arguments.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        vocab_size=arguments.vocabulary,
        max_position_embeddings=max(8192, arguments.length),
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        use_cache=False,
    )
    torch.manual_seed(0)
    own = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(arguments.device):
            model = LlamaForCausalLM(config)
    finally:
        torch.set_default_dtype(own)
    return model.requires_grad_(requires_grad=False).train()


def needed_flops(model: LlamaForCausalLM, rows: int, length: int) -> float:
    """Return what a step of the frozen model needs: 2 a weight and token each way, and causal attention, thrice its forward pass."""
    products = [module.weight.numel() for module in model.modules() if isinstance(module, nn.Linear)]
    width = model.config.num_attention_heads * HEAD_WIDTH
    attention = 3 * 4 * (length / 2) * width * model.config.num_hidden_layers
    return rows * length * (4 * sum(products) + attention)


def measure(model: nn.Module, loss: AnswerLoss, batch: Batch, device: torch.device) -> Measured:
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    total = loss(batch)
    total.backward()  # type: ignore[no-untyped-call] # torch's own method
    if is_cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated() / 2**20 if is_cuda else float("nan")
    model.zero_grad(set_to_none=True)
    return Measured(seconds, peak, total.item() / len(batch.targets))


def measured_peak(device: torch.device, side: int) -> float:
    """Return the FLOP/s of one large square product, the best of several."""
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        if device.type == "cuda":
            torch.cuda.synchronize()
        started = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - started)
    return 2 * float(side) ** 3 / best


def report(turns: list[dict[str, Measured]], tokens: int, flops: float, peak: float) -> str:
    head = ["form", "ms", "tokens/s", "share of peak", "× base", "× lora_r16", "× lora_r16_bf16", "quartiles", "peak MiB", "loss"]
    lines = ["| " + " | ".join(head) + " |", "|---|" + "---:|" * (len(head) - 1)]
    for form in turns[0]:
        seconds = statistics.median(turn[form].seconds for turn in turns)
        ratios = {peer: [turn[form].seconds / turn[peer].seconds for turn in turns] for peer in ("base", "lora_r16", "lora_r16_bf16")}
        last = ratios["lora_r16_bf16"]
        low, _, high = statistics.quantiles(last, n=4) if len(last) > 1 else last * 3
        cells = [f"{seconds * 1e3:.1f}", f"{tokens / seconds:.0f}", f"{flops / seconds / peak:.1%}"]
        cells += [f"{statistics.median(values):.3f}" for values in ratios.values()]
        cells += [f"{low:.3f}-{high:.3f}", f"{max(turn[form].peak_mebibytes for turn in turns):.0f}", f"{turns[0][form].loss:.4f}"]
        lines.append(f"| {form} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def known_peak(device: torch.device) -> float | None:
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return next((flops for part, flops in PEAK_FLOPS.items() if part in name), None)


def parsed(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", help="cuda; cpu only to see whether it runs")
    parser.add_argument("--layers", type=int, default=32, help="layers")
    parser.add_argument("--hidden", type=int, default=LLAMA_8B_HIDDEN, help="width, a multiple of 128")
    parser.add_argument("--vocabulary", type=int, default=128256, help="tokens of the vocabulary")
    parser.add_argument("--batch", type=int, default=1, help="rows")
    parser.add_argument("--length", type=int, default=4096, help="tokens a row")
    parser.add_argument("--turns", type=int, default=15, help="turns, after three that do not count")
    parser.add_argument("--peak-tflops", type=float, help="the device's matrix peak; default: by its name, or else measured")
    arguments = parser.parse_args(given)
    if arguments.hidden % HEAD_WIDTH:
        parser.error(f"--hidden must be a multiple of {HEAD_WIDTH}")
    return arguments


def main(given: list[str] | None = None) -> int:
    arguments = parsed(given)
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print(
            "bench.gpu_step needs a CUDA device, and torch sees none; --device cpu --layers 2 --hidden 256 shows that it runs",
            file=sys.stderr,
        )
        return 2
    base = base_model(arguments)
    tokens = np.random.default_rng(1).integers(0, arguments.vocabulary, (arguments.batch, arguments.length), dtype=np.int32)
    batch = pad([Example(row, np.arange(arguments.length) > 0) for row in tokens], device)
    models = {form: make(copy.deepcopy(base, {id(p): p for p in base.parameters()})) for form, make in GPU_FORMS.items()}
    losses = {form: AnswerLoss(model) for form, model in models.items()}
    turns: list[dict[str, Measured]] = []
    names = list(models)
    for number in range(-3 if device.type == "cuda" else 0, arguments.turns):
        shift = number % len(names)
        taken = {name: measure(models[name], losses[name], batch, device) for name in names[shift:] + names[:shift]}
        if number >= 0:
            turns.append({name: taken[name] for name in names})
    measured = measured_peak(device, 8192 if device.type == "cuda" else 256)
    peak = arguments.peak_tflops * 1e12 if arguments.peak_tflops else known_peak(device) or measured
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: peak taken as {peak / 1e12:.4g} TFLOP/s; one large product reaches {measured / 1e12:.4g}")
    print(f"{arguments.layers} layers of width {arguments.hidden}, {arguments.batch}×{arguments.length} tokens, {len(turns)} turns\n")
    print(report(turns, tokens.size, needed_flops(base, arguments.batch, arguments.length), peak))
    return 0


if __name__ == "__main__":
    sys.exit(main())
