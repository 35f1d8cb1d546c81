"""PEFT's own methods under a job's names: one function from a job and its base model to the configuration of the method."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from wegeft.contracts.errors import InvalidJob, Problem
from wegeft.contracts.job import JobSpec
from wegeft.contracts.methods import Method
from wegeft.method.targets import features_of, named_layers, resolve_targets

_SEED = "projection_prng_key"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a configuration is made from."""

    spec: JobSpec
    model: nn.Module
    """Not adapted yet."""
    targets: Sequence[str]
    """Names of the layers to adapt, in full."""
    total_steps: int
    """Optimizer steps of the run."""

    def widths(self) -> list[tuple[int, int]]:
        """Return (in_features, out_features) of every target."""
        layers = dict(named_layers(self.model))
        return [features_of(layers[name]) for name in self.targets]


def baseline_config(request: Request, common: dict[str, Any]) -> Any:
    """Return the ``PeftConfig`` of the job's method; ``common`` holds what is the same for all methods.

    Raises ``InvalidJob`` where the job's patterns, block size or number of steps do not fit.
    """
    import peft

    spec = request.spec
    _refuse_idle_patterns(request)
    kind, options = _CONFIGS[spec.method]
    own: dict[str, Any] = {}
    for make in options:
        own |= make(request)
    return getattr(peft, kind)(target_modules=_shortest(request), **common, **own)


def _refuse_idle_patterns(request: Request) -> None:
    # PEFT would ignore them under a warning.
    problems = [
        Problem(path=field, message="matches no target module", value=pattern, hint="give the end of a module's name, such as q_proj")
        for field in ("rank_pattern", "alpha_pattern")
        for pattern in getattr(request.spec, field) or {}
        if not _with_end(request.targets, pattern)
    ]
    if problems:
        raise InvalidJob("some patterns do not fit the base model", problems=problems)


def _shortest(request: Request) -> list[str]:
    """Return the ends of the targets' names where these select the same layers, and the full names otherwise."""
    ends = sorted({name.rpartition(".")[2] for name in request.targets})
    is_same = resolve_targets(request.model, ends) == sorted(request.targets)
    return ends if is_same else sorted(request.targets)


_Option = Callable[[Request], dict[str, Any]]


def _rank(field: str = "r") -> _Option:
    return lambda request: {field: request.spec.effective_rank}


def _alpha(field: str) -> _Option:
    return lambda request: {field: request.spec.effective_alpha}


def _dropout(field: str) -> _Option:
    return lambda request: {field: request.spec.dropout or 0.0}


def _pattern(field: str) -> _Option:
    return lambda request: {field: dict(getattr(request.spec, field) or {})}


def _fixed(**values: Any) -> _Option:
    return lambda _request: values


def _seed(field: str = _SEED) -> _Option:
    return lambda request: {field: request.spec.seed}


def _block(field: str, preferred: int, *, reads: bool = True, writes: bool = False) -> _Option:
    """Return the option of a block size that must divide what every target reads, or writes, or both."""

    def option(request: Request) -> dict[str, Any]:
        sides = [side for inputs, outputs in request.widths() for side, counts in ((inputs, reads), (outputs, writes)) if counts]
        return {field: _block_size(request.spec, math.gcd(*sides), preferred)}

    return option


def _block_size(spec: JobSpec, common_width: int, preferred: int) -> int:
    # Rotations pair numbers up, and no method here asks for odd blocks.
    allowed = [size for size in range(2, common_width + 1, 2) if common_width % size == 0]
    if spec.block_size is None and allowed:
        return max((size for size in allowed if size <= preferred), default=allowed[0])
    if spec.block_size in allowed:
        return int(spec.block_size)
    message = f"the blocks of {spec.method} must divide the widths of all target modules, whose largest common divisor is {common_width}"
    hint = f"one of: {', '.join(map(str, allowed))}" if allowed else "choose other target_modules"
    raise InvalidJob(message, path="block_size", value=spec.block_size, hint=hint)


def _feedforward(request: Request) -> dict[str, Any]:
    """IA3 scales what feed-forward layers read: of a block's layers, those that read more than the model's own width."""
    layers = dict(named_layers(request.model))
    hidden = int(request.model.config.get_text_config().hidden_size)  # type: ignore[operator, union-attr] # of transformers
    ends = _shortest(request)
    chosen = [end for end in ends if all(features_of(layers[name])[0] > hidden for name in _with_end(request.targets, end))]
    return {"feedforward_modules": chosen}


def _with_end(names: Sequence[str], end: str) -> list[str]:
    return [name for name in names if name == end or name.endswith(f".{end}")]


def _budget(request: Request) -> dict[str, Any]:
    """AdaLoRA starts with half as much rank again, and gives it up between a tenth and seven tenths of the steps."""
    steps, rank = request.total_steps, request.spec.effective_rank
    if steps < _LEAST_ALLOCATION_STEPS:
        message = "adalora moves rank between steps: it needs more of them"
        raise InvalidJob(message, path="max_steps", value=steps, hint=f"at least {_LEAST_ALLOCATION_STEPS}")
    return {
        "target_r": rank,
        "init_r": math.ceil(1.5 * rank),
        "total_step": steps,
        "tinit": steps // 10,
        "tfinal": 3 * steps // 10,
        "deltaT": max(1, steps // 100),
    }


_LEAST_ALLOCATION_STEPS = 2


def _frequencies(request: Request) -> dict[str, Any]:
    return {"n_frequency": min(_FREQUENCIES, *(inputs * outputs for inputs, outputs in request.widths()))}


_FREQUENCIES = 1000

_LOW_RANK = (_rank(), _alpha("lora_alpha"), _dropout("lora_dropout"))
_PATTERNS = (_pattern("rank_pattern"), _pattern("alpha_pattern"))

_CONFIGS: dict[Method, tuple[str, tuple[_Option, ...]]] = {
    Method.LORA: ("LoraConfig", (*_LOW_RANK, *_PATTERNS)),
    Method.RSLORA: ("LoraConfig", (*_LOW_RANK, *_PATTERNS, _fixed(use_rslora=True))),
    Method.DORA: ("LoraConfig", (*_LOW_RANK, *_PATTERNS, _fixed(use_dora=True))),
    Method.PISSA: ("LoraConfig", (*_LOW_RANK, _fixed(init_lora_weights="pissa"))),
    Method.ADALORA: ("AdaLoraConfig", (_budget, _alpha("lora_alpha"), _dropout("lora_dropout"))),
    Method.VERA: ("VeraConfig", (_rank(), _dropout("vera_dropout"), _seed(), _fixed(save_projection=True))),
    Method.VBLORA: ("VBLoRAConfig", (_rank(), _dropout("vblora_dropout"), _block("vector_length", 256, writes=True))),
    Method.RANDLORA: (
        "RandLoraConfig",
        (_rank(), _alpha("randlora_alpha"), _dropout("randlora_dropout"), _seed(), _fixed(save_projection=True)),
    ),
    Method.GRALORA: ("GraloraConfig", (_rank(), _alpha("alpha"), _dropout("gralora_dropout"))),
    Method.DELORA: ("DeloraConfig", (_rank(), _pattern("rank_pattern"))),
    Method.HIRA: ("HiraConfig", (_rank(), _dropout("hira_dropout"), _pattern("rank_pattern"))),
    Method.LOHA: ("LoHaConfig", (_rank(), _alpha("alpha"), *_PATTERNS)),
    Method.LOKR: ("LoKrConfig", (_rank(), _alpha("alpha"), *_PATTERNS)),
    Method.MISS: ("MissConfig", (_rank(), _dropout("miss_dropout"))),
    Method.OFT: ("OFTConfig", (_block("oft_block_size", 32), _fixed(r=0))),
    Method.BOFT: ("BOFTConfig", (_block("boft_block_size", 4),)),
    Method.HRA: ("HRAConfig", (_rank(),)),
    Method.ROAD: ("RoadConfig", (_block("group_size", 64, reads=False, writes=True),)),
    Method.C3A: ("C3AConfig", (_block("block_size", 256, writes=True), _fixed(init_weights=True))),
    Method.FOURIERFT: ("FourierFTConfig", (_frequencies, _seed("random_loc_seed"), _fixed(init_weights=True))),
    Method.IA3: ("IA3Config", (_feedforward,)),
}
"""PEFT's class for each method, and what makes up its arguments. Every method starts as the base model itself, save vblora."""
