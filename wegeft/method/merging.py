"""Folding an edit into a frozen weight, and out again without a copy of the weight."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from wegeft.contracts.errors import InvalidAdapterConfig
from wegeft.method.config import Transform

CONDITION_LIMIT = 1e4
"""Largest condition number of ``I + s·ψφ`` for which a merge is undone by solving; beyond it rounding would show in the weights."""


@dataclass(frozen=True, kw_only=True)
class Edit:
    """One generator as merging sees it: ``M = φψ`` with the scale folded into φ, both float32 or better, without gradients."""

    phi: Tensor
    psi: Tensor
    transform: Transform


def delta_weight(weight: Tensor, edit: Edit) -> Tensor:
    """Return ΔW (out×in): ``W φ ψ`` for the input form, ``φ ψ W`` for the output form. weight: out×in."""
    if edit.transform == "input":
        return (weight @ edit.phi) @ edit.psi
    return edit.phi @ (edit.psi @ weight)


def delta_bias(bias: Tensor, edit: Edit) -> Tensor | None:
    """Return Δb: ``φψb`` for the output form, which edits what the layer writes, bias included; None for the input form."""
    return edit.phi @ (edit.psi @ bias) if edit.transform == "output" else None


def join(edits: Sequence[Edit]) -> Edit:
    """Return one edit with ``M = ΣMᵢ``, its factors side by side; all must have one transform."""
    return Edit(
        phi=torch.cat([edit.phi for edit in edits], dim=1),
        psi=torch.cat([edit.psi for edit in edits], dim=0),
        transform=edits[0].transform,
    )


def unmerge(weight: Tensor, bias: Tensor | None, edit: Edit) -> tuple[Tensor, Tensor | None]:
    """Return the weight and bias from before ``edit`` was merged, by Woodbury's identity, never inverting more than rank×rank.

    ``W = W' − W'φ (I + ψφ)⁻¹ ψ`` for the input form and ``W = W' − φ (I + ψφ)⁻¹ ψ W'`` for the output form.
    Raises ``InvalidAdapterConfig`` if ``I + ψφ`` is singular or so ill-conditioned that the result would not be the old weight.
    """
    core = torch.eye(edit.psi.shape[0], dtype=edit.psi.dtype, device=edit.psi.device) + edit.psi @ edit.phi
    condition = float(torch.linalg.cond(core.double()))
    if not condition <= CONDITION_LIMIT:
        raise InvalidAdapterConfig(
            f"the merge cannot be undone: the edit's condition number {condition:.3g} exceeds {CONDITION_LIMIT:g}",
            hint="merge with keep_copy=True, or load the base model again",
        )
    if edit.transform == "input":
        return weight - (weight @ edit.phi) @ torch.linalg.solve(core, edit.psi), bias
    restored = weight - edit.phi @ torch.linalg.solve(core, edit.psi @ weight)
    return restored, None if bias is None else bias - edit.phi @ torch.linalg.solve(core, edit.psi @ bias)
