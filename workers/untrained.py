"""The adapter that a federation begins with where its author gives none: untrained, from the base model's form and the job's seed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from wegeft.contracts.errors import BaseModelUnusable, shorten
from wegeft.contracts.federation_rules import Core, FreezePhi, Rule
from wegeft.contracts.job import JobSpec
from wegeft.contracts.tensor_writer import write_tensors
from wegeft.method import WeGeFTConfig
from wegeft.method.sharing import Group, plan_groups, target_names
from wegeft.method.weights import GeneratorWeights
from workers.adaptation import TASK_TYPES
from workers.base_model import default_cache, load_base_model, loader_name, request_of
from workers.model_source import find_config

_PREFIX = "base_model.wegeft_generators."


@dataclass(frozen=True, kw_only=True)
class Untrained:
    """An adapter whose edit is the identity."""

    config: bytes
    """``adapter_config.json``."""
    weights: bytes
    """``adapter_model.safetensors``; equal jobs give equal bytes."""
    commit: str | None
    """Of the base model, where it is a Hugging Face id: all sites must train on the same."""


def make_untrained(spec: JobSpec) -> Untrained:
    """Return the adapter that a federated job begins with; no weights of the base model are loaded, but for a GGUF file.

    Raises ``BaseModelNotFound``, ``BaseModelUnusable``, ``TargetsNotFound`` or ``InvalidAdapterConfig``.
    """
    model, commit = _structure(spec)
    targets = spec.target_modules if isinstance(spec.target_modules, str) else list(spec.target_modules)
    config = WeGeFTConfig(
        r=spec.effective_rank,
        wegeft_alpha=spec.effective_alpha,
        target_modules=targets,
        task_type=TASK_TYPES[spec.task],
        revision=commit,
        inference_mode=True,
    )
    groups = plan_groups(model, config)
    if isinstance(targets, str):
        config.target_modules = {name.rpartition(".")[2] for name in target_names(model, config)}
    config.base_model_name_or_path = spec.base_model
    rule: Rule | None = spec.federation.rule if spec.federation else None
    return Untrained(config=_json(config), weights=_draw(groups, config, rule, spec.seed), commit=commit)


def _structure(spec: JobSpec) -> tuple[nn.Module, str | None]:
    """Return the base model without its numbers, and its commit."""
    if spec.base_model.lower().endswith(".gguf"):
        return load_base_model(request_of(spec, default_cache())).model, None
    import transformers

    source = find_config(spec.base_model, spec.base_model_revision, with_code=spec.trust_remote_code)
    assert source.folder is not None  # noqa: S101 - only GGUF files have none
    try:
        found = transformers.AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=spec.trust_remote_code)
        with torch.device("meta"):
            return getattr(transformers, loader_name(spec.task)).from_config(found, trust_remote_code=spec.trust_remote_code), source.commit
    except Exception as error:
        raise BaseModelUnusable(f"it cannot be built: {shorten(str(error))}", path="base_model", value=spec.base_model) from error


def _draw(groups: list[Group], config: WeGeFTConfig, rule: Rule | None, seed: int) -> bytes:
    """Return the generators' file; which factors are random follows from what the rule trains."""
    tensors: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for group in groups:
            weights = GeneratorWeights(group, config, None)
            parts = {"phi": weights.phi.detach().clone(), "psi": weights.psi.detach().clone()}
            if isinstance(rule, FreezePhi | Core):
                weights.initialise("psi_zero")
                parts["phi"] = weights.phi.detach().clone()
            if isinstance(rule, FreezePhi):
                parts["psi"] = weights.psi.detach().clone()
            tensors |= {f"{_PREFIX}{group.key}.{part}": tensor.numpy() for part, tensor in parts.items()}
    return write_tensors(tensors, "F32", {"format": "pt"})


def _json(config: WeGeFTConfig) -> bytes:
    fields = {name: value for name, value in config.to_dict().items() if value is not None}
    fields["peft_type"] = "WEGEFT"
    return (json.dumps(fields, indent=2, sort_keys=True) + "\n").encode()
