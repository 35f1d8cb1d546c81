"""What an adapter weighs, before and after it is made."""

from typing import Any

import torch
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from wegeft.method.config import WeGeFTConfig
from wegeft.method.sharing import plan_groups
from wegeft.method.targets import features_of, named_layers


def count_parameters(config: WeGeFTConfig, model: nn.Module) -> int:
    """Return how many numbers ``config`` trains on ``model``: Σ over generators of 2·rank·width, ``modules_to_save`` not counted.

    Raises ``TargetsNotFound`` or ``InvalidAdapterConfig`` like ``get_peft_model``; the model is not changed.
    """
    return sum(group.parameters for group in plan_groups(model, config))


def lora_equivalent_size(config: WeGeFTConfig, model: nn.Module) -> tuple[int, int]:
    """Return (parameters, bytes) of the LoRA that computes the same: rank·(in + out) a layer, as float32 tensors without headers."""
    layers = dict(named_layers(model))
    parameters = sum(group.rank * sum(features_of(layers[name])) for group in plan_groups(model, config) for name in group.members)
    return parameters, parameters * torch.finfo(torch.float32).bits // 8


def adapter_state_dict(peft_model: Any, adapter_name: str = "default") -> dict[str, Tensor]:
    """Return what ``adapter_model.safetensors`` holds: each generator once, and ``modules_to_save``; on the CPU, detached, contiguous.

    Keys: ``base_model.wegeft_generators.<group>.phi`` (width×rank) and ``….psi`` (rank×width).
    """
    state = get_peft_model_state_dict(peft_model, adapter_name=adapter_name, save_embedding_layers=False)
    return {key: tensor.detach().to("cpu").contiguous() for key, tensor in sorted(state.items())}
