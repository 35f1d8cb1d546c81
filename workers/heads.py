"""The head of a classifier: which modules it is, how it starts, and in which precision it learns."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from wegeft.contracts.errors import BaseModelUnusable, shorten
from wegeft.contracts.job import TaskType

_HEADS = frozenset({"classifier", "score", "classification_head", "logits_proj"})
"""What transformers calls the modules that tell labels; ``head`` is timm's."""
_NEW_WITH_A_HEAD = _HEADS | {"pre_classifier", "pooler", "sequence_summary", "head"}
"""What a pretrained model may lack; anything else missing is a broken model."""
_TIMM_HEAD = "timm_model.head"


@dataclass(frozen=True, kw_only=True)
class Head:
    """The head that a job asks for."""

    task: TaskType
    labels: tuple[str, ...]
    """In the order of the outputs; none for a regression."""
    seed: int
    """Decides its first weights."""

    @property
    def outputs(self) -> int:
        """How many numbers it says of a row."""
        return len(self.labels) or 1


def split_missing(missing: Iterable[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that a pretrained model lacks and may lack, and the weights that it must have and lacks."""
    new, broken = set(), []
    for key in sorted(missing):
        parts = key.split(".")
        place = next((index for index, part in enumerate(parts) if part in _NEW_WITH_A_HEAD), None)
        if place is None:
            broken.append(key)
        else:
            new.add(".".join(parts[: place + 1]))
    return tuple(sorted(new)), tuple(broken)


def prepare_head(model: nn.Module, new: tuple[str, ...], seed: int) -> tuple[str, ...]:
    """Start the ``new`` modules by the seed alone, keep the head in float32, and return the names of the modules to train in full.

    Raises ``BaseModelUnusable`` if the model has no head that is known.
    """
    heads = [name for name, _ in model.named_children() if name in _HEADS]
    if _TIMM_HEAD in dict(model.named_modules()):
        heads.append(_TIMM_HEAD)
    if not heads:
        children = shorten(", ".join(name for name, _ in model.named_children()))
        raise BaseModelUnusable("its head is not one that is known", path="base_model", value=children, hint="open an issue with its name")
    generator = torch.Generator().manual_seed(seed)
    spread = float(getattr(model.config, "initializer_range", None) or 0.02)
    for name in new:
        _start(model.get_submodule(name), spread, generator)
    trained = tuple(sorted({*heads, *new}))
    for name in trained:
        _keep_in_float32(model.get_submodule(name))
    return trained


def _start(module: nn.Module, spread: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.dim() > 1:
                drawn = torch.empty(parameter.shape).normal_(0.0, spread, generator=generator)
                parameter.copy_(drawn)
            else:
                parameter.fill_(0.0 if name.rpartition(".")[2] == "bias" else 1.0)


def _keep_in_float32(module: nn.Module) -> None:
    """Steps of a small learning rate would vanish in the 8 bits of bfloat16."""
    if next(module.parameters()).dtype is not torch.float32:
        module.float()
        module.register_forward_pre_hook(_widen)


def _widen(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(given.float() if isinstance(given, Tensor) and given.is_floating_point() else given for given in inputs)
