"""Step time and peak memory of WeGeFT against PEFT LoRA, the reference's W-form and the frozen base.

    python -m bench.train_step                      SmolLM2-135M shapes, seeded random weights, 4×256 tokens, float32
    python -m bench.train_step --gguf model.gguf    the same with real weights
    python -m bench.train_step --learnt 0.5         the second half of each row is learnt, as answers are that follow prompts

A step is forward and backward of the causal loss, as transformers computes it: over the logits of all tokens. Forms that end in
``_ours`` compute it as our trainer does, over the logits of learnt tokens, which turn into their gradient in place. All forms stand on
one set of frozen weights and take turns, in an order that rotates; ratios are paired within a turn. A turn counts only if everything
else on the machine used little of it meanwhile. On a machine that is never quiet, ``--clock cpu --threads 1`` counts the seconds that
the core worked for the step, whoever else waited for it. Peak memory is that of a process that runs nothing but three steps of one
form.
"""

import argparse
import copy
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedModel

from bench._memory import peak_mebibytes
from wegeft.method import WeGeFTConfig
from workers.answer_loss import AnswerLoss
from workers.layout import Batch

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SMOLLM2_135M = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
}


class ReferenceLinear(nn.Module):
    """``y = base(x) + s·(ψx)(φW)ᵀ`` as the authors compute it: φ reads the weight in every forward pass."""

    def __init__(self, base: nn.Linear, phi: nn.Linear, psi: nn.Linear, scaling: float) -> None:
        super().__init__()
        self.base, self.phi, self.psi, self.scaling = base, phi, psi, scaling

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.base(x) + self.scaling * linear(self.psi(x), self.phi(self.base.weight))
        return result


def frozen_base(base: PreTrainedModel) -> nn.Module:
    base.enable_input_require_grads()
    model: nn.Module = base
    return model


def lora(base: PreTrainedModel, rank: int) -> nn.Module:
    model: nn.Module = get_peft_model(base, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=TARGETS))
    return model


def wegeft(base: PreTrainedModel, rank: int) -> nn.Module:
    model: nn.Module = get_peft_model(base, WeGeFTConfig(r=rank, wegeft_alpha=2 * rank, target_modules=TARGETS))
    return model


def w_form(base: PreTrainedModel, rank: int) -> nn.Module:
    pairs: dict[str, tuple[nn.Linear, nn.Linear]] = {}
    for name, module in list(base.named_modules()):
        parent, _, last = name.rpartition(".")
        if last in TARGETS and isinstance(module, nn.Linear):
            if last not in pairs:
                pairs[last] = nn.Linear(module.in_features, rank, bias=False), nn.Linear(module.in_features, rank, bias=False)
                nn.init.zeros_(pairs[last][0].weight)
            setattr(base.get_submodule(parent), last, ReferenceLinear(module, *pairs[last], 2.0))
    model: nn.Module = base
    return model


FORMS: dict[str, Callable[[PreTrainedModel], nn.Module]] = {
    "base": frozen_base,
    "lora_r16": lambda base: lora(base, 16),
    "wegeft_r16": lambda base: wegeft(base, 16),
    "wegeft_r64": lambda base: wegeft(base, 64),
    "w_form_r64": lambda base: w_form(base, 64),
}
STEPS = {form: form for form in FORMS} | {f"{form}_ours": form for form in ("lora_r16", "wegeft_r16", "wegeft_r64")}
"""Steps that are timed, and the form of each."""
RATIOS = (
    ("wegeft_r16", "lora_r16", 0.93),
    ("wegeft_r64", "lora_r16", 1.00),
    ("wegeft_r64", "w_form_r64", 0.86),
    ("wegeft_r16", "base", 1.08),
    ("wegeft_r16_ours", "lora_r16", 0.93),
    ("wegeft_r64_ours", "lora_r16", 1.00),
    ("wegeft_r64_ours", "w_form_r64", 0.86),
    ("wegeft_r16_ours", "base", 1.08),
    ("wegeft_r16_ours", "lora_r16_ours", None),
    ("wegeft_r64_ours", "lora_r16_ours", None),
    ("lora_r16", "base", None),
    ("w_form_r64", "lora_r16", None),
)
"""Pairs whose step times are compared, and the target that the first should not exceed."""


class Step:
    """One form's forward and backward pass over the same tokens."""

    def __init__(self, name: str, base: PreTrainedModel, tokens: Tensor, learnt: float) -> None:
        self.model = over(base, STEPS[name])
        self.tokens = tokens
        start = max(1, round(tokens.shape[1] * (1 - learnt)))
        self.labels = tokens.clone()
        self.labels[:, :start] = -100
        positions = torch.arange(tokens.numel()).view(tokens.shape)[:, start:].flatten() - 1
        self.batch = Batch(tokens=tokens, positions=positions, targets=tokens[:, start:].flatten())
        self.loss = AnswerLoss(self.model) if name.endswith("_ours") else None

    def __call__(self, clock: Callable[[], float] = time.perf_counter) -> float:
        """Return the seconds of one step."""
        started = clock()
        self.mean_loss().backward()
        seconds = clock() - started
        self.model.zero_grad(set_to_none=True)
        return seconds

    def mean_loss(self) -> Tensor:
        """Return the mean of −log p over the learnt tokens."""
        if self.loss is not None:
            return self.loss(self.batch) / len(self.batch.targets)
        loss: Tensor = self.model(input_ids=self.tokens, labels=self.labels).loss
        return loss


@dataclass(frozen=True)
class Turn:
    seconds: dict[str, float]
    others: float
    """Largest share of the cores that everything else used during any of the steps."""


def base_model(gguf: Path | None) -> PreTrainedModel:
    if gguf is not None:
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    else:
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2_135M))
    model.config.use_cache = False
    return model.requires_grad_(False).train()


def over(model: PreTrainedModel, form: str) -> nn.Module:
    """Return the form on a copy of the model that shares its frozen weights."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    return FORMS[form](twin)


CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def busy() -> tuple[float, float]:
    """Return (seconds that the machine's cores were busy, seconds that this process was)."""
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    idle = fields[3] + fields[4]
    return (sum(fields[:8]) - idle) / os.sysconf("SC_CLK_TCK"), time.process_time()


def measured(step: Step, clock: Callable[[], float]) -> tuple[float, float]:
    """Return (seconds of one step, share of the cores that everything else used meanwhile)."""
    machine, own = busy()
    started = time.perf_counter()
    seconds = step(clock)
    elapsed = time.perf_counter() - started
    machine_after, own_after = busy()
    others = (machine_after - machine) - (own_after - own)
    return seconds, max(0.0, others) / (elapsed * (os.cpu_count() or 1))


def take_turns(steps: dict[str, Step], arguments: argparse.Namespace) -> list[Turn]:
    """Return all turns, counted or not, until enough of them stayed under the limit or three times as many were tried.

    Ctrl-C ends them early; what was measured is kept.
    """
    names, wanted, limit = list(steps), arguments.turns, arguments.others
    for name in names:
        steps[name]()
    turns: list[Turn] = []
    with suppress(KeyboardInterrupt):
        while sum(turn.others <= limit for turn in turns) < wanted and len(turns) < 3 * wanted:
            shift = len(turns) % len(names)
            taken = {name: measured(steps[name], CLOCKS[arguments.clock]) for name in names[shift:] + names[:shift]}
            turns.append(Turn({name: taken[name][0] for name in names}, max(share for _, share in taken.values())))
            print(f"turn {len(turns)}: others used {turns[-1].others:.0%}", file=sys.stderr)
    return turns


def peak_of(form: str, arguments: argparse.Namespace) -> float:
    """Return the peak resident memory of a fresh process that runs three steps of one form."""
    command = [sys.executable, "-m", "bench.train_step", "--peak-of", form, "--threads", str(arguments.threads)]
    command += ["--batch", str(arguments.batch), "--length", str(arguments.length)]
    command += ["--learnt", str(arguments.learnt)]
    command += ["--gguf", str(arguments.gguf)] if arguments.gguf else []
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def report(turns: list[Turn], peaks: dict[str, float]) -> str:
    lines = ["| form | median s | × base | peak MiB |", "|---|---:|---:|---:|"]
    for name in turns[0].seconds:
        seconds = [turn.seconds[name] for turn in turns]
        ratio = statistics.median(turn.seconds[name] / turn.seconds.get("base", math.nan) for turn in turns)
        lines.append(f"| {name} | {statistics.median(seconds):.3f} | {ratio:.3f} | {peaks.get(name, float('nan')):.0f} |")
    lines += ["", "| ratio | median | quartiles | min-max | target |", "|---|---:|---:|---:|---:|"]
    for first, second, target in RATIOS:
        if not {first, second} <= turns[0].seconds.keys():
            continue
        ratios = sorted(turn.seconds[first] / turn.seconds[second] for turn in turns)
        low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else (ratios * 3)
        spread = f"{low:.3f}-{high:.3f} | {ratios[0]:.3f}-{ratios[-1]:.3f}"
        lines.append(f"| {first} / {second} | {statistics.median(ratios):.3f} | {spread} | {'' if target is None else f'≤ {target:.2f}'} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gguf", type=Path, help="a GGUF file with real weights; default: seeded random weights of SmolLM2-135M's shape")
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--length", type=int, default=256, help="tokens a row")
    parser.add_argument("--learnt", type=float, default=1.0, help="share of each row, at its end, that is learnt")
    parser.add_argument("--turns", type=int, default=9, help="counted turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="threads of torch")
    parser.add_argument("--others", type=float, default=0.06, help="largest share of the cores used by others in a turn that counts")
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="what a second is; cpu is for one thread")
    parser.add_argument("--forms", nargs="+", choices=list(STEPS), default=list(STEPS))
    parser.add_argument("--json", type=Path, help="write all turns here")
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory")
    parser.add_argument("--peak-of", choices=list(STEPS), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not 0 < arguments.learnt <= 1:
        parser.error(f"--learnt {arguments.learnt}: give a share above 0 and up to 1")
    if arguments.clock == "cpu":
        if arguments.threads != 1:
            parser.error("--clock cpu needs --threads 1: threads that wait for each other count as working")
        arguments.others = 1.0
    return arguments


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(arguments.threads)
    base = base_model(arguments.gguf)
    ids = torch.randint(0, base.config.vocab_size, (arguments.batch, arguments.length), generator=torch.Generator().manual_seed(1))
    if arguments.peak_of:
        step = Step(arguments.peak_of, base, ids, arguments.learnt)
        del base
        for _ in range(3):
            step()
        print(peak_mebibytes())
        return
    turns = take_turns({form: Step(form, base, ids, arguments.learnt) for form in arguments.forms}, arguments)
    if not turns:
        sys.exit("interrupted before the first turn ended")
    peaks = {} if arguments.no_memory else {form: peak_of(form, arguments) for form in arguments.forms}
    counted = [turn for turn in turns if turn.others <= arguments.others]
    shares = f"others used {min(turn.others for turn in turns):.0%} to {max(turn.others for turn in turns):.0%} of the cores"
    shape = f"{arguments.batch}×{arguments.length}, {arguments.learnt:.0%} learnt"
    setup = f"{arguments.clock} clock, {arguments.threads} threads, {shape}, torch {torch.__version__}"
    print(f"{len(counted)} of {len(turns)} turns counted; {shares}; {setup}\n")
    print(report(counted or turns, peaks))
    if not counted:
        print("\nNo turn was quiet enough: the figures above include the others' load.")
    if arguments.json:
        arguments.json.write_text(json.dumps({"turns": [vars(turn) for turn in turns], "peaks": peaks}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
