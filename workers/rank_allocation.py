"""AdaLoRA's part in a step: the penalty that keeps its factors orthogonal, and the rank that it takes away and gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the allocator remembers of each parameter: sensitivity, its running mean, and the running mean of its spread."""
_PATTERN = "pattern"


class RankAllocation:
    """Moves the rank of one ``PeftModel`` with AdaLoRA. What it remembers is part of a checkpoint."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._config = model.peft_config["default"]
        self._allocator = model.base_model.rankallocator

    def penalty(self) -> Tensor:
        """Return what the loss grows by: the mean over all factors of ‖AAᵀ − I‖ or ‖BᵀB − I‖, weighted."""
        gaps = [_gap(p if "lora_A" in name else p.T) for name, p in self._factors()]
        return float(self._config.orth_reg_weight) * torch.stack(gaps).mean()

    def _factors(self) -> list[tuple[str, Tensor]]:
        found = self._model.base_model.model.named_parameters()
        return [(name, p) for name, p in found if "lora_A.default" in name or "lora_B.default" in name]

    def after_step(self, steps_done: int) -> None:
        """Take rank away where the schedule says so; the step's gradients must still be there."""
        self._model.base_model.update_and_allocate(steps_done)

    def settle(self) -> None:
        """Make what PEFT will save what the adapter is: it leaves masked rows out.

        Where they hold something again, as in an adapter of an earlier step, every row is kept; and a layer without any keeps one.
        """
        pattern: dict[str, list[bool]] = self._config.rank_pattern or {}
        values = {name: p for name, p in self._model.base_model.model.named_parameters() if "lora_E.default" in name}
        masked = {name: ~torch.tensor(kept, device=values[name].device) for name, kept in pattern.items()}
        if any(bool(values[name][rows].any()) for name, rows in masked.items()):
            self._config.rank_pattern = None
        else:
            self._config.rank_pattern = {name: kept if any(kept) else [True, *kept[1:]] for name, kept in pattern.items()} or None

    def state(self) -> dict[str, Tensor]:
        """Return what is remembered, by name."""
        found = {f"{kind}.{name}": tensor for kind in _KEPT for name, tensor in getattr(self._allocator, kind).items()}
        pattern = self._config.rank_pattern or {}
        return found | {f"{_PATTERN}.{name}": torch.tensor(kept) for name, kept in pattern.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Remember what ``state`` returned."""
        device = next(self._model.parameters()).device
        for kind in _KEPT:
            setattr(self._allocator, kind, {name: tensor.to(device) for name, tensor in _part(tensors, kind)})
        pattern = {name: kept.tolist() for name, kept in _part(tensors, _PATTERN)}
        self._config.rank_pattern = pattern or None


def _gap(factor: Tensor) -> Tensor:
    gap: Tensor = torch.linalg.norm(factor @ factor.T - torch.eye(factor.shape[0], device=factor.device, dtype=factor.dtype))
    return gap


def _part(tensors: Mapping[str, Tensor], kind: str) -> list[tuple[str, Tensor]]:
    return [(name.removeprefix(f"{kind}."), tensor) for name, tensor in tensors.items() if name.startswith(f"{kind}.")]


def allocation_of(model: Any) -> RankAllocation | None:
    """Return what moves the model's rank; None for a method whose rank stays where it is."""
    return RankAllocation(model) if hasattr(model.base_model, "rankallocator") else None
