"""All that a run must remember to go on as if it had never stopped, as two files: numbers in JSON, tensors in safetensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from torch import Tensor, nn

from wegeft.contracts.errors import InvalidTensors
from wegeft.contracts.job_tasks import MetricName

STATE_FILE = "state.json"
TENSORS_FILE = "state.safetensors"
HISTORY_LIMIT = 2000
"""Points of the loss curve to keep; beyond it every other one is let go."""


class Point(BaseModel):
    """One step on the loss curve."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float


class Measurement(BaseModel):
    """One measurement of the held-out split."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    loss: float
    exact_match: float | None = None
    metrics: dict[MetricName, float] = Field(default_factory=dict)


class RunState(BaseModel):
    """The numbers of a run; the loop changes them in place."""

    model_config = ConfigDict(extra="forbid")

    plan: str
    """Fingerprint of what decides the rows of each step."""
    base_model: str
    """Identity of the model that was loaded; a branch may have moved since."""
    commit: str | None = None
    step: int = 0
    """Optimizer steps done."""
    history: list[Point] = Field(default_factory=list)
    stride: int = 1
    """Every so many points are kept."""
    points: int = 0
    """Points seen."""
    measurements: list[Measurement] = Field(default_factory=list)
    best: Measurement | None = None
    unimproved: int = 0
    """Measurements since the best one."""
    seconds: float = 0.0
    """Spent on steps, over all attempts whose work is kept."""
    tokens: int = 0
    """Of input, processed by steps."""

    def add_point(self, point: Point) -> None:
        """Add a point to the history, thinning it where it grows beyond ``HISTORY_LIMIT``."""
        if self.points % self.stride == 0:
            self.history.append(point)
        self.points += 1
        if len(self.history) > HISTORY_LIMIT:
            self.history = self.history[::2]
            self.stride *= 2


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Tensors that a run keeps beside its adapter and its optimizer, by name."""

    best: Mapping[str, Tensor] = field(default_factory=dict)
    """The best adapter, where the job may stop early."""
    method: Mapping[str, Tensor] = field(default_factory=dict)
    """What the method itself remembers from step to step."""


def pack(state: RunState, parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, memory: Memory) -> dict[str, bytes]:
    """Return the checkpoint's files by name."""
    tensors = {f"adapter.{name}": parameter.detach() for name, parameter in parameters.items()}
    tensors |= {f"best.{name}": tensor for name, tensor in memory.best.items()}
    tensors |= {f"method.{name}": tensor for name, tensor in memory.method.items()}
    for name, parameter in parameters.items():
        tensors |= {f"optimizer.{name}.{key}": value.detach() for key, value in optimizer.state[parameter].items()}
    tensors |= _random_states(parameters)
    on_host = {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    return {STATE_FILE: state.model_dump_json().encode(), TENSORS_FILE: safetensors.torch.save(on_host)}


def _random_states(parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    states = {"random.cpu": torch.get_rng_state()}
    if any(parameter.is_cuda for parameter in parameters.values()):
        states["random.cuda"] = torch.cuda.get_rng_state()
    return states


def read_state(files: Mapping[str, bytes]) -> RunState:
    """Return the numbers of a checkpoint; raises ``InvalidTensors`` if they are not those of one."""
    try:
        return RunState.model_validate_json(files[STATE_FILE])
    except (KeyError, ValidationError) as error:
        raise InvalidTensors("the checkpoint's numbers cannot be read", path="resume_from", value=str(error)) from error


def unpack(files: Mapping[str, bytes], parameters: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer) -> Memory:
    """Put a checkpoint's tensors into ``parameters``, ``optimizer`` and torch's random state; return what else the run remembered.

    Raises ``InvalidTensors``, changing nothing, if the checkpoint is of another adapter.
    """
    try:
        tensors = safetensors.torch.load(files[TENSORS_FILE])
    except (KeyError, SafetensorError) as error:
        raise InvalidTensors("the checkpoint's tensors cannot be read", path="resume_from", value=str(error)) from error
    adapter = _part(tensors, "adapter.")
    if {name: tensor.shape for name, tensor in adapter.items()} != {name: parameter.shape for name, parameter in parameters.items()}:
        raise InvalidTensors("the checkpoint is of another adapter", path="resume_from", value=", ".join(adapter))
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])
    _restore_optimizer(optimizer, parameters, _part(tensors, "optimizer."))
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return Memory(best=_part(tensors, "best."), method=_part(tensors, "method."))


def _restore_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], tensors: Mapping[str, Tensor]) -> None:
    whole: dict[str, Any] = optimizer.state_dict()
    whole["state"] = {index: _part(tensors, f"{name}.") for index, name in enumerate(parameters)} if tensors else {}
    optimizer.load_state_dict(whole)


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
