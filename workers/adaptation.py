"""A base model with a fresh adapter on it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from wegeft.contracts.errors import InvalidJob
from wegeft.contracts.job import JobSpec
from wegeft.method import WeGeFTConfig, WeGeFTLinear, count_parameters, lora_equivalent_size
from workers.base_model import BaseModel

_SEEDING = threading.Lock()
"""torch has one random state for all threads; two attempts in one process must not draw from each other's seed."""


def config_of(spec: JobSpec, base: BaseModel) -> WeGeFTConfig:
    """Return the adapter's configuration."""
    targets = spec.target_modules if isinstance(spec.target_modules, str) else list(spec.target_modules)
    return WeGeFTConfig(
        r=spec.rank,
        wegeft_alpha=spec.effective_alpha,
        target_modules=targets,
        task_type="CAUSAL_LM",
        revision=base.commit,
    )


def adapt(base: BaseModel, spec: JobSpec) -> Any:
    """Return the base model as a ``PeftModel`` whose adapter depends on the job's seed alone; only the adapter wants gradients.

    Raises ``TargetsNotFound``, ``InvalidAdapterConfig``, or ``InvalidJob`` if the model cannot recompute activations. The base model's
    layers are wrapped in place.
    """
    from peft import get_peft_model

    config = config_of(spec, base)
    with _SEEDING:
        torch.manual_seed(spec.seed)
        model = get_peft_model(base.model, config)
    # PEFT names the folder that the model was loaded from, which may be a cache of this machine.
    model.peft_config["default"].base_model_name_or_path = spec.base_model
    if spec.gradient_checkpointing:
        _recompute_activations(model.get_base_model())
    return model


def strip(base: BaseModel) -> None:
    """Take every adapter off the base model again, whatever became of the run that put it there."""
    for name, layer in list(base.model.named_modules()):
        if isinstance(layer, WeGeFTLinear):
            parent, _, own = name.rpartition(".")
            setattr(base.model.get_submodule(parent), own, layer.get_base_layer())
    if hasattr(base.model, "peft_config"):
        del base.model.peft_config
    base.model.eval()


def _recompute_activations(model: Any) -> None:
    # The method has had two names within transformers 5.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise InvalidJob(str(error), path="gradient_checkpointing", value=True, hint="leave it out for this base model") from error


def trainable(model: Any) -> dict[str, nn.Parameter]:
    """Return the parameters that learn, by name, in one order."""
    return {name: parameter for name, parameter in sorted(model.named_parameters()) if parameter.requires_grad}


def sizes(base: BaseModel, spec: JobSpec) -> tuple[int, int]:
    """Return how many numbers the adapter trains, and how many the LoRA that computes the same would; before ``adapt`` is called."""
    config = config_of(spec, base)
    return count_parameters(config, base.model), lora_equivalent_size(config, base.model)[0]
