"""A base model with a fresh adapter on it."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import nn

from wegeft.contracts.errors import InvalidJob, Problem, WegeftError, shorten
from wegeft.contracts.job import JobSpec, TaskType
from wegeft.contracts.methods import Method
from wegeft.method import WeGeFTConfig, WeGeFTLinear, lora_equivalent_size
from wegeft.method.sharing import target_names
from wegeft.method.targets import named_layers
from workers.base_model import BaseModel
from workers.baselines import Request, baseline_config

_SEEDING = threading.Lock()
"""torch has one random state for all threads; two attempts in one process must not draw from each other's seed."""
TASK_TYPES = {TaskType.CAUSAL_LM: "CAUSAL_LM", TaskType.SEQUENCE_CLASSIFICATION: "SEQ_CLS", TaskType.IMAGE_CLASSIFICATION: None}
"""What PEFT calls them; it has no word for images."""


def config_of(spec: JobSpec, base: BaseModel, total_steps: int = 1) -> Any:
    """Return the adapter's ``PeftConfig``, made for a run of so many optimizer steps.

    Raises ``TargetsNotFound``, ``InvalidAdapterConfig``, or ``InvalidJob`` where an option of the method does not fit the base model.
    """
    _refuse_absent_modules(spec, base.model)
    kept = tuple(dict.fromkeys((*(spec.modules_to_save or ()), *base.head_modules)))
    common = {"task_type": TASK_TYPES[spec.task], "revision": base.commit, "modules_to_save": list(kept) or None}
    own = _wegeft_config(spec, common)
    if spec.method is Method.WEGEFT:
        return own
    request = Request(spec=spec, model=base.model, targets=target_names(base.model, own), total_steps=total_steps)
    return baseline_config(request, common)


def _refuse_absent_modules(spec: JobSpec, model: nn.Module) -> None:
    # PEFT would leave out without a word what it does not find.
    names = [name for name, _ in named_layers(model)]
    absent = [end for end in spec.modules_to_save or () if not any(name.endswith(end) for name in names)]
    if absent:
        problems = [Problem(path="modules_to_save", message="matches no module of the base model", value=end) for end in absent]
        raise InvalidJob("some modules to save are not in the base model", problems=problems)


def _wegeft_config(spec: JobSpec, common: dict[str, Any]) -> WeGeFTConfig:
    """Return the job as a WeGeFT configuration; what it leaves out is the method's own default."""
    groups = spec.tied_modules
    tied = "type" if groups == "module_type" else [list(group) for group in groups] if isinstance(groups, tuple) else groups
    given: dict[str, Any] = {
        "exclude_modules": _listed(spec.exclude_modules),
        "layers_to_transform": _listed(spec.layers_to_transform),
        "tied_modules": tied,
        "transform": spec.transform,
        "init_weights": spec.init_weights,
        "weight_dropout": spec.weight_dropout,
        "input_dropout": spec.dropout,
        "rank_pattern": spec.rank_pattern,
        "alpha_pattern": spec.alpha_pattern,
    }
    return WeGeFTConfig(
        r=spec.effective_rank or 1,
        wegeft_alpha=spec.effective_alpha or 1.0,
        target_modules=spec.target_modules if isinstance(spec.target_modules, str) else list(spec.target_modules),
        **common,
        **{name: value for name, value in given.items() if value is not None},
    )


def _listed(values: tuple[Any, ...] | None) -> list[Any] | None:
    return None if values is None else list(values)


def adapt(base: BaseModel, spec: JobSpec, total_steps: int = 1) -> Any:
    """Return the base model as a ``PeftModel`` whose adapter depends on the job's seed alone; nothing else wants gradients.

    Raises what ``config_of`` raises, or ``InvalidJob`` if the model cannot recompute activations or the method cannot adapt its layers.
    The base model's layers are wrapped in place.
    """
    config = config_of(spec, base, total_steps)
    with _SEEDING:
        torch.manual_seed(spec.seed)
        model = _wrap(base, config, spec)
    # PEFT names the folder that the model was loaded from, which may be a cache of this machine.
    model.peft_config["default"].base_model_name_or_path = spec.base_model
    # PEFT adds the usual names of heads to a classifier's, whether they are there already or not.
    if config.modules_to_save:
        config.modules_to_save = sorted(set(config.modules_to_save))
    if spec.gradient_checkpointing:
        _recompute_activations(model.get_base_model())
    return model


def _wrap(base: BaseModel, config: Any, spec: JobSpec) -> Any:
    from peft import get_peft_model

    try:
        return get_peft_model(base.model, config)
    except WegeftError:
        raise
    except (ValueError, TypeError, NotImplementedError) as error:
        if spec.method is Method.WEGEFT:
            raise
        message = f"{spec.method} cannot adapt this base model: {shorten(str(error), 300)}"
        raise InvalidJob(message, path="method", value=str(spec.method), hint="choose other target_modules or another method") from error


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


def count_lora_parameters(base: BaseModel, spec: JobSpec) -> int | None:
    """Return how many numbers the LoRA that computes the same would train, before ``adapt`` is called; None for another method."""
    return lora_equivalent_size(config_of(spec, base), base.model)[0] if spec.method is Method.WEGEFT else None
